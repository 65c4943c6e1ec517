//! A node that has lost its cluster says so, goes on showing what it holds, and never hangs.

use std::sync::Arc;

use allowlist::feed::GoawayReason;
use raft_store::command::{Command, Operation, Origin, Role, Token};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::gateway::Gateway;
use crate::harness::{PATIENCE, Server, problem};

async fn lose_quorum(server: &Server) {
    for node in &server.others {
        node.crash().await;
    }
}

#[tokio::test]
async fn without_a_quorum_writes_and_fresh_reads_are_refused_and_stale_reads_work() {
    let server = Server::start_one_of_three().await;
    let entry = server.add(json!({"target": "9.9.9.9"})).await;
    let status = server.read("/api/v1/status").await;
    assert_eq!((&status["current"], status["leader"].is_string()), (&json!(true), true));
    lose_quorum(&server).await;

    let read = server.get("/api/v1/entries").await;
    assert_eq!(read.headers()["retry-after"], "1");
    let detail = problem(read, 503, "no_quorum").await;
    assert!(detail.contains("consistency=stale"), "{detail}");
    let write = server.post("/api/v1/entries", &json!({"target": "8.8.8.8"})).await;
    assert_eq!(write.headers()["retry-after"], "1");
    let detail = problem(write, 503, "no_quorum").await;
    assert!(detail.contains("nothing was written"), "{detail}");

    let unknown = format!("og_admin_{}", "0".repeat(64));
    for method in [Method::GET, Method::POST] {
        let asked = server.bare(method, "/api/v1/entries").bearer_auth(&unknown).send().await.unwrap();
        assert_eq!(asked.headers()["retry-after"], "1");
        let detail = problem(asked, 503, "no_quorum").await;
        assert!(detail.contains("not known here"), "{detail}");
    }

    let stale = server.read("/api/v1/entries?consistency=stale").await;
    assert_eq!(stale["entries"], json!([entry]));
    let status = server.read("/api/v1/status").await;
    assert_eq!((&status["current"], &status["leader"]), (&json!(false), &Value::Null));
    assert_eq!(server.bare(Method::GET, "/livez").send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(status["nodes"].as_array().map(Vec::len), Some(3));
    let ready = server.bare(Method::GET, "/readyz").send().await.unwrap();
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(ready.text().await.unwrap().contains("no leader confirmed"));
}

#[tokio::test]
async fn a_node_without_a_quorum_sends_each_gateway_away_once() {
    let server = Server::start_one_of_three().await;
    let token = server.token("gw", Role::Gateway).await;
    let watching = tokio::spawn(node::feed::watch_quorum(server.cluster.clone(), server.sessions.clone()));
    let mut gateway = Gateway::connect(&server, &token, "gw-1").await;
    lose_quorum(&server).await;
    assert_eq!(gateway.ended().await.goaway, Some(GoawayReason::Lagging));
    // It comes back when no other node is better, and then stays.
    let mut again = Gateway::connect(&server, &token, "gw-1").await;
    for _ in 0..6 {
        again.beat_at(0).await;
    }
    assert_eq!(server.metric("outputguard_feed_session_ends_total{reason=\"lagging\"}").await, 1.0);
    watching.abort();
}

#[tokio::test]
async fn a_write_on_one_node_is_in_the_next_read_on_another_and_its_token_works_there() {
    let server = Server::start_one_of_three().await;
    let elsewhere = &server.others[0];
    for round in 1..=5 {
        let entry = server.add(json!({"target": format!("9.9.9.{round}")})).await;
        let revision = server.cluster.reader().state().revision();
        assert!(elsewhere.read_barrier(PATIENCE).await.unwrap() >= revision, "{entry}");
        // Made on another node, and shown here at once.
        let name = format!("gw-{round}");
        let secret = node::auth::token::generate(Role::Viewer);
        let sha256 = node::auth::token::sha256(secret.expose());
        let token = Token { name, role: Role::Viewer, sha256, created_at_ms: 1 };
        let operation = Operation { origin: Origin::default(), command: Command::AddToken(token) };
        elsewhere.propose(vec![operation], PATIENCE).await.unwrap();
        let read = server.bare(Method::GET, "/api/v1/entries").bearer_auth(secret.expose());
        assert_eq!(read.send().await.unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_write_enters_the_log_behind_the_removal_of_its_token() {
    const WRITERS: usize = 16;
    let server = Arc::new(Server::start_one_of_three().await);
    for round in 0..4 {
        let name = format!("hand-{round}");
        let token = server.token(&name, Role::Editor).await;
        let answered = Arc::new(tokio::sync::Semaphore::new(0));
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let (server, token, answered) = (Arc::clone(&server), token.clone(), Arc::clone(&answered));
            writers.spawn(async move {
                let mut newest = 0;
                for number in 0.. {
                    let target = format!("20.{round}.{writer}.{}", number % 256);
                    let write = server.bare(Method::POST, "/api/v1/entries").bearer_auth(&token);
                    let write = write.json(&json!({"target": target})).send().await.unwrap();
                    // 503: too many ask at once whether it is a new one; nothing was written.
                    if [StatusCode::UNAUTHORIZED, StatusCode::SERVICE_UNAVAILABLE].contains(&write.status()) {
                        break;
                    }
                    assert!(write.status().is_success(), "{}", write.status());
                    newest = write.headers()["x-outputguard-revision"].to_str().unwrap().parse().unwrap();
                    answered.add_permits(1);
                }
                newest
            });
        }
        // All of them are at it.
        drop(answered.acquire_many(2 * WRITERS as u32).await.unwrap());
        let removal = Operation { origin: Origin::default(), command: Command::RemoveToken { name } };
        let removed = server.cluster.propose(vec![removal], PATIENCE).await.unwrap().revision;
        while let Some(newest) = writers.join_next().await {
            let newest: u64 = newest.unwrap();
            assert!(newest <= removed, "written at {newest} with a token that was removed at {removed}");
        }
    }
}

#[tokio::test]
async fn a_token_removed_on_one_node_writes_nothing_on_another() {
    let server = Server::start_one_of_three().await;
    let operation = |command| vec![Operation { origin: Origin::default(), command }];
    for round in 1..=5 {
        let elsewhere = &server.others[round % 2];
        let name = format!("hand-{round}");
        let token = server.token(&name, Role::Editor).await;
        elsewhere.propose(operation(Command::RemoveToken { name }), PATIENCE).await.unwrap();
        let write = server.bare(Method::POST, "/api/v1/entries").bearer_auth(&token);
        let write = write.json(&json!({"target": format!("9.9.9.{round}")})).send().await.unwrap();
        problem(write, 401, "unauthorized").await;
    }
    assert_eq!(server.cluster.reader().state().entries().len(), 0);
}
