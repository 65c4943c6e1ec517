//! Server nodes that are slow, lie, flap or talk nonsense: what is held stays, the node is left, and nothing runs hot.
//!
//! Clocks play no part: no frame to a gateway bears a time, and every deadline is counted on the gateway's own monotonic
//! clock. The one thing that depends on the time of day is whether a certificate is valid.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use allowlist::codec::{self, FRAME_VERSION};
use allowlist::feed::{SessionStart, ToGateway, ToServer};
use allowlist::{Change, Element};
use common::{Cluster, Gateway, Server, Session, Setup, added, element, first, held, until};
use gateway::feed::session::MAX_RESYNCS_PER_SESSION;
use gateway::firewall::fake::Call;
use rcgen::date_time_ymd;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

/// Long enough for a loaded machine to send a frame, short enough to wait for.
const SHORT: Duration = Duration::from_millis(600);

impl Gateway {
    /// Waits until so many sessions ended for a reason.
    async fn left(&self, reason: &str, times: u32) {
        let line = format!("outputguard_feed_session_ends_total{{reason=\"{reason}\"}} {times}\n");
        until(&line, async || self.page("/metrics").await.contains(&line).then_some(())).await;
    }
}

/// A gateway that holds 1 and 2 at revision 5, in a session with one of two nodes; the other node.
async fn settled(
    servers: &mut Vec<Server>,
    change: impl FnOnce(&mut Setup),
    cluster: &Cluster,
    dir: &std::path::Path,
) -> (Gateway, Session, Server) {
    let mut setup = Setup::new(cluster, servers, dir);
    change(&mut setup);
    let gateway = setup.start().await;
    let (index, mut session) = first(servers).await;
    session.bring_to(&held(5, &[1, 2])).await;
    let other = servers.remove(1 - index);
    (gateway, session, other)
}

/// The gateway came to the other node with what it held before.
async fn moved_unharmed(gateway: Gateway, other: &Server) {
    assert_eq!(other.accept().await.hello().await.state, held(5, &[1, 2]).point());
    gateway.holds(&[1, 2]).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_node_that_dribbles_a_frame_byte_by_byte_is_left() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let mut servers = cluster.servers(2).await;
    let short = |setup: &mut Setup| setup.timings.silence = SHORT;
    let (gateway, mut session, other) = Box::pin(settled(&mut servers, short, &cluster, dir.path())).await;
    let frame = codec::encode(&ToGateway::Change { change: added(9, 3), more: false }).unwrap();
    // The last byte comes long after the deadline.
    Box::pin(session.dribble(&frame, SHORT / 4)).await;
    gateway.left("silence", 1).await;
    moved_unharmed(gateway, &other).await;
}

#[tokio::test]
async fn pings_without_a_pause_prove_nothing_and_hold_nobody() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let mut servers = cluster.servers(2).await;
    let short = |setup: &mut Setup| setup.timings.silence = SHORT;
    let (gateway, mut session, other) = Box::pin(settled(&mut servers, short, &cluster, dir.path())).await;
    Box::pin(session.ping_on()).await;
    gateway.left("silence", 1).await;
    moved_unharmed(gateway, &other).await;
}

#[tokio::test]
async fn a_snapshot_whose_parts_never_end_is_left() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let servers = cluster.servers(1).await;
    let mut setup = Setup::new(&cluster, &servers, dir.path());
    setup.timings.whole = SHORT;
    let gateway = setup.start().await;
    let mut session = servers[0].accept().await;
    session.hello().await;
    session.welcome(5, SessionStart::Snapshot).await;
    let mut part = 0;
    until("the session's end", async || {
        let frame = ToGateway::SnapshotPart { part, elements: Vec::new() };
        part += 1;
        session.send_bytes(codec::encode(&frame).unwrap()).await.err()
    })
    .await;
    gateway.left("never_whole", 1).await;
    assert!(gateway.kernel.held().is_empty());
    gateway.stop().await;
}

#[tokio::test]
async fn a_change_whose_parts_never_end_is_left_and_none_of_it_applied() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let mut servers = cluster.servers(2).await;
    let short = |setup: &mut Setup| setup.timings.whole = SHORT;
    let (gateway, mut session, other) = Box::pin(settled(&mut servers, short, &cluster, dir.path())).await;
    let part = codec::encode(&ToGateway::Change { change: added(9, 3), more: true }).unwrap();
    until("the session's end", async || session.send_bytes(part.clone()).await.err()).await;
    gateway.left("never_whole", 1).await;
    moved_unharmed(gateway, &other).await;
}

#[tokio::test]
async fn a_node_that_lies_about_its_digest_is_asked_a_few_times_and_left() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let mut servers = cluster.servers(2).await;
    let (gateway, mut session, other) = Box::pin(settled(&mut servers, |_| {}, &cluster, dir.path())).await;
    let mut asked = 0;
    loop {
        session.heartbeat(&held(5, &[1, 2, 3])).await;
        let request = loop {
            match session.next().await {
                Some(ToServer::ResyncRequest { .. }) => break true,
                Some(_) => {}
                None => break false,
            }
        };
        if !request {
            break;
        }
        asked += 1;
        // True in itself, but not to the heartbeats.
        session.snapshot(&held(5, &[1, 2])).await;
    }
    assert_eq!(asked, MAX_RESYNCS_PER_SESSION);
    gateway.left("disagrees", 1).await;
    let whole = |call: &Call| matches!(call, Call::Replace(elements) if elements.len() == 2);
    assert!(gateway.kernel.calls().iter().filter(|call| whole(call)).count() <= 1 + asked as usize);
    moved_unharmed(gateway, &other).await;
}

#[tokio::test]
async fn a_snapshot_that_is_not_what_its_digest_says_is_never_held() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let mut servers = cluster.servers(2).await;
    let (gateway, mut session, other) = Box::pin(settled(&mut servers, |_| {}, &cluster, dir.path())).await;
    session.heartbeat(&held(8, &[9])).await;
    session.send(ToGateway::SnapshotPart { part: 0, elements: vec![element(7)] }).await;
    session.send(ToGateway::SnapshotEnd { revision: 8, digest: held(8, &[9]).digest() }).await;
    gateway.left("disagrees", 1).await;
    moved_unharmed(gateway, &other).await;
}

#[tokio::test]
async fn a_frame_of_a_kind_that_came_later_closes_the_session_with_a_reason() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let mut servers = cluster.servers(2).await;
    let (gateway, mut session, other) = Box::pin(settled(&mut servers, |_| {}, &cluster, dir.path())).await;
    // One more than the last variant of `ToGateway`.
    session.send_bytes(vec![FRAME_VERSION, 6, 0, 0]).await.unwrap();
    let close = session.closed().await.unwrap();
    assert!(close.code == CloseCode::Protocol && close.reason.contains("malformed"), "{close:?}");
    moved_unharmed(gateway, &other).await;
}

#[tokio::test]
async fn garbage_within_a_snapshot_leaves_what_is_held() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let mut servers = cluster.servers(2).await;
    let (gateway, mut session, other) = Box::pin(settled(&mut servers, |_| {}, &cluster, dir.path())).await;
    session.heartbeat(&held(8, &[9])).await;
    session.send(ToGateway::SnapshotPart { part: 0, elements: vec![element(7)] }).await;
    session.send_bytes(vec![FRAME_VERSION, 1, 1, 255, 255]).await.unwrap();
    gateway.left("bad_frame", 1).await;
    moved_unharmed(gateway, &other).await;
}

#[tokio::test]
async fn a_revision_that_goes_back_is_refused() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let mut servers = cluster.servers(2).await;
    let (gateway, mut session, other) = Box::pin(settled(&mut servers, |_| {}, &cluster, dir.path())).await;
    session.change(Change { revision: 4, revoked: vec![element(1)], ..Change::default() }).await;
    gateway.left("protocol", 1).await;
    moved_unharmed(gateway, &other).await;
}

#[tokio::test]
async fn a_node_restored_from_an_older_backup_is_left_for_one_that_is_not_behind() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let mut servers = cluster.servers(2).await;
    let (gateway, session, other) = Box::pin(settled(&mut servers, |_| {}, &cluster, dir.path())).await;
    drop(session);
    let mut behind = other.accept().await;
    behind.hello().await;
    behind.welcome(3, SessionStart::Snapshot).await;
    gateway.left("node_behind", 1).await;
    moved_unharmed(gateway, &servers[0]).await;
}

#[tokio::test]
async fn what_is_not_globally_reachable_is_refused_and_reported_and_the_rest_applied() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let mut servers = cluster.servers(2).await;
    let (gateway, mut session, _) = Box::pin(settled(&mut servers, |_| {}, &cluster, dir.path())).await;
    let [private, all] = ["10.0.0.0/8", "0.0.0.0/0"].map(|net| Element::new(net.parse().unwrap(), None));
    session.change(Change { revision: 9, added: vec![all, element(3), private], ..Change::default() }).await;
    let refused: Vec<Element> =
        session.applied(9).await.refused.iter().map(|refused| refused.element).collect();
    assert_eq!(refused, [all, private]);
    gateway.holds(&[1, 2, 3]).await;
    session.change(Change { revision: 10, revoked: vec![all, private], ..Change::default() }).await;
    let applied = session.applied(10).await;
    assert_eq!((applied.digest, applied.refused), (held(10, &[1, 2, 3]).digest(), Vec::new()));
    gateway.stop().await;
}

#[tokio::test]
async fn an_element_given_twice_or_taken_twice_counts_once() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let mut servers = cluster.servers(2).await;
    let (gateway, mut session, _) = Box::pin(settled(&mut servers, |_| {}, &cluster, dir.path())).await;
    let twice = vec![element(3), element(3), element(1)];
    session.change(Change { revision: 9, added: twice, ..Change::default() }).await;
    assert_eq!(session.applied(9).await.digest, held(9, &[1, 2, 3]).digest());
    let gone = vec![element(3), element(3), element(77)];
    session.change(Change { revision: 10, revoked: gone.clone(), retired: gone, ..Change::default() }).await;
    assert_eq!(session.applied(10).await.digest, held(10, &[1, 2]).digest());
    gateway.holds(&[1, 2]).await;
    session.heartbeat(&held(11, &[1, 2])).await;
    session.applied(11).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_node_that_flaps_is_left_for_the_other_each_time() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let mut servers = cluster.servers(2).await;
    let (gateway, session, other) = Box::pin(settled(&mut servers, |_| {}, &cluster, dir.path())).await;
    drop(session);
    let (flapping, steady) = (other, &servers[0]);
    drop(flapping.accept().await);
    let mut session = steady.accept().await;
    assert_eq!(session.hello().await.state, held(5, &[1, 2]).point());
    session.welcome(5, SessionStart::Resume).await;
    session.heartbeat(&held(5, &[1, 2])).await;
    gateway.ready_page_with("in_sync").await;
    gateway.holds(&[1, 2]).await;
    gateway.stop().await;
}

#[tokio::test]
async fn nodes_of_another_cluster_behind_our_name_are_refused_and_ours_found() {
    let (cluster, theirs, dir) = (Cluster::new(), Cluster::new(), tempfile::tempdir().unwrap());
    let mut servers = vec![cluster.server().await, theirs.server().await];
    let gateway = Setup::new(&cluster, &servers, dir.path()).start().await;
    let stranger = servers.pop().unwrap();
    let ours = servers.pop().unwrap();
    let turned_away = tokio::spawn(async move {
        loop {
            assert!(Box::pin(stranger.try_accept()).await.is_none(), "a stranger got a session");
        }
    });
    ours.accept().await.bring_to(&held(5, &[1, 2])).await;
    let mut again = ours.accept().await;
    assert_eq!(again.hello().await.state, held(5, &[1, 2]).point());
    let refused = "outputguard_feed_connect_failures_total{reason=\"tls\"}";
    assert!(gateway.page("/metrics").await.contains(refused), "the stranger was asked in between");
    gateway.holds(&[1, 2]).await;
    gateway.stop().await;
    turned_away.abort();
}

#[tokio::test]
async fn a_certificate_whose_time_is_over_or_to_come_is_refused_and_said_so() {
    for (from, until, word) in [(1999, 2001, "expired"), (2190, 2199, "not valid yet")] {
        let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
        let servers = [cluster
            .server_with(|params| {
                params.not_before = date_time_ymd(from, 1, 1);
                params.not_after = date_time_ymd(until, 1, 1);
            })
            .await];
        let gateway = Setup::new(&cluster, &servers, dir.path()).start().await;
        assert!(Box::pin(servers[0].try_accept()).await.is_none());
        let page = gateway.ready_page_with("TLS with").await;
        assert!(page.contains(word), "{page}");
        gateway.stop().await;
    }
}
