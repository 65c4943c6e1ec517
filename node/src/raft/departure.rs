//! The leader's side of leaving: nobody is taken out whose absence would leave the rest without a majority, a leader
//! hands over first, and a node that is alive finishes what its clients asked before it is cut off.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::{ChangeMembers, LogIdOptionExt as _};
use raft_store::NodeInfo;
use raft_store::types::NodeId;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Metrics;
use super::change::{ChangeRefusal, MemberChanged, RefusalKind};
use super::link::Purpose;
use super::membership::{
    ALIVE_TIMEOUT, ChangeAllowed, busy, change_allowed, change_members, metrics, settle,
};
use super::wire::{Refusal, Request, Response};
use crate::cluster::{Cluster, leader_of};

/// A node that leaves has this long to finish what is under way on it.
pub(crate) const LEAVING_TIME: Duration = Duration::from_secs(3);

/// Whether missing voters stand in the way of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Force {
    /// They do.
    No,
    /// The operator knows that they come back.
    Yes,
}

impl From<bool> for Force {
    fn from(force: bool) -> Self {
        if force { Self::Yes } else { Self::No }
    }
}

/// Takes a member out. This node must be the leader and hold the lock on changes.
pub(crate) async fn remove(
    cluster: &Cluster,
    member: &str,
    force: Force,
    deadline: Instant,
) -> Result<MemberChanged, Refusal> {
    settle(cluster.raft()).await?;
    let metrics = metrics(cluster);
    let (id, node) = find(&metrics, member)?;
    let is_voter = metrics.membership_config.membership().voter_ids().any(|voter| voter == id);
    if is_voter {
        check_quorum(cluster, &metrics, id, None, force).await?;
        hand_over_before_leaving(cluster, &metrics, id).await?;
    }
    let ChangeAllowed = change_allowed(&metrics)?;
    let_finish(cluster, &metrics, id).await;
    let gone = BTreeSet::from([id]);
    let change = if is_voter { ChangeMembers::RemoveVoters(gone) } else { ChangeMembers::RemoveNodes(gone) };
    change_members(cluster.raft(), change, deadline).await?;
    tracing::info!(node = %node, id = %format_args!("{id:016x}"), "a node was removed from the cluster");
    Ok(MemberChanged::Removed { id, node })
}

/// A member by name, or by id as the API (decimal) or the log (16 hex digits) shows it.
pub(super) fn find(metrics: &Metrics, member: &str) -> Result<(NodeId, NodeInfo), Refusal> {
    let membership = metrics.membership_config.membership();
    let by = |matches: &dyn Fn(NodeId, &NodeInfo) -> bool| {
        membership.nodes().find(|(id, node)| matches(**id, node)).map(|(id, node)| (*id, node.clone()))
    };
    by(&|_, node| node.name == member)
        .or_else(|| by(&|id, _| id.to_string() == member))
        .or_else(|| by(&|id, _| format!("{id:016x}") == member))
        .ok_or_else(|| {
            let names: Vec<_> = membership.nodes().map(|(_, node)| node.name.as_str()).collect();
            let message = format!("{member} is no member of the cluster; members are {}", names.join(", "));
            Refusal::Change(ChangeRefusal::new(RefusalKind::NoSuchMember, message))
        })
}

/// Refuses when the voters that stay (and the one that comes) could not form a majority of nodes in reach.
pub(super) async fn check_quorum(
    cluster: &Cluster,
    metrics: &Metrics,
    leaving: NodeId,
    coming: Option<(NodeId, &NodeInfo)>,
    force: Force,
) -> Result<(), Refusal> {
    let membership = metrics.membership_config.membership();
    let mut staying: Vec<(NodeId, NodeInfo)> = membership
        .voter_ids()
        .filter(|voter| *voter != leaving)
        .filter_map(|voter| Some((voter, membership.get_node(&voter)?.clone())))
        .collect();
    if let Some((id, node)) = coming
        && !staying.iter().any(|(voter, _)| *voter == id)
    {
        staying.push((id, node.clone()));
    }
    if staying.is_empty() {
        let message = "it is the only voter; without it there is no cluster";
        return Err(Refusal::Change(ChangeRefusal::new(RefusalKind::NoQuorumLeft, message)));
    }
    if force == Force::Yes {
        return Ok(());
    }
    let needed = staying.len() / 2 + 1;
    let voters = staying.len();
    let unreachable = unreachable(cluster, staying).await;
    let reachable = voters - unreachable.len();
    if reachable >= needed {
        return Ok(());
    }
    Err(Refusal::Change(ChangeRefusal::new(
        RefusalKind::NoQuorumLeft,
        format!(
            "of the {voters} voters that would be left, {needed} are needed and {reachable} can be reached; not \
             reachable: {}; start them first, or remove those instead (--force goes on: the cluster then takes no writes \
             until they are back)",
            unreachable.join(", ")
        ),
    )))
}

/// Names of the nodes that do not answer, sorted.
async fn unreachable(cluster: &Cluster, nodes: Vec<(NodeId, NodeInfo)>) -> Vec<String> {
    let mut asked = JoinSet::new();
    for (id, node) in nodes.into_iter().filter(|(id, _)| *id != cluster.id()) {
        let link = cluster.peers().link(&node.raft_address, Some(id), Purpose::Forward);
        asked.spawn(async move {
            let answer = link.call(Request::Identify, Instant::now() + ALIVE_TIMEOUT).await;
            (!matches!(answer, Ok(Response::Probe(_)))).then(|| node.to_string())
        });
    }
    let mut missing: Vec<_> = asked.join_all().await.into_iter().flatten().collect();
    missing.sort();
    missing
}

/// When it is this node, leadership goes elsewhere and the change is for the new leader to make.
pub(super) async fn hand_over_before_leaving(
    cluster: &Cluster,
    metrics: &Metrics,
    leaving: NodeId,
) -> Result<(), Refusal> {
    if leaving != cluster.id() {
        return Ok(());
    }
    let heir = heir(metrics, &[leaving]).ok_or_else(|| busy("no other voter can lead"))?;
    let leader = hand_over(cluster, heir).await?;
    Err(Refusal::NotLeader { leader: Some(leader) })
}

/// Makes another voter the leader. This node must be the leader.
pub(crate) async fn step_down(cluster: &Cluster, to: Option<&str>) -> Result<MemberChanged, Refusal> {
    let metrics = metrics(cluster);
    let heir = match to {
        None => heir(&metrics, &[cluster.id()]).ok_or_else(|| {
            let message = "this node is the only voter; nobody else can lead";
            Refusal::Change(ChangeRefusal::new(RefusalKind::NoQuorumLeft, message))
        })?,
        Some(to) => {
            let (id, node) = find(&metrics, to)?;
            if id == cluster.id() {
                return Ok(MemberChanged::Leads { id, node });
            }
            if !metrics.membership_config.membership().voter_ids().any(|voter| voter == id) {
                let message = format!("{node} is still a learner and cannot lead");
                return Err(Refusal::Change(ChangeRefusal::new(RefusalKind::Unfit, message)));
            }
            if !unreachable(cluster, vec![(id, node.clone())]).await.is_empty() {
                let message = format!("{node} cannot be reached, so it cannot lead; name another node");
                return Err(Refusal::Change(ChangeRefusal::new(RefusalKind::Unreachable, message)));
            }
            id
        }
    };
    let (id, node) = hand_over(cluster, heir).await?;
    Ok(MemberChanged::Leads { id, node })
}

async fn hand_over(cluster: &Cluster, heir: NodeId) -> Result<(NodeId, NodeInfo), Refusal> {
    cluster.hand_over_to(heir).await;
    leader_of(&metrics(cluster))
        .filter(|(leader, _)| *leader != cluster.id())
        .ok_or_else(|| busy("no other node took over the lead in time"))
}

/// The voter with the longest log.
fn heir(metrics: &Metrics, except: &[NodeId]) -> Option<NodeId> {
    let replication = metrics.replication.as_ref()?;
    metrics
        .membership_config
        .membership()
        .voter_ids()
        .filter(|voter| !except.contains(voter))
        .max_by_key(|voter| replication.get(voter).copied().flatten().index())
}

/// Asks a node to finish what is under way on it and to take no more. One that is down has nothing under way.
pub(super) async fn let_finish(cluster: &Cluster, metrics: &Metrics, leaving: NodeId) {
    let Some(node) = metrics.membership_config.membership().get_node(&leaving) else { return };
    let link = cluster.peers().link(&node.raft_address, Some(leaving), Purpose::Forward);
    if let Err(error) = link.call(Request::Leaving, Instant::now() + LEAVING_TIME).await {
        tracing::info!(node = %node, %error, "a node leaves without a word");
    }
}
