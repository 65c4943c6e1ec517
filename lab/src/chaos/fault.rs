//! What may go wrong.

use std::fmt;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// SIGKILL to one server, now and then to all; started again, now and then killed while it recovers.
    Kill,
    /// SIGSTOP, SIGCONT: one server or a majority.
    Pause,
    /// One server against the others, or two that cannot talk while a third talks to both.
    Partition,
    /// One server hears others that do not hear it, or the other way round.
    OneWayPartition,
    /// The leader alone.
    IsolatedLeader,
    /// A slow and lossy link.
    SlowLink,
    /// The wall clock of one server jumps, and later jumps back.
    ClockJump,
    /// A disk without space; now and then all disks.
    DiskFull,
    /// A disk that answers every call with an I/O error.
    DiskError,
    /// One server loses power, and with it whatever was not synced; now and then again while it recovers.
    PowerLoss,
    /// All servers lose power at once.
    PowerLossEverywhere,
    /// One server loses its disk and returns as a new node.
    WipedDisk,
    /// SIGTERM and a new start, one server after the other.
    RollingRestart,
    /// Leadership is handed over, a server is removed by the API, and returns with an empty disk.
    MembershipChange,
    /// Two more servers are added, now and then one of the five is killed, and the two are removed again.
    Resize,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 15] = [
        Self::Kill,
        Self::Pause,
        Self::Partition,
        Self::OneWayPartition,
        Self::IsolatedLeader,
        Self::SlowLink,
        Self::ClockJump,
        Self::DiskFull,
        Self::DiskError,
        Self::PowerLoss,
        Self::PowerLossEverywhere,
        Self::WipedDisk,
        Self::RollingRestart,
        Self::MembershipChange,
        Self::Resize,
    ];

    /// In a few words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kill => "SIGKILL",
            Self::Pause => "SIGSTOP",
            Self::Partition => "partition",
            Self::OneWayPartition => "one-way partition",
            Self::IsolatedLeader => "isolated leader",
            Self::SlowLink => "slow link",
            Self::ClockJump => "clock jump",
            Self::DiskFull => "disk full",
            Self::DiskError => "disk error",
            Self::PowerLoss => "power loss",
            Self::PowerLossEverywhere => "power loss of all",
            Self::WipedDisk => "wiped disk",
            Self::RollingRestart => "rolling restart",
            Self::MembershipChange => "membership change",
            Self::Resize => "resize",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Every kind in random order, again and again: a short run meets each as often as a long one does.
#[derive(Debug, Default)]
pub(super) struct Deck(Vec<Fault>);

impl Deck {
    /// The next fault.
    pub(super) fn draw(&mut self, dice: &mut StdRng) -> Fault {
        if self.0.is_empty() {
            self.0 = Fault::ALL.to_vec();
            self.0.shuffle(dice);
        }
        self.0.pop().unwrap_or(Fault::Kill)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_deck_holds_every_kind_and_its_order_is_the_seeds() {
        let draw = |seed: u64| {
            let (mut deck, mut dice) = (Deck::default(), StdRng::seed_from_u64(seed));
            (0..2 * Fault::ALL.len()).map(|_| deck.draw(&mut dice)).collect::<Vec<_>>()
        };
        let faults = draw(7);
        for half in faults.chunks(Fault::ALL.len()) {
            assert_eq!(half.iter().collect::<BTreeSet<_>>().len(), Fault::ALL.len());
        }
        assert_eq!(faults, draw(7));
        assert_ne!(faults, draw(8));
    }
}
