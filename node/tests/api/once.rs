//! Writes with an `Idempotency-Key`.

use raft_store::state::EventKind;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Server, eventually, problem};

fn replayed(response: &Response) -> bool {
    response.headers().get("idempotency-replayed").is_some_and(|value| value == "true")
}

async fn parts(response: Response) -> (StatusCode, bool, String, Value) {
    let revision = response.headers()["x-outputguard-revision"].to_str().unwrap().to_owned();
    (response.status(), replayed(&response), revision, response.json().await.unwrap_or_default())
}

/// How often the audit log says that an entry was added.
fn additions(cluster: &node::cluster::Cluster) -> usize {
    let history = cluster.reader().after(0, usize::MAX).unwrap();
    let events = history.iter().flat_map(|batch| &batch.events);
    events.filter(|event| matches!(event.kind, EventKind::EntryAdded(_))).count()
}

#[tokio::test]
async fn the_same_request_at_two_nodes_takes_effect_once_and_has_one_answer() {
    let server = Server::start_one_of_three().await;
    let body = json!({"target": "9.9.9.9", "comment": "one"});
    let mut answers = Vec::new();
    for address in [server.address, server.serve_other(0).await, server.serve_other(1).await] {
        let post = server.request_at(address, Method::POST, "/api/v1/entries").json(&body);
        answers.push(parts(post.header("idempotency-key", "a-1").send().await.unwrap()).await);
    }
    let (status, again, revision, entry) = answers.remove(0);
    assert_eq!((status, again), (StatusCode::CREATED, false));
    for answer in answers {
        assert_eq!(answer, (StatusCode::CREATED, true, revision.clone(), entry.clone()));
    }
    assert_eq!(additions(&server.cluster), 1);
    // Without the key it is the natural key that tells.
    assert_eq!(server.post("/api/v1/entries", &body).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_retry_after_the_leaders_death_returns_the_first_answer() {
    let server = Server::start_one_of_three().await;
    let served = [server.address, server.serve_other(0).await, server.serve_other(1).await];
    let nodes = [&server.cluster, &server.others[0], &server.others[1]];
    eventually("one leads", async || nodes.iter().any(|node| *node.leadership().borrow())).await;
    let leader = nodes.iter().position(|node| *node.leadership().borrow()).unwrap();
    let ask = |index: usize| {
        let post = server.request_at(served[index], Method::POST, "/api/v1/entries");
        post.header("idempotency-key", "a-1").json(&json!({"target": "9.9.9.9"})).send()
    };
    let first = parts(ask(leader).await.unwrap()).await;
    nodes[leader].crash().await;
    for survivor in (0..3).filter(|index| *index != leader) {
        let mut again = None;
        eventually("a survivor answers", async || {
            let answer = ask(survivor).await.unwrap();
            let done = answer.status() != StatusCode::SERVICE_UNAVAILABLE;
            again = Some(answer);
            done
        })
        .await;
        let again = parts(again.unwrap()).await;
        assert_eq!(again, (first.0, true, first.2.clone(), first.3.clone()));
        assert_eq!(additions(nodes[survivor]), 1);
    }
}

#[tokio::test]
async fn a_key_with_another_request_is_refused() {
    let server = Server::start().await;
    let post = |path: &str, key: &str, body: Value| {
        server.request(Method::POST, path).header("idempotency-key", key).json(&body).send()
    };
    let first = post("/api/v1/entries", "k", json!({"target": "9.9.9.9"})).await.unwrap();
    assert_eq!(first.status(), StatusCode::CREATED);
    let other = post("/api/v1/entries", "k", json!({"target": "8.8.8.8"})).await.unwrap();
    let detail = problem(other, 422, "idempotency_key_reused").await;
    assert!(detail.contains("new key"), "{detail}");
    let delete = server.request(Method::DELETE, "/api/v1/tokens/admin").header("idempotency-key", "k");
    problem(delete.send().await.unwrap(), 422, "idempotency_key_reused").await;
    let long = "x".repeat(129);
    for wrong in ["", "a b", &long] {
        let refused = post("/api/v1/entries", wrong, json!({"target": "8.8.8.8"})).await.unwrap();
        problem(refused, 400, "invalid_idempotency_key").await;
    }
    assert_eq!(server.cluster.reader().state().entries().len(), 1);
}

#[tokio::test]
async fn changes_and_removals_and_their_refusals_are_answered_again() {
    let server = Server::start().await;
    let add = || {
        let post = server.request(Method::POST, "/api/v1/entries").header("idempotency-key", "add");
        post.json(&json!({"target": "9.9.9.9", "comment": "old"})).send()
    };
    let added = parts(add().await.unwrap()).await;
    let path = format!("/api/v1/entries/{}", added.3["id"].as_str().unwrap());
    let send = |method: Method, key: &str| server.request(method, &path).header("idempotency-key", key);
    let patch = || send(Method::PATCH, "patch").json(&json!({"comment": "new"})).send();
    let changed = parts(patch().await.unwrap()).await;
    assert_eq!(parts(patch().await.unwrap()).await, (changed.0, true, changed.2, changed.3));

    for again in [false, true] {
        let removed = parts(send(Method::DELETE, "delete").send().await.unwrap()).await;
        assert_eq!((removed.0, removed.1), (StatusCode::NO_CONTENT, again));
    }
    // It is gone, and the answer to its making is what it was.
    assert_eq!(parts(add().await.unwrap()).await, (added.0, true, added.2, added.3));
    assert_eq!(server.cluster.reader().state().entries().len(), 0);
    for again in [false, true] {
        let refused = send(Method::DELETE, "too late").send().await;
        assert!(refused.unwrap().status().is_client_error(), "a key has no spaces");
        let refused = send(Method::DELETE, "late").send().await.unwrap();
        assert_eq!(replayed(&refused), again);
        problem(refused, 404, "not_found").await;
    }
}

#[tokio::test]
async fn a_tokens_text_is_not_shown_again() {
    let server = Server::start().await;
    let make = || {
        let post = server.request(Method::POST, "/api/v1/tokens").header("idempotency-key", "t");
        post.json(&json!({"name": "ci", "role": "viewer"})).send()
    };
    let made = make().await.unwrap();
    assert_eq!((made.status(), replayed(&made)), (StatusCode::CREATED, false));
    let again = make().await.unwrap();
    assert!(replayed(&again));
    let detail = problem(again, 409, "token_exists").await;
    assert!(detail.contains("remove it"), "{detail}");
}

#[tokio::test]
async fn of_writers_that_add_one_target_at_all_nodes_at_once_one_creates_it_and_all_get_it() {
    let server = Server::start_one_of_three().await;
    let served = [server.address, server.serve_other(0).await, server.serve_other(1).await];
    let add = |index: usize| {
        let post = server.request_at(served[index % 3], Method::POST, "/api/v1/entries");
        async move {
            let body =
                json!({"target": "api.example.com", "ports": ["tcp/443"], "comment": index.to_string()});
            parts(post.json(&body).send().await.unwrap()).await
        }
    };
    let answers = futures_util::future::join_all((0..12).map(add)).await;
    let created = answers.iter().filter(|(status, ..)| *status == StatusCode::CREATED).count();
    assert_eq!(created, 1, "{answers:?}");
    for (status, _, _, entry) in &answers {
        assert!(status.is_success(), "{entry}");
        assert_eq!((&entry["id"], &entry["comment"]), (&answers[0].3["id"], &answers[0].3["comment"]));
    }
    assert_eq!(additions(&server.cluster), 1);
}
