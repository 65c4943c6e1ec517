//! Liveness and readiness, open to everybody: probes have no token.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;

/// How long readiness waits for the word of a quorum. Probes usually give up after a second.
const QUORUM_TIMEOUT: Duration = Duration::from_millis(800);

/// Whether the process runs.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Liveness {
    /// `ok`
    status: &'static str,
}

/// Whether the node takes work.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Readiness {
    ready: bool,
    /// Why not; empty when ready.
    reasons: Vec<String>,
    /// What an operator should look at although the node takes work: a low disk, on which removals are still taken.
    warnings: Vec<String>,
    /// Newest revision applied here.
    revision: u64,
}

/// 200 while the process runs; never asks for a quorum, which a restart would not bring back
#[utoipa::path(get, path = "/livez", tag = "about", security(()), responses((status = 200, body = Liveness)))]
pub(super) async fn livez() -> Json<Liveness> {
    Json(Liveness { status: "ok" })
}

/// 200 when the node has recovered its state, reaches a leader and is not being shut down
#[utoipa::path(get, path = "/readyz", tag = "about", security(()), responses(
    (status = 200, body = Readiness), (status = 503, body = Readiness)))]
pub(super) async fn readyz(State(app): State<AppState>) -> (StatusCode, Json<Readiness>) {
    let mut reasons = Vec::new();
    if app.sessions().is_draining() {
        reasons.push("the node is being shut down".to_owned());
    }
    if let Some(reason) = app.cluster().fenced() {
        reasons.push(reason);
    }
    if app.cluster().node_status().is_none() {
        reasons.push("the node has not recovered its state yet".to_owned());
    }
    if let Err(error) = app.cluster().read_barrier(QUORUM_TIMEOUT).await {
        reasons.push(format!(
            "no leader confirmed this node's state within {} ms: {error}",
            QUORUM_TIMEOUT.as_millis()
        ));
    }
    reasons.extend(app.cluster().troubles());
    let state = app.local();
    if state.cluster().is_none() {
        reasons.push("the cluster has no identity yet: no node has bootstrapped it".to_owned());
    }
    let warnings = app.cluster().room().err().into_iter().collect();
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready: reasons.is_empty(), reasons, warnings, revision: state.revision() }))
}
