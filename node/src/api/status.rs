//! The cluster at a glance: nodes, gateways, and whether they agree.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Serialize;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::AppState;
use super::entry_view::rfc3339;
use super::problem::{Code, Problem, ProblemBody};
use super::revision::respond_tagged;
use crate::auth::Viewer;
use crate::cluster::{GatewayStatus, MemberStatus};

/// How long each other node has to say how it stands, and a quorum to confirm this node's state.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// The cluster at a glance.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Status {
    /// The cluster's id; null before it is bootstrapped.
    cluster: Option<String>,
    /// Newest revision applied on the answering node.
    revision: u64,
    /// Digest of the published set at that revision.
    digest: String,
    /// How many entries there are.
    entries: usize,
    /// How many elements (prefix and ports) are published.
    published: usize,
    /// Name of the leader; null when none was found that a quorum follows.
    leader: Option<String>,
    /// Name of the answering node.
    node: String,
    /// True when a quorum confirmed that `revision` is current.
    current: bool,
    /// Which commands the cluster may use while its nodes run different releases.
    features: FeaturesView,
    /// All nodes, sorted by name.
    nodes: Vec<NodeView>,
    /// All gateways with a session, sorted by name.
    gateways: Vec<GatewayView>,
}

/// Feature levels.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Features)]
struct FeaturesView {
    /// What the cluster has agreed on.
    active: u32,
    /// What the answering node can apply.
    supported: u32,
    /// Nodes that cannot apply as much, or do not say; empty once `active` is `supported`.
    held_back_by: Vec<String>,
}

/// A node.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Node)]
pub(super) struct NodeView {
    /// Raft id; a text, because JavaScript cannot hold 64-bit numbers.
    id: String,
    pub(super) name: String,
    /// Raft address.
    address: String,
    /// False for learners.
    voter: bool,
    /// False when it did not answer; the rest is null then.
    reachable: bool,
    pub(super) role: Option<String>,
    pub(super) term: Option<u64>,
    applied: Option<u64>,
    committed: Option<u64>,
    digest: Option<String>,
    version: Option<String>,
}

/// A gateway.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Gateway)]
struct GatewayView {
    name: String,
    version: String,
    /// Where the session comes from.
    remote: String,
    /// The node holding the session.
    node: String,
    /// RFC 3339.
    connected_at: String,
    /// Newest revision its kernel holds.
    applied: u64,
    /// True when its digest was equal to its node's.
    in_sync: bool,
    /// Kernel time of the last change, microseconds.
    kernel_us: u64,
    /// Elements it refused.
    refused: u64,
}

/// Shows nodes and gateways
///
/// Answered by every node, also without a quorum: `current` then is false.
#[utoipa::path(get, path = "/api/v1/status", tag = "about", responses(
    (status = 200, body = Status),
    (status = 304, description = "Unchanged since the ETag in `if-none-match`"),
    (status = 401, body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn get(
    State(app): State<AppState>,
    _: Viewer,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let cluster = app.cluster();
    let (current, members, features) =
        tokio::join!(cluster.read_barrier(ASK_TIMEOUT), cluster.members(ASK_TIMEOUT), cluster.features());
    let state = app.local();
    // A leader cut off from its followers does not know yet that it no longer is one: without a quorum nobody is.
    let leader = members.iter().filter_map(|member| member.status.as_ref()).filter(|_| current.is_ok());
    let leader = leader.filter(|status| status.role == "leader").max_by_key(|status| status.term);
    let leader = leader.map(|status| status.name.clone());
    let status = Status {
        cluster: state.cluster().map(|id| id.to_string()),
        revision: state.revision(),
        digest: state.published().digest().to_string(),
        entries: state.entries().len(),
        published: state.published().len(),
        leader,
        node: app.sessions().node().to_owned(),
        current: current.is_ok(),
        features: FeaturesView {
            active: features.active.0,
            supported: features.supported.0,
            held_back_by: features.held_back_by,
        },
        gateways: gateways(&members, app.sessions().snapshot()),
        nodes: members.into_iter().map(NodeView::from).collect(),
    };
    let body =
        serde_json::to_vec(&status).map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    // Gateways and nodes change without a revision, so the tag is of the content.
    let hash = Sha256::digest(&body);
    let tag = hash.iter().take(8).fold(String::from("\""), |tag, byte| format!("{tag}{byte:02x}")) + "\"";
    Ok(respond_tagged(status.revision, &tag, &headers, Json(status)))
}

fn gateways(members: &[MemberStatus], here: Vec<GatewayStatus>) -> Vec<GatewayView> {
    newest_gateways(members, here).into_values().map(GatewayView::from).collect()
}

/// Each gateway by name: what this node knows now, and what the others said; the newest session counts.
pub(super) fn newest_gateways(
    members: &[MemberStatus],
    here: Vec<GatewayStatus>,
) -> BTreeMap<String, GatewayStatus> {
    let mut newest: BTreeMap<String, GatewayStatus> = BTreeMap::new();
    let elsewhere =
        members.iter().filter_map(|member| member.status.as_ref()).flat_map(|status| &status.gateways);
    for gateway in here.into_iter().chain(elsewhere.cloned()) {
        match newest.get(&gateway.name) {
            Some(known) if known.connected_at_ms >= gateway.connected_at_ms => {}
            _ => {
                newest.insert(gateway.name.clone(), gateway);
            }
        }
    }
    newest
}

impl From<MemberStatus> for NodeView {
    fn from(member: MemberStatus) -> Self {
        let status = member.status;
        Self {
            id: member.id.to_string(),
            name: member.name,
            address: member.address,
            voter: member.voter,
            reachable: status.is_some(),
            role: status.as_ref().map(|status| status.role.clone()),
            term: status.as_ref().map(|status| status.term),
            applied: status.as_ref().map(|status| status.applied),
            committed: status.as_ref().map(|status| status.committed),
            digest: status.as_ref().map(|status| status.digest.to_string()),
            version: status.map(|status| status.version),
        }
    }
}

impl From<GatewayStatus> for GatewayView {
    fn from(gateway: GatewayStatus) -> Self {
        Self {
            name: gateway.name,
            version: gateway.version,
            remote: gateway.remote,
            node: gateway.node,
            connected_at: rfc3339(gateway.connected_at_ms),
            applied: gateway.applied,
            in_sync: gateway.in_sync,
            kernel_us: gateway.kernel_us,
            refused: gateway.refused,
        }
    }
}
