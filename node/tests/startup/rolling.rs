//! Every server is restarted once while many clients write.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::processes::Servers;

/// Clients that write at the same time.
const WRITERS: usize = 64;

struct Writer {
    number: usize,
    client: Client,
    addresses: Vec<String>,
    token: String,
    stop: Arc<AtomicBool>,
}

impl Writer {
    /// Writes until told to stop; returns what was acknowledged, or why it gave up.
    async fn run(self) -> Result<Vec<String>, String> {
        let mut acknowledged = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let count = acknowledged.len();
            let target = format!("93.{}.{}.{}", self.number, count / 256, count % 256);
            let node = (self.number + count) % self.addresses.len();
            match self.add(node, &target).await {
                Ok(StatusCode::CREATED) => {}
                // One retry, elsewhere.
                Ok(StatusCode::SERVICE_UNAVAILABLE) | Err(None) => {
                    let other = (node + 1) % self.addresses.len();
                    match self.add(other, &target).await {
                        Ok(StatusCode::CREATED) => {}
                        failed => return Err(format!("{target}, the retry on {other}: {failed:?}")),
                    }
                }
                failed => return Err(format!("{target} on {node}: {failed:?}")),
            }
            acknowledged.push(target);
        }
        Ok(acknowledged)
    }

    /// `Err(None)` when there was no connection.
    async fn add(&self, node: usize, target: &str) -> Result<StatusCode, Option<String>> {
        let url = format!("https://{}:8443/api/v1/entries", self.addresses[node]);
        let request = self.client.post(url).bearer_auth(&self.token).json(&json!({ "target": target }));
        match request.send().await {
            Ok(answer) if answer.status() == StatusCode::GATEWAY_TIMEOUT => {
                Err(Some(format!("unknown: {}", answer.text().await.unwrap_or_default())))
            }
            Ok(answer) => Ok(answer.status()),
            Err(error) if error.is_connect() => Err(None),
            Err(error) => Err(Some(format!("{error:?}"))),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_fails_no_request_that_is_retried_once() {
    let mut servers = Servers::start();
    for index in 0..3 {
        servers.ready(index).await;
    }
    servers.wait_for_token().await;
    let ca = std::fs::read(servers.dir.path().join("tls/ca.pem")).unwrap();
    let ca = reqwest::Certificate::from_pem(&ca).unwrap();
    let client = || {
        let client = Client::builder().timeout(Duration::from_secs(20)).tls_certs_only([ca.clone()]);
        client.build().unwrap()
    };
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for number in 0..WRITERS {
        let writer = Writer {
            number,
            client: client(),
            addresses: servers.addresses.clone(),
            token: servers.token(),
            stop: Arc::clone(&stop),
        };
        writers.spawn(writer.run());
    }
    let first = servers.leader().await;
    // The leader, then whoever leads next.
    let mut left: BTreeSet<usize> = (0..3).collect();
    let mut next = first;
    while left.remove(&next) {
        let mut process = servers.processes[next].take().unwrap();
        process.signal(Signal::SIGTERM);
        let (status, said) =
            tokio::task::spawn_blocking(move || (process.end(), process.said())).await.unwrap();
        assert!(status.success(), "server {next} ended with {status}:\n{said}");
        servers.start_one(next);
        servers.ready(next).await;
        let leader = servers.leader().await;
        next = if left.contains(&leader) { leader } else { left.first().copied().unwrap_or(next) };
    }
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = BTreeSet::new();
    let mut failures = Vec::new();
    for outcome in writers.join_all().await {
        match outcome {
            Ok(targets) => acknowledged.extend(targets),
            Err(failure) => failures.push(failure),
        }
    }
    assert_eq!(failures, Vec::<String>::new());
    assert!(acknowledged.len() > WRITERS, "the writers hardly wrote: {}", acknowledged.len());
    let reader = client();
    for address in &servers.addresses {
        let mut missing = acknowledged.clone();
        let mut cursor: Option<String> = None;
        loop {
            let mut url = format!("https://{address}:8443/api/v1/entries?limit=1000");
            if let Some(cursor) = &cursor {
                url.push_str("&cursor=");
                url.push_str(cursor);
            }
            let answer = reader.get(url).bearer_auth(servers.token()).send().await.unwrap();
            let page: Value = answer.json().await.unwrap();
            for entry in page["entries"].as_array().unwrap_or_else(|| panic!("{page}")) {
                missing.remove(entry["target"].as_str().unwrap());
            }
            cursor = page["next_cursor"].as_str().map(str::to_owned);
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(missing, BTreeSet::new(), "acknowledged, but not on {address}");
    }
}
