//! Three processes are a cluster: config files in, HTTP out.

use std::time::Duration;

use nix::sys::signal::Signal;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{PATIENCE, Process, config, own_address, server};

pub(crate) struct Servers {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) addresses: Vec<String>,
    pub(crate) processes: Vec<Option<Process>>,
    pub(crate) client: Client,
}

impl Servers {
    pub(crate) fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let addresses: Vec<_> = (0..3).map(|_| own_address()).collect();
        let client = Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
        let mut servers = Self { dir, addresses, processes: vec![None, None, None], client };
        for index in 0..3 {
            servers.start_one(index);
        }
        servers
    }

    pub(crate) fn start_one(&mut self, index: usize) {
        let name = format!("server-{}", index + 1);
        let peers: Vec<_> = self.addresses.iter().map(|address| format!("{address}:8081")).collect();
        let config = config(self.dir.path(), &self.addresses[index], &name, &peers);
        let mut command = server();
        // The seed's flag: those who come from it need change nothing.
        command.arg("-server-conf-path").arg(config);
        self.processes[index] = Some(Process::start(command, &self.dir.path().join(format!("{name}.log"))));
    }

    pub(crate) fn url(&self, index: usize, path: &str) -> String {
        format!("http://{}:8080{path}", self.addresses[index])
    }

    pub(crate) async fn ready(&self, index: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.client.get(self.url(index, "/readyz")).send().await;
            if answer.is_ok_and(|answer| answer.status() == StatusCode::OK) {
                return;
            }
            let said = || self.processes[index].as_ref().unwrap().said();
            assert!(Instant::now() < deadline, "server {index} is not ready:\n{}", said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The founder writes it after the cluster is ready.
    pub(crate) async fn wait_for_token(&self) {
        let deadline = Instant::now() + PATIENCE;
        let written = |n: &i32| self.dir.path().join(format!("server-{n}.token")).exists();
        // The file is there a moment before the cluster knows the token.
        while !((1..=3).any(|n| written(&n)) && self.get(0, "/api/v1/session").await == Some(StatusCode::OK))
        {
            assert!(Instant::now() < deadline, "no admin token");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn get(&self, index: usize, path: &str) -> Option<StatusCode> {
        let request = self.client.get(self.url(index, path)).bearer_auth(self.token());
        request.send().await.ok().map(|answer| answer.status())
    }

    pub(crate) fn token(&self) -> String {
        let text = (1..=3)
            .find_map(|n| std::fs::read_to_string(self.dir.path().join(format!("server-{n}.token"))).ok());
        text.expect("one server wrote the token").trim().to_owned()
    }

    pub(crate) async fn add(&self, index: usize, target: &str) -> reqwest::Result<StatusCode> {
        let request = self.client.post(self.url(index, "/api/v1/entries")).bearer_auth(self.token());
        Ok(request.json(&json!({ "target": target })).send().await?.status())
    }

    pub(crate) async fn lists(&self, index: usize, target: &str) -> bool {
        let answer = self
            .client
            .get(self.url(index, "/api/v1/entries"))
            .bearer_auth(self.token())
            .send()
            .await
            .unwrap();
        let body: Value = answer.json().await.unwrap();
        body["entries"].as_array().unwrap().iter().any(|entry| entry["target"] == target)
    }

    pub(crate) async fn leader(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for index in (0..3).filter(|index| self.processes[*index].is_some()) {
                let request = self.client.get(self.url(index, "/api/v1/status")).bearer_auth(self.token());
                let Ok(answer) = request.send().await else { continue };
                let body: Value = answer.json().await.unwrap();
                if let Some(number) = body["leader"].as_str().and_then(|name| name.strip_prefix("server-")) {
                    let leader = number.parse::<usize>().unwrap() - 1;
                    if self.processes[leader].is_some() {
                        return leader;
                    }
                }
            }
            assert!(Instant::now() < deadline, "no leader");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_processes_survive_a_killed_leader_and_stop_when_told() {
    let mut servers = Servers::start();
    for index in 0..3 {
        servers.ready(index).await;
    }
    servers.wait_for_token().await;
    let leader = servers.leader().await;
    let follower = (leader + 1) % 3;
    assert_eq!(servers.add(follower, "192.0.9.1").await.unwrap(), StatusCode::CREATED);
    for index in 0..3 {
        assert!(servers.lists(index, "192.0.9.1").await, "server {index}");
    }

    let mut killed = servers.processes[leader].take().unwrap();
    killed.signal(Signal::SIGKILL);
    killed.end();
    let deadline = Instant::now() + PATIENCE;
    while !servers.add(follower, "192.0.9.2").await.is_ok_and(|status| status.is_success()) {
        assert!(Instant::now() < deadline, "no write after the leader was killed");
    }
    assert!(servers.lists((leader + 2) % 3, "192.0.9.2").await);

    servers.start_one(leader);
    servers.ready(leader).await;
    assert!(servers.lists(leader, "192.0.9.1").await && servers.lists(leader, "192.0.9.2").await);

    // One after the other, the leader first: each says goodbye and ends well.
    let first = servers.leader().await;
    for index in [first, (first + 1) % 3, (first + 2) % 3] {
        let mut process = servers.processes[index].take().unwrap();
        process.signal(Signal::SIGTERM);
        let status = process.end();
        assert!(status.success(), "server {index} ended with {status}:\n{}", process.said());
        assert!(!process.said().contains("panicked"), "{}", process.said());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_feed_listener_speaks_tls_and_environment_and_flags_win_over_the_file() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let address = own_address();
    let file = config(dir.path(), &address, "server-1", &[]);
    let mut command = server();
    command.arg("--config").arg(file).env("OUTPUTGUARD_LISTEN_API", format!("{address}:9080"));
    command.args(["--node-name", "renamed"]);
    let process = Process::start(command, &dir.path().join("log"));
    let plain = Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !plain
        .get(format!("http://{address}:9080/readyz"))
        .send()
        .await
        .is_ok_and(|answer| answer.status().is_success())
    {
        assert!(Instant::now() < deadline, "not ready:\n{}", process.said());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(dir.path().join("tls/renamed.pem").exists());

    let ca = std::fs::read(dir.path().join("tls/ca.pem")).unwrap();
    let trusting = Client::builder()
        .timeout(Duration::from_secs(10))
        .tls_certs_only([reqwest::Certificate::from_pem(&ca).unwrap()])
        .build()
        .unwrap();
    let answer = trusting.get(format!("https://{address}:8443/livez")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(
        plain.get(format!("https://{address}:8443/livez")).send().await.is_err(),
        "an unknown CA is not trusted"
    );
    // Plain text on the TLS port, and the feed on the plain port, lead nowhere.
    assert!(plain.get(format!("http://{address}:8443/livez")).send().await.is_err());
    let feed = plain.get(format!("http://{address}:9080/ws")).header("upgrade", "websocket");
    assert!(feed.send().await.unwrap().status().is_client_error());
}
