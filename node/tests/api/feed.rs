//! The feed as it should go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use allowlist::feed::{
    CutCause, CutElement, CutReport, FeedState, SessionStart, ToGateway, ToServer, TrafficDelta,
};
use allowlist::{Digest, Element, EntryId, Ports, Revision};
use raft_store::command::{Command, NameStatus, NewEntry, ResolutionUpdate, Role, SeenAddress};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::gateway::Gateway;
use crate::harness::{Server, eventually, problem};

fn host(last: u8) -> Element {
    Element::host(IpAddr::from([9, 9, 9, last]), None)
}

fn revision(server: &Server) -> Revision {
    server.cluster.reader().state().revision()
}

/// `count` entries of 1,000 elements each.
pub(crate) fn big_entries(count: u8) -> Vec<Command> {
    let ports: Vec<_> = (1..=1000_u32).map(|n| format!("tcp/{}", 2 * n).parse().unwrap()).collect();
    let ports = Ports::new(ports).unwrap();
    let entry = |last: u8| {
        Command::AddEntry(NewEntry {
            id: EntryId(Uuid::now_v7()),
            target: format!("8.8.8.{last}").parse().unwrap(),
            ports: ports.clone(),
            protected: false,
            comment: Box::default(),
            owner: Default::default(),
            ticket: Default::default(),
            labels: Default::default(),
            expires_at_ms: None,
        })
    };
    (1..=count).map(entry).collect()
}

#[tokio::test]
async fn a_new_gateway_gets_a_snapshot_then_each_change_and_agrees_at_each_heartbeat() {
    let server = Server::start().await;
    let token = server.token("gw", Role::Gateway).await;
    let first = server.add(json!({"target": "9.9.9.1"})).await;
    let mut gateway = Gateway::connect(&server, &token, "gw-1").await;
    assert_eq!(gateway.welcome.start, SessionStart::Snapshot);
    assert_eq!(gateway.welcome.node, "server-1");
    gateway.beat_at(revision(&server)).await;
    assert_eq!(gateway.set, BTreeSet::from([host(1)]));

    server.add(json!({"target": "9.9.9.2"})).await;
    let path = format!("/api/v1/entries/{}", first["id"].as_str().unwrap());
    server.request(Method::DELETE, &path).send().await.unwrap();
    gateway.beat_at(revision(&server)).await;
    assert_eq!(gateway.set, BTreeSet::from([host(2)]));
    assert_eq!(gateway.snapshots, 1);
}

#[tokio::test]
async fn an_empty_list_is_a_snapshot_too() {
    let server = Server::start().await;
    let token = server.token("gw", Role::Gateway).await;
    let mut gateway = Gateway::connect(&server, &token, "gw-1").await;
    assert!(
        matches!(gateway.step().await, ToGateway::SnapshotPart { part: 0, elements } if elements.is_empty())
    );
    gateway.beat_at(revision(&server)).await;
    assert_eq!(gateway.snapshots, 1);
}

#[tokio::test]
async fn removal_revokes_and_dns_retires() {
    let server = Server::start().await;
    let token = server.token("gw", Role::Gateway).await;
    server.add(json!({"target": "api.example.com"})).await;
    let entry = server.add(json!({"target": "9.9.9.2"})).await;
    let domain: allowlist::DomainName = "api.example.com".parse().unwrap();
    let seen = SeenAddress { first_seen_ms: 1, ttl_s: 30, upstreams: BTreeSet::new() };
    let appear = ResolutionUpdate {
        seen: BTreeMap::from([(IpAddr::from([9, 9, 9, 1]), seen)]),
        status: NameStatus::Ok,
        ..ResolutionUpdate::default()
    };
    server.propose(vec![Command::SetResolution { domain: domain.clone(), resolution: appear }]).await;
    let mut gateway = Gateway::connect(&server, &token, "gw-1").await;
    gateway.beat_at(revision(&server)).await;
    assert_eq!(gateway.set, BTreeSet::from([host(1), host(2)]));

    let vanish = ResolutionUpdate {
        retire: BTreeSet::from([IpAddr::from([9, 9, 9, 1])]),
        status: NameStatus::Ok,
        ..ResolutionUpdate::default()
    };
    server.propose(vec![Command::SetResolution { domain, resolution: vanish }]).await;
    let path = format!("/api/v1/entries/{}", entry["id"].as_str().unwrap());
    server.request(Method::DELETE, &path).send().await.unwrap();
    let (mut revoked, mut retired) = (Vec::new(), Vec::new());
    while !gateway.set.is_empty() {
        if let ToGateway::Change { change, .. } = gateway.step().await {
            revoked.extend(change.revoked);
            retired.extend(change.retired);
        }
    }
    assert_eq!((revoked, retired), (vec![host(2)], vec![host(1)]));
}

#[tokio::test]
async fn a_returning_gateway_gets_only_what_it_missed() {
    let server = Server::start().await;
    let token = server.token("gw", Role::Gateway).await;
    server.add(json!({"target": "9.9.9.1"})).await;
    let mut gateway = Gateway::connect(&server, &token, "gw-1").await;
    gateway.beat_at(revision(&server)).await;
    let (state, set) = (gateway.state(), gateway.set.clone());
    drop(gateway);

    server.add(json!({"target": "9.9.9.2"})).await;
    server.token("unrelated", Role::Viewer).await;
    let mut gateway = Gateway::connect_with(&server, &token, "gw-1", Some(state), set).await;
    assert_eq!(gateway.welcome.start, SessionStart::Resume);
    let first = gateway.step().await;
    assert!(
        matches!(&first, ToGateway::Change { change, more: false } if change.added == [host(2)]),
        "{first:?}"
    );
    gateway.beat_at(revision(&server)).await;
    assert_eq!(gateway.snapshots, 0);
}

#[tokio::test]
async fn a_gateway_with_a_foreign_or_wrong_state_gets_a_snapshot() {
    let server = Server::start().await;
    let token = server.token("gw", Role::Gateway).await;
    server.add(json!({"target": "9.9.9.1"})).await;
    let here = server.cluster.reader().state();
    let cluster = here.cluster().unwrap();
    let right = here.published().digest();
    let foreign = FeedState { cluster: Uuid::new_v4(), revision: here.revision(), digest: right };
    let wrong = FeedState { cluster, revision: here.revision(), digest: Digest::default() };
    for state in [foreign, wrong] {
        let mut gateway =
            Gateway::connect_with(&server, &token, "gw-1", Some(state), BTreeSet::from([host(7)])).await;
        assert_eq!(gateway.welcome.start, SessionStart::Snapshot, "{state:?}");
        gateway.revision = 0;
        gateway.beat_at(revision(&server)).await;
        assert_eq!(gateway.set, BTreeSet::from([host(1)]));
    }
}

#[tokio::test]
async fn a_gateway_that_asks_gets_a_snapshot_in_the_same_session() {
    let server = Server::start().await;
    let token = server.token("gw", Role::Gateway).await;
    server.add(json!({"target": "9.9.9.1"})).await;
    let mut gateway = Gateway::connect(&server, &token, "gw-1").await;
    gateway.beat_at(revision(&server)).await;
    gateway.say(&ToServer::ResyncRequest { reason: "the set was flushed".into() }).await;
    while gateway.snapshots < 2 {
        gateway.step().await;
    }
    // A snapshot counts when all of it was sent; the next frame comes after that.
    gateway.beat_at(revision(&server)).await;
    assert_eq!(server.metric("outputguard_feed_resync_requests_total").await, 1.0);
    assert_eq!(server.metric("outputguard_feed_snapshots_total").await, 2.0);
}

#[tokio::test]
async fn big_snapshots_and_big_changes_come_in_parts_and_whole() {
    let server = Server::start().await;
    let token = server.token("gw", Role::Gateway).await;
    server.propose(big_entries(11)).await;
    let mut gateway = Gateway::connect(&server, &token, "gw-1").await;
    gateway.beat_at(revision(&server)).await;
    assert_eq!(gateway.set.len(), 11_000);

    let ids: Vec<_> = server.cluster.reader().state().entries().keys().copied().collect();
    server.propose(ids.into_iter().map(|id| Command::RemoveEntry { id }).collect()).await;
    let mut parts = Vec::new();
    while !gateway.set.is_empty() {
        if let ToGateway::Change { change, more } = gateway.step().await {
            parts.push((change.len(), more));
        }
    }
    assert_eq!(parts, [(10_000, true), (1_000, false)]);
    gateway.beat_at(revision(&server)).await;
}

#[tokio::test]
async fn what_a_gateway_reports_shows_in_status_and_metrics() {
    let server = Server::start().await;
    let token = server.token("gw", Role::Gateway).await;
    server.add(json!({"target": "9.9.9.1"})).await;
    let mut gateway = Gateway::connect(&server, &token, "gw-1").await;
    gateway.beat_at(revision(&server)).await;
    let status = async || -> Value { server.read("/api/v1/status").await["gateways"][0].clone() };
    assert_eq!(status().await["name"], "gw-1");
    assert_eq!(status().await["in_sync"], false);

    gateway.report_applied(gateway.digest()).await;
    eventually("the gateway is in sync", async || status().await["in_sync"] == true).await;
    let shown = status().await;
    assert_eq!(shown["applied"], gateway.revision);
    assert_eq!(shown["kernel_us"], 120);
    assert_eq!((&shown["remote"], &shown["node"]), (&json!("127.0.0.1"), &json!("server-1")));

    gateway.report_applied(Digest::default()).await;
    eventually("the wrong digest is seen", async || status().await["in_sync"] == false).await;

    let delta =
        TrafficDelta { element: host(1), packets_out: 2, bytes_out: 300, packets_in: 1, bytes_in: 50 };
    gateway.say(&ToServer::Traffic(vec![delta, delta])).await;
    let out = "outputguard_feed_traffic_bytes_total{direction=\"out\",gateway=\"gw-1\"}";
    eventually("traffic is counted", async || server.metric(out).await == 600.0).await;
    drop(gateway);
    eventually("the gateway is gone", async || status().await == Value::Null).await;
}

#[tokio::test]
async fn receipts_of_cut_flows_are_listed_newest_first_and_counted() {
    let server = Server::start().await;
    let token = server.token("gw", Role::Gateway).await;
    let mut gateway = Gateway::connect(&server, &token, "gw-1").await;
    let report = |revision, cause| CutReport {
        revision,
        cause,
        flows: 3,
        uncounted: 1,
        bytes_out: 600,
        bytes_in: 9_000,
        at_ms: 1_700_000_000_000,
        took_us: 1_500,
        elements: vec![CutElement { element: host(1), flows: 3, bytes_out: 600, bytes_in: 9_000 }],
    };
    gateway.say(&ToServer::Cut(report(7, CutCause::Revoked))).await;
    gateway.say(&ToServer::Cut(report(8, CutCause::Drained))).await;
    let path = "/api/v1/receipts/cuts";
    let listed = async || server.read(path).await["receipts"].as_array().unwrap().len();
    eventually("both are listed", async || listed().await == 2).await;
    let shown = server.read(path).await;
    assert_eq!(shown["next_cursor"], Value::Null);
    let shown = &shown["receipts"];
    assert_eq!((&shown[0]["revision"], &shown[0]["cause"]), (&json!(8), &json!("drained")));
    let expected = json!({
        "gateway": "gw-1", "revision": 7, "cause": "revoked", "flows": 3, "uncounted": 1, "bytes_out": 600,
        "bytes_in": 9000, "at": "2023-11-14T22:13:20Z", "took_us": 1500,
        "elements": [{"element": "9.9.9.1/32", "flows": 3, "bytes_out": 600, "bytes_in": 9000}],
    });
    assert_eq!(shown[1], expected);
    assert_eq!(server.read(&format!("{path}?since=8")).await["receipts"].as_array().unwrap().len(), 1);
    assert_eq!(server.read(&format!("{path}?gateway=gw-2")).await["receipts"], json!([]));

    let page = server.read(&format!("{path}?limit=1")).await;
    assert_eq!(
        (&page["receipts"][0]["revision"], page["receipts"].as_array().unwrap().len()),
        (&json!(8), 1)
    );
    let cursor = page["next_cursor"].as_str().unwrap();
    let page = server.read(&format!("{path}?limit=1&cursor={cursor}")).await;
    assert_eq!((&page["receipts"], &page["next_cursor"]), (&json!([expected]), &Value::Null));
    for (query, code, told) in [
        ("limit=0", "invalid_query", "from 1 to 200"),
        ("limit=201", "invalid_query", "from 1 to 200"),
        ("cursor=newest", "invalid_cursor", "next_cursor"),
    ] {
        let detail = problem(server.get(&format!("{path}?{query}")).await, 400, code).await;
        assert!(detail.contains(told), "{detail}");
    }
    let counted = "outputguard_feed_cut_flows_total{cause=\"revoked\",gateway=\"gw-1\"}";
    assert_eq!(server.metric(counted).await, 3.0);
}
