//! Two of three nodes are lost for good.

use nix::sys::signal::Signal;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::PATIENCE;
use crate::processes::Servers;

const RECOVERY: &str = "/api/v1/cluster/recovery";

impl Servers {
    async fn call(&self, index: usize, method: Method, path: &str, body: &Value) -> (StatusCode, Value) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let request =
                self.client.request(method.clone(), self.url(index, path)).bearer_auth(self.token());
            // Its process may just be starting.
            if let Ok(answer) = request.json(body).send().await {
                return (answer.status(), answer.json().await.unwrap_or(Value::Null));
            }
            assert!(Instant::now() < deadline, "server {index} does not answer");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    fn kill(&mut self, index: usize) {
        let mut process = self.processes[index].take().unwrap();
        process.signal(Signal::SIGKILL);
        process.end();
    }

    fn data_dir(&self, index: usize) -> std::path::PathBuf {
        self.dir.path().join(format!("server-{}", index + 1))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_survivor_goes_on_alone_when_told_and_what_comes_back_of_the_old_cluster_is_refused() {
    let mut servers = Servers::start();
    for index in 0..3 {
        servers.ready(index).await;
    }
    servers.wait_for_token().await;
    assert_eq!(servers.add(1, "192.0.9.1").await.unwrap(), StatusCode::CREATED);
    assert!(servers.lists(0, "192.0.9.1").await);
    let (status, plan) = servers.call(0, Method::GET, RECOVERY, &Value::Null).await;
    assert_eq!(status, StatusCode::OK, "{plan}");
    let lost = plan["cluster"].as_str().unwrap().to_owned();
    assert!(plan["obstacle"].as_str().unwrap().contains("has a quorum"), "{plan}");
    let confirmed = json!({ "lost_cluster": lost });
    let (status, refused) = servers.call(0, Method::POST, RECOVERY, &confirmed).await;
    assert_eq!((status, &refused["code"]), (StatusCode::CONFLICT, &json!("recovery_refused")), "{refused}");

    servers.kill(1);
    servers.kill(2);
    let deadline = Instant::now() + PATIENCE;
    let plan = loop {
        let (_, plan) = servers.call(0, Method::GET, RECOVERY, &Value::Null).await;
        if plan["obstacle"].is_null() {
            break plan;
        }
        assert!(Instant::now() < deadline, "{plan}");
    };
    assert_eq!(plan["entries"], 1, "{plan}");
    let there: Vec<_> = plan["voters"].as_array().unwrap().iter().map(|voter| &voter["reachable"]).collect();
    assert_eq!(there, [&json!(true), &json!(false), &json!(false)], "{plan}");
    let other = json!({ "lost_cluster": "00000000-0000-0000-0000-000000000001" });
    let (status, refused) = servers.call(0, Method::POST, RECOVERY, &other).await;
    assert_eq!(status, StatusCode::CONFLICT, "{refused}");
    assert!(refused["detail"].as_str().unwrap().contains(&lost), "{refused}");
    let stranger = servers.client.post(servers.url(0, RECOVERY)).bearer_auth("og_admin_0").json(&confirmed);
    assert_eq!(stranger.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);

    let (status, recovered) = servers.call(0, Method::POST, RECOVERY, &confirmed).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{recovered}");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, members) = servers.call(0, Method::GET, "/api/v1/cluster/members", &Value::Null).await;
        if members["cluster"] == recovered["cluster"] {
            let ids: Vec<_> = members["members"].as_array().unwrap().iter().map(|node| &node["id"]).collect();
            assert_eq!(ids, [&recovered["id"]], "{members}");
            break;
        }
        assert!(Instant::now() < deadline, "{members}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    servers.ready(0).await;
    assert!(servers.lists(0, "192.0.9.1").await, "the entries are kept, and the token is");
    assert_eq!(servers.add(0, "192.0.9.2").await.unwrap(), StatusCode::CREATED);
    assert!(servers.data_dir(0).join("lost-1/identity").exists(), "the old data is kept");

    // One comes with an empty disk and joins; one comes with its old disk and is refused.
    std::fs::remove_dir_all(servers.data_dir(1)).unwrap();
    servers.start_one(1);
    servers.ready(1).await;
    assert!(servers.lists(1, "192.0.9.1").await && servers.lists(1, "192.0.9.2").await);
    servers.start_one(2);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (status, ready) = servers.call(2, Method::GET, "/readyz", &Value::Null).await;
        let reasons = ready["reasons"].to_string();
        if status == StatusCode::SERVICE_UNAVAILABLE && reasons.contains("lost its majority") {
            assert!(reasons.contains("empty its data directory"), "{reasons}");
            break;
        }
        assert!(Instant::now() < deadline, "{ready}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let (status, refused) =
        servers.call(2, Method::GET, "/api/v1/entries?consistency=stale", &Value::Null).await;
    assert_eq!((status, &refused["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("not_a_member")));

    // A node that has gone on alone stops like any other.
    let mut process = servers.processes[0].take().unwrap();
    process.signal(Signal::SIGTERM);
    assert!(process.end().success(), "{}", process.said());
}
