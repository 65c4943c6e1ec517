//! Every error has one shape and says what was wrong and what would be right.

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::harness::{Server, problem};

#[tokio::test]
async fn a_target_that_cannot_be_allowed_is_refused_with_the_reason() {
    let server = Server::start().await;
    for (body, code, says) in [
        (json!({"target": "10.1.2.3"}), "not_public", "10.0.0.0/8"),
        (json!({"target": "8.0.0.0/5"}), "not_public", "10.0.0.0/8"),
        (json!({"target": "0.0.0.0/0"}), "not_public", "only globally reachable"),
        (json!({"target": "::ffff:10.1.2.3"}), "not_public", "10.0.0.0/8"),
        (json!({"target": "fe80::1"}), "not_public", "fe80::/10"),
        (json!({"target": "not a domain!"}), "invalid_target", "not a domain!"),
        (json!({"target": ""}), "invalid_target", "empty"),
        (json!({"target": "https://example.com/x"}), "invalid_target", "example.com"),
        (json!({"target": "example.com:443"}), "invalid_target", "tcp/443"),
        (json!({"target": "9.9.9.9/24"}), "invalid_target", "9.9.9.0/24"),
        (json!({"target": "*.com"}), "invalid_target", "public suffix"),
        (json!({"target": "*.example.com"}), "wildcard_unsupported", "wildcard"),
        (json!({"target": "**.example.com"}), "wildcard_unsupported", "example.com"),
        (json!({"target": "9.9.9.9", "ports": ["443"]}), "invalid_ports", "tcp/443"),
        (json!({"target": "9.9.9.9", "ports": ["tcp/0"]}), "invalid_ports", "1 and 65535"),
        (json!({"target": "9.9.9.9", "ports": ["tcp/1-65535"]}), "invalid_ports", "at most"),
        (json!({"target": "9.9.9.9", "expires_at": "1999-01-01T00:00:00Z"}), "invalid_expiry", "is over"),
        (json!({"target": "9.9.9.9", "expires_at": "tomorrow"}), "invalid_expiry", "RFC 3339"),
        (
            json!({"target": "9.9.9.9", "protected": true, "expires_at": "2999-01-01T00:00:00Z"}),
            "invalid_expiry",
            "leave out either",
        ),
        (json!({"target": "9.9.9.9", "comment": "x".repeat(1001)}), "text_too_long", "comment has 1001"),
        (json!({"target": "9.9.9.9", "labels": {"k": "x".repeat(129)}}), "text_too_long", "labels value"),
        (
            json!({"target": "a.example.com", "labels": {"outputguard/linger": "8d"}}),
            "invalid_linger",
            "at most 7d",
        ),
        (json!({"target": "9.9.9.9", "labels": {"k": 1}}), "invalid_body", "labels.k"),
        (json!({"target": "9.9.9.9", "protcted": true}), "invalid_body", "unknown field `protcted`"),
        (json!({"ports": []}), "invalid_body", "missing field `target`"),
    ] {
        let detail = problem(server.post("/api/v1/entries", &body).await, 422, code).await;
        assert!(detail.contains(says), "{body}: {detail}");
    }
    assert_eq!(server.cluster.reader().state().entries().len(), 0);
}

#[tokio::test]
async fn requests_that_are_not_for_this_api_get_the_same_shape() {
    let server = Server::start().await;
    let post = |body: &str| server.request(Method::POST, "/api/v1/entries").body(body.to_owned());

    let no_type = post("{}").send().await.unwrap();
    let detail = problem(no_type, 415, "unsupported_media_type").await;
    assert!(detail.contains("application/json"), "{detail}");
    let broken = post("{\"target\":").header("content-type", "application/json").send().await.unwrap();
    problem(broken, 400, "invalid_json").await;
    let huge = json!({"target": "9.9.9.9", "comment": "x".repeat(node::api::MAX_BODY_BYTES)});
    let detail = problem(server.post("/api/v1/entries", &huge).await, 413, "body_too_large").await;
    assert!(detail.contains(&node::api::MAX_BODY_BYTES.to_string()), "{detail}");

    problem(server.get("/api/v1/nothing").await, 404, "not_found").await;
    problem(server.get("/api").await, 404, "not_found").await;
    problem(server.request(Method::POST, "/nothing").send().await.unwrap(), 404, "not_found").await;
    let wrong = server.request(Method::PUT, "/api/v1/entries").send().await.unwrap();
    let allow = wrong.headers()["allow"].to_str().unwrap().to_owned();
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");
    problem(wrong, 405, "method_not_allowed").await;
    problem(server.get("/api/v1/entries/7").await, 400, "invalid_id").await;
    problem(server.get("/api/v1/entries/%ff").await, 400, "invalid_id").await;
    let detail = problem(server.get("/api/v1/entries?page=2").await, 400, "invalid_query").await;
    assert!(detail.contains("page"), "{detail}");
}

#[tokio::test]
async fn a_request_id_is_kept_when_it_is_usable_and_drawn_when_not() {
    let server = Server::start().await;
    let ask = |id: String| server.bare(Method::GET, "/livez").header("x-request-id", id).send();
    let kept = ask("build-42".into()).await.unwrap();
    assert_eq!(kept.headers()["x-request-id"], "build-42");
    let drawn = ask("x".repeat(500)).await.unwrap();
    assert_eq!(drawn.headers()["x-request-id"].len(), 36);
    assert_eq!(drawn.status(), StatusCode::OK);

    // The id of a write reaches the log that everybody shares.
    let add = server.request(Method::POST, "/api/v1/entries").header("x-request-id", "change-7");
    assert_eq!(add.json(&json!({"target": "9.9.9.9"})).send().await.unwrap().status(), StatusCode::CREATED);
    let reader = server.cluster.reader();
    let newest = reader.after(reader.state().revision() - 1, 1).unwrap();
    let origin = &newest[0].events[0].origin;
    assert_eq!((origin.actor.as_str(), origin.remote.as_str()), ("admin", "127.0.0.1"));
    assert_eq!(origin.request_id, "change-7");
}
