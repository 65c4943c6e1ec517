//! The feed when something is wrong: each session ends with a reason, and none disturbs another.

use std::time::Duration;

use allowlist::codec::{FRAME_VERSION, MAX_FRAME_BYTES};
use allowlist::feed::{FeedState, GoawayReason, SUBPROTOCOL};
use allowlist::{Digest, codec};
use futures_util::SinkExt;
use node::api::Transport;
use node::feed::Limits;
use raft_store::command::Role;
use reqwest::Method;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::feed::big_entries;
use crate::gateway::{Ended, Gateway, ended, hello, open, refusal, request, say};
use crate::harness::{Server, eventually};

#[tokio::test]
async fn only_gateways_with_the_right_subprotocol_come_in() {
    let server = Server::start().await;
    let token = server.token("gw", Role::Gateway).await;
    let viewer = server.token("eye", Role::Viewer).await;
    let refused = async |token: Option<&str>, subprotocol: Option<&str>| {
        refusal(&server, request(&server, token, subprotocol)).await
    };
    let is = |status: u16, code: &str| (status, code.to_owned());
    assert_eq!(refused(Some(&token), None).await, is(400, "unknown_subprotocol"));
    assert_eq!(refused(Some(&token), Some("outputguard.v9, chat")).await, is(400, "unknown_subprotocol"));
    assert_eq!(refused(Some(&viewer), Some(SUBPROTOCOL)).await, is(403, "forbidden"));
    assert_eq!(refused(None, Some(SUBPROTOCOL)).await, is(401, "unauthorized"));
    let mut foreign = request(&server, Some(&token), Some(SUBPROTOCOL));
    foreign.headers_mut().insert("origin", "https://evil.example".parse().unwrap());
    assert_eq!(refusal(&server, foreign).await, is(403, "bad_origin"));
    let plain_get = server.get("/ws").await;
    crate::harness::problem(plain_get, 400, "not_websocket").await;
}

#[tokio::test]
async fn the_plain_listener_has_no_feed() {
    let server = Server::start_with(Transport::Plain, Limits::default()).await;
    let token = server.token("gw", Role::Gateway).await;
    let refused = refusal(&server, request(&server, Some(&token), Some(SUBPROTOCOL))).await;
    assert_eq!(refused, (403, "tls_required".to_owned()));
}

#[tokio::test]
async fn a_frame_that_breaks_the_protocol_ends_the_session_with_the_reason() {
    let server = Server::start().await;
    let token = server.token("gw", Role::Gateway).await;
    let good = codec::encode(&hello("gw-1", None)).unwrap();
    let mut truncated = good.clone();
    truncated.truncate(good.len() - 2);
    let mut newer = good.clone();
    newer[0] = FRAME_VERSION + 1;
    let mut trailing = good.clone();
    trailing.push(0);
    let oversize = vec![FRAME_VERSION; MAX_FRAME_BYTES + 1];
    let named = codec::encode(&hello("", None)).unwrap();
    for (message, code, says) in [
        (Message::Binary(truncated.into()), 1002, "malformed frame"),
        (Message::Binary(newer.into()), 1002, "frame version 2"),
        (Message::Binary(trailing.into()), 1002, "after the end"),
        (Message::Binary(Vec::new().into()), 1002, "empty frame"),
        (Message::Binary(named.into()), 1002, "name"),
        (Message::Binary(oversize.into()), 1009, "1048576"),
        (Message::text("hello"), 1003, "binary"),
    ] {
        let mut socket = open(&server, &token).await;
        socket.send(message).await.unwrap();
        let Ended { goaway, code: closed, reason } = ended(&mut socket).await;
        assert_eq!(goaway, Some(GoawayReason::Protocol), "{says}: {reason}");
        assert_eq!(closed, code, "{says}: {reason}");
        assert!(reason.contains(says), "{says}: {reason}");
    }
    // In the middle of a session as well.
    let mut socket = open(&server, &token).await;
    say(&mut socket, &hello("gw-1", None)).await;
    say(&mut socket, &hello("gw-1", None)).await;
    let end = ended(&mut socket).await;
    assert_eq!(
        (end.goaway, end.reason.as_str()),
        (Some(GoawayReason::Protocol), "a second hello in one session")
    );
    eventually("no session is left", async || server.sessions.snapshot().is_empty()).await;
}

#[tokio::test]
async fn a_connection_without_a_hello_is_closed() {
    let limits = Limits { hello_timeout: Duration::from_millis(50), ..Limits::default() };
    let server = Server::start_with(Transport::Tls, limits).await;
    let token = server.token("gw", Role::Gateway).await;
    let end = ended(&mut open(&server, &token).await).await;
    assert!(end.reason.contains("no hello within 50 ms"), "{end:?}");
}

#[tokio::test]
async fn a_second_session_of_the_same_name_ends_the_first() {
    let server = Server::start().await;
    let token = server.token("gw", Role::Gateway).await;
    let mut first = Gateway::connect(&server, &token, "gw-1").await;
    let mut second = Gateway::connect(&server, &token, "gw-1").await;
    assert_eq!(first.ended().await.goaway, Some(GoawayReason::Replaced));
    server.add(json!({"target": "9.9.9.9"})).await;
    second.beat_at(server.cluster.reader().state().revision()).await;
    assert_eq!(second.set.len(), 1);
    assert_eq!(server.sessions.snapshot().len(), 1);
}

#[tokio::test]
async fn a_node_behind_its_gateway_lets_it_go_instead_of_turning_it_back() {
    let server = Server::start().await;
    let token = server.token("gw", Role::Gateway).await;
    let here = server.cluster.reader().state();
    let ahead = FeedState {
        cluster: here.cluster().unwrap(),
        revision: here.revision() + 1_000,
        digest: Digest::default(),
    };
    let mut socket = open(&server, &token).await;
    say(&mut socket, &hello("gw-1", Some(ahead))).await;
    assert_eq!(ended(&mut socket).await.goaway, Some(GoawayReason::Lagging));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_never_reads_is_cut_and_others_do_not_notice() {
    let limits = Limits {
        write_timeout: Duration::from_secs(1),
        goodbye: Duration::from_millis(100),
        ..Limits::default()
    };
    let server = Server::start_with(Transport::Tls, limits).await;
    let token = server.token("gw", Role::Gateway).await;
    let mut reading = Gateway::connect(&server, &token, "reads").await;
    let mut stuck = open(&server, &token).await;
    say(&mut stuck, &hello("stuck", None)).await;
    let listed = |name: &str| server.sessions.snapshot().iter().any(|gateway| gateway.name == name);
    eventually("the stuck gateway is connected", async || listed("stuck")).await;

    server.propose(big_entries(25)).await;
    reading.beat_at(server.cluster.reader().state().revision()).await;
    assert_eq!(reading.set.len(), 25_000);
    eventually("the stuck gateway is cut", async || !listed("stuck")).await;
    let cut = "outputguard_feed_session_ends_total{reason=\"too_slow\"}";
    assert_eq!(server.metric(cut).await, 1.0);
    assert!(listed("reads"));
}

#[tokio::test]
async fn a_gateway_that_gives_no_sign_of_life_is_cut() {
    let limits = Limits {
        heartbeat: Duration::from_millis(20),
        silence: Duration::from_millis(100),
        goodbye: Duration::from_millis(100),
        ..Limits::default()
    };
    let server = Server::start_with(Transport::Tls, limits).await;
    let token = server.token("gw", Role::Gateway).await;
    let mut silent = open(&server, &token).await;
    say(&mut silent, &hello("silent", None)).await;
    let cut = "outputguard_feed_session_ends_total{reason=\"silent\"}";
    eventually("the silent gateway is cut", async || server.metric(cut).await == 1.0).await;
}

#[tokio::test]
async fn removing_its_token_ends_a_gateways_session() {
    let server = Server::start().await;
    let token = server.token("gw", Role::Gateway).await;
    let mut gateway = Gateway::connect(&server, &token, "gw-1").await;
    server.request(Method::DELETE, "/api/v1/tokens/gw").send().await.unwrap();
    let end = gateway.ended().await;
    assert_eq!((end.goaway, end.reason.as_str()), (None, "the token was removed"));
    assert_eq!(refusal(&server, request(&server, Some(&token), Some(SUBPROTOCOL))).await.0, 401);
}

#[tokio::test]
async fn a_draining_node_says_goodbye_and_lets_nobody_in() {
    let server = Server::start().await;
    let token = server.token("gw", Role::Gateway).await;
    let mut gateway = Gateway::connect(&server, &token, "gw-1").await;
    let sessions = server.sessions.clone();
    let draining = tokio::spawn(async move { sessions.drain(Duration::from_secs(10)).await });
    assert_eq!(gateway.ended().await.goaway, Some(GoawayReason::Draining));
    drop(gateway);
    draining.await.unwrap();
    assert!(server.sessions.snapshot().is_empty());
    let refused = refusal(&server, request(&server, Some(&token), Some(SUBPROTOCOL))).await;
    assert_eq!(refused, (503, "draining".to_owned()));
}
