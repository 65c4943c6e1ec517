//! The leader's side of leaving: nobody is taken out whose absence would leave the rest without a majority, a leader
//! hands over first, and a node that is alive finishes what its clients asked before it is cut off.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::{ChangeMembers, Membership, ServerState};
use raft_store::NodeInfo;
use raft_store::command::{MemberAction, Origin};
use raft_store::types::NodeId;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Metrics;
use super::change::{ChangeRefusal, MemberChanged, RefusalKind};
use super::link::Purpose;
use super::membership::{
    ALIVE_TIMEOUT, Asked, ChangeAllowed, busy, change_allowed, change_members, metrics, settle,
};
use super::wire::{Refusal, Request, Response};
use crate::cluster::{Cluster, Heir, heirs, leader_of, member_event, staying_voters};

/// A node that leaves has this long to finish what is under way on it.
pub(crate) const LEAVING_TIME: Duration = Duration::from_secs(3);
/// A leader that is to hand over waits this long for a voter that can take over at once.
const HEIR_TIME: Duration = Duration::from_secs(2);

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
    Asked { origin, deadline }: Asked<'_>,
) -> Result<MemberChanged, Refusal> {
    settle(cluster).await?;
    let metrics = metrics(cluster);
    let (id, node) = find(&metrics, member, None)?;
    let is_voter = metrics.membership_config.membership().voter_ids().any(|voter| voter == id);
    if is_voter {
        check_quorum(cluster, &metrics, id, None, force).await?;
        hand_over_before_leaving(cluster, id).await?;
    }
    let ChangeAllowed = change_allowed(&metrics)?;
    cluster.record_intent(origin, vec![member_event(MemberAction::Removing, id, &node)]).await?;
    let_finish(cluster, &metrics, id).await;
    let gone = BTreeSet::from([id]);
    let change = if is_voter { ChangeMembers::RemoveVoters(gone) } else { ChangeMembers::RemoveNodes(gone) };
    change_members(cluster.raft(), change, deadline).await?;
    tracing::info!(node = %node, id = %format_args!("{id:016x}"), "a node was removed from the cluster");
    cluster.record_best_effort(origin, vec![member_event(MemberAction::Removed, id, &node)]).await;
    Ok(MemberChanged::Removed { id, node })
}

/// A member by name, or by id as the API (decimal) or the log (16 hex digits) shows it. `except` is not meant: a node that
/// takes the place of another may have its name.
pub(crate) fn find(
    metrics: &Metrics,
    member: &str,
    except: Option<NodeId>,
) -> Result<(NodeId, NodeInfo), Refusal> {
    let nodes = metrics.membership_config.membership().nodes();
    let nodes: Vec<_> = nodes.filter(|(id, _)| Some(**id) != except).collect();
    find_among(&nodes, member).map_err(Refusal::Change)
}

fn find_among(nodes: &[(&NodeId, &NodeInfo)], member: &str) -> Result<(NodeId, NodeInfo), ChangeRefusal> {
    let named: Vec<_> = nodes.iter().filter(|(_, node)| node.name == member).collect();
    if named.len() > 1 {
        let ids: Vec<_> = named.iter().map(|(id, node)| format!("{id} ({})", node.raft_address)).collect();
        let message = format!(
            "{} members are named {member}; name the one that is meant by its id: {}",
            named.len(),
            ids.join(", ")
        );
        return Err(ChangeRefusal::new(RefusalKind::Unfit, message));
    }
    named
        .first()
        .copied()
        .or_else(|| nodes.iter().find(|(id, _)| is_id(member, **id)))
        .map(|(id, node)| (**id, (*node).clone()))
        .ok_or_else(|| {
            let mut names: Vec<_> = nodes.iter().map(|(_, node)| node.name.as_str()).collect();
            names.sort_unstable();
            let message = format!("{member} is no member of the cluster; members are {}", names.join(", "));
            ChangeRefusal::new(RefusalKind::NoSuchMember, message)
        })
}

/// True when `text` is this id.
pub(super) fn is_id(text: &str, id: NodeId) -> bool {
    text == id.to_string() || text == format!("{id:016x}")
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
pub(super) async fn hand_over_before_leaving(cluster: &Cluster, leaving: NodeId) -> Result<(), Refusal> {
    if leaving != cluster.id() {
        return Ok(());
    }
    let heir = ready_heir(cluster, None).await?;
    let leader = hand_over(cluster, heir).await?;
    Err(Refusal::NotLeader { leader: Some(leader) })
}

/// Makes another voter the leader. This node must be the leader.
pub(crate) async fn step_down(
    cluster: &Cluster,
    to: Option<&str>,
    origin: &Origin,
) -> Result<MemberChanged, Refusal> {
    let metrics = metrics(cluster);
    let wanted = match to {
        None => None,
        Some(to) => {
            let (id, node) = find(&metrics, to, None)?;
            if id == cluster.id() {
                return Ok(MemberChanged::Leads { id, node });
            }
            may_lead(metrics.membership_config.membership(), id, &node).map_err(Refusal::Change)?;
            if !unreachable(cluster, vec![(id, node.clone())]).await.is_empty() {
                return Err(out_of_reach(&node));
            }
            Some((id, node))
        }
    };
    let heir = ready_heir(cluster, wanted).await?;
    // Before: afterwards this node may not know whom to tell. It must not keep a leader in trouble from stepping down.
    if let Some(node) = metrics.membership_config.membership().get_node(&heir) {
        cluster.record_best_effort(origin, vec![member_event(MemberAction::Leads, heir, node)]).await;
    }
    let (id, node) = hand_over(cluster, heir).await?;
    Ok(MemberChanged::Leads { id, node })
}

/// Refuses a learner, and a voter on its way out: it will be none when the change under way is through.
fn may_lead(
    membership: &Membership<NodeId, NodeInfo>,
    id: NodeId,
    node: &NodeInfo,
) -> Result<(), ChangeRefusal> {
    let message = if staying_voters(membership).any(|voter| voter == id) {
        return Ok(());
    } else if membership.voter_ids().any(|voter| voter == id) {
        format!("{node} is leaving the cluster and cannot lead it; name a node that stays")
    } else {
        format!("{node} is still a learner and cannot lead")
    };
    Err(ChangeRefusal::new(RefusalKind::Unfit, message))
}

fn out_of_reach(node: &NodeInfo) -> Refusal {
    let message = format!("{node} cannot be reached, so it cannot lead; name another node");
    Refusal::Change(ChangeRefusal::new(RefusalKind::Unreachable, message))
}

/// The wanted voter, else the best one, once it can take over at once: one that is away or behind would leave the cluster
/// without a leader for a while.
async fn ready_heir(cluster: &Cluster, wanted: Option<(NodeId, NodeInfo)>) -> Result<NodeId, Refusal> {
    let only = wanted.as_ref().map(|(id, _)| *id);
    let candidates = move |metrics: &Metrics| {
        heirs(metrics).into_iter().filter(move |heir| only.is_none_or(|id| id == heir.id))
    };
    let decided = |metrics: &Metrics| {
        metrics.state != ServerState::Leader || candidates(metrics).any(|heir| heir.is_ready())
    };
    let metrics =
        match cluster.raft().wait(Some(HEIR_TIME)).metrics(decided, "a voter that can take over").await {
            Ok(metrics) => metrics,
            Err(_) => metrics(cluster),
        };
    if metrics.state != ServerState::Leader {
        return Err(Refusal::NotLeader { leader: leader_of(&metrics).filter(|(id, _)| *id != cluster.id()) });
    }
    if let Some(heir) = candidates(&metrics).find(Heir::is_ready) {
        return Ok(heir.id);
    }
    Err(match (wanted, candidates(&metrics).next()) {
        (Some((_, node)), Some(heir)) if heir.heard => busy(&format!(
            "{node} is {} log entries behind and would let writes wait; ask again when it has caught up, or name another \
             node",
            heir.behind
        )),
        // It may have begun to leave meanwhile.
        (Some((id, node)), _) => may_lead(metrics.membership_config.membership(), id, &node)
            .map_or_else(Refusal::Change, |()| out_of_reach(&node)),
        (None, None) => {
            let message = "this node is the only voter; nobody else can lead";
            Refusal::Change(ChangeRefusal::new(RefusalKind::NoQuorumLeft, message))
        }
        (None, Some(_)) => {
            busy("no other voter is in reach and has caught up, so nobody can take over the lead")
        }
    })
}

async fn hand_over(cluster: &Cluster, heir: NodeId) -> Result<(NodeId, NodeInfo), Refusal> {
    cluster.hand_over_to(heir).await;
    leader_of(&metrics(cluster))
        .filter(|(leader, _)| *leader != cluster.id())
        .ok_or_else(|| busy("no other node took over the lead in time"))
}

/// Asks a node to finish what is under way on it and to take no more. One that is down has nothing under way.
pub(super) async fn let_finish(cluster: &Cluster, metrics: &Metrics, leaving: NodeId) {
    let Some(node) = metrics.membership_config.membership().get_node(&leaving) else { return };
    let link = cluster.peers().link(&node.raft_address, Some(leaving), Purpose::Forward);
    if let Err(error) = link.call(Request::Leaving, Instant::now() + LEAVING_TIME).await {
        tracing::info!(node = %node, %error, "a node leaves without a word");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_two_members_have_is_refused_with_their_ids() {
        let at = |address: &str| NodeInfo { name: "server-2".to_owned(), raft_address: address.to_owned() };
        let (old, new) = (at("10.1.0.2:8081"), at("10.1.0.9:8081"));
        let both = [(&20, &old), (&90, &new)];
        let refused = find_among(&both, "server-2").unwrap_err();
        assert_eq!(refused.kind, RefusalKind::Unfit);
        for part in ["20 (10.1.0.2:8081)", "90 (10.1.0.9:8081)", "by its id"] {
            assert!(refused.message.contains(part), "{refused}");
        }
        assert_eq!(find_among(&both, "90").unwrap(), (90, new.clone()));
        assert_eq!(find_among(&both, "0000000000000014").unwrap(), (20, old.clone()));
        assert_eq!(find_among(&both[..1], "server-2").unwrap(), (20, old.clone()));
        assert_eq!(find_among(&both, "server-3").unwrap_err().kind, RefusalKind::NoSuchMember);
    }
    #[test]
    fn a_voter_that_is_leaving_is_refused_the_lead_for_that_and_not_for_being_out_of_reach() {
        let node = |n| NodeInfo { name: format!("server-{n}"), raft_address: format!("10.1.0.{n}:8081") };
        let nodes = (1..=4).map(|n| (n, node(n))).collect::<std::collections::BTreeMap<_, _>>();
        let joint = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([1, 2])];
        let membership = Membership::<NodeId, NodeInfo>::new(joint, nodes).unwrap();
        let answer = |id| may_lead(&membership, id, &node(id));
        assert_eq!(answer(2), Ok(()));
        for (id, reason) in [(3, "server-3 at 10.1.0.3:8081 is leaving"), (4, "is still a learner")] {
            let refused = answer(id).unwrap_err();
            assert_eq!(refused.kind, RefusalKind::Unfit);
            assert!(refused.message.contains(reason), "{refused}");
        }
    }
}
