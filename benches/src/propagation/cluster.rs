//! What the bench asks of the servers beside adding entries.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::contender::{READY_TIMEOUT, until};
use crate::outputguard::OutputGuard;
use crate::seat::NODES;

#[derive(Deserialize)]
struct Created {
    token: String,
}

#[derive(Deserialize)]
struct Status {
    revision: u64,
    gateways: Vec<Line>,
}

#[derive(Deserialize)]
struct Line {
    name: String,
    applied: u64,
    in_sync: bool,
}

/// A token for the gateway `name`.
pub(crate) async fn gateway_token(servers: &OutputGuard, name: &str) -> Result<String> {
    let mut http = servers.http(0).await?;
    let body = format!(r#"{{"name":"{name}","role":"gateway"}}"#);
    let headers = servers.headers("application/json");
    let answer = http.request("POST", "/api/v1/tokens", &headers, body.as_bytes()).await?;
    ensure!(answer.status == 201, "make a token: status {}: {}", answer.status, answer.text());
    Ok(serde_json::from_slice::<Created>(answer.body).context("a token")?.token)
}

/// Waits until so many gateways hold the newest revision.
pub(crate) async fn wait_in_sync(servers: &OutputGuard, gateways: usize) -> Result<()> {
    until("all gateways are in sync", READY_TIMEOUT, async || {
        let mut all = Vec::new();
        for node in 0..NODES {
            let mut http = servers.http(node).await?;
            let headers = servers.headers("application/json");
            let answer = http.request("GET", "/api/v1/status", &headers, b"").await?;
            all.push(serde_json::from_slice::<Status>(answer.body).context("a status")?);
        }
        let newest = all.iter().map(|status| status.revision).max().unwrap_or_default();
        // Each server knows the sessions it holds, at least.
        let mut there: Vec<&str> = (all.iter().flat_map(|status| &status.gateways))
            .filter(|line| line.in_sync && line.applied >= newest)
            .map(|line| line.name.as_str())
            .collect();
        there.sort_unstable();
        there.dedup();
        ensure!(there.len() == gateways, "at revision {newest}: {there:?}");
        Ok(())
    })
    .await
}
