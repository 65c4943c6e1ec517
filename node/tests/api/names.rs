//! The domains of the list, how they stand with DNS, and how their lookups go.

use std::net::IpAddr;
use std::time::Duration;

use allowlist::DomainName;
use node::cluster::Cluster;
use node::resolver::{Metrics, Resolver, Settings};
use raft_store::command::{Command, NameStatus, ResolutionUpdate, SeenAddress};
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use crate::harness::{PATIENCE, Server, eventually, problem};

/// A resolver on every node, all asking a server that never answers.
async fn resolve_in_vain(nodes: &[&Cluster]) -> UdpSocket {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for node in nodes {
        let settings = Settings {
            upstreams: vec![silent.local_addr().unwrap().into()],
            timeout: Duration::from_millis(100),
            ..Settings::default()
        };
        let resolver = Resolver::new(settings, Metrics::new().unwrap()).unwrap();
        tokio::spawn(resolver.run((*node).clone(), CancellationToken::new()));
    }
    silent
}

async fn set(server: &Server, name: &str, seen: &[IpAddr], status: NameStatus) {
    let address = SeenAddress { first_seen_ms: 1, ttl_s: 30, upstreams: ["u:53".to_owned()].into() };
    let seen = seen.iter().map(|ip| (*ip, address.clone())).collect();
    let resolution = ResolutionUpdate { seen, status, ..ResolutionUpdate::default() };
    server.propose(vec![Command::SetResolution { domain: name.parse().unwrap(), resolution }]).await;
}

fn names(page: &Value) -> Vec<&str> {
    page["names"].as_array().unwrap().iter().map(|name| name["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn names_are_found_by_state_and_text_and_counted() {
    let server = Server::start().await;
    for name in ["a.example.com", "b.example.com", "c.example.com", "d.example.net", "e.example.net"] {
        server.add(json!({ "target": name })).await;
    }
    server.add(json!({ "target": "9.9.9.9" })).await;
    let failed =
        || NameStatus::Stale { since_ms: 1_700_000_000_000, error: "u:53: no answer in time".to_owned() };
    set(&server, "b.example.com", &[[1, 1, 1, 1].into()], NameStatus::Ok).await;
    set(&server, "c.example.com", &[[1, 1, 1, 1].into()], failed()).await;
    set(&server, "d.example.net", &[], failed()).await;
    let reason = "u:53 gave 10.0.0.1".to_owned();
    set(&server, "e.example.net", &[[8, 8, 8, 8].into()], NameStatus::Mixed { reason }).await;

    let all = server.read("/api/v1/names").await;
    let expected = json!({
        "pending": 1, "never_resolved": 1, "ok": 1, "stale": 1, "no_such_name": 0, "refused": 0, "mixed": 1
    });
    assert_eq!(all["states"], expected);
    assert_eq!(names(&all).len(), 5, "{all}");
    let stale = server.read("/api/v1/names?state=stale,never_resolved&q=EXAMPLE.").await;
    assert_eq!(names(&stale), ["c.example.com", "d.example.net"]);
    assert_eq!(stale["states"], expected, "of the whole list");
    let c = &stale["names"][0];
    assert_eq!((&c["addresses"], &c["state"]), (&json!(1), &json!("stale")), "{c}");
    assert_eq!(c["since"], "2023-11-14T22:13:20Z");
    assert_eq!(c["detail"], "u:53: no answer in time");
    let mixed = server.read("/api/v1/names?state=mixed").await;
    assert_eq!(mixed["names"][0]["detail"], "u:53 gave 10.0.0.1");
    let one = server.read("/api/v1/names?name=A.example.com.").await;
    assert_eq!(names(&one), ["a.example.com"]);
    let entries = server.read("/api/v1/entries?q=d.example.net").await;
    assert_eq!(entries["entries"][0]["resolution"]["state"], "never_resolved");

    let first = server.read("/api/v1/names?limit=2").await;
    assert_eq!(names(&first), ["a.example.com", "b.example.com"]);
    let cursor = first["next_cursor"].as_str().unwrap();
    let rest = server.read(&format!("/api/v1/names?limit=3&cursor={cursor}")).await;
    assert_eq!(names(&rest), ["c.example.com", "d.example.net", "e.example.net"]);
    assert_eq!(rest["next_cursor"], Value::Null);

    let invalid = [
        ("state=broken", "invalid_query", "never_resolved"),
        ("name=a..b", "invalid_query", "name: "),
        ("limit=1001", "invalid_query", "1 to 1000"),
        ("cursor=-", "invalid_cursor", "next_cursor"),
    ];
    for (query, code, words) in invalid {
        let detail = problem(server.get(&format!("/api/v1/names?{query}")).await, 400, code).await;
        assert!(detail.contains(words), "{detail}");
    }
}

#[tokio::test]
async fn a_name_that_fails_says_why_and_when_it_is_asked_for_again() {
    let server = Server::start().await;
    let silent = resolve_in_vain(&[&server.cluster]).await;
    server.add(json!({ "target": "a.example.com" })).await;
    let upstream = silent.local_addr().unwrap().to_string();
    eventually("the lookup fails", async || {
        let page = server.read("/api/v1/names?state=pending").await;
        let lookups = &page["names"][0]["lookups"];
        lookups["last_error"]["upstream"] == upstream.as_str()
            && lookups["last_error"]["error"] == "no answer in time"
            && lookups["next_try"].as_str() > lookups["last_error"]["at"].as_str()
            && lookups["last_answer"] == Value::Null
            && page["leader_answered"] == true
    })
    .await;
}

#[tokio::test]
async fn every_node_knows_how_the_leaders_lookups_go() {
    let server = Server::start_one_of_three().await;
    let nodes: Vec<&Cluster> = std::iter::once(&server.cluster).chain(&server.others).collect();
    let _silent = resolve_in_vain(&nodes).await;
    server.add(json!({ "target": "a.example.com" })).await;
    let name: DomainName = "a.example.com".parse().unwrap();
    for node in nodes {
        eventually("a node is told", async || {
            let lookups = node.name_lookups(std::slice::from_ref(&name), PATIENCE).await;
            lookups.is_some_and(|lookups| lookups[0].last_error.is_some())
        })
        .await;
    }
}
