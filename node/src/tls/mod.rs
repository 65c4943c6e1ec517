//! TLS for peers and feed from one directory: `ca.pem`, `ca.key`, and `<node>.pem`, `<node>.key` for each node.
//!
//! A directory without a CA gets a development CA on first start; several nodes may share the directory and agree on
//! one. Where people bring their own CA, `ca.pem` and the node's pair are enough.

mod authority;
mod files;
pub(crate) mod reason;
pub mod reload;
mod shown;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

pub(crate) use shown::Shown;
use shown::{Noting, expires_at_s};

/// The CA's certificate: what gateways and tools need.
pub const CA_CERT_FILE: &str = "ca.pem";
/// The CA's key: only needed where certificates are issued.
pub const CA_KEY_FILE: &str = "ca.key";

/// What went wrong with the TLS files, and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or written.
    #[error("{action} {path}: {source}")]
    Io {
        /// `read`, `write`, ….
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file holds something else than it should.
    #[error("{path} {problem}; {remedy}")]
    Unusable {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What would be right.
        remedy: &'static str,
    },
    /// A certificate could not be made.
    #[error("create certificate for {subject}: {source}")]
    Create {
        /// For whom.
        subject: String,
        /// Why.
        source: rcgen::Error,
    },
    /// The TLS library does not accept what was loaded.
    #[error("set up TLS with {path}: {message}")]
    Setup {
        /// The certificate in question.
        path: PathBuf,
        /// Why.
        message: String,
    },
}

/// Certificates of one node, checked, and the settings made of them. All clones see new ones at once; connections keep
/// what they began with.
#[derive(Clone)]
pub struct NodeTls {
    files: Arc<Files>,
    current: Arc<RwLock<Arc<Loaded>>>,
    verify_peer_names: bool,
}

/// Where certificates come from.
struct Files {
    dir: PathBuf,
    name: String,
    hosts: Vec<String>,
}

/// What was made of the files at one time.
struct Loaded {
    feed: Arc<ServerConfig>,
    peer_client: Arc<ClientConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
    certified: Arc<SingleCertAndKey>,
    /// End of the node's certificate and of the first CA to end, Unix seconds.
    expiry_s: (Option<i64>, Option<i64>),
}

impl std::fmt::Debug for NodeTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeTls")
    }
}

impl NodeTls {
    /// Makes what is missing in `dir`, and loads and checks the rest. `hosts` are the names and addresses under which
    /// the node is reached, besides `localhost`.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn prepare(dir: &Path, name: &str, hosts: &[&str]) -> Result<Self, TlsError> {
        authority::ensure(dir, name, hosts)?;
        let files = Files {
            dir: dir.to_owned(),
            name: name.to_owned(),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        };
        let loaded = Loaded::load(dir, name)?;
        Ok(Self {
            files: Arc::new(files),
            current: Arc::new(RwLock::new(Arc::new(loaded))),
            verify_peer_names: true,
        })
    }

    /// Whether a peer's certificate must name the member it says it is; it must unless this is used.
    #[must_use]
    pub fn verifying_peer_names(self, verify_peer_names: bool) -> Self {
        Self { verify_peer_names, ..self }
    }

    pub(crate) fn verifies_peer_names(&self) -> bool {
        self.verify_peer_names
    }

    /// Takes the files as they are now into use.
    ///
    /// # Errors
    /// [`TlsError`] when they do not fit together; what was in use stays.
    pub fn reload(&self) -> Result<(), TlsError> {
        let Files { dir, name, hosts } = &*self.files;
        let hosts: Vec<_> = hosts.iter().map(String::as_str).collect();
        let unusable = |problem, remedy| {
            Err(TlsError::Unusable { path: dir.join(format!("{name}.pem")), problem, remedy })
        };
        match examine(dir, name, &hosts, UnixTime::now())? {
            CertState::Good => {}
            CertState::Renew(reason) => {
                return unusable(
                    format!("cannot be used ({reason})"),
                    "issue a new one with the cluster's CA",
                );
            }
            CertState::NotYet(reason) => {
                return unusable(
                    format!("cannot be used yet ({reason})"),
                    "set this host's clock right, or bring a certificate that is valid now",
                );
            }
            CertState::Foreign(reason) => {
                return unusable(
                    format!("is not signed by {CA_CERT_FILE} beside it ({reason})"),
                    "put both CAs into ca.pem while certificates of both are in use",
                );
            }
        }
        let loaded = Arc::new(Loaded::load(dir, name)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(())
    }

    /// Issues the node's certificate anew when its end is near and the CA's key is there; makes no other file.
    ///
    /// # Errors
    /// [`TlsError`] when the files cannot be read or written.
    pub fn renew(&self) -> Result<(), TlsError> {
        let Files { dir, name, hosts } = &*self.files;
        let hosts: Vec<_> = hosts.iter().map(String::as_str).collect();
        authority::renew_when_due(dir, name, &hosts)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.files.dir
    }

    pub(crate) fn name(&self) -> &str {
        &self.files.name
    }

    /// End of the node's certificate and of the first CA to end, Unix seconds.
    pub fn expiry_s(&self) -> (Option<i64>, Option<i64>) {
        self.current().expiry_s
    }

    fn current(&self) -> Arc<Loaded> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// For gateways and browsers: only the server shows a certificate.
    pub fn feed(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current().feed)
    }

    /// For one peer that connects to this node: it must show a certificate of our CA, which is noted.
    pub(crate) fn peer_server(&self) -> Result<(Arc<ServerConfig>, Shown), rustls::Error> {
        let current = self.current();
        let shown = Shown::default();
        let verifier = Noting { inner: Arc::clone(&current.verifier), shown: shown.clone() };
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::clone(&current.certified) as _);
        Ok((Arc::new(config), shown))
    }

    /// For connections to peers: both sides show a certificate of our CA.
    pub fn peer_client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.current().peer_client)
    }
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())))
}

impl Loaded {
    fn load(dir: &Path, name: &str) -> Result<Self, TlsError> {
        let cert_path = dir.join(format!("{name}.pem"));
        let setup = |error: &dyn std::fmt::Display| TlsError::Setup {
            path: cert_path.clone(),
            message: error.to_string(),
        };
        let ca_path = dir.join(CA_CERT_FILE);
        let cas = certificates(&ca_path)?;
        let roots = Arc::new(roots(&ca_path)?);
        let chain = certificates(&cert_path)?;
        let key = private_key(&dir.join(format!("{name}.key")))?;
        let expiry_s = (chain.first().and_then(expires_at_s), cas.iter().filter_map(expires_at_s).min());

        let mut feed = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| setup(&error))?
            .with_no_client_auth()
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|error| setup(&error))?;
        // What the listener serves, and what WebSocket needs.
        feed.alpn_protocols = vec![b"http/1.1".to_vec()];

        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider())
            .build()
            .map_err(|error| setup(&error))?;
        let certified = CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider())
            .map_err(|error| setup(&error))?;
        let peer_client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| setup(&error))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|error| setup(&error))?;
        Ok(Self {
            feed: Arc::new(feed),
            peer_client: Arc::new(peer_client),
            verifier,
            certified: Arc::new(SingleCertAndKey::from(certified)),
            expiry_s,
        })
    }
}

/// The host of `host:port` as a name a certificate can be checked against.
///
/// # Errors
/// The text, when no certificate can carry it.
pub fn server_name(host_port: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(host_of(host_port).to_owned())
        .map_err(|_| format!("{host_port:?} has no host that a certificate can name"))
}

/// The host of `host:port`, without the brackets of an IPv6 address.
pub fn host_of(host_port: &str) -> &str {
    let host = host_port.rsplit_once(':').map_or(host_port, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for cert in certificates(path)? {
        roots.add(cert).map_err(|error| TlsError::Unusable {
            path: path.to_owned(),
            problem: format!("is not a CA certificate ({error})"),
            remedy: "put the PEM of the cluster's CA there",
        })?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    let certs = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    match certs {
        Ok(certs) if !certs.is_empty() => Ok(certs),
        Ok(_) => Err(not_a_certificate(path, "holds no certificate".to_owned())),
        Err(error) => Err(not_a_certificate(path, format!("is not PEM ({error})"))),
    }
}

fn not_a_certificate(path: &Path, problem: String) -> TlsError {
    let remedy = match path.file_name() {
        Some(name) if name == CA_CERT_FILE => "put the PEM of the cluster's CA there",
        _ => "put a PEM certificate there, or remove the file and its .key so that new ones are issued",
    };
    TlsError::Unusable { path: path.to_owned(), problem, remedy }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| TlsError::Unusable {
        path: path.to_owned(),
        problem: format!("holds no private key ({error})"),
        remedy: "put the PEM key of the certificate there, or remove both so that new ones are issued",
    })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Io { action: "read", path: path.to_owned(), source })
}

/// How a node's certificate stands.
enum CertState {
    Good,
    /// Ours, but over, or it lacks this name: a new one helps.
    Renew(String),
    /// Ours, for a later time.
    NotYet(String),
    /// Of another CA.
    Foreign(String),
}

/// Judges the node's certificate as of `at`.
fn examine(dir: &Path, name: &str, hosts: &[&str], at: UnixTime) -> Result<CertState, TlsError> {
    let path = dir.join(format!("{name}.pem"));
    judge(dir, &path, &certificates(&path)?, (name, hosts), at)
}

/// As [`examine`], for a chain that is, or is to be, at `path`.
fn judge(
    dir: &Path,
    path: &Path,
    chain: &[CertificateDer<'_>],
    (name, hosts): (&str, &[&str]),
    at: UnixTime,
) -> Result<CertState, TlsError> {
    let roots = roots(&dir.join(CA_CERT_FILE))?;
    let (leaf, intermediates) = match chain.split_first() {
        Some((leaf, rest)) => (leaf, rest),
        None => return Err(not_a_certificate(path, "holds no certificate".to_owned())),
    };
    let parsed = ParsedCertificate::try_from(leaf)
        .map_err(|error| not_a_certificate(path, format!("is no certificate ({error})")))?;
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
    match verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, at, algorithms) {
        Ok(()) => {}
        Err(rustls::Error::InvalidCertificate(
            error @ (rustls::CertificateError::Expired | rustls::CertificateError::ExpiredContext { .. }),
        )) => return Ok(CertState::Renew(error.to_string())),
        Err(rustls::Error::InvalidCertificate(
            error @ (rustls::CertificateError::NotValidYet
            | rustls::CertificateError::NotValidYetContext { .. }),
        )) => return Ok(CertState::NotYet(error.to_string())),
        Err(error) => return Ok(CertState::Foreign(error.to_string())),
    }
    for host in hosts.iter().chain([&name]) {
        let covered = match ServerName::try_from((*host).to_owned()) {
            Ok(host) => verify_server_name(&parsed, &host).is_ok(),
            // A name no certificate can carry (an underscore) is never asked for by a peer either.
            Err(_) => true,
        };
        if !covered {
            return Ok(CertState::Renew(format!("it does not name {host}")));
        }
    }
    Ok(CertState::Good)
}

#[cfg(test)]
mod tests;
