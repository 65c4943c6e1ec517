//! A cluster's server nodes as a gateway sees them: TLS, upgrade and frames on the real wire, in the test's hands.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test binary uses its own part of this module"
)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use allowlist::codec;
use allowlist::feed::{
    ACCEPTS_HEADER, Applied, CutReport, DeniedFlow, Hello, SUBPROTOCOL, SessionStart, ToGateway, ToServer,
    Welcome,
};
use allowlist::{Change, Element};
use futures_util::{SinkExt, StreamExt};
use gateway::config::{Config, FirewallKind, Metering, Unlisted};
use gateway::feed::Timings;
use gateway::firewall::fake::FakeFirewall;
use gateway::firewall::{DRAIN_IDLE, DRAIN_LIMIT, Policy};
use gateway::held::Held;
use gateway::run::{Parts, run};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Nothing a test waits for takes this long unless it is broken.
pub const DEADLINE: Duration = Duration::from_secs(20);
pub const TOKEN: &str = "og_gateway_0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
pub const CLUSTER: Uuid = Uuid::from_u128(42);

/// Waits, but not for ever.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

/// Asks again until `condition` gives something.
pub async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

pub fn element(last: u8) -> Element {
    Element::host(std::net::IpAddr::from([1, 1, 1, last]), None)
}

pub fn held(revision: u64, lasts: &[u8]) -> Held {
    Held::published(CLUSTER, revision, lasts.iter().map(|last| element(*last)).collect())
}

pub fn added(revision: u64, last: u8) -> Change {
    Change { revision, added: vec![element(last)], ..Change::default() }
}

/// A certificate authority and the directory with its ca.pem and the gateway's token.
pub struct Cluster {
    dir: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Cluster {
    pub fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        std::fs::write(dir.path().join("token"), TOKEN).unwrap();
        Self { dir, issuer }
    }

    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    pub fn token_file(&self) -> PathBuf {
        self.dir.path().join("token")
    }

    /// What a gateway of this cluster is started with, its servers and its metrics page aside.
    pub fn arguments(&self, state_dir: &Path) -> Vec<OsString> {
        let files = [
            ("--token-file", self.token_file()),
            ("--ca-file", self.ca_file()),
            ("--state-dir", state_dir.to_owned()),
        ];
        files.into_iter().flat_map(|(flag, path)| [flag.into(), path.into_os_string()]).collect()
    }

    /// A node on a port of its own.
    pub async fn server(&self) -> Server {
        self.server_with(|_| {}).await
    }

    /// A node with something else in its certificate.
    pub async fn server_with(&self, change: impl FnOnce(&mut CertificateParams)) -> Server {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(certificate.pem().as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let config =
            rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Server {
            listener,
            address,
            acceptor: TlsAcceptor::from(Arc::new(config)),
            subprotocol: SUBPROTOCOL,
            accepts: "",
        }
    }

    pub async fn servers(&self, count: usize) -> Vec<Server> {
        let mut servers = Vec::new();
        for _ in 0..count {
            servers.push(self.server().await);
        }
        servers
    }
}

/// One node, listening.
pub struct Server {
    listener: TcpListener,
    pub address: SocketAddr,
    acceptor: TlsAcceptor,
    pub subprotocol: &'static str,
    /// What it says it reads beyond the first release's frames.
    pub accepts: &'static str,
}

impl Server {
    pub fn url(&self) -> String {
        format!("wss://{}/ws", self.address)
    }

    /// The next session that gets through TLS and the upgrade.
    pub async fn accept(&self) -> Session {
        soon("a session", async {
            loop {
                if let Some(session) = Box::pin(self.try_accept()).await {
                    return session;
                }
            }
        })
        .await
    }

    /// Lets one gateway try; `None` when it did not get through.
    pub async fn try_accept(&self) -> Option<Session> {
        let (tcp, _) = self.listener.accept().await.unwrap();
        let stream = self.acceptor.accept(tcp).await.ok()?;
        let (subprotocol, accepts) = (self.subprotocol, self.accepts);
        #[allow(clippy::result_large_err, reason = "the callback's type is the library's")]
        let check = move |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
            let bearer = request.headers().get("authorization").and_then(|value| value.to_str().ok());
            if bearer != Some(&format!("Bearer {TOKEN}")) {
                let mut refusal = ErrorResponse::new(Some("the token is not known".to_owned()));
                *refusal.status_mut() = StatusCode::UNAUTHORIZED;
                return Err(refusal);
            }
            assert_eq!(request.headers().get("sec-websocket-protocol").unwrap(), SUBPROTOCOL);
            response.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(subprotocol));
            if !accepts.is_empty() {
                response.headers_mut().insert(ACCEPTS_HEADER, HeaderValue::from_static(accepts));
            }
            Ok(response)
        };
        let socket = accept_hdr_async(stream, check).await.ok()?;
        Some(Session { socket })
    }
}

/// The first node a gateway comes to, with the session.
pub async fn first(servers: &[Server]) -> (usize, Session) {
    let accepts = servers
        .iter()
        .enumerate()
        .map(|(index, server)| Box::pin(async move { (index, server.accept().await) }));
    futures_util::future::select_all(accepts).await.0
}

/// The server's side of one session.
pub struct Session {
    socket: WebSocketStream<TlsStream<TcpStream>>,
}

impl Session {
    pub async fn receive(&mut self) -> ToServer {
        soon("a frame", async {
            match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => codec::decode(&bytes).unwrap(),
                other => panic!("expected a frame, got {other:?}"),
            }
        })
        .await
    }

    /// The next frame; `None` when the gateway has gone.
    pub async fn next(&mut self) -> Option<ToServer> {
        soon("a frame or the end", async {
            match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => Some(codec::decode(&bytes).unwrap()),
                _ => None,
            }
        })
        .await
    }

    pub async fn hello(&mut self) -> Hello {
        match self.receive().await {
            ToServer::Hello(hello) => hello,
            other => panic!("expected a hello, got {other:?}"),
        }
    }

    /// The report of `revision`, whatever comes before it.
    pub async fn applied(&mut self, revision: u64) -> Applied {
        loop {
            if let ToServer::Applied(applied) = self.receive().await
                && applied.revision == revision
            {
                return applied;
            }
        }
    }

    /// The next report of cut flows.
    pub async fn cut(&mut self) -> CutReport {
        loop {
            if let ToServer::Cut(report) = self.receive().await {
                return report;
            }
        }
    }

    /// The next report of denied flows.
    pub async fn denied(&mut self) -> Vec<DeniedFlow> {
        loop {
            if let ToServer::Denied(flows) = self.receive().await {
                return flows;
            }
        }
    }

    /// What the gateway closes with.
    pub async fn closed(&mut self) -> Option<CloseFrame> {
        soon("a close frame", async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Close(frame))) => return frame,
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return None,
                }
            }
        })
        .await
    }

    /// Everything the gateway says until it closes.
    pub async fn rest(&mut self) -> Vec<ToServer> {
        soon("the end of the session", async {
            let mut frames = Vec::new();
            while let Some(Ok(message)) = self.socket.next().await {
                if let Message::Binary(bytes) = message {
                    frames.push(codec::decode(&bytes).unwrap());
                }
            }
            frames
        })
        .await
    }

    pub async fn send(&mut self, frame: ToGateway) {
        self.send_bytes(codec::encode(&frame).unwrap()).await.unwrap();
    }

    pub async fn send_bytes(&mut self, bytes: Vec<u8>) -> Result<(), Error> {
        self.socket.send(Message::Binary(bytes.into())).await
    }

    /// Sends a whole message one byte at a time, until it is through or the gateway has gone.
    pub async fn dribble(&mut self, payload: &[u8], pause: Duration) {
        // A final binary frame of up to 125 bytes, unmasked (RFC 6455, section 5.2).
        let header = [0x82, u8::try_from(payload.len()).unwrap()];
        let stream = self.socket.get_mut();
        for byte in header.iter().chain(payload) {
            if stream.write_all(&[*byte]).await.is_err() || stream.flush().await.is_err() {
                return;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Pings without a pause until the gateway has gone.
    pub async fn ping_on(&mut self) {
        soon("the gateway to leave", async {
            while self.socket.send(Message::Ping(b"still here".as_slice().into())).await.is_ok() {}
        })
        .await;
    }

    pub async fn welcome(&mut self, revision: u64, start: SessionStart) {
        let node = "server-1".to_owned();
        self.send(ToGateway::Welcome(Welcome { cluster: CLUSTER, node, revision, start })).await;
    }

    pub async fn snapshot(&mut self, of: &Held) {
        let elements = of.elements().iter().copied().collect();
        self.send(ToGateway::SnapshotPart { part: 0, elements }).await;
        self.send(ToGateway::SnapshotEnd { revision: of.revision(), digest: of.digest() }).await;
    }

    pub async fn change(&mut self, change: Change) {
        self.send(ToGateway::Change { change, more: false }).await;
    }

    pub async fn heartbeat(&mut self, of: &Held) {
        self.send(ToGateway::Heartbeat { revision: of.revision(), digest: of.digest() }).await;
    }

    /// Greets a gateway, sends it `held`, and waits until its kernel holds that.
    pub async fn bring_to(&mut self, held: &Held) {
        self.hello().await;
        self.welcome(held.revision(), SessionStart::Snapshot).await;
        self.snapshot(held).await;
        self.applied(held.revision()).await;
    }
}

/// A gateway over a fake kernel, in this process.
pub struct Gateway {
    pub kernel: FakeFirewall,
    pub metrics: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

pub struct Setup {
    pub config: Config,
    pub timings: Timings,
    pub kernel: FakeFirewall,
}

impl Setup {
    /// Long limits: a test that is about time shortens its own.
    pub fn new(cluster: &Cluster, servers: &[Server], state_dir: &Path) -> Self {
        let config = Config {
            name: "gw-1".to_owned(),
            servers: servers.iter().map(|server| Arc::new(server.url().parse().unwrap())).collect(),
            token_file: cluster.token_file(),
            ca_file: cluster.ca_file(),
            state_dir: state_dir.to_owned(),
            metrics: "127.0.0.1:0".parse().unwrap(),
            firewall: FirewallKind::Kernel,
            internal_cidrs: Vec::new(),
            ways: gateway::config::Ways::default(),
            unlisted: Unlisted {
                policy: Policy::default(),
                drain_idle: DRAIN_IDLE,
                drain_limit: DRAIN_LIMIT,
            },
            metering: Metering::default(),
        };
        let timings = Timings { silence: DEADLINE, connect: DEADLINE, ..Timings::default() };
        Self { config, timings, kernel: FakeFirewall::new() }
    }

    pub async fn start(self) -> Gateway {
        let listener = TcpListener::bind(self.config.metrics).await.unwrap();
        let metrics = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let parts = Parts { firewall: Box::new(self.kernel.clone()), listener, timings: self.timings };
        let task = tokio::spawn(run(self.config, parts, shutdown.clone()));
        Gateway { kernel: self.kernel, metrics, shutdown, task }
    }
}

impl Gateway {
    pub async fn stop(self) {
        self.shutdown.cancel();
        soon("the gateway's end", self.task).await.unwrap().unwrap();
    }

    /// Status line and body of a page.
    pub async fn page(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.metrics).await.unwrap();
        let request = format!("GET {path} HTTP/1.0\r\nHost: gw\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon("a page", stream.read_to_string(&mut answer)).await.unwrap();
        answer
    }

    /// The readiness page once it contains `words`.
    pub async fn ready_page_with(&self, words: &str) -> String {
        until(words, async || Some(self.page("/readyz").await).filter(|page| page.contains(words))).await
    }

    /// Waits until the kernel holds exactly these.
    pub async fn holds(&self, lasts: &[u8]) {
        let wanted = lasts.iter().map(|last| element(*last)).collect();
        until("the kernel to hold the set", async || (self.kernel.held() == wanted).then_some(())).await;
    }
}
