//! How the addresses of a name changed: for people who ask, and for the removal of an entry, which also ends what left DNS a
//! while ago and may still drain on gateways.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use allowlist::Revision;
use serde::{Deserialize, Serialize};

/// Most changes that are remembered of a name …
pub const MAX_CHANGES: usize = 100;
/// … and most addresses in all of them together; the oldest changes go first.
pub const MAX_ADDRESSES: usize = 4_096;
/// Most changes that are remembered of all names together: beyond it a name that changes forgets its oldest one for each.
pub const MAX_CHANGES_OF_ALL: usize = 1_000_000;
/// Most addresses of a name that are known to have left it; those that left longest ago go first.
pub const MAX_LEFT: usize = 4_096;
/// Gateways let nothing drain for longer than a week, milliseconds.
const MAX_DRAIN_MS: u64 = 7 * 24 * 3_600 * 1_000;

/// The last changes of a name's addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct History {
    /// Oldest first. Shared, since a history is copied with each change.
    changes: Vec<Arc<AddressChange>>,
    /// Addresses that left and did not come back, with when they left (Unix milliseconds).
    left: BTreeMap<IpAddr, u64>,
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
    pub fn changes(&self) -> &[Arc<AddressChange>] {
        &self.changes
    }

    /// `room` says whether all names together may remember one more.
    pub(crate) fn push(&mut self, change: AddressChange, room: bool) {
        for address in &change.added {
            self.left.remove(address);
        }
        self.left.extend(change.retired.iter().map(|address| (*address, change.at_ms)));
        self.left.retain(|_, left_ms| left_ms.saturating_add(MAX_DRAIN_MS) >= change.at_ms);
        while self.left.len() > MAX_LEFT {
            let oldest = self.left.iter().min_by_key(|(address, left_ms)| (**left_ms, **address));
            let Some(oldest) = oldest.map(|(address, _)| *address) else { break };
            self.left.remove(&oldest);
        }
        if !room && !self.changes.is_empty() {
            self.changes.remove(0);
        }
        self.changes.push(Arc::new(change));
        let mut addresses: usize = self.changes.iter().map(|change| change.addresses()).sum();
        let mut forgotten = self.changes.len().saturating_sub(MAX_CHANGES);
        addresses -= self.changes[..forgotten].iter().map(|change| change.addresses()).sum::<usize>();
        while addresses > MAX_ADDRESSES && forgotten + 1 < self.changes.len() {
            addresses -= self.changes[forgotten].addresses();
            forgotten += 1;
        }
        self.changes.drain(..forgotten);
    }

    /// Addresses that left since `since_ms`, and not so long before `at_ms` that no gateway lets them drain any more.
    pub(crate) fn may_drain(&self, since_ms: u64, at_ms: u64) -> Vec<IpAddr> {
        let recent = |left_ms: u64| left_ms >= since_ms && left_ms.saturating_add(MAX_DRAIN_MS) >= at_ms;
        self.left.iter().filter(|(_, left_ms)| recent(**left_ms)).map(|(address, _)| *address).collect()
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
        (0..150).for_each(|revision| history.push(change(revision, 1), true));
        assert_eq!(history.changes().len(), MAX_CHANGES);
        assert_eq!(history.changes()[0].revision, 50);
        (150..154).for_each(|revision| history.push(change(revision, 1_000), true));
        assert_eq!(history.changes().iter().map(|change| change.addresses()).sum::<usize>(), 4_096);
        history.push(change(154, MAX_ADDRESSES + 1), true);
        assert_eq!(history.changes().len(), 1, "the newest is kept whole");
        assert_eq!(history.left.len(), MAX_LEFT);
        (155..158).for_each(|revision| history.push(change(revision, 1), true));
        history.push(change(158, 1), false);
        assert_eq!(history.changes()[0].revision, 156, "without room one goes for each that comes");
    }

    #[test]
    fn what_left_a_week_ago_drains_nowhere() {
        let mut history = History::default();
        history.push(change(5, 2), true);
        assert_eq!(history.may_drain(0, 5 + MAX_DRAIN_MS).len(), 2);
        assert_eq!(history.may_drain(0, 6 + MAX_DRAIN_MS).len(), 0);
        assert_eq!(history.may_drain(6, 7).len(), 0, "it left before");
        let back = AddressChange { added: change(6, 1).retired, retired: Vec::new(), ..change(6, 0) };
        history.push(back, true);
        assert_eq!(history.may_drain(0, 7).len(), 1, "what came back did not leave");
    }
}
