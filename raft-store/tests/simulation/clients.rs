//! Clients of the API, and what a node does for them: find the leader, hand the request on, wait, answer. The way is that
//! of `node/src/cluster/write.rs`, with its three outcomes: done, certainly not done, unknown.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{AsyncRuntime as _, LinearizerOption};
use openraft_rt_sim::SimInstant;
use raft_store::State;
use raft_store::command::{Batch, BatchReply};
use tokio::sync::oneshot;

use crate::commands;
use crate::history::Outcome;
use crate::nodes::Running;
use crate::process::NodeRuntime;
use crate::types::{now, sleep_ms};
use crate::wire::{CallError, Kind, send};
use crate::world::{Bug, World};

/// A request's time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// A node that knows no leader looks again after so long.
const RETRY_MS: u64 = 40;

/// One client: a request, a pause, a request.
pub(crate) async fn run(world: World, client: u64, until: SimInstant) {
    let mut number = 0;
    while now() < until {
        let pause = world.below(120);
        sleep_ms(pause).await;
        let nodes = world.all_running();
        let chosen = world.lock().rng.pick(&nodes).cloned();
        let Some(node) = chosen else { continue };
        number += 1;
        let tag = format!("c{client}-{number}");
        if world.chance(400) {
            read(&world, &node, tag, REQUEST_TIMEOUT).await;
        } else {
            write(&world, &node, tag, REQUEST_TIMEOUT).await;
        }
    }
}

/// A write through `node`; true when it was acknowledged.
pub(crate) async fn write(world: &World, node: &Running, tag: String, time: Duration) -> bool {
    let state = node.shown.state();
    let operations = commands::draw(&mut world.lock().rng, &state, &tag);
    let at_ms = now().elapsed_since_start().as_millis() as u64;
    let batch = Batch { at_ms, operations };
    let outcome = ask(world, node, tag, time, move |world, node, deadline| async move {
        match commit(&world, &node, batch, deadline).await {
            Ok(reply) => Outcome::Wrote(reply),
            Err(Failure::Nothing) => Outcome::Nothing,
            Err(Failure::Unknown) => Outcome::Unknown,
        }
    });
    matches!(outcome.await, "wrote")
}

/// A linearizable read through `node`; true when it was answered.
pub(crate) async fn read(world: &World, node: &Running, tag: String, time: Duration) -> bool {
    let outcome = ask(world, node, tag, time, |world, node, deadline| async move {
        match linearizable(&world, &node, deadline).await {
            Some(state) => Outcome::Read(state),
            None => Outcome::Nothing,
        }
    });
    matches!(outcome.await, "read")
}

/// Has `node` do something for a client and records it. A client that hears nothing knows nothing.
async fn ask<F>(
    world: &World,
    node: &Running,
    tag: String,
    time: Duration,
    work: impl FnOnce(World, Running, SimInstant) -> F,
) -> &'static str
where
    F: Future<Output = Outcome> + Send + 'static,
{
    let number = world.lock().history.begin(tag.clone());
    let deadline = now() + time;
    let work = work(world.clone(), node.clone(), deadline);
    let (done, answer) = oneshot::channel();
    node.process.spawn(async move { drop(done.send(work.await)) });
    let outcome = match NodeRuntime::timeout_at(deadline, answer).await {
        Ok(Ok(outcome)) if !node.process.is_killed() => outcome,
        _ => Outcome::Unknown,
    };
    let (name, revision) = match &outcome {
        Outcome::Unknown => ("unknown", 0),
        Outcome::Nothing => ("nothing", 0),
        Outcome::Wrote(reply) => ("wrote", reply.revision),
        Outcome::Read(state) => ("read", state.revision()),
    };
    world.trace(format_args!("{tag} at {}: {name} {revision}", node.id));
    world.count(name);
    world.lock().history.end(number, outcome);
    name
}

enum Failure {
    Nothing,
    Unknown,
}

enum Attempt {
    /// Nothing happened; another try may succeed.
    Again,
    Unknown,
}

async fn commit(
    world: &World,
    node: &Running,
    batch: Batch,
    deadline: SimInstant,
) -> Result<BatchReply, Failure> {
    loop {
        let attempt = match node.metrics().current_leader {
            Some(leader) if leader == node.id => propose(node, batch.clone()).await,
            Some(leader) => {
                let batch = batch.clone();
                let answer = send(world, node.id, leader, Kind::Once, "propose", move |leader| {
                    let batch = batch.clone();
                    async move { propose(&leader, batch).await }
                });
                match answer.await.unwrap_or(Err(CallError::Lost)) {
                    Ok(result) => result,
                    Err(CallError::Refused) => Err(Attempt::Again),
                    Err(CallError::Lost) => Err(Attempt::Unknown),
                }
            }
            None => Err(Attempt::Again),
        };
        match attempt {
            Ok(reply) => return Ok(reply),
            Err(Attempt::Unknown) => return Err(Failure::Unknown),
            Err(Attempt::Again) if now() >= deadline => return Err(Failure::Nothing),
            Err(Attempt::Again) => sleep_ms(RETRY_MS).await,
        }
    }
}

async fn propose(leader: &Running, batch: Batch) -> Result<BatchReply, Attempt> {
    match leader.raft.client_write(batch).await {
        Ok(response) => Ok(response.data),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Err(Attempt::Again),
        Err(_) => Err(Attempt::Unknown),
    }
}

async fn linearizable(world: &World, node: &Running, deadline: SimInstant) -> Option<State> {
    if world.has(Bug::ReadsLocally) {
        return Some(node.shown.state());
    }
    let index = loop {
        let index = match node.metrics().current_leader {
            Some(leader) if leader == node.id => read_index(node, deadline).await,
            Some(leader) => {
                let answer =
                    send(world, node.id, leader, Kind::Once, "read-index", move |leader| async move {
                        read_index(&leader, deadline).await
                    });
                answer.await.ok().and_then(Result::ok).flatten()
            }
            None => None,
        };
        match index {
            Some(index) => break index,
            None if now() >= deadline => return None,
            None => sleep_ms(RETRY_MS).await,
        }
    };
    let mut revisions = node.shown.revisions();
    while *revisions.borrow_and_update() < index {
        NodeRuntime::timeout_at(deadline, revisions.changed()).await.ok()?.ok()?;
    }
    Some(node.shown.state())
}

/// On the leader: confirms with a majority that it still leads, as the server does.
async fn read_index(leader: &Running, deadline: SimInstant) -> Option<u64> {
    let fresh = LinearizerOption::new(Some(Duration::ZERO), true).with_wait_timeout(deadline - now());
    let confirmed = NodeRuntime::timeout_at(deadline, leader.raft.get_read_linearizer(fresh)).await;
    Some(confirmed.ok()?.ok()?.read_log_id().index())
}
