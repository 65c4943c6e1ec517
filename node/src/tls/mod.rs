//! TLS for peers and feed from one directory: `ca.pem`, `ca.key`, and `<node>.pem`, `<node>.key` for each node.
//!
//! A directory without a CA gets a development CA on first start; several nodes may share the directory and agree on
//! one. Where people bring their own CA, `ca.pem` and the node's pair are enough.

mod authority;
mod files;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

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

/// Certificates of one node, checked, and the settings made of them.
#[derive(Clone)]
pub struct NodeTls {
    feed: Arc<ServerConfig>,
    peer_server: Arc<ServerConfig>,
    peer_client: Arc<ClientConfig>,
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
        Self::load(dir, name)
    }

    fn load(dir: &Path, name: &str) -> Result<Self, TlsError> {
        let cert_path = dir.join(format!("{name}.pem"));
        let setup = |error: &dyn std::fmt::Display| TlsError::Setup {
            path: cert_path.clone(),
            message: error.to_string(),
        };
        let roots = Arc::new(roots(&dir.join(CA_CERT_FILE))?);
        let chain = certificates(&cert_path)?;
        let key = private_key(&dir.join(format!("{name}.key")))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());

        let mut feed = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| setup(&error))?
            .with_no_client_auth()
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|error| setup(&error))?;
        // What the listener serves, and what WebSocket needs.
        feed.alpn_protocols = vec![b"http/1.1".to_vec()];

        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|error| setup(&error))?;
        let peer_server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| setup(&error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|error| setup(&error))?;
        let peer_client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| setup(&error))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|error| setup(&error))?;
        Ok(Self {
            feed: Arc::new(feed),
            peer_server: Arc::new(peer_server),
            peer_client: Arc::new(peer_client),
        })
    }

    /// For gateways and browsers: only the server shows a certificate.
    pub fn feed(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.feed)
    }

    /// For peers that connect to this node: they must show a certificate of our CA.
    pub fn peer_server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.peer_server)
    }

    /// For connections to peers: both sides show a certificate of our CA.
    pub fn peer_client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.peer_client)
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
    /// Of another CA.
    Foreign(String),
}

fn examine(dir: &Path, name: &str, hosts: &[&str]) -> Result<CertState, TlsError> {
    let path = dir.join(format!("{name}.pem"));
    let roots = roots(&dir.join(CA_CERT_FILE))?;
    let chain = certificates(&path)?;
    let (leaf, intermediates) = match chain.split_first() {
        Some((leaf, rest)) => (leaf, rest),
        None => return Err(not_a_certificate(&path, "holds no certificate".to_owned())),
    };
    let parsed = ParsedCertificate::try_from(leaf)
        .map_err(|error| not_a_certificate(&path, format!("is no certificate ({error})")))?;
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
    let until = UnixTime::since_unix_epoch(std::time::Duration::from_secs(
        UnixTime::now().as_secs() + authority::RENEW_BEFORE_S,
    ));
    match verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, until, algorithms) {
        Ok(()) => {}
        Err(rustls::Error::InvalidCertificate(
            error @ (rustls::CertificateError::Expired | rustls::CertificateError::ExpiredContext { .. }),
        )) => return Ok(CertState::Renew(error.to_string())),
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
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn prepare(dir: &Path, name: &str) -> Result<NodeTls, String> {
        NodeTls::prepare(dir, name, &["10.1.0.1"]).map_err(|error| error.to_string())
    }

    #[test]
    fn nodes_that_start_at_once_in_one_directory_agree_on_one_ca() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            let starts: Vec<_> = (0..8)
                .map(|node| {
                    let dir = dir.path();
                    scope.spawn(move || prepare(dir, &format!("server-{node}")))
                })
                .collect();
            for start in starts {
                start.join().unwrap().unwrap();
            }
        });
        for node in 0..8 {
            assert!(
                matches!(
                    examine(dir.path(), &format!("server-{node}"), &["10.1.0.1", "localhost", "127.0.0.1"]),
                    Ok(CertState::Good)
                ),
                "server-{node}"
            );
        }
        let leftovers: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("tmp"))
            .collect();
        assert_eq!(leftovers, Vec::<String>::new());
    }

    #[test]
    fn keys_are_readable_by_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path(), "a").unwrap();
        for file in ["ca.key", "a.key"] {
            let mode = std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn starting_again_keeps_the_certificates() {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path(), "a").unwrap();
        let before = std::fs::read(dir.path().join("a.pem")).unwrap();
        prepare(dir.path(), "a").unwrap();
        assert_eq!(std::fs::read(dir.path().join("a.pem")).unwrap(), before);
    }

    #[test]
    fn a_new_address_gets_a_new_certificate_of_the_same_ca() {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path(), "a").unwrap();
        let ca = std::fs::read(dir.path().join("ca.pem")).unwrap();
        NodeTls::prepare(dir.path(), "a", &["10.9.9.9"]).unwrap();
        assert!(matches!(examine(dir.path(), "a", &["10.9.9.9"]), Ok(CertState::Good)));
        assert_eq!(std::fs::read(dir.path().join("ca.pem")).unwrap(), ca);
    }

    #[test]
    fn a_ca_without_its_key_and_without_a_node_certificate_says_what_to_bring() {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path(), "a").unwrap();
        std::fs::remove_file(dir.path().join("ca.key")).unwrap();
        prepare(dir.path(), "a").unwrap();
        let error = prepare(dir.path(), "b").unwrap_err();
        assert!(error.contains("b.pem") && error.contains("ca.key"), "{error}");
    }

    #[test]
    fn a_certificate_of_another_ca_is_refused_and_named() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        prepare(ours.path(), "a").unwrap();
        prepare(theirs.path(), "a").unwrap();
        for file in ["a.pem", "a.key"] {
            std::fs::copy(theirs.path().join(file), ours.path().join(file)).unwrap();
        }
        let error = prepare(ours.path(), "a").unwrap_err();
        assert!(error.contains("a.pem") && error.contains("ca.pem"), "{error}");
    }

    #[test]
    fn garbage_in_a_file_names_the_file() {
        for file in ["ca.pem", "ca.key", "a.pem", "a.key"] {
            let dir = tempfile::tempdir().unwrap();
            prepare(dir.path(), "a").unwrap();
            std::fs::write(dir.path().join(file), "garbage").unwrap();
            // The CA's key is only read where something is issued.
            let name = if file == "ca.key" { "b" } else { "a" };
            let error = prepare(dir.path(), name).unwrap_err();
            assert!(error.contains(file), "{file}: {error}");
        }
    }

    #[test]
    fn a_half_made_ca_is_completed() {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path(), "a").unwrap();
        std::fs::remove_file(dir.path().join("ca.pem")).unwrap();
        prepare(dir.path(), "a").unwrap();
        prepare(dir.path(), "b").unwrap();
    }
}
