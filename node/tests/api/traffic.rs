//! Who moves most, from what gateways report.

use std::net::IpAddr;

use allowlist::Element;
use allowlist::feed::{ACCEPTS_HEADER, ACCEPTS_SOURCES, SUBPROTOCOL, SourceDelta, ToServer, TrafficDelta};
use raft_store::command::Role;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::client_async;

use crate::gateway::{Gateway, request};
use crate::harness::{Server, eventually, problem};

const PATH: &str = "/api/v1/traffic/top";

fn host(last: u8) -> Element {
    Element::host(IpAddr::from([9, 9, 9, last]), None)
}

fn of_source(source: Option<u8>, element: Option<Element>, bytes_in: u64) -> SourceDelta {
    let source = source.map(|last| IpAddr::from([10, 0, 0, last]));
    SourceDelta { source, element, packets_out: 1, bytes_out: 40, packets_in: 2, bytes_in }
}

fn of_element(element: Element, bytes_in: u64) -> TrafficDelta {
    TrafficDelta { element, packets_out: 1, bytes_out: 40, packets_in: 2, bytes_in }
}

fn names(answer: &Value) -> Vec<(Option<&str>, u64)> {
    let rows = answer["rows"].as_array().unwrap().iter();
    rows.map(|row| (row["name"].as_str(), row["bytes_in"].as_u64().unwrap())).collect()
}

#[tokio::test]
async fn hosts_and_entries_with_most_traffic_are_shown_with_each_other() {
    let server = Server::start().await;
    let token = server.token("gw", Role::Gateway).await;
    let one = server.add(json!({ "target": "9.9.9.1" })).await["id"].clone();
    let two = server.add(json!({ "target": "9.9.9.0/24" })).await["id"].clone();
    let network = Element::new("9.9.9.0/24".parse().unwrap(), None);
    let mut first = Gateway::connect(&server, &token, "gw-1").await;
    let mut second = Gateway::connect(&server, &token, "gw-2").await;
    // Twice in one report and from two gateways; what nobody owns any more; what is not named.
    let lines = vec![
        of_source(Some(1), Some(host(1)), 500),
        of_source(Some(1), Some(host(1)), 500),
        of_source(Some(2), Some(network), 5_000),
        of_source(None, None, 7),
    ];
    first.say(&ToServer::Sources(lines)).await;
    first.say(&ToServer::Traffic(vec![of_element(host(1), 1_000), of_element(network, 5_000)])).await;
    second.say(&ToServer::Sources(vec![of_source(Some(1), Some(host(7)), 9_000)])).await;
    second.say(&ToServer::Traffic(vec![of_element(host(7), 9_000)])).await;
    eventually("both gateways' reports", async || {
        let by_entry = server.read(&format!("{PATH}?by=entry")).await;
        by_entry["total"]["bytes_in"] == 15_000
    })
    .await;

    let top = server.read(PATH).await;
    assert_eq!(names(&top), [(Some("10.0.0.1"), 10_000), (Some("10.0.0.2"), 5_000), (None, 7)]);
    assert_eq!(
        (&top["by"], &top["window_minutes"], &top["silent_nodes"]),
        (&json!("source"), &json!(10), &json!([]))
    );
    let expected = json!({
        "name": "10.0.0.1", "entry": null, "packets_out": 3, "bytes_out": 120, "packets_in": 6, "bytes_in": 10_000,
        "gateways": ["gw-1", "gw-2"],
        "with": [
            {"name": "9.9.9.7/32", "entry": null, "bytes": 9_040},
            {"name": "9.9.9.1", "entry": one, "bytes": 1_080},
        ],
    });
    assert_eq!(top["rows"][0], expected);

    let top = server.read(&format!("{PATH}?by=entry&window=1h")).await;
    assert_eq!(
        names(&top),
        [(Some("9.9.9.7/32"), 9_000), (Some("9.9.9.0/24"), 5_000), (Some("9.9.9.1"), 1_000)]
    );
    assert_eq!(top["rows"][1]["entry"], two);
    assert_eq!(top["rows"][1]["with"], json!([{"name": "10.0.0.2", "entry": null, "bytes": 5_040}]));
    let top = server.read(&format!("{PATH}?gateway=gw-2&window=all&limit=1")).await;
    assert_eq!((names(&top), &top["window_minutes"]), (vec![(Some("10.0.0.1"), 9_000)], &Value::Null));
    assert_eq!(names(&server.read(&format!("{PATH}?gateway=gw-3")).await), []);

    for (query, told) in [("limit=0", "from 1 to 100"), ("window=2h", "10m"), ("window=now", "10m")] {
        let detail = problem(server.get(&format!("{PATH}?{query}")).await, 400, "invalid_query").await;
        assert!(detail.contains(told), "{detail}");
    }
}

#[tokio::test]
async fn what_several_entries_own_counts_for_each() {
    let server = Server::start().await;
    let token = server.token("gw", Role::Gateway).await;
    server.add(json!({ "target": "9.9.9.1", "ports": ["tcp/1-9", "tcp/20"] })).await;
    server.add(json!({ "target": "9.9.9.1", "ports": ["tcp/20", "udp/5"] })).await;
    let shared = Element::host([9, 9, 9, 1].into(), Some("tcp/20".parse().unwrap()));
    let mut gateway = Gateway::connect(&server, &token, "gw-1").await;
    gateway.say(&ToServer::Traffic(vec![of_element(shared, 100)])).await;
    let path = format!("{PATH}?by=entry");
    eventually("the report", async || server.read(&path).await["total"]["bytes_in"] == 100).await;
    assert_eq!(names(&server.read(&path).await), [(Some("9.9.9.1"), 100), (Some("9.9.9.1"), 100)]);
}

#[tokio::test]
async fn a_server_says_which_newer_frames_it_reads() {
    let server = Server::start().await;
    let token = server.token("gw", Role::Gateway).await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let upgrade = request(&server, Some(&token), Some(SUBPROTOCOL));
    let (_socket, answer) = client_async(upgrade, stream).await.unwrap();
    let said = answer.headers()[ACCEPTS_HEADER].to_str().unwrap();
    assert!(said.split(',').any(|name| name.trim() == ACCEPTS_SOURCES), "{said}");
}
