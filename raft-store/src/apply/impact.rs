//! What the removal of an entry would do, before anybody asks for it.

use std::collections::BTreeSet;

use allowlist::{Element, Entry, EntryId};
use ipnet::IpNet;

use super::elements;
use crate::state::State;

/// What would become of an entry's elements. Each list is sorted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Impact {
    /// Elements that would pass no more, and whose flows would be cut.
    pub removed: Vec<Element>,
    /// Elements that others let pass too, with those others: they own the same element, or one that covers it.
    pub kept: Vec<(Element, Vec<EntryId>)>,
    /// Elements that left DNS, and whose flows may still go on: they would be cut as well.
    pub drained: Vec<Element>,
}

impl State {
    /// What removing `entry` would do at the time `at_ms` (Unix milliseconds).
    pub fn impact(&self, entry: &Entry, at_ms: u64) -> Impact {
        let mut impact = Impact::default();
        for element in elements(entry, self.resolved(entry)) {
            let others = self.others(&element, entry.id);
            if others.is_empty() {
                impact.removed.push(element);
            } else {
                impact.kept.push((element, others));
            }
        }
        impact.drained = self.may_drain(entry, at_ms, |other| other.id != entry.id);
        impact.drained.retain(|element| !self.published.contains(element));
        impact.removed.sort_unstable();
        impact.kept.sort_unstable();
        impact.drained.sort_unstable();
        impact
    }

    /// Elements that `entry` lost to DNS so lately that gateways may let them drain, and that drain for no other entry of
    /// the name, of those that `counts` says yes to. An address that another name lost as well is not known to be so.
    pub(super) fn may_drain(
        &self,
        entry: &Entry,
        at_ms: u64,
        counts: impl Fn(&Entry) -> bool,
    ) -> Vec<Element> {
        let allowlist::Target::Domain(domain) = &entry.target else { return Vec::new() };
        let Some(history) = self.histories.get(domain) else { return Vec::new() };
        let lost = |entry: &Entry| elements(entry, history.may_drain(entry.created_at_ms, at_ms));
        let others: BTreeSet<Element> =
            self.entries_of(domain).filter(|other| counts(other)).flat_map(|other| lost(other)).collect();
        lost(entry).into_iter().filter(|element| !others.contains(element)).collect()
    }

    /// Other entries that let `element` pass: by itself, by a network around it, or with all ports.
    fn others(&self, element: &Element, but: EntryId) -> Vec<EntryId> {
        let mut others = Vec::new();
        for length in 0..=element.prefix.prefix_len() {
            let Ok(around) = IpNet::new(element.prefix.addr(), length) else { continue };
            for ports in [None, element.ports] {
                others.extend(self.published.owners(&Element::new(around.trunc(), ports)));
            }
        }
        others.sort_unstable();
        others.dedup();
        others.retain(|owner| *owner != but);
        others
    }
}
