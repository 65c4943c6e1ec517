//! The feed's client against server nodes on the real wire.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use allowlist::codec::{self, FRAME_VERSION, MAX_FRAME_BYTES};
use allowlist::feed::{GoawayReason, SessionStart, ToGateway, ToServer};
use common::{Cluster, Session, Setup, added, element, first, held, until};
use gateway::firewall::fake::Call;
use gateway::firewall::{DenialNews, DeniedPacket, ElementCounters, LogLoss, SourceSum};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

#[tokio::test]
async fn a_snapshot_and_then_changes_reach_the_kernel_and_are_reported() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let servers = cluster.servers(1).await;
    let gateway = Setup::new(&cluster, &servers, dir.path()).start().await;
    let mut session = servers[0].accept().await;
    let hello = session.hello().await;
    assert_eq!((hello.name.as_str(), hello.state), ("gw-1", None));
    session.welcome(5, SessionStart::Snapshot).await;
    session.snapshot(&held(5, &[1, 2])).await;
    let applied = session.applied(5).await;
    assert_eq!(applied.digest, held(5, &[1, 2]).digest());
    assert!(applied.refused.is_empty() && applied.kernel_us > 0);
    gateway.holds(&[1, 2]).await;

    session.change(added(9, 3)).await;
    session.applied(9).await;
    assert_eq!(gateway.kernel.calls().last(), Some(&Call::Apply(added(9, 3))), "a change, not a whole set");
    session.heartbeat(&held(12, &[1, 2, 3])).await;
    session.applied(12).await;
    gateway.ready_page_with("in_sync").await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_killed_node_is_left_for_the_next_and_the_session_resumes() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let mut servers = cluster.servers(2).await;
    let gateway = Setup::new(&cluster, &servers, dir.path()).start().await;
    let (index, mut session) = first(&servers).await;
    session.bring_to(&held(5, &[1])).await;
    servers.remove(index);
    drop(session);

    let mut session = servers[0].accept().await;
    let hello = session.hello().await;
    assert_eq!(hello.state, held(5, &[1]).point());
    session.welcome(7, SessionStart::Resume).await;
    assert_eq!(session.applied(5).await.digest, held(5, &[1]).digest(), "the new node learns what we hold");
    session.change(added(7, 2)).await;
    session.applied(7).await;
    gateway.holds(&[1, 2]).await;
    assert!(gateway.page("/metrics").await.contains("outputguard_feed_switches_total 1"));
    gateway.stop().await;
}

#[tokio::test]
async fn a_silent_node_is_left_although_its_link_stands() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let servers = cluster.servers(2).await;
    let mut setup = Setup::new(&cluster, &servers, dir.path());
    setup.timings.silence = Duration::from_millis(600);
    let gateway = setup.start().await;
    let (index, mut session) = first(&servers).await;
    session.bring_to(&held(5, &[1])).await;
    let close = session.closed().await.unwrap();
    assert!(close.reason.contains("no frame for 600 ms"), "{close:?}");
    let mut next = servers[1 - index].accept().await;
    assert_eq!(next.hello().await.state, held(5, &[1]).point());
    gateway.holds(&[1]).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_node_that_sends_heartbeats_but_no_snapshot_is_left() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let servers = cluster.servers(1).await;
    let mut setup = Setup::new(&cluster, &servers, dir.path());
    setup.timings.snapshot = Duration::from_millis(300);
    let gateway = setup.start().await;
    let mut session = servers[0].accept().await;
    session.hello().await;
    session.welcome(5, SessionStart::Snapshot).await;
    let heartbeat = codec::encode(&ToGateway::Heartbeat { revision: 5, digest: held(5, &[1]).digest() });
    let heartbeat = heartbeat.unwrap();
    until("the session's end", async || {
        // The gateway may have gone already.
        let _ = session.send_bytes(heartbeat.clone()).await;
        let ended = "outputguard_feed_session_ends_total{reason=\"snapshot_late\"} 1";
        gateway.page("/metrics").await.contains(ended).then_some(())
    })
    .await;
    gateway.stop().await;
}

/// Sends bytes nobody should; gives the gateway's close frame after it came to the other node.
async fn answer_to(bytes: Vec<u8>) -> (CloseCode, String) {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let servers = cluster.servers(2).await;
    let gateway = Setup::new(&cluster, &servers, dir.path()).start().await;
    let (index, mut session) = first(&servers).await;
    session.bring_to(&held(5, &[1])).await;
    // The gateway may close before it took everything.
    let _ = session.send_bytes(bytes).await;
    let close = session.closed().await.unwrap();
    let mut next: Session = servers[1 - index].accept().await;
    assert_eq!(next.hello().await.state, held(5, &[1]).point());
    gateway.holds(&[1]).await;
    gateway.stop().await;
    (close.code, close.reason.to_string())
}

#[tokio::test]
async fn garbage_closes_the_session_with_a_reason_and_the_next_node_is_asked() {
    let (code, reason) = Box::pin(answer_to(vec![FRAME_VERSION, 250, 250, 250])).await;
    assert!(code == CloseCode::Protocol && reason.contains("malformed"), "{code:?} {reason}");
}

#[tokio::test]
async fn a_frame_of_a_newer_version_closes_the_session_with_a_reason() {
    let (code, reason) = Box::pin(answer_to(vec![FRAME_VERSION + 1, 0])).await;
    assert!(code == CloseCode::Protocol && reason.contains("frame version 2"), "{code:?} {reason}");
}

#[tokio::test]
async fn an_oversize_frame_closes_the_session_with_a_reason() {
    let (code, reason) = Box::pin(answer_to(vec![FRAME_VERSION; MAX_FRAME_BYTES + 1])).await;
    assert!(code == CloseCode::Size && reason.contains("bytes"), "{code:?} {reason}");
}

#[tokio::test]
async fn a_draining_node_is_left_at_once_and_not_asked_again_soon() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let servers = cluster.servers(2).await;
    let gateway = Setup::new(&cluster, &servers, dir.path()).start().await;
    let (index, mut session) = first(&servers).await;
    session.bring_to(&held(5, &[1])).await;
    session.send(ToGateway::Goaway { reason: GoawayReason::Draining, retry_after_ms: 30_000 }).await;
    let mut next = servers[1 - index].accept().await;
    next.hello().await;
    drop(next);
    let mut again = servers[1 - index].accept().await;
    again.hello().await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_digest_that_differs_is_mended_by_a_snapshot_and_counted() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let servers = cluster.servers(1).await;
    let gateway = Setup::new(&cluster, &servers, dir.path()).start().await;
    let mut session = servers[0].accept().await;
    session.bring_to(&held(5, &[1])).await;
    session.heartbeat(&held(8, &[1, 2])).await;
    let reason = loop {
        if let ToServer::ResyncRequest { reason } = session.receive().await {
            break reason;
        }
    };
    assert!(reason.contains("digest"), "{reason}");
    session.snapshot(&held(8, &[1, 2])).await;
    session.applied(8).await;
    gateway.holds(&[1, 2]).await;
    assert!(gateway.page("/metrics").await.contains("outputguard_feed_resyncs_total{reason=\"digest\"} 1"));
    gateway.stop().await;
}

#[tokio::test]
async fn a_refused_token_is_said_on_the_readiness_page_and_what_is_held_stays() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    std::fs::write(cluster.token_file(), "og_gateway_wrong").unwrap();
    let servers = cluster.servers(1).await;
    let gateway = Setup::new(&cluster, &servers, dir.path()).start().await;
    assert!(Box::pin(servers[0].try_accept()).await.is_none());
    let page = gateway.ready_page_with("refused our credentials").await;
    assert!(page.contains("401") && page.contains("the token is not known"), "{page}");
    assert!(page.contains(&servers[0].address.to_string()) && !page.contains("og_gateway_wrong"), "{page}");
    gateway.stop().await;
}

#[tokio::test]
async fn a_server_of_another_cluster_is_refused_by_its_certificate() {
    let (ours, theirs, dir) = (Cluster::new(), Cluster::new(), tempfile::tempdir().unwrap());
    let servers = theirs.servers(1).await;
    let gateway = Setup::new(&ours, &servers, dir.path()).start().await;
    assert!(Box::pin(servers[0].try_accept()).await.is_none());
    let page = gateway.ready_page_with("TLS with").await;
    assert!(page.contains(&servers[0].address.to_string()) && page.contains("ca.pem"), "{page}");
    gateway.stop().await;
}

#[tokio::test]
async fn an_unknown_subprotocol_is_a_clear_error() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let mut servers = cluster.servers(1).await;
    servers[0].subprotocol = "outputguard.v9";
    let gateway = Setup::new(&cluster, &servers, dir.path()).start().await;
    Box::pin(servers[0].try_accept()).await;
    gateway.ready_page_with("does not speak `outputguard.v1`").await;
    gateway.stop().await;
}

#[tokio::test]
async fn traffic_is_reported_as_what_was_counted_since() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let servers = cluster.servers(1).await;
    let mut setup = Setup::new(&cluster, &servers, dir.path());
    setup.timings.traffic = Duration::from_millis(50);
    let gateway = setup.start().await;
    let mut session = servers[0].accept().await;
    session.bring_to(&held(5, &[1, 2])).await;
    let traffic = ElementCounters { packets_out: 3, bytes_out: 300, ..ElementCounters::zero(element(2)) };
    for _ in 0..2 {
        gateway.kernel.count(traffic);
        let deltas = loop {
            if let ToServer::Traffic(deltas) = session.receive().await {
                break deltas;
            }
        };
        assert_eq!(deltas.len(), 1);
        assert_eq!((deltas[0].element, deltas[0].packets_out, deltas[0].bytes_out), (element(2), 3, 300));
    }
    gateway.stop().await;
}

#[tokio::test]
async fn denied_packets_wait_for_a_server_and_are_told_once() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let servers = cluster.servers(1).await;
    let mut setup = Setup::new(&cluster, &servers, dir.path());
    setup.timings.denials = Duration::from_millis(50);
    let gateway = setup.start().await;
    let packet = |port| DeniedPacket {
        source: "10.0.0.7".parse().unwrap(),
        destination: "9.9.9.9".parse().unwrap(),
        protocol: 6,
        port,
    };
    gateway.ready_page_with("\"denied_log\":{\"ok\":false").await;
    gateway.kernel.tell_denial(DenialNews::Up);
    for port in [443, 443, 80] {
        gateway.kernel.tell_denial(DenialNews::Packet(packet(port)));
    }
    gateway.kernel.tell_denial(DenialNews::Lost(LogLoss::Overrun, 7));
    let mut session = servers[0].accept().await;
    session.hello().await;
    session.welcome(5, SessionStart::Snapshot).await;
    let mut flows = session.denied().await;
    flows.sort_by_key(|flow| flow.port);
    let said: Vec<_> = flows.iter().map(|flow| (flow.source.to_string(), flow.port, flow.packets)).collect();
    assert_eq!(said, [("10.0.0.7".to_owned(), 80, 1), ("10.0.0.7".to_owned(), 443, 2)]);
    gateway.kernel.tell_denial(DenialNews::Packet(packet(443)));
    let flows = session.denied().await;
    assert_eq!(flows.iter().map(|flow| (flow.port, flow.packets)).collect::<Vec<_>>(), [(443, 1)]);

    let page = gateway.page("/metrics").await;
    for line in [
        "outputguard_denied_log_packets_total{family=\"ipv4\"} 4",
        "outputguard_denied_log_lost_total{reason=\"overrun\"} 7",
        "outputguard_denied_log_up 1",
    ] {
        assert!(page.contains(line), "{line} in {page}");
    }
    gateway.kernel.tell_denial(DenialNews::Down("group 100 is taken".to_owned()));
    gateway.ready_page_with("group 100 is taken").await;
    gateway.stop().await;
}

#[tokio::test]
async fn what_sources_move_is_told_to_servers_that_read_it_and_kept_for_them() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let old = [cluster.server().await];
    let mut setup = Setup::new(&cluster, &old, dir.path());
    setup.timings.traffic = Duration::from_millis(30);
    let sum = SourceSum { packets_out: 1, bytes_out: 60, packets_in: 2, bytes_in: 3_000 };
    setup.kernel.moved([10, 1, 0, 7].into(), Some(element(1)), sum);
    setup.kernel.moved([10, 1, 0, 8].into(), None, sum);
    let gateway = setup.start().await;
    let page = until("the sums", async || {
        Some(gateway.page("/metrics").await).filter(|page| page.contains("source=\"10.1.0.7\""))
    })
    .await;
    assert!(
        page.contains("outputguard_source_bytes_total{direction=\"in\",source=\"10.1.0.7\"} 3000"),
        "{page}"
    );
    assert!(
        page.contains("outputguard_source_bytes_total{direction=\"in\",source=\"other\"} 3000"),
        "{page}"
    );

    // An older server would end the session over a frame that it cannot read.
    let mut session = old[0].accept().await;
    session.bring_to(&held(5, &[1])).await;
    gateway.kernel.count(ElementCounters { bytes_out: 5, ..ElementCounters::zero(element(1)) });
    loop {
        match session.receive().await {
            ToServer::Traffic(_) => break,
            ToServer::Sources(lines) => panic!("told an old server {lines:?}"),
            _ => {}
        }
    }
    gateway.kernel.count(ElementCounters { bytes_out: 6, ..ElementCounters::zero(element(1)) });
    while !matches!(session.receive().await, ToServer::Traffic(_)) {}
    drop(session);
    let mut new = old;
    new[0].accepts = "something, sources";
    let mut session = new[0].accept().await;
    session.hello().await;
    session.welcome(5, SessionStart::Resume).await;
    let lines = loop {
        if let ToServer::Sources(lines) = session.receive().await {
            break lines;
        }
    };
    let said: Vec<_> = lines.iter().map(|line| (line.source, line.element, line.bytes_in)).collect();
    let both = [([10, 1, 0, 7].into(), Some(element(1))), ([10, 1, 0, 8].into(), None)];
    assert_eq!(said, both.map(|(source, element)| (Some(source), element, 3_000)));
    gateway.stop().await;
}
