//! The life of nodes: start, kill, start again with what the disk kept.

use openraft::async_runtime::watch::WatchReceiver as _;
use raft_store::NodeInfo;
use raft_store::types::NodeId;

use crate::disk::{Disk, Image};
use crate::log::Log;
use crate::machine::{Machine, Shown};
use crate::network::Network;
use crate::process::Process;
use crate::types::{Metrics, Raft, config, sleep_ms};
use crate::world::World;

/// A node, running or not.
pub(crate) struct Slot {
    life: Option<Life>,
    lives: u64,
    /// The disk while it does not run.
    resting: Image,
    clock_percent: u64,
    /// Removed from the cluster: never starts again.
    retired: bool,
}

struct Life {
    number: u64,
    process: Process,
    disk: Disk,
    /// Absent while it starts.
    raft: Option<Raft>,
    shown: Shown,
}

/// A running node, for those who want something from it.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) id: NodeId,
    pub(crate) life: u64,
    pub(crate) process: Process,
    pub(crate) raft: Raft,
    pub(crate) shown: Shown,
}

impl Running {
    pub(crate) fn metrics(&self) -> Metrics {
        self.raft.metrics().borrow_watched().clone()
    }
}

/// How often a node looks whether a snapshot is due.
const COMPACTION_MS: u64 = 200;

pub(crate) fn info(id: NodeId) -> NodeInfo {
    NodeInfo { name: format!("server-{id}"), raft_address: format!("10.0.0.{id}:8081") }
}

impl World {
    /// A new node with an empty disk.
    pub(crate) fn add_node(&self, id: NodeId) {
        let mut inner = self.lock();
        let skew = inner.plan.clock_skew;
        let clock_percent = 100 - skew + inner.rng.below(2 * skew + 1);
        let slot = Slot { life: None, lives: 0, resting: Image::default(), clock_percent, retired: false };
        inner.nodes.insert(id, slot);
    }

    /// Starts `id` with what its disk holds; does nothing when it runs or is retired.
    pub(crate) fn start(&self, id: NodeId) {
        let (image, percent, number, tuning) = {
            let mut inner = self.lock();
            let tuning = inner.plan.tuning.clone();
            let Some(slot) = inner.nodes.get_mut(&id).filter(|slot| slot.life.is_none() && !slot.retired)
            else {
                return;
            };
            slot.lives += 1;
            (slot.resting.clone(), slot.clock_percent, slot.lives, tuning)
        };
        self.trace(format_args!("start {id} life {number}"));
        let process = Process::new(id);
        let disk = Disk::new(id, self.clone(), image);
        let (machine, shown) = Machine::recover(disk.clone());
        let life = Life { number, process: process.clone(), disk: disk.clone(), raft: None, shown };
        if let Some(slot) = self.lock().nodes.get_mut(&id) {
            slot.life = Some(life);
        }
        let world = self.clone();
        let snapshot_after = tuning.snapshot_after_entries;
        process.spawn(async move {
            let network = Network { world: world.clone(), id, life: number };
            match Raft::new(id, config(&tuning, percent), network, Log(disk), machine).await {
                Ok(raft) => {
                    world.started(id, number, &raft);
                    world.watch(id, raft, snapshot_after).await;
                }
                Err(error) => world.violation(format!("node {id} refuses to start: {error}")),
            }
        });
    }

    fn started(&self, id: NodeId, number: u64, raft: &Raft) {
        if let Some(life) = self.lock().nodes.get_mut(&id).and_then(|slot| slot.life.as_mut())
            && life.number == number
        {
            life.raft = Some(raft.clone());
        }
    }

    /// Makes snapshots when they are due, as `node/src/raft/compaction.rs` does, and tells when raft ends by itself.
    async fn watch(&self, id: NodeId, raft: Raft, snapshot_after: u64) {
        loop {
            sleep_ms(COMPACTION_MS).await;
            let metrics = raft.metrics().borrow_watched().clone();
            if let Err(fatal) = &metrics.running_state {
                self.violation(format!("node {id}: raft ended by itself: {fatal}"));
                return;
            }
            let index = |id: Option<raft_store::types::LogId>| id.map_or(0, |id| id.index);
            if index(metrics.last_applied) >= index(metrics.snapshot) + snapshot_after {
                // It may end at any time; the next round sees that.
                let _ = raft.trigger().snapshot().await;
            }
        }
    }

    /// The power of `id` fails now.
    pub(crate) fn kill(&self, id: NodeId) {
        let Some(life) = self.lock().nodes.get_mut(&id).and_then(|slot| slot.life.take()) else { return };
        self.trace(format_args!("kill {id}"));
        let image = life.disk.after_crash();
        life.process.kill();
        if let Some(slot) = self.lock().nodes.get_mut(&id) {
            slot.resting = image;
        }
    }

    /// Ends `id` for ever.
    pub(crate) fn retire(&self, id: NodeId) {
        self.kill(id);
        if let Some(slot) = self.lock().nodes.get_mut(&id) {
            slot.retired = true;
        }
    }

    pub(crate) fn running(&self, id: NodeId) -> Option<Running> {
        let inner = self.lock();
        let life = inner.nodes.get(&id)?.life.as_ref()?;
        let (number, process, shown) = (life.number, life.process.clone(), life.shown.clone());
        Some(Running { id, life: number, process, raft: life.raft.clone()?, shown })
    }

    pub(crate) fn all_running(&self) -> Vec<Running> {
        self.ids().into_iter().filter_map(|id| self.running(id)).collect()
    }

    /// All nodes that are not retired.
    pub(crate) fn ids(&self) -> Vec<NodeId> {
        self.lock().nodes.iter().filter(|(_, slot)| !slot.retired).map(|(id, _)| *id).collect()
    }

    /// The one that leads in the newest term, as far as the nodes know themselves.
    pub(crate) fn leader(&self) -> Option<Running> {
        self.all_running()
            .into_iter()
            .filter(|node| node.raft.is_leader())
            .max_by_key(|node| node.metrics().current_term)
    }

    /// All processes, also of nodes that start.
    pub(crate) fn processes(&self) -> Vec<Process> {
        let inner = self.lock();
        inner.nodes.values().filter_map(|slot| slot.life.as_ref()).map(|life| life.process.clone()).collect()
    }
}
