//! The leader's side of joining: learner first, voter once it has caught up. A node that lost its disk comes with a new
//! id under its old name or address; the old id is removed in the same change and never comes back, because an id with
//! an empty disk could vote twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, LogIdOptionExt as _, Membership};
use raft_store::command::{MemberAction, MemberEvent, Origin};
use raft_store::types::{LogId, NodeId};
use raft_store::{NodeInfo, TypeConfig};
use tokio::time::{Instant, timeout_at};

use super::change::{ChangeRefusal, MemberChanged, RefusalKind};
use super::departure::{self, Force};
use super::link::{CallError, Purpose};
use super::wire::{Probe, Refusal, Request, Response, Standing};
use super::{Metrics, Raft};
use crate::cluster::{Cluster, member_event};

/// How long a node has to say who it is, or that it is alive.
pub(super) const ALIVE_TIMEOUT: Duration = Duration::from_secs(1);
/// A learner this close to the leader is made a voter, entries.
const CAUGHT_UP_ENTRIES: u64 = 1_000;
/// Part of the caller's time kept for the change itself, once the new node has caught up.
const CHANGE_TIME: Duration = Duration::from_secs(2);

/// Makes the node at `address` a voter, in the place of `replaces` if there is one. This node must be the leader and
/// hold the lock on changes.
pub(crate) async fn add(
    cluster: &Cluster,
    address: &str,
    replaces: Option<&str>,
    force: Force,
    asked: Asked<'_>,
) -> Result<MemberChanged, Refusal> {
    let Probe { id, node, standing } = identify(cluster, address).await?;
    let metrics = metrics(cluster);
    let known = metrics.membership_config.membership().get_node(&id).cloned();
    let unfit = |message: String| Err(Refusal::Change(ChangeRefusal::new(RefusalKind::Unfit, message)));
    let is_voter = metrics.membership_config.membership().voter_ids().any(|voter| voter == id);
    let mine = cluster.reader().state().cluster();
    match (standing, &known) {
        (Standing::Member { cluster: theirs, .. }, _) if theirs.is_some() && theirs != mine => {
            return unfit(format!(
                "{node} belongs to another cluster ({}); stop it, empty its data directory (keep tls/) and start it \
                 with `cluster.join: wait`",
                theirs.unwrap_or_default()
            ));
        }
        (Standing::Member { cluster: None, .. }, None) => {
            return unfit(format!(
                "{node} is founding a cluster of its own; stop it, empty its data directory (keep tls/) and start it \
                 with `cluster.join: wait`"
            ));
        }
        (Standing::Member { .. }, None) => {
            return unfit(format!(
                "{node} (node {id:016x}) was removed from this cluster, and an id never comes back; stop it, empty its \
                 data directory (keep tls/), start it and add it again"
            ));
        }
        (_, Some(member)) if member.raft_address != node.raft_address => {
            return unfit(format!(
                "{node} has the node id of {member} ({id:016x}): its data directory is a copy; stop it, empty its data \
                 directory (keep tls/), start it and add it again"
            ));
        }
        (Standing::Pristine, Some(member)) if is_voter => {
            return unfit(format!(
                "{member} (node {id:016x}) says that its disk is empty; stop it and empty its data directory \
                 altogether (keep tls/), so that it comes back with a new id"
            ));
        }
        // A learner that nothing has reached yet is pristine, too.
        (Standing::Member { .. }, Some(_)) | (Standing::Pristine, _) => {}
    }
    if node.raft_address != address {
        let there = identify(cluster, &node.raft_address).await?;
        if there.id != id {
            return unfit(format!(
                "the node at {address} says that its address is {} (cluster.advertise), but node {} is there; give \
                 every node its own",
                node.raft_address, there.node.name
            ));
        }
    }
    let leaving = match replaces {
        None => None,
        Some(old) if departure::is_id(old, id) => return unfit(format!("{node} cannot replace itself")),
        // The newcomer may have the name of the one it replaces.
        Some(old) => match departure::find(&metrics, old, Some(id)) {
            Ok((old, _)) => Some(old),
            // Run a second time: the change was made the first time.
            Err(Refusal::Change(refusal)) if is_voter && refusal.kind == RefusalKind::NoSuchMember => None,
            Err(refusal) => return Err(refusal),
        },
    };
    if let Some(leaving) = leaving {
        departure::check_quorum(cluster, &metrics, leaving, Some((id, &node)), force).await?;
        departure::hand_over_before_leaving(cluster, leaving).await?;
    }
    let newcomer = Newcomer { id, node: node.clone(), pristine: true };
    match admit(cluster, newcomer, leaving, asked).await? {
        Admitted::Voter => Ok(MemberChanged::Added { id, node }),
        Admitted::CatchingUp { behind } => Ok(MemberChanged::CatchingUp { id, node, behind }),
    }
}

async fn identify(cluster: &Cluster, address: &str) -> Result<Probe, Refusal> {
    let link = cluster.peers().link(address, None, Purpose::Forward);
    match link.call(Request::Identify, Instant::now() + ALIVE_TIMEOUT * 2).await {
        Ok(Response::Probe(probe)) => Ok(probe),
        Err(CallError::Refused { refusal: Refusal::WrongCluster { mine, .. }, .. }) => {
            Err(Refusal::Change(ChangeRefusal::new(
                RefusalKind::Unfit,
                format!(
                    "the node at {address} belongs to another cluster ({mine}); stop it, empty its data directory \
                     (keep tls/) and start it with `cluster.join: wait`"
                ),
            )))
        }
        Ok(_) => Err(unreachable(address, "its answer does not fit")),
        Err(error) => Err(unreachable(address, &error.to_string())),
    }
}

fn unreachable(address: &str, reason: &str) -> Refusal {
    let message = format!(
        "no node of this cluster's kind answers at {address}: {reason}; start it there, with a certificate of the \
         cluster's CA and the raft address in `cluster.advertise`"
    );
    Refusal::Change(ChangeRefusal::new(RefusalKind::Unreachable, message))
}

/// On whose behalf a change is made, and how much time it has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) origin: &'a Origin,
    pub(crate) deadline: Instant,
}

/// A node that wants in.
pub(crate) struct Newcomer {
    pub(crate) id: NodeId,
    pub(crate) node: NodeInfo,
    /// True while its log is empty.
    pub(crate) pristine: bool,
}

/// How far a newcomer has come.
pub(crate) enum Admitted {
    Voter,
    CatchingUp { behind: u64 },
}

/// Makes a node a learner and, if it catches up in time, a voter. This node must be the leader and hold the lock on
/// changes. `leaving` is taken out in the step that makes the other a voter.
pub(crate) async fn admit(
    cluster: &Cluster,
    newcomer: Newcomer,
    leaving: Option<NodeId>,
    Asked { origin, deadline }: Asked<'_>,
) -> Result<Admitted, Refusal> {
    let raft = cluster.raft();
    let Newcomer { id, node, pristine } = newcomer;
    settle(cluster).await?;
    let metrics = metrics(cluster);
    let membership = metrics.membership_config.membership();
    let voters: BTreeSet<_> = membership.voter_ids().collect();
    if voters.contains(&id) && leaving.is_none() {
        return Ok(Admitted::Voter);
    }
    if !pristine && membership.get_node(&id).is_none() {
        return Err(Refusal::Unable(format!(
            "node {id:016x} was removed from the cluster; to join again, empty its data directory (keep tls/)"
        )));
    }
    let mut old: BTreeSet<_> = leaving.into_iter().collect();
    for (namesake, namesake_node) in replaced(&metrics, id, &node) {
        if leaving == Some(namesake) {
            continue;
        }
        let link = cluster.peers().link(&namesake_node.raft_address, Some(namesake), Purpose::Forward);
        let alive = namesake == cluster.id()
            || link.call(Request::Status, Instant::now() + ALIVE_TIMEOUT).await.is_ok();
        if alive {
            return Err(Refusal::Change(ChangeRefusal::new(
                RefusalKind::Unfit,
                format!(
                    "{namesake_node} (node {namesake:016x}) is alive and has the same name or address; give every node \
                     its own"
                ),
            )));
        }
        old.insert(namesake);
    }
    let ChangeAllowed = change_allowed(&metrics)?;
    if !voters.contains(&id) {
        cluster.check_newcomer(id, &node).await?;
        // A learner was written down when it became one.
        if membership.get_node(&id).is_none() {
            cluster.record_intent(origin, vec![member_event(MemberAction::Adding, id, &node)]).await?;
        }
        raft.add_learner(id, node.clone(), false).await.map_err(|error| refusal(&error))?;
        if let Some(behind) = behind_after_waiting(raft, id, deadline).await? {
            return Ok(Admitted::CatchingUp { behind });
        }
    }
    cluster.record_intent(origin, events(&metrics, MemberAction::Removing, &old)).await?;
    if let Some(leaving) = leaving {
        departure::let_finish(cluster, &metrics, leaving).await;
    }
    let (old_voters, old_learners): (BTreeSet<_>, BTreeSet<_>) =
        old.iter().partition(|old| voters.contains(old));
    let change = ChangeMembers::Batch(vec![
        ChangeMembers::AddVoterIds(BTreeSet::from([id])),
        ChangeMembers::RemoveVoters(old_voters),
        ChangeMembers::RemoveNodes(old_learners),
    ]);
    change_members(raft, change, deadline).await?;
    tracing::info!(node = %node, id = %format_args!("{id:016x}"), replaced = old.len(), "a node joined the cluster");
    let mut done = events(&metrics, MemberAction::Removed, &old);
    if !voters.contains(&id) {
        done.insert(0, member_event(MemberAction::Added, id, &node));
    }
    cluster.record_best_effort(origin, done).await;
    Ok(Admitted::Voter)
}

fn events(metrics: &Metrics, action: MemberAction, ids: &BTreeSet<NodeId>) -> Vec<MemberEvent> {
    let membership = metrics.membership_config.membership();
    ids.iter().filter_map(|id| Some(member_event(action, *id, membership.get_node(id)?))).collect()
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

/// Ends a change that a former leader left half done: until then majorities of two sets of voters are needed. A leader that
/// is on its way out by that change leaves it to one that stays.
pub(super) async fn settle(cluster: &Cluster) -> Result<(), Refusal> {
    let (raft, metrics) = (cluster.raft(), metrics(cluster));
    if !stays(metrics.membership_config.membership(), metrics.id) {
        departure::hand_over_before_leaving(cluster, metrics.id).await?;
    }
    if metrics.membership_config.membership().get_joint_config().len() < 2 {
        return Ok(());
    }
    let ChangeAllowed = change_allowed(&metrics)?;
    tracing::info!("finishing a change of the membership that another leader began");
    let nothing_new = ChangeMembers::AddVoterIds(BTreeSet::new());
    change_members(raft, nothing_new, Instant::now() + CHANGE_TIME).await.map_err(|refusal| match refusal {
        // That is about the other change; the one asked for now has not begun.
        Refusal::Unknown(reason) => busy(&reason),
        refusal => refusal,
    })
}

pub(super) async fn change_members(
    raft: &Raft,
    change: ChangeMembers<NodeId, NodeInfo>,
    deadline: Instant,
) -> Result<(), Refusal> {
    let deadline = deadline.max(Instant::now() + CHANGE_TIME);
    let before = newest_membership(raft).await;
    match timeout_at(deadline, raft.change_membership(change, false)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => {
            let refusal = refusal(&error);
            // A change has two steps. When the first was made, another leader makes the second.
            if before.is_some() && newest_membership(raft).await == before {
                return Err(refusal);
            }
            Err(Refusal::Unknown(format!("the change began and was interrupted: {refusal}")))
        }
        Err(_) => Err(Refusal::Unknown(
            "no majority has confirmed the change yet; it goes on when enough nodes are back".to_owned(),
        )),
    }
}

/// Where in the log the newest membership is; `None` when raft has ended.
async fn newest_membership(raft: &Raft) -> Option<Option<LogId>> {
    raft.with_raft_state(|state| *state.membership_state.effective().log_id()).await.ok()
}

pub(super) struct ChangeAllowed;

/// openraft changes one thing at a time; asking while it is busy would only fail later and louder.
pub(super) fn change_allowed(metrics: &Metrics) -> Result<ChangeAllowed, Refusal> {
    if !stays(metrics.membership_config.membership(), metrics.id) {
        // openraft (0.10.0-alpha.37) would take a change from a leader that has removed itself, and meet an assertion of
        // its own when that is committed.
        return Err(busy("this node is leaving the cluster and stops leading"));
    }
    if metrics.membership_config.log_id() == metrics.committed_membership_config.log_id() {
        return Ok(ChangeAllowed);
    }
    Err(busy("another change of the membership is under way"))
}

/// Whether `id` is a voter of the newest set: of the one that remains when a change is complete.
fn stays(membership: &Membership<NodeId, NodeInfo>, id: NodeId) -> bool {
    membership.get_joint_config().last().is_some_and(|voters| voters.contains(&id))
}

pub(crate) fn busy(message: &str) -> Refusal {
    Refusal::Change(ChangeRefusal::new(RefusalKind::Busy, message))
}

/// `None` once the learner is close to the leader; else how far it is behind when the time is over.
async fn behind_after_waiting(raft: &Raft, id: NodeId, deadline: Instant) -> Result<Option<u64>, Refusal> {
    let behind = |metrics: &Metrics| {
        let matched =
            metrics.replication.as_ref().and_then(|replication| replication.get(&id)).copied().flatten();
        let behind = metrics.last_log_index.unwrap_or(0).saturating_sub(matched.index().unwrap_or(0));
        if matched.is_some() && behind <= CAUGHT_UP_ENTRIES { None } else { Some(behind) }
    };
    let near = |metrics: &Metrics| metrics.replication.is_none() || behind(metrics).is_none();
    let time = deadline.saturating_duration_since(Instant::now()).saturating_sub(CHANGE_TIME);
    // Either way the metrics say how far it came.
    let _ = raft.wait(Some(time)).metrics(near, "a new node catches up").await;
    let metrics = raft.metrics().borrow_watched().clone();
    if metrics.replication.is_none() {
        return Err(Refusal::NotLeader { leader: None });
    }
    Ok(behind(&metrics))
}

pub(super) fn metrics(cluster: &Cluster) -> Metrics {
    cluster.raft().metrics().borrow_watched().clone()
}

pub(super) fn refusal(error: &RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> Refusal {
    match error {
        // It was in the log: another leader may have committed it.
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) | RaftError::Fatal(_) => {
            Refusal::Unknown(format!("change membership: {error}"))
        }
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            Refusal::NotLeader { leader: forward.leader_id.zip(forward.leader_node.clone()) }
        }
        RaftError::APIError(_) => busy(&format!("change membership: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use openraft::errors::ForwardToLeader;

    use super::*;

    #[test]
    fn a_leader_that_is_on_its_way_out_makes_no_change() {
        let members = |sets: &[&[NodeId]]| {
            let sets: Vec<BTreeSet<_>> = sets.iter().map(|set| set.iter().copied().collect()).collect();
            Membership::new_with_defaults(sets, 1..=3)
        };
        assert!(stays(&members(&[&[1, 2, 3]]), 1));
        assert!(stays(&members(&[&[2, 3], &[1, 2, 3]]), 1), "it is coming");
        assert!(!stays(&members(&[&[1, 2, 3], &[2, 3]]), 1), "it is going");
        assert!(!stays(&members(&[&[2, 3]]), 1), "it has gone");
    }

    #[test]
    fn a_change_that_was_logged_before_leadership_was_lost_is_in_doubt() {
        let lost = || ForwardToLeader::empty();
        let logged = RaftError::APIError(ClientWriteError::LogEntryDiscarded(lost()));
        assert!(matches!(refusal(&logged), Refusal::Unknown(_)));
        let never_logged = RaftError::APIError(ClientWriteError::ForwardToLeader(lost()));
        assert_eq!(refusal(&never_logged), Refusal::NotLeader { leader: None });
    }
}
