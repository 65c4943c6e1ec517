//! Backups, and new clusters made of them.

use raft_store::command::Role;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::harness::{Server, problem};

async fn restore(server: &Server, bytes: Vec<u8>) -> Response {
    server.request(Method::POST, "/api/v1/restore").body(bytes).send().await.unwrap()
}

async fn backup(server: &Server) -> Vec<u8> {
    let response = server.get("/api/v1/backup").await;
    assert_eq!(response.status(), StatusCode::OK);
    let state = server.cluster.reader().state();
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("x-outputguard-cluster"), state.cluster().unwrap().to_string());
    assert_eq!(header("x-outputguard-entries"), state.entries().len().to_string());
    assert_eq!(header("x-outputguard-revision"), state.revision().to_string());
    let (sum, len) = (header("x-outputguard-backup-sha256"), header("content-length"));
    let bytes = response.bytes().await.unwrap().to_vec();
    let (content, footer) = bytes.split_at(bytes.len() - 32);
    let computed = Sha256::digest(content);
    assert_eq!((computed.as_slice(), len), (footer, bytes.len().to_string()));
    assert_eq!(sum, computed.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    bytes
}

#[tokio::test]
async fn a_new_cluster_made_of_a_backup_has_the_same_entries_and_publishes_the_same() {
    let old = Server::start_one_of_three().await;
    old.add(json!({"target": "api.example.com", "ports": ["tcp/443"], "protected": true, "comment": "a\nb"}))
        .await;
    old.add(json!({"target": "9.9.9.0/24", "labels": {"env": "prod"}})).await;
    let gateway = old.token("gw-1", Role::Gateway).await;
    let seen =
        raft_store::command::SeenAddress { first_seen_ms: 5, ttl_s: 30, upstreams: Default::default() };
    let resolution = raft_store::command::ResolutionUpdate {
        seen: [("1.1.1.1".parse().unwrap(), seen)].into(),
        ..Default::default()
    };
    let domain = "api.example.com".parse().unwrap();
    old.propose(vec![raft_store::Command::SetResolution { domain, resolution }]).await;
    let bytes = backup(&old).await;

    let new = Server::start().await;
    let id = new.cluster.reader().state().cluster();
    let answer = restore(&new, bytes.clone()).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let answer: Value = answer.json().await.unwrap();
    assert_eq!((&answer["entries"], &answer["tokens"]), (&json!(2), &json!(1)));
    assert_eq!(answer["skipped_tokens"], json!(["admin"]));
    let (before, after) = (old.cluster.reader().state(), new.cluster.reader().state());
    assert_eq!(before.entries(), after.entries());
    assert_eq!(before.published().digest(), after.published().digest());
    assert_eq!(before.published().len(), 2);
    assert_eq!((after.cluster(), after.cluster() == before.cluster()), (id, false));
    assert!(after.tokens().contains_key("gw-1"));
    let feed = new.bare(Method::GET, "/ws").bearer_auth(&gateway).send().await.unwrap();
    problem(feed, 400, "not_websocket").await;
    // Its own admin still reads, and a second restore only finds what is there.
    let again: Value = restore(&new, bytes).await.json().await.unwrap();
    assert_eq!(again["entries"], 2);
    assert_eq!(new.cluster.reader().state().entries(), after.entries());
}

#[tokio::test]
async fn what_is_no_whole_backup_is_refused_and_leaves_nothing_behind() {
    let old = Server::start().await;
    for last in 1..=50 {
        old.add(json!({"target": format!("9.9.9.{last}")})).await;
    }
    let good = backup(&old).await;
    let new = Server::start().await;
    let before = new.cluster.reader().state();
    let refused = async |bytes: Vec<u8>| problem(restore(&new, bytes).await, 422, "invalid_backup").await;

    let cut = refused(good[..good.len() - 100].to_vec()).await;
    assert!(cut.starts_with("backup is damaged: "), "{cut}");
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let flipped = refused(flipped).await;
    assert!(flipped.starts_with("backup is damaged: "), "{flipped}");
    let mut newer = good.clone();
    newer[7] = 9;
    let newer = refused(newer).await;
    assert!(newer.starts_with("backup has format version 9, this server reads up to 1: "), "{newer}");
    let other = refused(b"entries: []".to_vec()).await;
    assert!(other.contains("not a backup"), "{other}");
    let token = new.token("hand", Role::Editor).await;
    let before_tokens = new.cluster.reader().state().revision();
    let request = new.bare(Method::POST, "/api/v1/restore").bearer_auth(&token).body(good.clone());
    problem(request.send().await.unwrap(), 403, "forbidden").await;
    let read = new.bare(Method::GET, "/api/v1/backup").bearer_auth(&token).send().await.unwrap();
    problem(read, 403, "forbidden").await;
    let after = new.cluster.reader().state();
    assert_eq!((after.entries(), after.revision()), (before.entries(), before_tokens));

    new.add(json!({"target": "8.8.8.8"})).await;
    let detail = problem(restore(&new, good).await, 409, "not_empty").await;
    assert!(detail.contains("make a new cluster"), "{detail}");
    assert_eq!(new.cluster.reader().state().entries().len(), 1);
}
