//! What gateways denied, through the API.

use std::net::IpAddr;

use allowlist::feed::{DeniedFlow, ToServer};
use raft_store::command::Role;
use serde_json::{Value, json};

use crate::gateway::Gateway;
use crate::harness::{Server, eventually, problem};

const PATH: &str = "/api/v1/denied";

fn flow(destination: &str, protocol: u8, port: u16, last_ms: u64) -> DeniedFlow {
    let source = if destination.contains(':') { "fd00::7" } else { "10.0.0.7" };
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let (source, destination) = (address(source), address(destination));
    DeniedFlow { source, destination, protocol, port, packets: 3, first_ms: last_ms - 1_000, last_ms }
}

async fn connected() -> (Server, Gateway) {
    let server = Server::start().await;
    let token = server.token("gw", Role::Gateway).await;
    let gateway = Gateway::connect(&server, &token, "gw-1").await;
    (server, gateway)
}

async fn destinations(server: &Server, query: &str) -> Vec<String> {
    let answer = server.read(&format!("{PATH}?{query}")).await;
    let rows = answer["denied"].as_array().unwrap();
    rows.iter().map(|row| row["destination"].as_str().unwrap_or("several").to_owned()).collect()
}

#[tokio::test]
async fn what_a_gateway_denied_is_shown_with_what_the_list_says_of_it_now() {
    let (server, mut gateway) = connected().await;
    // 2023-11-14T22:13:20Z.
    let at = 1_700_000_000_000;
    gateway
        .say(&ToServer::Denied(vec![
            flow("9.9.9.1", 6, 443, at),
            flow("9.9.9.2", 17, 53, at - 1),
            flow("2a01:4f8::9", 58, 0, at - 2),
            flow("0.0.0.0", 0, 0, at - 3),
        ]))
        .await;
    eventually("all are listed", async || destinations(&server, "").await.len() == 4).await;
    let shown = server.read(PATH).await;
    assert_eq!((&shown["complete"], &shown["next_cursor"]), (&json!(true), &Value::Null));
    assert_eq!(shown["nodes"], json!([{"name": "server-1", "answered": true}]));
    let denied = json!({
        "gateway": "gw-1", "source": "10.0.0.7", "destination": "9.9.9.1", "protocol": "tcp", "port": 443,
        "packets": 3, "first_seen": "2023-11-14T22:13:19Z", "last_seen": "2023-11-14T22:13:20Z",
        "listed": false, "entries": [], "other_ports": [],
    });
    assert_eq!(shown["denied"][0], denied);
    assert_eq!(
        (&shown["denied"][2]["protocol"], &shown["denied"][2]["port"]),
        (&json!("ipv6-icmp"), &Value::Null)
    );
    assert_eq!(shown["denied"][3]["destination"], Value::Null, "several");

    // Access is granted: to one of them, and to the other with another port.
    let entry = server.add(json!({"target": "9.9.9.1", "ports": ["tcp/443"]})).await;
    let network = server.add(json!({"target": "9.9.9.0/24", "ports": ["udp/5353"]})).await;
    let shown = server.read(PATH).await;
    let beside = |entry: &Value, ports: &str| json!([{"id": entry["id"], "target": entry["target"], "ports": [ports]}]);
    let (first, second) = (&shown["denied"][0], &shown["denied"][1]);
    assert_eq!((&first["listed"], &first["entries"]), (&json!(true), &beside(&entry, "tcp/443")));
    assert_eq!((&second["listed"], &second["other_ports"]), (&json!(false), &beside(&network, "udp/5353")));
    let counted = "outputguard_feed_denied_packets_total{gateway=\"gw-1\"}";
    assert_eq!(server.metric(counted).await, 12.0);
}

#[tokio::test]
async fn denied_packets_are_found_by_who_what_and_when_page_by_page() {
    let (server, mut gateway) = connected().await;
    let at = 1_700_000_000_000;
    gateway
        .say(&ToServer::Denied(vec![
            flow("9.9.9.1", 6, 443, at),
            flow("9.9.9.2", 6, 443, at + 2_000),
            flow("2a01:4f8::9", 6, 443, at + 1_000),
        ]))
        .await;
    eventually("all are listed", async || destinations(&server, "").await.len() == 3).await;
    for (query, expected) in [
        ("source=10.0.0.0/8", vec!["9.9.9.2", "9.9.9.1"]),
        ("source=fd00::7", vec!["2a01:4f8::9"]),
        ("destination=9.9.9.2", vec!["9.9.9.2"]),
        ("destination=9.9.9.0/31", vec!["9.9.9.1"]),
        ("gateway=gw-2", vec![]),
        ("since=2023-11-14T22:13:21Z", vec!["9.9.9.2", "2a01:4f8::9"]),
    ] {
        assert_eq!(destinations(&server, query).await, expected, "{query}");
    }
    let page = server.read(&format!("{PATH}?limit=2")).await;
    assert_eq!(page["denied"].as_array().unwrap().len(), 2);
    let cursor = page["next_cursor"].as_str().unwrap();
    assert_eq!(destinations(&server, &format!("limit=2&cursor={cursor}")).await, ["9.9.9.1"]);
    for (query, code, told) in [
        ("source=me", "invalid_query", "10.1.2.3"),
        ("destination=not.listed.test", "invalid_query", "no entry names not.listed.test"),
        ("since=yesterday", "invalid_query", "2026-01-31T13:00:00Z"),
        ("limit=501", "invalid_query", "from 1 to 500"),
        ("cursor=1,2", "invalid_cursor", "next_cursor"),
        ("whom=me", "invalid_query", "whom"),
    ] {
        let detail = problem(server.get(&format!("{PATH}?{query}")).await, 400, code).await;
        assert!(detail.contains(told), "{detail}");
    }
}
