//! Counts of one set's members as sums that never fall.
//!
//! The kernel counts from zero in every new table and for every member added again. What was counted before is carried
//! here, per member, and added to what is read.

use std::collections::{BTreeSet, HashMap};

use super::ipset::Counters;
use super::layout::Member;

/// Members that are gone but remembered for the case that they come back, beyond as many as are held.
const MAX_REMEMBERED_MEMBERS: usize = 65_536;

/// The counts of one set.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Last reading of the live table.
    seen: HashMap<Member, Counters>,
    /// Counted in tables and by members that are no more.
    carried: HashMap<Member, Counters>,
    /// Carried, and not yet written where the next process finds it.
    unwritten: BTreeSet<Member>,
}

impl Ledger {
    /// Takes a reading. One that fell behind the last means that somebody emptied or deleted the member: what was
    /// counted until then is carried.
    pub(super) fn observe(&mut self, member: &Member, now: Counters) {
        if !self.observe_again(member, now) && now != Counters::default() {
            self.seen.insert(*member, now);
        }
    }

    /// [`Self::observe`] of a member that has counted before; false when it has not, and nothing is done.
    pub(super) fn observe_again(&mut self, member: &Member, now: Counters) -> bool {
        let Some(seen) = self.seen.get_mut(member) else { return false };
        let last = std::mem::replace(seen, now);
        if now.packets < last.packets || now.bytes < last.bytes {
            self.carry(member, last);
        }
        true
    }

    /// Takes the last reading of a member that is about to go or whose table was exchanged.
    pub(super) fn close(&mut self, member: &Member, last: Counters) {
        self.observe(member, last);
        self.seen.remove(member);
        self.carry(member, last);
    }

    /// The member goes, and what it counted since the last reading with it.
    pub(super) fn close_as_read(&mut self, member: &Member) {
        if let Some(last) = self.seen.remove(member) {
            self.carry(member, last);
        }
    }

    /// True when nothing is known of any member.
    pub(super) fn is_empty(&self) -> bool {
        self.seen.is_empty() && self.carried.is_empty()
    }

    /// All that was counted for the member.
    pub(super) fn total(&self, member: &Member) -> Counters {
        let seen = self.seen.get(member).copied().unwrap_or_default();
        let carried = self.carried.get(member).copied().unwrap_or_default();
        sum(seen, carried)
    }

    /// Takes over what a former process carried.
    pub(super) fn inherit(&mut self, carried: impl IntoIterator<Item = (Member, Counters)>) {
        self.carried.extend(carried);
    }

    /// What is carried and not yet written.
    pub(super) fn unwritten(&self) -> impl Iterator<Item = (&Member, &Counters)> {
        self.unwritten.iter().filter_map(|member| self.carried.get_key_value(member))
    }

    /// All that is carried.
    pub(super) fn carried(&self) -> impl ExactSizeIterator<Item = (&Member, &Counters)> {
        self.carried.iter()
    }

    /// What is carried has been written.
    pub(super) fn written(&mut self) {
        self.unwritten.clear();
    }

    /// Forgets members that are gone when there are too many. True when it did: what is written has to be rewritten.
    pub(super) fn forget(&mut self, held: impl Fn(&Member) -> bool, held_count: usize) -> bool {
        if self.carried.len() <= 2 * held_count + MAX_REMEMBERED_MEMBERS {
            return false;
        }
        self.carried.retain(|member, _| held(member));
        self.unwritten.retain(|member| held(member));
        true
    }

    fn carry(&mut self, member: &Member, counters: Counters) {
        if counters == Counters::default() {
            return;
        }
        let carried = self.carried.entry(*member).or_default();
        *carried = sum(*carried, counters);
        self.unwritten.insert(*member);
    }
}

const fn sum(one: Counters, other: Counters) -> Counters {
    Counters {
        packets: one.packets.saturating_add(other.packets),
        bytes: one.bytes.saturating_add(other.bytes),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_closes_unread_keeps_what_was_read() {
        let member = Member { prefix: "8.8.8.8/32".parse().unwrap(), service: None };
        let counters = |packets| Counters { packets, bytes: 100 * packets };
        let mut ledger = Ledger::default();
        ledger.observe(&member, counters(3));
        ledger.close_as_read(&member);
        ledger.close_as_read(&member);
        assert_eq!(ledger.total(&member), counters(3));
        ledger.observe(&member, counters(2));
        assert_eq!(ledger.total(&member), counters(5));
    }

    fn member(last: u8) -> Member {
        Member { prefix: format!("8.8.8.{last}/32").parse().unwrap(), service: None }
    }

    const fn counters(packets: u64) -> Counters {
        Counters { packets, bytes: packets * 100 }
    }

    #[test]
    fn sums_go_on_across_emptying_deletion_and_exchange_of_tables() {
        let mut ledger = Ledger::default();
        ledger.observe(&member(1), counters(5));
        ledger.observe(&member(1), counters(7));
        assert_eq!(ledger.total(&member(1)), counters(7));
        ledger.observe(&member(1), counters(2));
        assert_eq!(ledger.total(&member(1)), counters(9));
        ledger.close(&member(1), counters(4));
        assert_eq!(ledger.total(&member(1)), counters(11));
        ledger.observe(&member(1), counters(1));
        assert_eq!(ledger.total(&member(1)), counters(12));
        assert_eq!(ledger.unwritten().collect::<Vec<_>>(), [(&member(1), &counters(11))]);
        ledger.written();
        assert_eq!(ledger.unwritten().count(), 0);
    }

    #[test]
    fn members_that_are_gone_are_forgotten_only_when_they_are_too_many() {
        let mut ledger = Ledger::default();
        ledger.close(&member(1), counters(1));
        assert!(!ledger.forget(|_| false, 0));
        for number in 0..=u32::try_from(MAX_REMEMBERED_MEMBERS).unwrap() {
            let address = std::net::Ipv4Addr::from(0x0900_0000 + number);
            let member = Member { prefix: std::net::IpAddr::from(address).into(), service: None };
            ledger.close(&member, counters(1));
        }
        assert!(ledger.forget(|held| *held == member(1), 0));
        assert_eq!(ledger.carried().len(), 1);
    }

    proptest! {
        #[test]
        fn a_sum_never_falls(readings in proptest::collection::vec((any::<bool>(), 0u64..100), 0..60)) {
            let mut ledger = Ledger::default();
            let mut highest = 0;
            for (close, packets) in readings {
                if close { ledger.close(&member(1), counters(packets)) } else { ledger.observe(&member(1), counters(packets)) }
                let total = ledger.total(&member(1)).packets;
                prop_assert!(total >= highest);
                highest = total;
            }
        }
    }
}
