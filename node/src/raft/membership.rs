//! The leader's side of joining: learner first, voter once it has caught up. A node that lost its disk comes with a new
//! id under its old name or address; the old id is removed in the same change and never comes back, because an id with
//! an empty disk could vote twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, LogIdOptionExt as _};
use raft_store::NodeInfo;
use raft_store::types::NodeId;
use tokio::time::Instant;

use super::link::{Peers, Purpose};
use super::wire::{Refusal, Request};
use super::{Metrics, Raft};

/// A new node that has not caught up after this time asks again.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(25);
/// How long the old node with the same name has to show that it is alive.
const ALIVE_TIMEOUT: Duration = Duration::from_secs(1);
/// A learner this close to the leader is made a voter, entries.
const CAUGHT_UP_ENTRIES: u64 = 1_000;

/// Makes `id` a voter. This node must be the leader.
pub(crate) async fn join(
    raft: &Raft,
    peers: &Peers,
    id: NodeId,
    node: NodeInfo,
    pristine: bool,
) -> Result<(), Refusal> {
    let metrics = raft.metrics().borrow_watched().clone();
    let membership = metrics.membership_config.membership();
    if membership.voter_ids().any(|voter| voter == id) {
        return Ok(());
    }
    if !pristine && membership.get_node(&id).is_none() {
        return Err(Refusal::Unable(format!(
            "node {id:016x} was removed from the cluster; to join again, empty its data directory (keep tls/)"
        )));
    }
    let replaced = replaced(&metrics, id, &node);
    for (old, old_node) in &replaced {
        let link = peers.link(&old_node.raft_address, Some(*old), Purpose::Forward);
        if link.call(Request::Status, Instant::now() + ALIVE_TIMEOUT).await.is_ok() {
            return Err(Refusal::Unable(format!(
                "{old_node} (node {old:016x}) is alive and has the same name or address; give every node its own"
            )));
        }
    }
    let ChangeAllowed = change_allowed(&metrics)?;
    raft.add_learner(id, node.clone(), false).await.map_err(|error| refusal(&error))?;
    caught_up(raft, id).await?;

    let voters: BTreeSet<_> = membership.voter_ids().collect();
    let old: BTreeSet<_> = replaced.keys().copied().collect();
    let (old_voters, old_learners): (BTreeSet<_>, BTreeSet<_>) =
        old.iter().partition(|old| voters.contains(old));
    let change = ChangeMembers::Batch(vec![
        ChangeMembers::AddVoterIds(BTreeSet::from([id])),
        ChangeMembers::RemoveVoters(old_voters),
        ChangeMembers::RemoveNodes(old_learners),
    ]);
    raft.change_membership(change, false).await.map_err(|error| refusal(&error))?;
    tracing::info!(node = %node, id = %format_args!("{id:016x}"), replaced = old.len(), "a node joined the cluster");
    Ok(())
}

/// Members that the new node takes the place of.
fn replaced(metrics: &Metrics, id: NodeId, node: &NodeInfo) -> BTreeMap<NodeId, NodeInfo> {
    let same = |other: &NodeInfo| other.name == node.name || other.raft_address == node.raft_address;
    metrics
        .membership_config
        .membership()
        .nodes()
        .filter(|(other, info)| **other != id && same(info))
        .map(|(other, info)| (*other, info.clone()))
        .collect()
}

struct ChangeAllowed;

/// openraft changes one thing at a time; asking while it is busy would only fail later and louder.
fn change_allowed(metrics: &Metrics) -> Result<ChangeAllowed, Refusal> {
    if metrics.membership_config.log_id() == metrics.committed_membership_config.log_id() {
        return Ok(ChangeAllowed);
    }
    Err(Refusal::Unable("another change of the membership is under way".to_owned()))
}

async fn caught_up(raft: &Raft, id: NodeId) -> Result<(), Refusal> {
    let near = |metrics: &Metrics| {
        let matched =
            metrics.replication.as_ref().and_then(|replication| replication.get(&id)).copied().flatten();
        let behind = metrics.last_log_index.unwrap_or(0).saturating_sub(matched.index().unwrap_or(0));
        metrics.replication.is_none() || (matched.is_some() && behind <= CAUGHT_UP_ENTRIES)
    };
    let metrics = raft
        .wait(Some(CATCH_UP_TIMEOUT))
        .metrics(near, "a new node catches up")
        .await
        .map_err(|_| Refusal::Unable("it is still catching up".to_owned()))?;
    match metrics.replication {
        Some(_) => Ok(()),
        None => Err(Refusal::NotLeader { leader: None }),
    }
}

fn refusal(error: &RaftError<raft_store::TypeConfig, ClientWriteError<raft_store::TypeConfig>>) -> Refusal {
    match error.forward_to_leader() {
        Some(forward) => Refusal::NotLeader { leader: forward.leader_id.zip(forward.leader_node.clone()) },
        None => Refusal::Unable(format!("change membership: {error}")),
    }
}
