//! From a node's address to an open feed: TCP, TLS against the cluster's CA, WebSocket upgrade with token and
//! subprotocol.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use allowlist::codec::MAX_FRAME_BYTES;
use allowlist::feed::{ACCEPTS_HEADER, ACCEPTS_SOURCES, SUBPROTOCOL};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, handshake::client::Response};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::nodes::Node;
use crate::secret::Secret;

/// Most characters of a server's refusal that we repeat.
const MAX_DETAIL_CHARS: usize = 300;

/// An open feed.
pub(super) type FeedStream = WebSocketStream<TlsStream<TcpStream>>;

/// A feed, and what the server said of itself.
pub(super) struct Connected {
    pub(super) feed: FeedStream,
    /// The server reads reports of what source hosts move.
    pub(super) takes_sources: bool,
}

/// What a connection needs besides the node.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// File with the token.
    pub token_file: PathBuf,
    /// File with the servers' CA.
    pub ca_file: PathBuf,
}

/// Why there is no feed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Something on our side, to be mended here.
    #[error("{0}")]
    Local(String),
    /// Nobody answers at the address.
    #[error("connect to {node}: {reason}")]
    Unreachable {
        /// Whom.
        node: Node,
        /// Why.
        reason: String,
    },
    /// The peer did not prove that it belongs to our cluster.
    #[error("TLS with {node}: {reason}; does `ca_file` hold this cluster's ca.pem, and does the certificate bear the name `{}`?", node.url.host)]
    Tls {
        /// Whom.
        node: Node,
        /// Why.
        reason: String,
    },
    /// The server does not accept our token.
    #[error(
        "{node} refused our credentials ({status}): {detail}; `token_file` must hold a token with role gateway"
    )]
    Credentials {
        /// Who.
        node: Node,
        /// 401 or 403.
        status: StatusCode,
        /// What it said.
        detail: String,
    },
    /// The server does not speak our version of the feed.
    #[error("{node} does not speak `{SUBPROTOCOL}`: {reason}; upgrade the older side")]
    Subprotocol {
        /// Who.
        node: Node,
        /// What it said.
        reason: String,
    },
    /// The upgrade failed in another way.
    #[error("open the feed of {node} at `{}`: {reason}", node.url.path)]
    Upgrade {
        /// Who.
        node: Node,
        /// Why.
        reason: String,
    },
}

impl ConnectError {
    /// True when trying often will not help: somebody has to act.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Local(_) | Self::Credentials { .. } | Self::Subprotocol { .. } => true,
            Self::Unreachable { .. } | Self::Tls { .. } | Self::Upgrade { .. } => false,
        }
    }

    /// One word for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Local(_) => "local",
            Self::Unreachable { .. } => "unreachable",
            Self::Tls { .. } => "tls",
            Self::Credentials { .. } => "credentials",
            Self::Subprotocol { .. } => "subprotocol",
            Self::Upgrade { .. } => "upgrade",
        }
    }
}

impl Credentials {
    /// Reads both files, to find mistakes before anything is touched.
    ///
    /// # Errors
    /// [`ConnectError::Local`].
    pub fn check(&self) -> Result<(), ConnectError> {
        self.token()?;
        self.roots().map(drop)
    }

    fn token(&self) -> Result<Secret, ConnectError> {
        let text = read(&self.token_file, "token")?;
        let token = String::from_utf8_lossy(&text).trim().to_owned();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            let path = self.token_file.display();
            return Err(ConnectError::Local(format!(
                "token {path}: must hold one line, the token as it was shown when it was made"
            )));
        }
        Ok(Secret::new(token))
    }

    fn roots(&self) -> Result<RootCertStore, ConnectError> {
        let path = self.ca_file.display();
        let local = |reason: String| ConnectError::Local(format!("CA certificate {path}: {reason}"));
        let text = read(&self.ca_file, "CA certificate")?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&text) {
            let certificate = certificate.map_err(|error| local(format!("not PEM: {error}")))?;
            roots.add(certificate).map_err(|error| local(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(local("holds no certificate; copy ca.pem from a server's tls directory".to_owned()));
        }
        Ok(roots)
    }
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>, ConnectError> {
    std::fs::read(path)
        .map_err(|error| ConnectError::Local(format!("read {what} {}: {error}", path.display())))
}

/// Connects. `limit` holds for each of the three steps.
///
/// # Errors
/// [`ConnectError`], which names the node.
pub(super) async fn connect(
    node: &Node,
    credentials: &Credentials,
    limit: Duration,
) -> Result<Connected, ConnectError> {
    let token = credentials.token()?;
    let connector = connector(credentials)?;
    let unreachable =
        |error: io::Error| ConnectError::Unreachable { node: node.clone(), reason: error.to_string() };
    let tcp = within(limit, TcpStream::connect(node.address)).await.map_err(unreachable)?;
    // Frames are small and wait for nobody.
    tcp.set_nodelay(true).map_err(unreachable)?;
    let tls = |reason: String| ConnectError::Tls { node: node.clone(), reason };
    let name = ServerName::try_from(node.url.host.clone()).map_err(|error| tls(error.to_string()))?;
    let stream = within(limit, connector.connect(name, tcp)).await.map_err(|error| tls(error.to_string()))?;
    let upgrade = |reason: String| ConnectError::Upgrade { node: node.clone(), reason };
    let mut request = format!("wss://{}{}", node.url.authority(), node.url.path)
        .into_client_request()
        .map_err(|error| upgrade(error.to_string()))?;
    let mut bearer = HeaderValue::from_str(&format!("Bearer {}", token.reveal()))
        .map_err(|error| ConnectError::Local(error.to_string()))?;
    bearer.set_sensitive(true);
    request.headers_mut().insert(AUTHORIZATION, bearer);
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    let limits = WebSocketConfig::default()
        .max_frame_size(Some(MAX_FRAME_BYTES))
        .max_message_size(Some(MAX_FRAME_BYTES))
        .max_write_buffer_size(2 * MAX_FRAME_BYTES);
    match timeout(limit, client_async_with_config(request, stream, Some(limits))).await {
        Ok(Ok((feed, answer))) => Ok(Connected { feed, takes_sources: accepts(&answer, ACCEPTS_SOURCES) }),
        Ok(Err(error)) => Err(refusal(node, error)),
        Err(_) => Err(upgrade(format!("no answer within {} ms", limit.as_millis()))),
    }
}

fn connector(credentials: &Credentials) -> Result<TlsConnector, ConnectError> {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| ConnectError::Local(error.to_string()))?
        .with_root_certificates(credentials.roots()?)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn within<T>(limit: Duration, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, step).await.unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} ms", limit.as_millis())))
    })
}

fn refusal(node: &Node, error: tungstenite::Error) -> ConnectError {
    let node = node.clone();
    match error {
        tungstenite::Error::Http(response) => {
            let (status, detail) = (response.status(), detail(&response));
            match status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    ConnectError::Credentials { node, status, detail }
                }
                _ if detail.contains("subprotocol") => ConnectError::Subprotocol { node, reason: detail },
                _ => ConnectError::Upgrade { node, reason: format!("{status}: {detail}") },
            }
        }
        tungstenite::Error::Protocol(ProtocolError::SecWebSocketSubProtocolError(error)) => {
            ConnectError::Subprotocol { node, reason: error.to_string() }
        }
        other => ConnectError::Upgrade { node, reason: other.to_string() },
    }
}

/// True when the server's answer to the upgrade says that it reads these frames.
fn accepts(answer: &Response, frames: &str) -> bool {
    let lines = answer.headers().get_all(ACCEPTS_HEADER).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|name| name.trim() == frames)
}

/// What the server's answer says: the detail of its problem document (RFC 9457) or else its body, printable and cut
/// to a readable length.
fn detail(response: &Response) -> String {
    let body = response.body().as_deref().unwrap_or_default();
    let problem = serde_json::from_slice::<Problem>(body).map(|problem| problem.detail);
    let text = problem.unwrap_or_else(|_| String::from_utf8_lossy(body).into_owned());
    let text: String = text.chars().filter(|c| !c.is_control()).take(MAX_DETAIL_CHARS).collect();
    if text.is_empty() { "no reason given".to_owned() } else { text }
}

#[derive(Deserialize)]
struct Problem {
    detail: String,
}
