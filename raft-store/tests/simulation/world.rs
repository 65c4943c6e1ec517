//! Everything there is in one run: nodes, the cuts between them, the history, and the one source of chance.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raft_store::types::{Entry, NodeId, Vote};

use crate::history::History;
use crate::machine::Content;
use crate::nodes::Slot;
use crate::plan::Plan;
use crate::rng::Rng;
use crate::types::now;

/// What a self-test breaks on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// The log says that entries and votes are on disk before they are.
    AcknowledgesBeforeSync,
    /// Reads are answered from the node's own state without asking anybody.
    ReadsLocally,
}

/// A handle; clones are the same world.
#[derive(Clone)]
pub(crate) struct World(Arc<Mutex<Inner>>);

pub(crate) struct Inner {
    pub(crate) plan: Plan,
    pub(crate) rng: Rng,
    pub(crate) nodes: BTreeMap<NodeId, Slot>,
    pub(crate) history: History,
    /// A node whose disk is gone and which the cluster has not replaced yet.
    pub(crate) lost: Option<NodeId>,
    /// Messages do not pass from the first to the second.
    cuts: BTreeSet<(NodeId, NodeId)>,
    slow_disks: BTreeMap<NodeId, u64>,
    slow_links: BTreeMap<NodeId, u64>,
    bug: Option<Bug>,
    trace: Trace,
    counts: BTreeMap<String, u64>,
}

/// One in so many messages takes much longer than the others.
const STRAGGLER_PERMILLE: u64 = 10;
const STRAGGLER_MAX_US: u64 = 100_000;

impl World {
    pub(crate) fn new(plan: Plan, rng: Rng, bug: Option<Bug>, print: bool) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            plan,
            rng,
            nodes: BTreeMap::new(),
            history: History::default(),
            lost: None,
            cuts: BTreeSet::new(),
            slow_disks: BTreeMap::new(),
            slow_links: BTreeMap::new(),
            bug,
            trace: Trace { hash: Trace::START, lines: 0, print },
            counts: BTreeMap::new(),
        })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.lock().bug == Some(bug)
    }

    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.lock().rng.below(bound)
    }

    pub(crate) fn between(&self, low: u64, high: u64) -> u64 {
        self.lock().rng.between(low, high)
    }

    pub(crate) fn chance(&self, permille: u64) -> bool {
        self.lock().rng.chance(permille)
    }

    /// Adds a line to the trace. Its hash is what two runs of a seed must agree on.
    pub(crate) fn trace(&self, line: fmt::Arguments<'_>) {
        self.lock().trace.line(line);
    }

    pub(crate) fn trace_hash(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.trace.hash, inner.trace.lines)
    }

    pub(crate) fn count(&self, what: impl fmt::Display) {
        *self.lock().counts.entry(what.to_string()).or_default() += 1;
    }

    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.lock().counts.clone()
    }

    pub(crate) fn violation(&self, what: String) {
        let mut inner = self.lock();
        inner.trace.line(format_args!("VIOLATION {what}"));
        inner.history.violations.push(what);
    }

    /// A node applies `entry`.
    pub(crate) fn applied(&self, node: NodeId, entry: &Entry) {
        self.trace(format_args!("apply {node} {}", entry.log_id));
        let consistent = self.lock().history.applied(node, entry);
        consistent.unwrap_or_else(|reason| self.violation(reason));
    }

    /// A node replaces its state by a leader's snapshot.
    pub(crate) fn installed(&self, node: NodeId, content: &Content) {
        self.count("snapshots installed");
        self.lock().history.installed.push((node, content.clone()));
    }

    /// `node`, in its life number `life`, acts as the leader `vote` makes it.
    pub(crate) fn leads(&self, node: NodeId, life: u64, vote: &Vote) {
        let lawful = self.lock().history.leads(node, life, vote);
        lawful.unwrap_or_else(|reason| self.violation(reason));
    }

    pub(crate) fn cut(&self, from: NodeId, to: NodeId) {
        self.lock().cuts.insert((from, to));
    }

    pub(crate) fn join(&self, from: NodeId, to: NodeId) {
        self.lock().cuts.remove(&(from, to));
    }

    pub(crate) fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.lock().cuts.contains(&(from, to))
    }

    /// Syncs of `node` take up to `us` longer.
    pub(crate) fn slow_disk(&self, node: NodeId, us: u64) {
        self.lock().slow_disks.insert(node, us);
    }

    /// Messages from and to `node` take up to `us` longer.
    pub(crate) fn slow_link(&self, node: NodeId, us: u64) {
        self.lock().slow_links.insert(node, us);
    }

    pub(crate) fn heal(&self) {
        let mut inner = self.lock();
        inner.cuts.clear();
        inner.slow_disks.clear();
        inner.slow_links.clear();
        inner.plan.loss_permille = 0;
        inner.plan.reset_permille = 0;
    }

    /// How long the next sync of `node` takes.
    pub(crate) fn sync_us(&self, node: NodeId) -> u64 {
        let mut inner = self.lock();
        let slow = inner.slow_disks.get(&node).copied().unwrap_or(0);
        let max = inner.plan.sync_max_us;
        let usual = inner.rng.between(50, max);
        usual + if slow > 0 { inner.rng.below(slow) } else { 0 }
    }

    /// How long the next message from `from` to `to` is under way.
    pub(crate) fn delay_us(&self, from: NodeId, to: NodeId) -> u64 {
        let mut inner = self.lock();
        let slow =
            [from, to].iter().filter_map(|node| inner.slow_links.get(node)).copied().max().unwrap_or(0);
        let max = inner.plan.delay_max_us;
        let mut delay = inner.rng.between(20, max);
        if slow > 0 {
            delay += inner.rng.below(slow);
        }
        if inner.rng.chance(STRAGGLER_PERMILLE) {
            delay += inner.rng.below(STRAGGLER_MAX_US);
        }
        delay
    }
}

/// The events of a run, as a hash (FNV-1a).
struct Trace {
    hash: u64,
    lines: u64,
    print: bool,
}

impl Trace {
    const START: u64 = 0xcbf2_9ce4_8422_2325;

    fn line(&mut self, line: fmt::Arguments<'_>) {
        let at = now().elapsed_since_start().as_micros();
        self.lines += 1;
        if self.print {
            eprintln!("{:>10}.{:03} {line}", at / 1_000, at % 1_000);
        }
        // Writing into a hash cannot fail.
        let _ = writeln!(self, "{at} {line}");
    }
}

impl fmt::Write for Trace {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}
