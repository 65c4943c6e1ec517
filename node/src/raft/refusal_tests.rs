//! Who is not let in: strangers, other clusters, the wrong node.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raft_store::NodeInfo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tracing_subscriber::fmt::MakeWriter;

use super::link::{CallError, Purpose};
use super::wire::{Refusal, Request, Response};
use crate::cluster::Cluster;

const PATIENCE: Duration = Duration::from_secs(20);

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// What was logged, as text.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Log {
    /// Of this process from now on. Each test has a process of its own.
    pub(crate) fn start() -> Self {
        let log = Self::default();
        let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
        let _ = tracing::subscriber::set_global_default(subscriber);
        log
    }

    pub(crate) async fn shows(&self, parts: &[&str]) {
        let deadline = deadline();
        loop {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            if text.lines().any(|line| parts.iter().all(|part| line.contains(part))) {
                return;
            }
            assert!(Instant::now() < deadline, "no line with {parts:?} in\n{text}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

pub(crate) async fn alone(dir: &Path) -> Cluster {
    Cluster::single_for_tests(dir).await.unwrap()
}

/// Two clusters of one whose certificates come from one CA.
async fn neighbours(first: &Path, second: &Path) -> (Cluster, Cluster) {
    let one = alone(first).await;
    std::fs::create_dir_all(second.join("tls")).unwrap();
    for file in ["ca.pem", "ca.key"] {
        std::fs::copy(first.join("tls").join(file), second.join("tls").join(file)).unwrap();
    }
    (one, alone(second).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_another_node_is_refused_by_name() {
    let log = Log::start();
    let dir = tempfile::tempdir().unwrap();
    let node = alone(dir.path()).await;
    let link = node.peers().link(&node.node().raft_address, Some(node.id() ^ 1), Purpose::Forward);
    let refused = link.call(Request::Status, deadline()).await.unwrap_err();
    let CallError::Refused { refusal, .. } = refused else { panic!("{refused}") };
    assert_eq!(refusal, Refusal::WrongTarget { mine: node.id(), yours: node.id() ^ 1 });
    let refused = "refused a peer's request";
    log.shows(&[refused, "peer=127.0.0.1:", "certificate=\"server-1\"", &format!("{:016x}", node.id() ^ 1)])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_from_another_cluster_is_refused_even_with_a_certificate_of_the_same_ca() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one, other) = neighbours(first.path(), second.path()).await;
    let link = one.peers().link(&other.node().raft_address, Some(other.id()), Purpose::Forward);
    let refused = link.call(Request::Status, deadline()).await.unwrap_err();
    let CallError::Refused { refusal: Refusal::WrongCluster { mine, yours }, .. } = refused else {
        panic!("{refused}")
    };
    assert_eq!(Some(mine), other.reader().state().cluster());
    assert_eq!(Some(yours), one.reader().state().cluster());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_certificate_of_another_ca_gets_no_connection() {
    let log = Log::start();
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one, stranger) = (alone(first.path()).await, alone(second.path()).await);
    let link = stranger.peers().link(&one.node().raft_address, None, Purpose::Forward);
    let refused = link.call(Request::Status, deadline()).await.unwrap_err();
    assert!(matches!(&refused, CallError::NotSent(reason) if reason.contains("ca.pem")), "{refused}");
    log.shows(&["refused a peer connection", "peer=127.0.0.1:"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_certificate_gets_no_answer() {
    let log = Log::start();
    let dir = tempfile::tempdir().unwrap();
    let node = alone(dir.path()).await;
    let mut roots = rustls::RootCertStore::empty();
    let pem = std::fs::read(dir.path().join("tls/ca.pem")).unwrap();
    let ca = <rustls::pki_types::CertificateDer as rustls::pki_types::pem::PemObject>::from_pem_slice(&pem)
        .unwrap();
    roots.add(ca).unwrap();
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    let stream = TcpStream::connect(&node.node().raft_address).await.unwrap();
    let name = crate::tls::server_name(&node.node().raft_address).unwrap();
    // In TLS 1.3 the client is done before the server has looked at its certificate.
    if let Ok(mut stream) = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        let mut answer = Vec::new();
        let read =
            timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection is closed");
        assert!(read.is_err() || answer.is_empty());
    }
    log.shows(&["refused a peer connection", "peer=127.0.0.1:"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_text_is_refused_and_the_node_goes_on() {
    let log = Log::start();
    let dir = tempfile::tempdir().unwrap();
    let node = alone(dir.path()).await;
    let mut stream = TcpStream::connect(&node.node().raft_address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: raft\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // A TLS alert at most, then the end.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection is closed");
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    log.shows(&["refused a peer connection", &format!("peer={}", stream.local_addr().unwrap())]).await;
    let link = node.peers().link(&node.node().raft_address, Some(node.id()), Purpose::Forward);
    assert!(matches!(link.call(Request::Status, deadline()).await, Ok(Response::Status(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_was_removed_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let node = alone(dir.path()).await;
    let removed = NodeInfo { name: "server-9".to_owned(), raft_address: "127.0.0.1:1".to_owned() };
    let refused = node.join_here(node.id() ^ 1, removed, false).await.unwrap_err();
    assert!(refused.to_string().contains("was removed from the cluster"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_cannot_take_the_name_of_one_that_is_alive() {
    let dir = tempfile::tempdir().unwrap();
    let node = alone(dir.path()).await;
    let namesake = NodeInfo { name: node.name().to_owned(), raft_address: "127.0.0.1:1".to_owned() };
    let refused = node.join_here(node.id() ^ 1, namesake, true).await.unwrap_err();
    assert!(refused.to_string().contains("is alive and has the same name"), "{refused}");
}
