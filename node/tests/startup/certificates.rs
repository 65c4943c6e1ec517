//! Certificates that are replaced while a server runs, seen by those who connect.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use time::OffsetDateTime;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::harness::{PATIENCE, Process, config, own_address, server};

const NAME: &str = "server-1";
const PORTS: [u16; 2] = [8443, 8081];

struct Running {
    dir: tempfile::TempDir,
    address: String,
    process: Process,
}

impl Running {
    /// A server that looks at its files for renewal every `renewal_s`, and for changes practically never.
    async fn start(renewal_s: u32) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (dir, address) = (tempfile::tempdir().unwrap(), own_address());
        let file = config(dir.path(), &address, NAME, &[]);
        let text = std::fs::read_to_string(&file).unwrap();
        let tls = format!("tls: {{ check_interval_s: 86400, renewal_interval_s: {renewal_s}, dir: ");
        std::fs::write(&file, text.replace("tls: { dir: ", &tls)).unwrap();
        let mut command = server();
        command.arg("--config").arg(file);
        let process = Process::start(command, &dir.path().join("log"));
        let running = Self { dir, address, process };
        running.becomes("it listens", async || running.connect(8443).await.is_ok()).await;
        running
    }

    fn tls(&self, file: &str) -> std::path::PathBuf {
        self.dir.path().join("tls").join(file)
    }

    async fn connect(&self, port: u16) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(self.tls("ca.pem")).map_err(std::io::Error::other)?;
        roots.add(ca).map_err(std::io::Error::other)?;
        let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let stream = TcpStream::connect((self.address.as_str(), port)).await?;
        let name = ServerName::try_from(self.address.clone()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// What the server shows to whoever connects now.
    async fn shown(&self, port: u16) -> CertificateDer<'static> {
        let stream = self.connect(port).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    }

    async fn becomes(&self, what: &str, mut reached: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !reached().await {
            assert!(Instant::now() < deadline, "never: {what}\n{}", self.process.said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Puts a certificate of the server's CA in the place of its own.
    fn replace_certificate(&self, days: i64) -> CertificateDer<'static> {
        let cert = issue(&self.dir.path().join("tls"), &self.address, days);
        std::fs::write(self.tls("server-1.key"), &cert.1).unwrap();
        std::fs::write(self.tls("server-1.pem"), &cert.0).unwrap();
        CertificateDer::from_pem_slice(cert.0.as_bytes()).unwrap()
    }
}

/// Certificate and key, PEM.
fn issue(tls: &Path, address: &str, days: i64) -> (String, String) {
    let read = |file: &str| std::fs::read_to_string(tls.join(file)).unwrap();
    let ca_key = KeyPair::from_pem(&read("ca.key")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.pem"), ca_key).unwrap();
    let mut params = CertificateParams::new(vec![NAME.to_owned(), address.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, NAME);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - time::Duration::days(1), now + time::Duration::days(days));
    let pair = KeyPair::generate().unwrap();
    (params.signed_by(&pair, &issuer).unwrap().pem(), pair.serialize_pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_takes_new_certificates_into_use_and_cuts_no_connection() {
    let running = Running::start(86_400).await;
    let before = [running.shown(PORTS[0]).await, running.shown(PORTS[1]).await];
    let mut open = running.connect(PORTS[0]).await.unwrap();
    let replaced = running.replace_certificate(300);
    // Nobody was told yet.
    assert_eq!([running.shown(PORTS[0]).await, running.shown(PORTS[1]).await], before);
    running.process.signal(Signal::SIGHUP);
    for port in PORTS {
        running.becomes("the new one is shown", async || running.shown(port).await == replaced).await;
    }
    // The connection from before is still served.
    use tokio::io::AsyncWriteExt as _;
    open.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    open.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // What cannot be used is told, and changes nothing.
    std::fs::write(running.tls("server-1.pem"), "garbage").unwrap();
    running.process.signal(Signal::SIGHUP);
    running.becomes("it says so", async || running.process.said().contains("the old ones stay in use")).await;
    assert_eq!(running.shown(PORTS[0]).await, replaced);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_our_own_ca_is_renewed_before_it_ends() {
    let running = Running::start(1).await;
    let first = running.shown(PORTS[0]).await;
    let ending = running.replace_certificate(5);
    for port in PORTS {
        running
            .becomes("a longer one is shown", async || {
                let shown = running.shown(port).await;
                shown != ending && shown != first && days_left(&shown) > 300
            })
            .await;
    }
    let on_disk = CertificateDer::from_pem_file(running.tls("server-1.pem")).unwrap();
    assert_eq!(on_disk, running.shown(PORTS[0]).await);
}

fn days_left(cert: &CertificateDer<'_>) -> i64 {
    let (_, cert) = x509_parser::parse_x509_certificate(cert).unwrap();
    (cert.validity().not_after.to_datetime() - OffsetDateTime::now_utc()).whole_days()
}
