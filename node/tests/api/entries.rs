//! Entries: add, list, search, change, remove.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use raft_store::command::{Command, NameStatus, ResolutionUpdate, SeenAddress};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Server, problem};

#[tokio::test]
async fn an_entry_comes_back_with_everything_that_was_said_of_it() {
    let server = Server::start().await;
    let added = server
        .add(json!({
            "target": "API.Example.com.", "ports": ["udp/53", "tcp/443"], "comment": "payments", "owner": "team-a",
            "ticket": "SEC-1", "labels": {"env": "prod"}, "expires_at": null,
        }))
        .await;
    let id = added["id"].as_str().unwrap();
    let mut entry = server.read(&format!("/api/v1/entries/{id}")).await;
    let revision = entry.as_object_mut().unwrap().remove("revision").unwrap();
    assert_eq!(revision, server.cluster.reader().state().revision());
    assert_eq!(entry, added);
    assert_eq!(entry["target"], "api.example.com");
    assert_eq!(entry["kind"], "domain");
    assert_eq!(entry["ports"], json!(["tcp/443", "udp/53"]));
    assert_eq!(entry["labels"], json!({"env": "prod"}));
    assert_eq!(entry["created_by"], "admin");
    assert_eq!(entry["expires_at"], Value::Null);
    assert_eq!(entry["protected"], false);
    assert_eq!(entry["resolution"]["state"], "pending");

    let network = server.add(json!({"target": "9.9.9.0/24"})).await;
    assert_eq!((&network["kind"], &network["resolution"]), (&json!("network"), &Value::Null));
    assert_eq!(network["expires_at"], Value::Null);
    assert_eq!(server.add(json!({"target": "2606:4700::1111"})).await["kind"], "address");
}

#[tokio::test]
async fn adding_the_same_target_and_ports_again_returns_the_entry_that_is_there() {
    let server = Server::start().await;
    let first = server.add(json!({"target": "9.9.9.9", "ports": ["tcp/443"], "comment": "first"})).await;
    let again = server
        .post("/api/v1/entries", &json!({"target": "9.9.9.9/32", "ports": ["TCP/443"], "comment": "again"}))
        .await;
    assert_eq!(again.status(), StatusCode::OK);
    assert_eq!(again.json::<Value>().await.unwrap(), first);
    let other = server.add(json!({"target": "9.9.9.9"})).await;
    assert_ne!(other["id"], first["id"]);
}

#[tokio::test]
async fn an_entry_can_be_changed_and_removed() {
    let server = Server::start().await;
    let entry = server.add(json!({"target": "9.9.9.9", "comment": "old", "owner": "me"})).await;
    let path = format!("/api/v1/entries/{}", entry["id"].as_str().unwrap());
    let changed = server.request(Method::PATCH, &path).json(&json!({"comment": "new"})).send().await.unwrap();
    assert_eq!(changed.status(), StatusCode::OK);
    let changed: Value = changed.json().await.unwrap();
    assert_eq!((&changed["comment"], &changed["owner"]), (&json!("new"), &json!("me")));

    let before = server.cluster.reader().state().revision();
    let removed = server.request(Method::DELETE, &path).send().await.unwrap();
    assert_eq!(removed.status(), StatusCode::NO_CONTENT);
    let revision = removed.headers()["x-outputguard-revision"].to_str().unwrap().parse::<u64>().unwrap();
    assert_eq!(revision, before + 1);

    problem(server.get(&path).await, 404, "not_found").await;
    problem(server.request(Method::DELETE, &path).send().await.unwrap(), 404, "not_found").await;
    let patch = server.request(Method::PATCH, &path).json(&json!({"owner": "x"})).send().await.unwrap();
    problem(patch, 404, "not_found").await;
}

#[tokio::test]
async fn a_protected_entry_is_neither_removed_nor_weakened() {
    let server = Server::start().await;
    let entry = server.add(json!({"target": "9.9.9.9"})).await;
    let path = format!("/api/v1/entries/{}", entry["id"].as_str().unwrap());
    let patch = |body: Value| server.request(Method::PATCH, &path).json(&body).send();
    assert_eq!(patch(json!({"protected": true})).await.unwrap().status(), StatusCode::OK);
    problem(patch(json!({"protected": false})).await.unwrap(), 409, "protected").await;
    let detail = problem(server.request(Method::DELETE, &path).send().await.unwrap(), 409, "protected").await;
    assert!(detail.contains("is protected"), "{detail}");
    assert_eq!(server.read(&path).await["protected"], true);
}

#[tokio::test]
async fn pages_hold_every_entry_once_and_in_order() {
    let server = Server::start().await;
    let mut added = Vec::new();
    for last in 1..=7 {
        added.push(server.add(json!({"target": format!("9.9.9.{last}")})).await["id"].clone());
    }
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = server.read(&format!("/api/v1/entries?limit=3{cursor}")).await;
        let entries = page["entries"].as_array().unwrap();
        assert!(!entries.is_empty() && entries.len() <= 3);
        seen.extend(entries.iter().map(|entry| entry["id"].clone()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, added);
    let full = server.read("/api/v1/entries?limit=7").await;
    assert_eq!(full["next_cursor"], Value::Null);

    problem(server.get("/api/v1/entries?cursor=zebra").await, 400, "invalid_cursor").await;
    for limit in ["0", "1001", "-1", "many"] {
        problem(server.get(&format!("/api/v1/entries?limit={limit}")).await, 400, "invalid_query").await;
    }
}

#[tokio::test]
async fn search_finds_texts_in_any_case_and_what_covers_an_address() {
    let server = Server::start().await;
    server.add(json!({"target": "api.example.com", "owner": "Team-Blue"})).await;
    server.add(json!({"target": "9.9.9.0/24", "comment": "Quad nine"})).await;
    server.add(json!({"target": "8.8.8.8", "ticket": "SEC-42"})).await;
    let seen =
        SeenAddress { first_seen_ms: 1_700_000_000_000, ttl_s: 30, upstreams: BTreeSet::from(["a".into()]) };
    let resolution = ResolutionUpdate {
        seen: BTreeMap::from([(IpAddr::from([9, 9, 9, 77]), seen)]),
        status: NameStatus::Ok,
        ..ResolutionUpdate::default()
    };
    let domain = "api.example.com".parse().unwrap();
    server.propose(vec![Command::SetResolution { domain, resolution }]).await;

    let found = async |q: &str| -> Vec<String> {
        let page = server.read(&format!("/api/v1/entries?q={q}")).await;
        let entries = page["entries"].as_array().unwrap();
        entries.iter().map(|entry| entry["target"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(found("EXAMPLE").await, ["api.example.com"]);
    assert_eq!(found("team-blue").await, ["api.example.com"]);
    assert_eq!(found("quad").await, ["9.9.9.0/24"]);
    assert_eq!(found("sec-4").await, ["8.8.8.8"]);
    assert_eq!(found("9.9.9.77").await, ["api.example.com", "9.9.9.0/24"]);
    assert_eq!(found("9.9.9.1").await, ["9.9.9.0/24"]);
    assert!(found("nothing").await.is_empty());

    let page = server.read("/api/v1/entries?q=example").await;
    let resolution = &page["entries"][0]["resolution"];
    assert_eq!(resolution["state"], "ok");
    assert_eq!(
        resolution["addresses"],
        json!([{"address": "9.9.9.77", "first_seen": "2023-11-14T22:13:20Z", "ttl_s": 30, "upstreams": ["a"], "single_upstream": false}])
    );
}

#[tokio::test]
async fn a_list_has_its_revision_as_tag_and_is_not_sent_twice() {
    let server = Server::start().await;
    server.add(json!({"target": "9.9.9.9"})).await;
    let first = server.get("/api/v1/entries?consistency=stale").await;
    let tag = first.headers()["etag"].to_str().unwrap().to_owned();
    let revision = first.headers()["x-outputguard-revision"].to_str().unwrap().to_owned();
    assert_eq!(tag, format!("\"{revision}\""));
    assert_eq!(first.json::<Value>().await.unwrap()["revision"].to_string(), revision);

    let ask = || server.request(Method::GET, "/api/v1/entries").header("if-none-match", &tag).send();
    assert_eq!(ask().await.unwrap().status(), StatusCode::NOT_MODIFIED);
    server.add(json!({"target": "8.8.8.8"})).await;
    assert_eq!(ask().await.unwrap().status(), StatusCode::OK);
    problem(server.get("/api/v1/entries?consistency=maybe").await, 400, "invalid_query").await;
}

#[tokio::test]
async fn every_read_says_its_revision_in_the_header_and_in_the_body_also_a_stale_one() {
    let server = Server::start().await;
    let entry = server.add(json!({"target": "9.9.9.9"})).await;
    let one = format!("/api/v1/entries/{}", entry["id"].as_str().unwrap());
    for round in 0..2 {
        let revision = server.cluster.reader().state().revision();
        for path in ["/api/v1/entries", &one, "/api/v1/tokens", "/api/v1/status"] {
            for consistency in ["", "?consistency=stale"] {
                if path.ends_with("status") && !consistency.is_empty() {
                    continue;
                }
                let answer = server.get(&format!("{path}{consistency}")).await;
                let header = answer.headers()["x-outputguard-revision"].to_str().unwrap().to_owned();
                let body: Value = answer.json().await.unwrap();
                assert_eq!(
                    (&header, &body["revision"]),
                    (&revision.to_string(), &json!(revision)),
                    "{path} {round}"
                );
            }
        }
        let export = server.get("/api/v1/export?consistency=stale").await;
        assert_eq!(export.headers()["x-outputguard-revision"].to_str().unwrap(), revision.to_string());
        server.add(json!({"target": format!("8.8.8.{}", round + 1)})).await;
    }
}
