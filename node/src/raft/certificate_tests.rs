//! Certificates that are wrong, and certificates that change.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use raft_store::NodeInfo;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::link::{CallError, Identity, Peers, Purpose};
use super::refusal_tests::{Log, alone};
use super::standing::Fence;
use super::wire::{Request, Response};
use crate::cluster::Cluster;
use crate::tls::NodeTls;
use crate::tls::reload::{Reloader, TlsMetrics};

const PATIENCE: Duration = Duration::from_secs(20);
const DAY: time::Duration = time::Duration::days(1);

struct Issued {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    pem: String,
    key_pem: String,
}

/// A certificate of the CA in `dir/tls`, valid from `from` to `until`, counted from now.
fn issue(dir: &Path, name: &str, from: time::Duration, until: time::Duration) -> Issued {
    let read = |file: &str| std::fs::read_to_string(dir.join("tls").join(file)).unwrap();
    let issuer =
        Issuer::from_ca_cert_pem(&read("ca.pem"), KeyPair::from_pem(&read("ca.key")).unwrap()).unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned(), "127.0.0.1".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    (params.not_before, params.not_after) =
        (OffsetDateTime::now_utc() + from, OffsetDateTime::now_utc() + until);
    let pair = KeyPair::generate().unwrap();
    let cert = params.signed_by(&pair, &issuer).unwrap();
    Issued {
        chain: vec![cert.der().clone()],
        key: PrivateKeyDer::from_pem_slice(pair.serialize_pem().as_bytes()).unwrap(),
        pem: cert.pem(),
        key_pem: pair.serialize_pem(),
    }
}

fn roots(dir: &Path) -> rustls::RootCertStore {
    let mut roots = rustls::RootCertStore::empty();
    for cert in CertificateDer::pem_file_iter(dir.join("tls/ca.pem")).unwrap() {
        roots.add(cert.unwrap()).unwrap();
    }
    roots
}

/// Connects to `node` with a certificate and returns when the node has ended it.
async fn knock(node: &Cluster, trust: &Path, shown: Issued) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(trust))
        .with_client_auth_cert(shown.chain, shown.key)
        .unwrap();
    let address = &node.node().raft_address;
    let stream = TcpStream::connect(address).await.unwrap();
    let name = crate::tls::server_name(address).unwrap();
    if let Ok(mut stream) = TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        let mut answer = Vec::new();
        let read =
            timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection is closed");
        assert!(read.is_err() || answer.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_with_a_wrong_certificate_is_refused_by_name_and_reason() {
    let log = Log::start();
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let node = alone(dir.path()).await;
    NodeTls::prepare(&elsewhere.path().join("tls"), "a", &[]).unwrap();
    let refused = |name: &str, reason: &str| {
        vec![
            "refused a peer connection".to_owned(),
            "peer=127.0.0.1:".to_owned(),
            format!("CN={name}"),
            reason.to_owned(),
        ]
    };
    for (shown, parts) in [
        (issue(dir.path(), "too-late", -10 * DAY, -DAY), refused("too-late", "has expired")),
        (issue(dir.path(), "too-early", DAY, 10 * DAY), refused("too-early", "is not valid yet")),
        (
            issue(elsewhere.path(), "stranger", -DAY, DAY),
            refused("stranger", "not signed by a CA in this node's ca.pem"),
        ),
    ] {
        knock(&node, dir.path(), shown).await;
        log.shows(&parts.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    let mut stream = TcpStream::connect(&node.node().raft_address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: raft\r\n\r\n").await.unwrap();
    log.shows(&["refused a peer connection", "certificate=\"none\"", "does not speak TLS"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_cannot_be_made_names_the_peer_and_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let node = alone(dir.path()).await;
    let reason = async |address: String| {
        let link = node.peers().link(&address, None, Purpose::Forward);
        match link.call(Request::Status, Instant::now() + PATIENCE).await {
            Err(CallError::NotSent(reason)) => {
                assert!(reason.contains(&address), "{reason}");
                reason
            }
            other => panic!("{other:?}"),
        }
    };
    for (shown, part) in [
        (issue(dir.path(), "late", -10 * DAY, -DAY), "its certificate has expired"),
        (issue(dir.path(), "early", DAY, 10 * DAY), "its certificate is not valid yet"),
    ] {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(shown.chain, shown.key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let peer = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            TlsAcceptor::from(Arc::new(config)).accept(stream).await.is_err()
        });
        let reason = reason(address).await;
        assert!(reason.contains(part), "{reason}");
        assert!(peer.await.unwrap(), "the handshake failed on both sides");
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let peer = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    });
    let reason = reason(address).await;
    assert!(reason.contains("does not speak TLS"), "{reason}");
    peer.await.unwrap();
}

/// The value of a metric on the page of `registry`.
fn value(registry: &Registry, series: &str) -> f64 {
    let page = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    let line =
        page.lines().find(|line| line.starts_with(series)).unwrap_or_else(|| panic!("{series} in\n{page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_files_are_taken_into_use_and_bad_ones_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let node = alone(dir.path()).await;
    let registry = Registry::new();
    let tls = node.peers().tls().clone();
    let mut reloader = Reloader::new(tls.clone(), TlsMetrics::new(&registry).unwrap());
    let (cert, key) = (dir.path().join("tls/server-1.pem"), dir.path().join("tls/server-1.key"));
    let expiry = "outputguard_tls_certificate_expiry_timestamp_seconds{certificate=\"node\"}";
    let before = value(&registry, expiry);

    let shorter = issue(dir.path(), "server-1", -DAY, 100 * DAY);
    std::fs::write(&key, &shorter.key_pem).unwrap();
    std::fs::write(&cert, &shorter.pem).unwrap();
    // Not before a second look sees the same.
    reloader.look(false);
    assert!((value(&registry, expiry) - before).abs() < 1.0);
    reloader.look(false);
    let now = value(&registry, expiry);
    assert!(now < before, "{now} {before}");

    // Garbage, an expired one, and one of another CA: what is in use stays.
    let elsewhere = tempfile::tempdir().unwrap();
    NodeTls::prepare(&elsewhere.path().join("tls"), "a", &[]).unwrap();
    let (late, foreign) =
        (issue(dir.path(), "server-1", -10 * DAY, -DAY), issue(elsewhere.path(), "server-1", -DAY, DAY));
    let feed = tls.feed();
    for (failed, (pem, key_pem)) in
        [("garbage", "garbage"), (&late.pem, &late.key_pem), (&foreign.pem, &foreign.key_pem)]
            .into_iter()
            .enumerate()
    {
        std::fs::write(&key, key_pem).unwrap();
        std::fs::write(&cert, pem).unwrap();
        reloader.look(true);
        let counted = value(&registry, "outputguard_tls_reloads_total{result=\"failed\"}");
        assert!((counted - (failed as f64 + 1.0)).abs() < 0.5, "{pem}: {counted}");
        assert!(Arc::ptr_eq(&feed, &tls.feed()), "{pem}");
        assert!((value(&registry, expiry) - now).abs() < 1.0);
    }
    let link = node.peers().link(&node.node().raft_address, Some(node.id()), Purpose::Vote);
    assert!(matches!(link.call(Request::Status, Instant::now() + PATIENCE).await, Ok(Response::Status(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_is_exchanged_without_a_restart() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let node = alone(dir.path()).await;
    NodeTls::prepare(&elsewhere.path().join("tls"), "a", &[]).unwrap();
    let mut reloader = Reloader::new(node.peers().tls().clone(), TlsMetrics::new(&Registry::new()).unwrap());
    let reaches = async |purpose| {
        let link = node.peers().link(&node.node().raft_address, Some(node.id()), purpose);
        matches!(link.call(Request::Status, Instant::now() + PATIENCE).await, Ok(Response::Status(_)))
    };
    let write = |file: &str, text: &str| std::fs::write(dir.path().join("tls").join(file), text).unwrap();
    let old = std::fs::read_to_string(dir.path().join("tls/ca.pem")).unwrap();
    let new = std::fs::read_to_string(elsewhere.path().join("tls/ca.pem")).unwrap();
    // Both are trusted, then the node's certificate is of the new one, then the old one goes. Each step is seen by a
    // connection that is made anew.
    write("ca.pem", &format!("{old}{new}"));
    reloader.look(true);
    assert!(reaches(Purpose::Forward).await);
    let issued = issue(elsewhere.path(), "server-1", -DAY, 300 * DAY);
    write("server-1.key", &issued.key_pem);
    write("server-1.pem", &issued.pem);
    reloader.look(true);
    assert!(reaches(Purpose::Vote).await);
    write("ca.pem", &new);
    reloader.look(true);
    assert!(reaches(Purpose::Append).await);
    // Who has a certificate of the old CA is a stranger now.
    let log = Log::start();
    std::fs::copy(dir.path().join("tls/ca.key"), dir.path().join("old.key")).unwrap();
    let old_ca = tempfile::tempdir().unwrap();
    std::fs::create_dir(old_ca.path().join("tls")).unwrap();
    std::fs::write(old_ca.path().join("tls/ca.pem"), &old).unwrap();
    std::fs::copy(dir.path().join("tls/ca.key"), old_ca.path().join("tls/ca.key")).unwrap();
    knock(&node, dir.path(), issue(old_ca.path(), "left-behind", -DAY, DAY)).await;
    log.shows(&["refused a peer connection", "CN=left-behind"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_names_another_node_does_not_speak_for_a_member() {
    let log = Log::start();
    let dir = tempfile::tempdir().unwrap();
    let node = alone(dir.path()).await;
    let member = NodeInfo { name: "server-2".to_owned(), raft_address: "192.0.2.2:8081".to_owned() };
    let id = node.id() ^ 1;
    node.raft().add_learner(id, member.clone(), false).await.unwrap();
    let call = async |name: &str, from, request: Request| {
        let tls = NodeTls::prepare(&dir.path().join("tls"), name, &[]).unwrap();
        let identity = Identity { id: from, reader: node.reader().clone() };
        let peers = Peers::new(identity, tls, Fence::default());
        let link = peers.link(&node.node().raft_address, Some(node.id()), Purpose::Forward);
        link.call(request, Instant::now() + PATIENCE).await
    };
    let nothing = || Request::Propose { operations: Vec::new(), timeout_ms: 1_000 };
    // It may ask.
    assert!(matches!(call("server-3", id, Request::Status).await, Ok(Response::Status(_))));
    let refused = call("server-3", id, nothing()).await.unwrap_err().to_string();
    for part in ["server-2 at 192.0.2.2:8081", "its certificate names [server-3]"] {
        assert!(refused.contains(part), "{refused}");
    }
    log.shows(&["refused a peer's request", "certificate=\"server-3\"", &format!("{id:016x}")]).await;
    assert!(matches!(call("server-2", id, nothing()).await, Ok(Response::Proposed(_))));
    // Nor for one that wants to become one.
    let newcomer = Request::Join { id: id ^ 2, node: member, pristine: true };
    let refused = call("server-3", id ^ 2, newcomer).await.unwrap_err().to_string();
    assert!(refused.contains("its certificate names [server-3]"), "{refused}");
    // An id that nobody knows cannot be checked.
    assert!(matches!(call("server-3", id ^ 2, nothing()).await, Ok(Response::Proposed(_))));
}
