//! Whole lists in and out.

use std::fmt::Write as _;

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::harness::{PATIENCE, Server, problem};

const KINDS: [(&str, &str); 3] =
    [("ndjson", "application/x-ndjson"), ("yaml", "application/yaml"), ("csv", "text/csv")];

async fn import(server: &Server, query: &str, kind: &str, body: impl Into<reqwest::Body>) -> Response {
    let request = server.request(Method::POST, &format!("/api/v1/import{query}"));
    request.header("content-type", kind).body(body).send().await.unwrap()
}

async fn answer(response: Response) -> Value {
    assert_eq!(response.status(), StatusCode::OK);
    response.json().await.unwrap()
}

/// Entries without what an import gives them.
async fn list(server: &Server) -> Vec<Value> {
    let mut page = server.read("/api/v1/entries?limit=1000").await;
    let entries = page["entries"].as_array_mut().unwrap();
    for entry in entries.iter_mut() {
        for name in ["id", "created_at", "created_by", "resolution"] {
            entry.as_object_mut().unwrap().remove(name).unwrap();
        }
    }
    std::mem::take(entries)
}

#[tokio::test]
async fn what_is_exported_in_any_format_is_imported_to_the_same_list() {
    let server = Server::start().await;
    server
        .add(json!({
            "target": "api.example.com", "ports": ["udp/5000-5010", "tcp/443"], "protected": true,
            "comment": "say \"hi\",\nthen: # leave\r\n", "owner": "0123", "ticket": " null ",
            "labels": {"env": "prod,\"x\"", "a: b": "\n", "": "true"},
        }))
        .await;
    for last in 1..=300 {
        server
            .propose(vec![raft_store::Command::AddEntry(raft_store::command::NewEntry {
                id: allowlist::EntryId(uuid::Uuid::now_v7()),
                target: format!("9.9.{}.{}", last / 200, last % 200).parse().unwrap(),
                ports: allowlist::Ports::all(),
                protected: false,
                comment: format!("number {last}").into(),
                owner: Default::default(),
                ticket: Default::default(),
                labels: Default::default(),
                expires_at_ms: None,
            })])
            .await;
    }
    let before = list(&server).await;
    assert_eq!(before.len(), 301);
    for (format, kind) in KINDS {
        let export = server.get(&format!("/api/v1/export?format={format}")).await;
        assert!(export.headers()["content-type"].to_str().unwrap().starts_with(kind));
        let text = export.text().await.unwrap();
        let same = answer(import(&server, "", kind, text.clone()).await).await;
        assert_eq!((&same["created"], &same["existing"]), (&json!(0), &json!(301)));

        let other = Server::start().await;
        let dry = answer(import(&other, "?dry_run=true", kind, text.clone()).await).await;
        assert_eq!((&dry["created"], &dry["dry_run"]), (&json!(301), &json!(true)));
        assert!(list(&other).await.is_empty());
        let made = answer(import(&other, "", kind, text).await).await;
        assert_eq!((&made["created"], &made["existing"]), (&json!(301), &json!(0)));
        assert_eq!(made["revision"], other.cluster.reader().state().revision());
        assert_eq!(list(&other).await, before, "{format}");
        let digest = |server: &Server| server.cluster.reader().state().published().digest();
        assert_eq!(digest(&other), digest(&server));
    }
    let empty = Server::start().await;
    let text = empty.get("/api/v1/export").await.text().await.unwrap();
    assert_eq!(answer(import(&empty, "", "application/yaml", text).await).await["created"], 0);
}

#[tokio::test]
async fn one_wrong_line_and_nothing_is_written() {
    let server = Server::start().await;
    let mut list = String::new();
    for line in 1..=150 {
        let target = if line % 2 == 0 { format!("10.0.0.{line}") } else { format!("9.9.9.{line}") };
        writeln!(list, "{}", json!({ "target": target })).unwrap();
    }
    let refused = import(&server, "", "application/x-ndjson", list).await;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let body: Value = refused.json().await.unwrap();
    assert_eq!(body["code"], "invalid_import");
    let errors = body["errors"].as_array().unwrap();
    assert_eq!(errors.len(), 75);
    assert_eq!((&errors[0]["line"], &errors[0]["code"]), (&json!(2), &json!("not_public")));
    assert!(errors[74]["detail"].as_str().unwrap().contains("10.0.0.150"), "{body}");
    assert!(server.cluster.reader().state().entries().is_empty());

    problem(import(&server, "", "application/json", "{}").await, 415, "unsupported_media_type").await;
    problem(import(&server, "?dry=1", "text/csv", "target\n").await, 400, "invalid_query").await;
    problem(server.get("/api/v1/export?format=xml").await, 400, "invalid_query").await;
    let token = server.token("eye", raft_store::command::Role::Viewer).await;
    let request = server.bare(Method::POST, "/api/v1/import").bearer_auth(token);
    problem(
        request.header("content-type", "text/csv").body("target\n").send().await.unwrap(),
        403,
        "forbidden",
    )
    .await;
}

#[tokio::test]
async fn a_long_list_sent_to_a_follower_is_written_while_others_write_and_no_election_comes_of_it() {
    const ENTRIES: u32 = 12_000;
    let server = Server::start_one_of_three().await;
    let nodes = [&server.cluster, &server.others[0], &server.others[1]];
    let served = [server.address, server.serve_other(0).await, server.serve_other(1).await];
    let follower = nodes.iter().position(|node| !*node.leadership().borrow()).unwrap();
    let term = |node: &node::cluster::Cluster| node.node_status().unwrap().term;
    let before = term(nodes[follower]);
    let mut list = String::from("target,comment\n");
    for number in 0..ENTRIES {
        let [_, a, b, c] = (number * 7).to_be_bytes();
        writeln!(list, "9.{a}.{b}.{c},number {number}").unwrap();
    }
    let send = || {
        let request = server.request_at(served[follower], Method::POST, "/api/v1/import");
        let request = request.header("content-type", "text/csv").header("idempotency-key", "list-1");
        request.body(list.clone()).send()
    };
    let others = async {
        for last in 1..=10 {
            server.add(json!({"target": format!("8.8.8.{last}")})).await;
        }
    };
    let (imported, ()) = tokio::join!(send(), others);
    let imported = answer(imported.unwrap()).await;
    assert_eq!((&imported["created"], &imported["existing"]), (&json!(ENTRIES), &json!(0)));
    for node in nodes {
        node.read_barrier(PATIENCE).await.unwrap();
        assert_eq!(node.reader().state().entries().len(), ENTRIES as usize + 10);
    }
    assert_eq!(term(nodes[follower]), before, "heartbeats went on");
    let again = send().await.unwrap();
    assert_eq!(again.headers()["idempotency-replayed"], "true");
    assert_eq!(answer(again).await, imported);
    let without_key = import(&server, "", "text/csv", list.clone()).await;
    assert_eq!(answer(without_key).await["existing"], ENTRIES);
}
