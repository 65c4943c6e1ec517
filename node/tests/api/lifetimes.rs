//! Entries that end by themselves, what a removal would do, and how names changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use raft_store::command::{Command, NameStatus, ResolutionUpdate, SeenAddress};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_util::sync::CancellationToken;

use crate::gateway::Gateway;
use crate::harness::{Server, eventually, problem};

fn after(wait: Duration) -> String {
    OffsetDateTime::from(SystemTime::now() + wait).format(&Rfc3339).unwrap()
}

fn expiry_runs(server: &Server) -> CancellationToken {
    let metrics = node::expiry::Metrics::register(&prometheus::Registry::new()).unwrap();
    let shutdown = CancellationToken::new();
    tokio::spawn(node::expiry::run(server.cluster.clone(), metrics, shutdown.clone()));
    shutdown
}

async fn resolve(server: &Server, name: &str, seen: &[&str], retire: &[&str]) {
    let address = |text: &&str| text.parse::<IpAddr>().unwrap();
    let stored = SeenAddress { first_seen_ms: 1, ttl_s: 60, upstreams: BTreeSet::new() };
    let resolution = ResolutionUpdate {
        seen: seen.iter().map(|text| (address(text), stored.clone())).collect::<BTreeMap<_, _>>(),
        retire: retire.iter().map(address).collect(),
        chain: Vec::new(),
        status: NameStatus::Ok,
    };
    server.propose(vec![Command::SetResolution { domain: name.parse().unwrap(), resolution }]).await;
}

#[tokio::test]
async fn an_entry_is_gone_soon_after_its_time_and_the_audit_log_says_why() {
    let server = Server::start().await;
    let _runs = expiry_runs(&server).drop_guard();
    let ends = after(Duration::from_millis(1_500));
    let entry = server.add(json!({"target": "9.9.9.9", "expires_at": ends})).await;
    assert_eq!(entry["expires_at"].as_str().unwrap().get(..22), ends.get(..22));
    let later =
        server.add(json!({"target": "8.8.8.8", "expires_at": after(Duration::from_secs(3_600))})).await;
    let path = format!("/api/v1/entries/{}", entry["id"].as_str().unwrap());
    assert_eq!(server.read(&path).await["id"], entry["id"]);
    eventually("it ended", async || server.get(&path).await.status() == StatusCode::NOT_FOUND).await;
    assert!(OffsetDateTime::now_utc() >= OffsetDateTime::parse(&ends, &Rfc3339).unwrap());
    let page = server.read("/api/v1/audit?actor=expiry").await;
    let events = page["events"].as_array().unwrap();
    assert_eq!(events.len(), 1, "{page}");
    assert_eq!((&events[0]["kind"], &events[0]["id"]), (&json!("entry_removed"), &entry["id"]));
    server.read(&format!("/api/v1/entries/{}", later["id"].as_str().unwrap())).await;
}

#[tokio::test]
async fn the_end_of_an_entry_can_be_moved_and_taken_away_but_not_given_to_a_protected_one() {
    let server = Server::start().await;
    let entry = server.add(json!({"target": "9.9.9.9", "comment": "for a week"})).await;
    let path = format!("/api/v1/entries/{}", entry["id"].as_str().unwrap());
    let patch = async |body: Value| server.request(Method::PATCH, &path).json(&body).send().await.unwrap();
    let changed: Value = patch(json!({"expires_at": "2999-01-01T00:00:00Z"})).await.json().await.unwrap();
    assert_eq!(changed["expires_at"], "2999-01-01T00:00:00Z");
    assert_eq!(changed["comment"], "for a week");
    // What is left out stays.
    let changed: Value = patch(json!({"comment": "for longer"})).await.json().await.unwrap();
    assert_eq!(changed["expires_at"], "2999-01-01T00:00:00Z");
    let changed: Value = patch(json!({"expires_at": null})).await.json().await.unwrap();
    assert_eq!((&changed["expires_at"], &changed["comment"]), (&Value::Null, &json!("for longer")));
    patch(json!({"expires_at": "2999-01-01T00:00:00Z"})).await;
    let changed: Value = patch(json!({"protected": true})).await.json().await.unwrap();
    assert_eq!((&changed["expires_at"], &changed["protected"]), (&Value::Null, &json!(true)));
    problem(patch(json!({"expires_at": "2999-01-01T00:00:00Z"})).await, 409, "protected").await;
    problem(patch(json!({"expires_at": "soon"})).await, 422, "invalid_expiry").await;
}

#[tokio::test]
async fn the_impact_of_a_removal_is_shown_and_nothing_is_changed() {
    let server = Server::start().await;
    let entry = server.add(json!({"target": "a.example.com", "ports": ["tcp/443"]})).await;
    let network = server.add(json!({"target": "8.8.0.0/16"})).await;
    resolve(&server, "a.example.com", &["1.1.1.1", "8.8.8.8", "9.9.9.9"], &[]).await;
    resolve(&server, "a.example.com", &["1.0.0.1"], &["9.9.9.9"]).await;
    let path = format!("/api/v1/entries/{}", entry["id"].as_str().unwrap());
    let revision = server.cluster.reader().state().revision();
    let impact = server.read(&format!("{path}/impact")).await;
    assert_eq!(impact["removed"], json!(["1.0.0.1/32 tcp/443", "1.1.1.1/32 tcp/443"]));
    assert_eq!(impact["kept"][0]["element"], "8.8.8.8/32 tcp/443");
    let because_of = json!([{"id": network["id"], "target": "8.8.0.0/16"}]);
    assert_eq!(impact["kept"][0]["because_of"], because_of);
    assert_eq!(impact["drained"], json!(["9.9.9.9/32 tcp/443"]));
    assert_eq!((&impact["removed_count"], &impact["kept_count"]), (&json!(2), &json!(1)));
    let dry = server.request(Method::DELETE, &format!("{path}?dry_run=true")).send().await.unwrap();
    assert_eq!(dry.status(), StatusCode::OK);
    assert_eq!(dry.json::<Value>().await.unwrap(), impact);
    assert_eq!(server.cluster.reader().state().revision(), revision);
    let wrong = server.request(Method::DELETE, &format!("{path}?dryrun=true")).send().await.unwrap();
    problem(wrong, 400, "invalid_query").await;

    let history = server.read(&format!("{path}/history")).await;
    let changes = history["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 2);
    assert_eq!((&changes[0]["added"], &changes[0]["retired"]), (&json!(["1.0.0.1"]), &json!(["9.9.9.9"])));
    assert_eq!(changes[1]["added"], json!(["1.1.1.1", "8.8.8.8", "9.9.9.9"]));

    let removed = server.request(Method::DELETE, &path).send().await.unwrap();
    assert_eq!(removed.status(), StatusCode::NO_CONTENT);
    problem(server.get(&format!("{path}/impact")).await, 404, "not_found").await;
}

#[tokio::test]
async fn an_answer_waits_until_every_gateway_holds_the_change_and_says_who_does_not() {
    let server = Server::start().await;
    let token = server.token("gw", raft_store::command::Role::Gateway).await;
    let mut quick = Gateway::connect(&server, &token, "gw-quick").await;
    let mut slow = Gateway::connect(&server, &token, "gw-slow").await;
    let post = async |query: &str, target: &str| -> Value {
        let path = format!("/api/v1/entries?{query}");
        server.post(&path, &json!({"target": target})).await.json().await.unwrap()
    };
    let follow = async |gateway: &mut Gateway, revision: u64| {
        gateway.beat_at(revision).await;
        gateway.report_applied(gateway.digest()).await;
    };
    let next = server.cluster.reader().state().revision() + 1;
    let (added, (), ()) =
        tokio::join!(post("wait=applied", "9.9.9.9"), follow(&mut quick, next), follow(&mut slow, next));
    let receipt = &added["receipt"];
    assert_eq!((&receipt["applied"], &receipt["revision"]), (&json!(true), &json!(next)), "{added}");
    assert_eq!(receipt["gateways"].as_array().unwrap().len(), 2);
    assert_eq!(receipt["resolved"], Value::Null);

    let (added, ()) = tokio::join!(post("wait=applied&wait_s=1", "8.8.8.8"), follow(&mut quick, next + 1));
    let receipt = &added["receipt"];
    assert_eq!(receipt["applied"], false, "{added}");
    let held: Vec<_> =
        receipt["gateways"].as_array().unwrap().iter().map(|one| one["applied"] == true).collect();
    assert_eq!(held, [true, false], "{added}");

    // A name nobody has asked DNS for: the time is up, and the answer says so.
    let added = post("wait=resolved&wait_s=1", "a.example.com").await;
    assert_eq!((&added["receipt"]["resolved"], &added["receipt"]["applied"]), (&json!(false), &Value::Null));
    let (added, ()) = tokio::join!(post("wait=resolved", "b.example.com"), async {
        eventually("it is added", async || server.cluster.reader().state().resolutions().len() == 2).await;
        resolve(&server, "b.example.com", &["1.1.1.1"], &[]).await;
    });
    assert_eq!(added["receipt"]["resolved"], true, "{added}");
    assert_eq!(added["resolution"]["state"], "ok");
    let path = format!("/api/v1/entries/{}", added["id"].as_str().unwrap());
    let next = server.cluster.reader().state().revision() + 1;
    let remove = server.request(Method::DELETE, &format!("{path}?wait=applied")).send();
    let (removed, (), ()) = tokio::join!(remove, follow(&mut quick, next), follow(&mut slow, next));
    assert_eq!(removed.unwrap().json::<Value>().await.unwrap()["receipt"]["applied"], true);
    for query in ["wait_s=1", "wait=applied&wait_s=9", "wait=never"] {
        let refused = server.post(&format!("/api/v1/entries?{query}"), &json!({"target": "1.1.1.1"})).await;
        problem(refused, 400, "invalid_query").await;
    }
}
