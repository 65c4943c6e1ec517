//! One seed from beginning to end.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::time::Duration;

use openraft::AsyncRuntime as _;
use openraft::async_runtime::WatchReceiver as _;
use openraft_rt_sim::SimInstant;
use raft_store::State;
use raft_store::types::NodeId;
use tokio::sync::oneshot;

use crate::nodes::info;
use crate::plan::Plan;
use crate::process::{NodeRuntime, current_node, spawn_outside};
use crate::rng::Rng;
use crate::types::{now, sleep_ms};
use crate::world::{Bug, World};
use crate::{clients, faults};

/// After this time everything must be well again: a leader found, everybody caught up, writes through every node.
const RECOVERY: Duration = Duration::from_secs(60);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK_AGAIN_MS: u64 = 20;

/// What came of a seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    /// Hash and number of the trace's lines.
    pub(crate) trace: (u64, u64),
    /// What must not be, in words.
    pub(crate) wrong: Vec<String>,
    pub(crate) counts: BTreeMap<String, u64>,
}

thread_local! {
    /// Panics of tasks, which the runtime catches; `None` outside a simulation.
    static PANICS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

pub(crate) fn run(seed: u64, bug: Option<Bug>, print: bool) -> Report {
    collect_panics();
    let mut rng = Rng::new(seed);
    let plan = Plan::draw(&mut rng);
    if print {
        eprintln!("seed {seed}: {plan:?}");
    }
    let world = World::new(plan, rng, bug, print);
    PANICS.with(|panics| panics.replace(Some(Vec::new())));
    let ran = panic::catch_unwind(AssertUnwindSafe(|| {
        let mut runtime = NodeRuntime::with_seed(seed);
        runtime.block_on(whole(world.clone()))
    }));
    let panics = PANICS.with(RefCell::take).unwrap_or_default();
    let (trace, mut counts) = (world.trace_hash(), world.counts());
    let history = &world.lock().history;
    let mut wrong = history.check(&ran.unwrap_or_default());
    wrong.extend(panics);
    counts.insert("entries committed".to_owned(), history.last_index());
    counts.insert("leaders".to_owned(), history.terms() as u64);
    counts.insert("terms with two leaders".to_owned(), history.shared_terms() as u64);
    Report { trace, wrong, counts }
}

/// The states of the members at the end.
async fn whole(world: World) -> Vec<(NodeId, State)> {
    found(&world).await;
    let (clients, chaos_ms) = {
        let inner = world.lock();
        (inner.plan.clients, inner.plan.chaos_ms)
    };
    let until = now() + Duration::from_millis(chaos_ms);
    let mut running = vec![ended(faults::run(world.clone(), until))];
    running.extend((0..clients).map(|client| ended(clients::run(world.clone(), client, until))));
    for one in running {
        // It ends in any case.
        drop(one.await);
    }
    world.trace(format_args!("heal"));
    world.heal();
    world.processes().iter().for_each(crate::process::Process::go_on);
    world.ids().into_iter().for_each(|id| world.start(id));
    settled(&world).await.unwrap_or_else(|reason| {
        world.violation(reason);
        Vec::new()
    })
}

fn ended(work: impl Future<Output = ()> + Send + 'static) -> oneshot::Receiver<()> {
    let (done, end) = oneshot::channel();
    spawn_outside(async move {
        work.await;
        let _ = done.send(());
    });
    end
}

/// Founds the cluster, as `node/src/raft/bootstrap.rs` does from its first node.
async fn found(world: &World) {
    let nodes = world.lock().plan.nodes;
    let members: BTreeMap<_, _> = (1..=nodes).map(|id| (id, info(id))).collect();
    for id in members.keys().copied() {
        world.add_node(id);
        world.start(id);
    }
    while world.all_running().len() < members.len() {
        sleep_ms(LOOK_AGAIN_MS).await;
    }
    if let Some(first) = world.running(1) {
        let (world, raft) = (world.clone(), first.raft.clone());
        first.process.spawn(async move {
            if let Err(error) = raft.initialize(members).await {
                world.violation(format!("found the cluster: {error}"));
            }
        });
    }
    // Whoever loses the founder's disk before anybody else has heard of the cluster has no cluster.
    let joined = || world.all_running().iter().all(|node| node.metrics().current_leader.is_some());
    let deadline = now() + RECOVERY;
    while !joined() && now() < deadline {
        sleep_ms(LOOK_AGAIN_MS).await;
    }
}

/// Waits until the healed cluster works again.
async fn settled(world: &World) -> Result<Vec<(NodeId, State)>, String> {
    let deadline = now() + RECOVERY;
    let mut tries = 0;
    let members = loop {
        if let Some(leader) = world.leader() {
            let lost = world.lock().lost;
            let membership = leader.metrics().membership_config.membership().clone();
            let ids: Vec<_> = membership.nodes().map(|(id, _)| *id).filter(|id| Some(*id) != lost).collect();
            let mut fine = true;
            for id in &ids {
                tries += 1;
                fine = fine
                    && match world.running(*id) {
                        Some(node) => {
                            clients::write(world, &node, format!("end-w{tries}"), REQUEST_TIMEOUT).await
                                && clients::read(world, &node, format!("end-r{tries}"), REQUEST_TIMEOUT).await
                        }
                        None => false,
                    };
            }
            if fine {
                break ids;
            }
        }
        if now() >= deadline {
            return Err(format!("no progress {RECOVERY:?} after everything was healed: {}", standing(world)));
        }
        sleep_ms(LOOK_AGAIN_MS).await;
    };
    loop {
        let last = world.lock().history.last_index();
        let nodes: Option<Vec<_>> = members.iter().map(|id| world.running(*id)).collect();
        if let Some(nodes) = nodes
            && nodes.iter().all(|node| *node.shown.revisions().borrow_watched() == last)
        {
            return Ok(nodes.into_iter().map(|node| (node.id, node.shown.state())).collect());
        }
        if now() >= deadline {
            return Err(format!("not everybody caught up to {last}: {}", standing(world)));
        }
        sleep_ms(LOOK_AGAIN_MS).await;
    }
}

/// How the nodes stand, for a reader of a failure.
fn standing(world: &World) -> String {
    let lines: Vec<_> = world.all_running().iter().map(|node| format!("\n    {}", node.metrics())).collect();
    lines.concat()
}

/// Notes the panics of tasks of a simulation instead of printing them.
fn collect_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let noted = PANICS.with(|panics| match &mut *panics.borrow_mut() {
                Some(panics) => {
                    let at = SimInstant::try_now().map(SimInstant::elapsed_since_start);
                    panics.push(format!("node {:?} panics after {at:?}: {info}", current_node()));
                    true
                }
                None => false,
            });
            if !noted {
                usual(info);
            }
        }));
    });
}
