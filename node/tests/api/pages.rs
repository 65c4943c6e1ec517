//! Everything that is not entries and tokens: description, health, metrics, status, the UI's files.

use std::process::Stdio;

use allowlist::feed::ToServer;
use raft_store::command::Role;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::gateway::Gateway;
use crate::harness::{Server, eventually, problem};

#[tokio::test]
async fn the_description_lists_every_route() {
    let server = Server::start().await;
    let response = server.bare(Method::GET, "/api/v1/openapi.json").send().await.unwrap();
    let document: Value = response.json().await.unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let mut listed: Vec<String> = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in ["get", "post", "patch", "delete", "put"] {
            if item[method].is_object() {
                listed.push(format!("{method} {path}"));
            }
        }
    }
    listed.sort();
    let mut expected = [
        "get /api/v1/entries",
        "post /api/v1/entries",
        "get /api/v1/entries/{id}",
        "patch /api/v1/entries/{id}",
        "delete /api/v1/entries/{id}",
        "get /api/v1/entries/{id}/impact",
        "get /api/v1/entries/{id}/history",
        "get /api/v1/names",
        "post /api/v1/import",
        "get /api/v1/export",
        "get /api/v1/backup",
        "post /api/v1/restore",
        "get /api/v1/status",
        "get /api/v1/receipts/cuts",
        "get /api/v1/denied",
        "get /api/v1/traffic/top",
        "get /api/v1/audit",
        "get /api/v1/cluster/members",
        "post /api/v1/cluster/members",
        "delete /api/v1/cluster/members/{member}",
        "post /api/v1/cluster/step-down",
        "get /api/v1/cluster/recovery",
        "post /api/v1/cluster/recovery",
        "get /api/v1/tokens",
        "post /api/v1/tokens",
        "delete /api/v1/tokens/{name}",
        "get /api/v1/session",
        "post /api/v1/session",
        "delete /api/v1/session",
        "get /api/v1/openapi.json",
        "get /ws",
        "get /livez",
        "get /readyz",
        "get /metrics",
    ];
    expected.sort_unstable();
    assert_eq!(listed, expected);
    let text = document.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document["components"]["schemas"][name].is_object(), "{name} is referred to and not there");
    }
}

#[tokio::test]
async fn liveness_asks_for_nothing_and_readiness_says_why_not() {
    let server = Server::start().await;
    let live: Value = server.bare(Method::GET, "/livez").send().await.unwrap().json().await.unwrap();
    assert_eq!(live, json!({"status": "ok"}));
    let ready = server.bare(Method::GET, "/readyz").send().await.unwrap();
    assert_eq!(ready.status(), StatusCode::OK);
    let ready: Value = ready.json().await.unwrap();
    assert_eq!((&ready["ready"], &ready["reasons"]), (&json!(true), &json!([])));

    server.sessions.drain(std::time::Duration::ZERO).await;
    let ready = server.bare(Method::GET, "/readyz").send().await.unwrap();
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
    let ready: Value = ready.json().await.unwrap();
    assert_eq!(ready["ready"], false);
    assert!(ready["reasons"].to_string().contains("being shut down"), "{ready}");
}

#[tokio::test]
async fn metrics_count_by_route_and_show_the_state() {
    let server = Server::start().await;
    let entry = server.add(json!({"target": "9.9.9.9", "ports": ["tcp/80", "tcp/443"]})).await;
    server.read(&format!("/api/v1/entries/{}", entry["id"].as_str().unwrap())).await;
    assert_eq!(server.metric("outputguard_entries").await, 1.0);
    assert_eq!(server.metric("outputguard_published_elements").await, 2.0);
    let revision = server.cluster.reader().state().revision();
    assert_eq!(server.metric("outputguard_revision").await, revision as f64);
    let route =
        "outputguard_http_requests_total{method=\"GET\",route=\"/api/v1/entries/{id}\",status=\"200\"}";
    assert_eq!(server.metric(route).await, 1.0);
    assert_eq!(server.metric("outputguard_feed_sessions").await, 0.0);
    assert_eq!(server.metric("outputguard_feature_level{kind=\"active\"}").await, 4.0);
    assert_eq!(server.metric("outputguard_feature_level{kind=\"supported\"}").await, 4.0);
    let status = server.read("/api/v1/status").await;
    assert_eq!(status["features"], json!({"active": 4, "supported": 4, "held_back_by": []}));
    assert_eq!(server.metric("outputguard_raft_role{role=\"leader\"}").await, 1.0);
    assert_eq!(server.metric("outputguard_raft_role{role=\"follower\"}").await, 0.0);
    assert!(server.metric("outputguard_raft_term").await >= 1.0);
    assert_eq!(server.metric("outputguard_raft_is_leader").await, 1.0);
    assert_eq!(server.metric("outputguard_raft_leader_changes_total").await, 0.0);
    assert!(server.metric("outputguard_raft_applied_index").await >= revision as f64);
    assert!(server.metric("outputguard_raft_last_log_index").await >= revision as f64);
    assert!(server.metric("outputguard_raft_log_bytes").await > 0.0);
    assert!(server.metric("outputguard_raft_proposals_total{result=\"committed\"}").await >= 1.0);
    assert!(
        server.metric("outputguard_raft_reads_total").await
            >= server.metric("outputguard_raft_read_rounds_total").await
    );
    let page = server.bare(Method::GET, "/metrics").send().await.unwrap();
    assert!(page.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
    let page = page.text().await.unwrap();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        assert!(line.starts_with("outputguard_"), "{line}");
    }
}

#[tokio::test]
async fn prometheus_finds_nothing_to_complain_about() {
    let server = Server::start().await;
    let token = server.token("gw", Role::Gateway).await;
    let mut gateway = Gateway::connect(&server, &token, "gw-1").await;
    gateway.say(&ToServer::Traffic(Vec::new())).await;
    gateway.say(&ToServer::Denied(Vec::new())).await;
    let denied = "outputguard_feed_denied_packets_total{gateway=\"gw-1\"}";
    let page = async || server.bare(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
    eventually("the reports are counted", async || page().await.contains(denied)).await;

    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().expect("promtool comes with Debian's package prometheus");
    promtool.stdin.take().unwrap().write_all(page().await.as_bytes()).await.unwrap();
    let verdict = promtool.wait_with_output().await.unwrap();
    let words = [verdict.stdout, verdict.stderr].concat();
    assert!(verdict.status.success() && words.is_empty(), "{}", String::from_utf8_lossy(&words));
}

#[tokio::test]
async fn status_shows_the_state_and_its_tag() {
    let server = Server::start().await;
    server.add(json!({"target": "9.9.9.9"})).await;
    let answer = server.get("/api/v1/status").await;
    assert!(answer.headers().contains_key("etag"));
    let status: Value = answer.json().await.unwrap();
    let state = server.cluster.reader().state();
    assert_eq!(status["cluster"], state.cluster().unwrap().to_string());
    assert_eq!(status["revision"], state.revision());
    assert_eq!(status["digest"], state.published().digest().to_string());
    assert_eq!((&status["entries"], &status["published"]), (&json!(1), &json!(1)));
    assert_eq!(status["node"], "server-1");
    assert_eq!(status["gateways"], json!([]));
    assert_eq!((&status["leader"], &status["current"]), (&json!("server-1"), &json!(true)));
    let node = &status["nodes"][0];
    assert_eq!((&node["name"], &node["role"]), (&json!("server-1"), &json!("leader")));
    assert_eq!((&node["voter"], &node["reachable"]), (&json!(true), &json!(true)));
    assert_eq!(node["applied"], state.revision());
    assert_eq!(node["digest"], status["digest"]);
}

#[tokio::test]
async fn the_root_is_a_page_and_paths_inside_the_ui_lead_to_it() {
    let server = Server::start().await;
    for path in ["/", "/entries", "/gateways/gw-1"] {
        let page = server.bare(Method::GET, path).send().await.unwrap();
        assert_eq!(page.status(), StatusCode::OK, "{path}");
        assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
        assert_eq!(page.headers()["cache-control"], "no-cache");
        assert_eq!(page.headers()["x-content-type-options"], "nosniff");
        assert_eq!(page.headers()["x-frame-options"], "DENY");
        assert!(page.headers()["content-security-policy"].to_str().unwrap().contains("default-src 'self'"));
        assert!(page.text().await.unwrap().contains("OutputGuard"));
    }
    problem(server.bare(Method::GET, "/assets/none.js").send().await.unwrap(), 404, "not_found").await;
    problem(server.bare(Method::GET, "/../../etc/pass.wd").send().await.unwrap(), 404, "not_found").await;
    let head = server.bare(Method::HEAD, "/").send().await.unwrap();
    assert_eq!((head.status(), head.text().await.unwrap()), (StatusCode::OK, String::new()));
}
