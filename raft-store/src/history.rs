//! How the addresses of a name changed: for people who ask, and for the removal of an entry, which also ends what left DNS a
//! while ago and may still drain on gateways.

use std::collections::BTreeSet;
use std::net::IpAddr;

use allowlist::Revision;
use serde::{Deserialize, Serialize};

/// Most changes that are remembered of a name.
pub const MAX_CHANGES: usize = 100;
/// Most addresses in all of them together; the oldest changes go first.
pub const MAX_ADDRESSES: usize = 4_096;
/// Gateways let nothing drain for longer than a week, milliseconds.
const MAX_DRAIN_MS: u64 = 7 * 24 * 3_600 * 1_000;

/// The last changes of a name's addresses, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct History {
    changes: Vec<AddressChange>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressChange {
    /// The log index.
    pub revision: Revision,
    /// The leader's clock, Unix milliseconds.
    pub at_ms: u64,
    /// Addresses that joined.
    pub added: Vec<IpAddr>,
    /// Addresses that left.
    pub retired: Vec<IpAddr>,
}

impl History {
    /// Oldest first, at most [`MAX_CHANGES`].
    pub fn changes(&self) -> &[AddressChange] {
        &self.changes
    }

    pub(crate) fn push(&mut self, change: AddressChange) {
        self.changes.push(change);
        let mut addresses: usize = self.changes.iter().map(AddressChange::addresses).sum();
        let mut forgotten = self.changes.len().saturating_sub(MAX_CHANGES);
        addresses -= self.changes[..forgotten].iter().map(AddressChange::addresses).sum::<usize>();
        while addresses > MAX_ADDRESSES && forgotten + 1 < self.changes.len() {
            addresses -= self.changes[forgotten].addresses();
            forgotten += 1;
        }
        self.changes.drain(..forgotten);
    }

    /// Addresses that left not so long ago that no gateway lets them drain any more.
    pub(crate) fn may_drain(&self, at_ms: u64) -> BTreeSet<IpAddr> {
        let recent = |change: &&AddressChange| change.at_ms.saturating_add(MAX_DRAIN_MS) >= at_ms;
        self.changes.iter().filter(recent).flat_map(|change| &change.retired).copied().collect()
    }
}

impl AddressChange {
    fn addresses(&self) -> usize {
        self.added.len() + self.retired.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(revision: u64, retired: usize) -> AddressChange {
        let address = |index: usize| IpAddr::from([8, 8, (index / 256) as u8, (index % 256) as u8]);
        AddressChange {
            revision,
            at_ms: revision,
            added: Vec::new(),
            retired: (0..retired).map(address).collect(),
        }
    }

    #[test]
    fn the_oldest_changes_go_when_there_are_too_many_of_them_or_of_their_addresses() {
        let mut history = History::default();
        (0..150).for_each(|revision| history.push(change(revision, 1)));
        assert_eq!(history.changes().len(), MAX_CHANGES);
        assert_eq!(history.changes()[0].revision, 50);
        (150..154).for_each(|revision| history.push(change(revision, 1_000)));
        assert_eq!(history.changes().iter().map(AddressChange::addresses).sum::<usize>(), 4_096);
        history.push(change(154, MAX_ADDRESSES + 1));
        assert_eq!(history.changes().len(), 1, "the newest is kept whole");
    }

    #[test]
    fn what_left_a_week_ago_drains_nowhere() {
        let mut history = History::default();
        history.push(change(5, 2));
        assert_eq!(history.may_drain(5 + MAX_DRAIN_MS).len(), 2);
        assert_eq!(history.may_drain(6 + MAX_DRAIN_MS).len(), 0);
    }
}
