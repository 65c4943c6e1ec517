//! The way out when the majority is lost for good. These two paths work without a quorum: the token is checked against
//! what this node itself holds.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::AppState;
use super::input::Body;
use super::problem::{Code, Problem, ProblemBody};
use crate::auth::LocalAdmin;
use crate::cluster::{RecoveryError, RecoveryPlan, VoterStanding};

/// What going on from this node alone would mean.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Recovery)]
pub(super) struct Plan {
    /// Id of the cluster whose majority is lost; recovering is confirmed with it.
    cluster: String,
    /// The node that was asked.
    node: String,
    /// Newest revision applied on it.
    revision: u64,
    /// Newest entry in its log. All of it is kept.
    logged: u64,
    /// Entries of the allowlist it holds.
    entries: usize,
    /// All voters, sorted by name.
    voters: Vec<Voter>,
    /// Why recovering is refused; null when it is possible.
    obstacle: Option<String>,
}

/// A voter as this node sees it.
#[derive(Debug, Serialize, ToSchema)]
struct Voter {
    name: String,
    /// Raft address.
    address: String,
    /// False when it does not answer.
    reachable: bool,
    /// Newest entry in its log; null when it does not answer.
    logged: Option<u64>,
}

/// Gives the majority up for lost.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Recover {
    /// The cluster's id, as proof that this cluster is meant.
    lost_cluster: String,
}

/// What the node becomes.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Recovered {
    /// Id of the new cluster.
    cluster: String,
    /// The node's new raft id.
    id: String,
}

/// Says what would be kept if the majority were given up for lost
#[utoipa::path(get, path = "/api/v1/cluster/recovery", tag = "cluster", responses(
    (status = 200, body = Plan),
    (status = 403, body = ProblemBody, content_type = "application/problem+json"),
    (status = 409, body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn plan(State(app): State<AppState>, _: LocalAdmin) -> Result<Json<Plan>, Problem> {
    let plan = app.cluster().recovery_plan().await?;
    let RecoveryPlan { lost, applied, logged, entries, voters, obstacle } = plan;
    Ok(Json(Plan {
        cluster: lost.to_string(),
        node: app.cluster().name().to_owned(),
        revision: applied,
        logged,
        entries,
        voters: voters.into_iter().map(Voter::from).collect(),
        obstacle,
    }))
}

/// Gives the majority up for lost: this node goes on alone as a new cluster
///
/// All it holds is kept. Writes that the lost nodes acknowledged and this one never got are gone. Refused while there is a
/// quorum, and while a node that holds more can be reached. The node answers, restarts its part in the cluster, and is
/// ready again as a cluster of one; nodes of the old cluster that come back are refused.
#[utoipa::path(post, path = "/api/v1/cluster/recovery", tag = "cluster", request_body = Recover, responses(
    (status = 202, body = Recovered, description = "The node restarts as a cluster of one"),
    (status = 403, body = ProblemBody, content_type = "application/problem+json"),
    (status = 409, body = ProblemBody, content_type = "application/problem+json",
        description = "There is a quorum, or a better node, or another cluster was named")))]
pub(super) async fn recover(
    State(app): State<AppState>,
    LocalAdmin(caller): LocalAdmin,
    Body(asked): Body<Recover>,
) -> Result<(StatusCode, Json<Recovered>), Problem> {
    let lost: Uuid = asked.lost_cluster.parse().map_err(|_| {
        Problem::new(Code::InvalidBody, "lost_cluster is not a cluster's id; GET this path to see it")
    })?;
    tracing::warn!(actor = %caller.name, remote = %caller.remote, %lost, "asked to go on without a majority");
    let crate::cluster::Recovered { cluster, id } = app.cluster().recover(lost).await?;
    let answer = Recovered { cluster: cluster.to_string(), id: id.to_string() };
    Ok((StatusCode::ACCEPTED, Json(answer)))
}

impl From<VoterStanding> for Voter {
    fn from(voter: VoterStanding) -> Self {
        let VoterStanding { name, address, logged } = voter;
        Self { name, address, reachable: logged.is_some(), logged }
    }
}

impl From<RecoveryError> for Problem {
    fn from(error: RecoveryError) -> Self {
        let code = match error {
            RecoveryError::Refused(_) | RecoveryError::OtherCluster(_) => Code::RecoveryRefused,
            RecoveryError::Disk(_) => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}
