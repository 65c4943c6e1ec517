//! What one seed is about: how large the cluster is, how bad the network and the disks are, and which faults happen. Each
//! seed leaves some kinds of faults out, because the ones that always happen hide what the others would find.

use crate::rng::Rng;
use crate::types::Tuning;

/// Kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    Kill,
    PowerLoss,
    Stop,
    Isolate,
    IsolateLeader,
    OneWay,
    Split,
    SlowDisk,
    SlowLink,
    HandOver,
    Election,
    Snapshot,
    AddNode,
    RemoveNode,
    ReplaceNode,
}

pub(crate) const FAULTS: [Fault; 15] = [
    Fault::Kill,
    Fault::PowerLoss,
    Fault::Stop,
    Fault::Isolate,
    Fault::IsolateLeader,
    Fault::OneWay,
    Fault::Split,
    Fault::SlowDisk,
    Fault::SlowLink,
    Fault::HandOver,
    Fault::Election,
    Fault::Snapshot,
    Fault::AddNode,
    Fault::RemoveNode,
    Fault::ReplaceNode,
];

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) nodes: u64,
    pub(crate) clients: u64,
    /// Faults happen for this long.
    pub(crate) chaos_ms: u64,
    /// Longest time between two faults.
    pub(crate) calm_ms: u64,
    pub(crate) faults: Vec<Fault>,
    pub(crate) tuning: Tuning,
    pub(crate) delay_max_us: u64,
    /// A message that is lost is sent again later, as TCP does.
    pub(crate) loss_permille: u64,
    /// A connection that breaks: the sender does not learn whether the message arrived.
    pub(crate) reset_permille: u64,
    pub(crate) duplicate_permille: u64,
    pub(crate) sync_max_us: u64,
    /// How far clocks run from the true speed, percent.
    pub(crate) clock_skew: u64,
}

impl Plan {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let share = rng.between(2, 8);
        let mut faults: Vec<_> = FAULTS.into_iter().filter(|_| rng.below(10) < share).collect();
        if faults.is_empty() {
            faults.push(Fault::Kill);
        }
        let pick = |rng: &mut Rng, from: &[u64]| from[rng.below(from.len() as u64) as usize];
        Self {
            nodes: pick(rng, &[3, 3, 3, 4, 5]),
            clients: rng.between(2, 5),
            chaos_ms: rng.between(3_000, 8_000),
            calm_ms: pick(rng, &[200, 600, 1_500]),
            faults,
            tuning: Tuning {
                snapshot_after_entries: pick(rng, &[10, 40, 1_000]),
                entries_kept: pick(rng, &[0, 5, 20]),
                ..Tuning::default()
            },
            delay_max_us: pick(rng, &[300, 2_000, 20_000]),
            loss_permille: pick(rng, &[0, 2, 10, 50]),
            reset_permille: pick(rng, &[0, 2, 10]),
            duplicate_permille: pick(rng, &[0, 10, 50]),
            sync_max_us: pick(rng, &[200, 3_000, 30_000]),
            clock_skew: pick(rng, &[0, 0, 10, 25]),
        }
    }
}
