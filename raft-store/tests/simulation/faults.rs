//! Injects the faults of a plan, and takes them back.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::{AsyncRuntime as _, ChangeMembers};
use openraft_rt_sim::SimInstant;
use raft_store::types::NodeId;
use tokio::sync::oneshot;

use crate::nodes::{Running, info};
use crate::plan::Fault;
use crate::process::{NodeRuntime, spawn_outside};
use crate::types::{now, sleep_ms};
use crate::world::World;

/// A cluster stays within these sizes.
const VOTERS: (usize, usize) = (3, 5);
/// A change of the membership may take so long.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(4);

pub(crate) async fn run(world: World, until: SimInstant) {
    let (faults, calm_ms) = {
        let inner = world.lock();
        (inner.plan.faults.clone(), inner.plan.calm_ms)
    };
    while now() < until {
        let calm = world.between(10, calm_ms);
        sleep_ms(calm).await;
        let fault = world.lock().rng.pick(&faults).copied();
        if let Some(fault) = fault {
            inject(&world, fault).await;
        }
    }
}

async fn inject(world: &World, fault: Fault) {
    let ids = world.ids();
    let chosen = world.lock().rng.pick(&ids).copied();
    let Some(node) = chosen else { return };
    world.trace(format_args!("fault {fault:?} {node}"));
    world.count(format_args!("fault {fault:?}"));
    match fault {
        Fault::Kill => power_cycle(world, &[node]),
        Fault::PowerLoss => {
            let all = world.chance(300);
            let hit: Vec<_> = ids.into_iter().filter(|_| all || world.chance(600)).collect();
            power_cycle(world, &hit);
        }
        Fault::Stop => {
            if let Some(node) = world.running(node) {
                node.process.stop();
                later(world, 1_500, move |_| node.process.go_on());
            }
        }
        Fault::Isolate => cut_between(world, &[node], &others(&ids, &[node])),
        Fault::IsolateLeader => {
            if let Some(leader) = world.leader() {
                cut_between(world, &[leader.id], &others(&ids, &[leader.id]));
            }
        }
        Fault::OneWay => {
            let pairs: Vec<_> = others(&ids, &[node])
                .into_iter()
                .filter(|_| world.chance(700))
                .map(|other| if world.chance(500) { (node, other) } else { (other, node) })
                .collect();
            cut(world, pairs);
        }
        Fault::Split => {
            let side: Vec<_> = ids.iter().copied().filter(|_| world.chance(500)).collect();
            cut_between(world, &side, &others(&ids, &side));
        }
        Fault::SlowDisk => {
            let us = world.between(20_000, 1_500_000);
            world.slow_disk(node, us);
            later(world, 2_000, move |world| world.slow_disk(node, 0));
        }
        Fault::SlowLink => {
            let us = world.between(10_000, 400_000);
            world.slow_link(node, us);
            later(world, 2_000, move |world| world.slow_link(node, 0));
        }
        Fault::HandOver => {
            if let Some(leader) = world.leader() {
                on(
                    leader,
                    move |leader| async move { drop(leader.raft.trigger().transfer_leader(node).await) },
                );
            }
        }
        Fault::Election => {
            let pre_vote = world.chance(500);
            if let Some(node) = world.running(node) {
                on(node, move |node| async move { drop(node.raft.trigger().elect(pre_vote).await) });
            }
        }
        Fault::Snapshot => {
            if let Some(node) = world.running(node) {
                on(node, |node| async move { drop(node.raft.trigger().snapshot().await) });
            }
        }
        Fault::AddNode => drop(change_members(world, Change { add: true, remove: None }).await),
        Fault::RemoveNode => {
            if change_members(world, Change { add: false, remove: Some(node) }).await && world.chance(600) {
                // Told to stop, as an operator does; else it was forgotten and goes on asking for votes.
                world.retire(node);
            }
        }
        Fault::ReplaceNode => {
            // Its disk is lost; the same machine comes back under a new id. Before another one may be lost, this one
            // must be replaced: what no cluster bears proves nothing.
            let lost = *world.lock().lost.get_or_insert(node);
            world.retire(lost);
            if change_members(world, Change { add: true, remove: Some(lost) }).await {
                world.lock().lost = None;
            }
        }
    }
}

/// `hit` lose power at once and come back one after the other.
fn power_cycle(world: &World, hit: &[NodeId]) {
    for node in hit.iter().copied() {
        world.kill(node);
        later(world, 1_500, move |world| world.start(node));
    }
}

fn others(all: &[NodeId], these: &[NodeId]) -> Vec<NodeId> {
    all.iter().copied().filter(|one| !these.contains(one)).collect()
}

fn cut_between(world: &World, these: &[NodeId], those: &[NodeId]) {
    let both = these.iter().flat_map(|one| those.iter().flat_map(|other| [(*one, *other), (*other, *one)]));
    cut(world, both.collect());
}

fn cut(world: &World, pairs: Vec<(NodeId, NodeId)>) {
    pairs.iter().for_each(|(from, to)| world.cut(*from, *to));
    later(world, 2_500, move |world| pairs.iter().for_each(|(from, to)| world.join(*from, *to)));
}

fn later(world: &World, max_ms: u64, undo: impl FnOnce(&World) + Send + 'static) {
    let (world, ms) = (world.clone(), world.between(5, max_ms));
    spawn_outside(async move {
        sleep_ms(ms).await;
        undo(&world);
    });
}

fn on<F>(node: Running, work: impl FnOnce(Running) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let process = node.process.clone();
    process.spawn(work(node));
}

struct Change {
    add: bool,
    remove: Option<NodeId>,
}

/// Learner first, then voter and the removal in one step, as `node/src/raft/membership.rs` and `departure.rs` do it.
async fn change_members(world: &World, change: Change) -> bool {
    let Some(leader) = world.leader() else { return false };
    let metrics = leader.metrics();
    if metrics.membership_config.log_id() != metrics.committed_membership_config.log_id() {
        return false;
    }
    let membership = metrics.membership_config.membership();
    let Some(voters) = membership.get_joint_config().last().cloned() else { return false };
    if !voters.contains(&leader.id) || change.remove == Some(leader.id) {
        // It has removed itself, or is to, and will stop leading: it hands over first. openraft alpha.37 would take another
        // change from it, and run into a debug assertion when that one is committed.
        let heir = voters.iter().copied().find(|voter| *voter != leader.id);
        if let Some(heir) = heir {
            on(leader, move |leader| async move { drop(leader.raft.trigger().transfer_leader(heir).await) });
        }
        return false;
    }
    let staying: Vec<_> = voters.iter().copied().filter(|voter| change.remove != Some(*voter)).collect();
    let size = staying.len() + usize::from(change.add);
    // The newcomer is there. What a majority of the rest cannot be reached for is refused (`check_quorum`).
    let there = staying.iter().filter(|voter| world.running(**voter).is_some()).count();
    if size < VOTERS.0 || size > VOTERS.1 || there + usize::from(change.add) < size / 2 + 1 {
        return false;
    }
    let new = change.add.then(|| {
        let id = world.lock().nodes.keys().next_back().map_or(1, |last| last + 1);
        world.add_node(id);
        world.start(id);
        id
    });
    let (done, answer) = oneshot::channel();
    let deadline = now() + CHANGE_TIMEOUT;
    on(leader, move |leader| async move {
        let change = members_changed(&leader, new, change.remove);
        let changed = NodeRuntime::timeout_at(deadline, change).await;
        // Who waits for it may have given up.
        let _ = done.send(changed.unwrap_or(false));
    });
    let changed = matches!(NodeRuntime::timeout_at(deadline, answer).await, Ok(Ok(true)));
    world.trace(format_args!("members changed: {changed}"));
    if changed {
        world.count("members changed");
    }
    changed
}

async fn members_changed(leader: &Running, new: Option<NodeId>, remove: Option<NodeId>) -> bool {
    if leader.metrics().membership_config.membership().get_joint_config().len() > 1 {
        // What a former leader left half done is finished first.
        let nothing_new = ChangeMembers::AddVoterIds(BTreeSet::new());
        if leader.raft.change_membership(nothing_new, false).await.is_err() {
            return false;
        }
    }
    let mut changes = Vec::new();
    if let Some(id) = new {
        if leader.raft.add_learner(id, info(id), true).await.is_err() {
            return false;
        }
        changes.push(ChangeMembers::AddVoterIds(BTreeSet::from([id])));
    }
    if let Some(id) = remove {
        let ids = BTreeSet::from([id]);
        let votes = leader.metrics().membership_config.membership().voter_ids().any(|voter| voter == id);
        // Removing a learner from the voters would leave it a learner.
        changes.push(if votes { ChangeMembers::RemoveVoters(ids) } else { ChangeMembers::RemoveNodes(ids) });
    }
    leader.raft.change_membership(ChangeMembers::Batch(changes), false).await.is_ok()
}
