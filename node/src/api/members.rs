//! Who belongs to the cluster: adding, replacing and removing nodes, handing leadership over.
//!
//! Every change may be asked for again; what is done already is left as it is. That is how a change that takes longer
//! than a request is waited for, and how one that was interrupted is finished.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::AppState;
use super::input::{Body, Params, Segment};
use super::problem::{Code, Problem, ProblemBody};
use super::status::NodeView;
use crate::auth::{Admin, Viewer};
use crate::cluster::{MemberChange, MemberChanged};
use crate::config::is_host_port;

/// How long one request waits for a change; shorter than the request's deadline.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long each member has to say how it stands.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest name or id of a member, characters.
const MAX_MEMBER_CHARS: usize = 64;

/// All members.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MemberList {
    /// The cluster's id; null before it is founded.
    cluster: Option<String>,
    /// Name of the node that says it leads; null when none does.
    leader: Option<String>,
    /// Sorted by name.
    members: Vec<NodeView>,
}

/// A node that is to be a member.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AddMember {
    /// Its raft address, as in its `cluster.advertise`.
    #[schema(example = "10.1.0.4:8081")]
    address: String,
    /// Name or id of a member that leaves in the same step.
    #[serde(default)]
    replaces: Option<String>,
    /// Replace also when too few of the voters that stay can be reached.
    #[serde(default)]
    force: bool,
}

/// A member after a change.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Member {
    /// Raft id; a text, because JavaScript cannot hold 64-bit numbers.
    id: String,
    name: String,
    /// Raft address.
    address: String,
    state: MemberState,
    /// Log entries it lacks; null for voters.
    behind: Option<u64>,
}

/// How far a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum MemberState {
    /// It is being sent the state; send the same request again to wait on.
    Learner,
    /// It counts.
    Voter,
}

/// Query parameters of a removal.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RemoveParams {
    /// Remove also when too few of the voters that stay can be reached. Until enough are back, nothing can be written.
    #[serde(default)]
    #[param(required = false)]
    force: bool,
}

/// Who is to lead.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StepDown {
    /// Name or id of a voter; the one that is furthest when left out.
    #[serde(default)]
    to: Option<String>,
}

/// Who leads.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct NewLeader {
    /// Its name.
    leader: String,
}

/// Lists the members, also without a quorum
#[utoipa::path(get, path = "/api/v1/cluster/members", tag = "cluster", responses(
    (status = 200, body = MemberList),
    (status = 401, body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn list(State(app): State<AppState>, _: Viewer) -> Json<MemberList> {
    let members: Vec<_> = app.cluster().members(ASK_TIMEOUT).await.into_iter().map(NodeView::from).collect();
    let leading = members.iter().filter(|member| member.role.as_deref() == Some("leader"));
    let leader = leading.max_by_key(|member| member.term).map(|member| member.name.clone());
    Json(MemberList { cluster: app.local().cluster().map(|id| id.to_string()), leader, members })
}

/// Adds a node, or replaces one, by the new one's address
///
/// The node must be running with an empty disk (or be a member already). It is sent the state first and counts as soon as
/// it has it; with `replaces` the other one leaves in the same step.
#[utoipa::path(post, path = "/api/v1/cluster/members", tag = "cluster", request_body = AddMember, responses(
    (status = 200, body = Member, description = "It is a voter"),
    (status = 202, body = Member, description = "It is catching up; send the request again to wait on"),
    (status = 403, body = ProblemBody, content_type = "application/problem+json"),
    (status = 404, body = ProblemBody, content_type = "application/problem+json", description = "No member to replace"),
    (status = 409, body = ProblemBody, content_type = "application/problem+json",
        description = "It does not answer, or cannot be a member as it is"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn add(
    State(app): State<AppState>,
    Admin(caller): Admin,
    Body(asked): Body<AddMember>,
) -> Result<(StatusCode, Json<Member>), Problem> {
    if !is_host_port(&asked.address) {
        let detail =
            "write the node's raft address as host:port, for example 10.1.0.4:8081 or [fd00::4]:8081";
        return Err(Problem::new(Code::InvalidBody, detail));
    }
    if let Some(member) = &asked.replaces {
        check_member(member)?;
    }
    let change = MemberChange::Add { address: asked.address, replaces: asked.replaces, force: asked.force };
    match app.cluster().change_members(change, &caller.origin(), CHANGE_TIMEOUT).await? {
        MemberChanged::CatchingUp { id, node, behind } => {
            let member = Member::new(id, node.name, node.raft_address, MemberState::Learner, Some(behind));
            Ok((StatusCode::ACCEPTED, Json(member)))
        }
        MemberChanged::Added { id, node }
        | MemberChanged::Removed { id, node }
        | MemberChanged::Leads { id, node } => {
            tracing::info!(actor = %caller.name, node = %node, "node added");
            Ok((
                StatusCode::OK,
                Json(Member::new(id, node.name, node.raft_address, MemberState::Voter, None)),
            ))
        }
    }
}

/// Removes a node
///
/// Refused when the voters that stay could not form a majority of nodes in reach. A leader hands over first. The node's id
/// never comes back: to return, it needs an empty data directory.
#[utoipa::path(delete, path = "/api/v1/cluster/members/{member}", tag = "cluster",
    params(("member" = String, Path, description = "Name or id"), RemoveParams), responses(
    (status = 204, description = "Removed"),
    (status = 403, body = ProblemBody, content_type = "application/problem+json"),
    (status = 404, body = ProblemBody, content_type = "application/problem+json"),
    (status = 409, body = ProblemBody, content_type = "application/problem+json",
        description = "The rest would have no quorum"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn remove(
    State(app): State<AppState>,
    Admin(caller): Admin,
    Segment(member): Segment,
    Params(params): Params<RemoveParams>,
) -> Result<StatusCode, Problem> {
    check_member(&member)?;
    let change = MemberChange::Remove { member: member.clone(), force: params.force };
    app.cluster().change_members(change, &caller.origin(), CHANGE_TIMEOUT).await?;
    tracing::info!(actor = %caller.name, member, "node removed");
    Ok(StatusCode::NO_CONTENT)
}

/// Makes another node the leader
#[utoipa::path(post, path = "/api/v1/cluster/step-down", tag = "cluster", request_body = StepDown, responses(
    (status = 200, body = NewLeader),
    (status = 403, body = ProblemBody, content_type = "application/problem+json"),
    (status = 404, body = ProblemBody, content_type = "application/problem+json"),
    (status = 409, body = ProblemBody, content_type = "application/problem+json"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn step_down(
    State(app): State<AppState>,
    Admin(caller): Admin,
    Body(asked): Body<StepDown>,
) -> Result<Json<NewLeader>, Problem> {
    if let Some(member) = &asked.to {
        check_member(member)?;
    }
    let change = MemberChange::StepDown { to: asked.to };
    let (MemberChanged::Leads { node, .. }
    | MemberChanged::Added { node, .. }
    | MemberChanged::CatchingUp { node, .. }
    | MemberChanged::Removed { node, .. }) =
        app.cluster().change_members(change, &caller.origin(), CHANGE_TIMEOUT).await?;
    tracing::info!(actor = %caller.name, leader = %node, "leadership handed over");
    Ok(Json(NewLeader { leader: node.name }))
}

fn check_member(member: &str) -> Result<(), Problem> {
    if member.is_empty() || member.chars().count() > MAX_MEMBER_CHARS {
        let detail = "name a member as `GET /api/v1/cluster/members` shows it, by name or id";
        return Err(Problem::new(Code::InvalidId, detail));
    }
    Ok(())
}

impl Member {
    fn new(id: u64, name: String, address: String, state: MemberState, behind: Option<u64>) -> Self {
        Self { id: id.to_string(), name, address, state, behind }
    }
}
