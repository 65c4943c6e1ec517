//! Who did what.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Server, problem};

fn kinds(page: &Value) -> Vec<&str> {
    let events = page["events"].as_array().unwrap();
    events.iter().map(|event| event["kind"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn writes_are_listed_with_their_author_newest_first() {
    let server = Server::start().await;
    let request = server.request(Method::POST, "/api/v1/entries").header("x-request-id", "r-1");
    let entry: Value =
        request.json(&json!({"target": "9.9.9.9"})).send().await.unwrap().json().await.unwrap();
    server.post("/api/v1/tokens", &json!({"name": "ci", "role": "editor"})).await;
    let page = server.read("/api/v1/audit").await;
    assert_eq!(kinds(&page)[..2], ["token_added", "entry_added"], "{page}");
    assert!(kinds(&page).contains(&"cluster_initialised"), "{page}");
    let added = &page["events"][1];
    assert_eq!(
        (&added["actor"], &added["remote"], &added["request_id"], &added["id"], &added["subject"]),
        (&json!("admin"), &json!("127.0.0.1"), &json!("r-1"), &entry["id"], &json!("9.9.9.9")),
        "{added}"
    );
    assert!(added["revision"].as_u64() < page["events"][0]["revision"].as_u64(), "{page}");
    let bootstrap = server.read("/api/v1/audit?actor=bootstrap").await;
    assert!(bootstrap["events"].as_array().unwrap().iter().all(|event| event["actor"] == "bootstrap"));
    assert_eq!(kinds(&bootstrap), ["token_added", "cluster_initialised"]);
}

#[tokio::test]
async fn pages_of_the_audit_log_follow_each_other_and_miss_nothing() {
    let server = Server::start().await;
    for number in 0..7 {
        server.add(json!({"target": format!("9.9.9.{number}")})).await;
    }
    let all = server.read("/api/v1/audit?limit=1000").await;
    assert_eq!(all["next_before"], Value::Null);
    let (mut paged, mut before) = (Vec::new(), String::new());
    loop {
        let page = server.read(&format!("/api/v1/audit?limit=2{before}")).await;
        paged.extend(page["events"].as_array().unwrap().iter().cloned());
        match page["next_before"].as_u64() {
            Some(next) => before = format!("&before={next}"),
            None => break,
        }
    }
    assert_eq!(&json!(paged), &all["events"]);
    let detail = problem(server.get("/api/v1/audit?limit=0").await, 400, "invalid_query").await;
    assert!(detail.contains("from 1 to 1000"), "{detail}");
}
