//! Several changes merged into one with the same net effect.

use std::collections::BTreeMap;

use allowlist::{Change, Element, Revision};

/// What is to happen to an element, the last word of all merged changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Added,
    Revoked,
    Retired,
}

/// Merged changes. It grows with the number of distinct elements, not with the number of changes.
#[derive(Debug, Default)]
pub(super) struct Pending(BTreeMap<Element, Fate>);

impl Pending {
    pub(super) fn merge(&mut self, change: &Change) {
        let lists = [
            (&change.added, Fate::Added),
            (&change.revoked, Fate::Revoked),
            (&change.retired, Fate::Retired),
        ];
        for (elements, fate) in lists {
            for element in elements {
                // A person's revocation cuts flows even when the address leaves DNS a moment later as well.
                if fate == Fate::Retired && self.0.get(element) == Some(&Fate::Revoked) {
                    continue;
                }
                self.0.insert(*element, fate);
            }
        }
    }

    /// What could not be done comes before what was merged meanwhile.
    pub(super) fn put_back(&mut self, failed: &Change) {
        let newer = std::mem::take(self);
        self.merge(failed);
        self.merge(&newer.take_as(failed.revision));
    }

    /// Another set took the place of all that was wanted: of the way there only what became of those that are not in it
    /// is still worth knowing.
    pub(super) fn keep_gone(&mut self, is_held: impl Fn(&Element) -> bool) {
        self.0.retain(|element, fate| *fate != Fate::Added && !is_held(element));
    }

    /// Takes the merged change out.
    pub(super) fn take(&mut self, revision: Revision) -> Change {
        std::mem::take(self).take_as(revision)
    }

    fn take_as(self, revision: Revision) -> Change {
        let mut change = Change { revision, ..Change::default() };
        for (element, fate) in self.0 {
            match fate {
                Fate::Added => change.added.push(element),
                Fate::Revoked => change.revoked.push(element),
                Fate::Retired => change.retired.push(element),
            }
        }
        change
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(last: u8) -> Element {
        Element::host(std::net::IpAddr::from([1, 1, 1, last]), None)
    }

    #[test]
    fn merged_changes_have_the_effect_of_all_in_order() {
        let (a, b, c) = (element(1), element(2), element(3));
        let mut pending = Pending::default();
        pending.merge(&Change { revision: 1, added: vec![a, b], ..Change::default() });
        pending.merge(&Change { revision: 2, revoked: vec![a], retired: vec![c], ..Change::default() });
        pending.merge(&Change { revision: 3, added: vec![c], ..Change::default() });
        let merged = pending.take(3);
        assert_eq!(merged, Change { revision: 3, added: vec![b, c], revoked: vec![a], retired: vec![] });
        assert!(pending.take(4).is_empty());
    }

    #[test]
    fn what_is_put_back_comes_before_what_came_meanwhile() {
        let (a, b, c) = (element(1), element(2), element(3));
        let mut pending = Pending::default();
        pending.merge(&Change { revision: 2, added: vec![a], retired: vec![b], ..Change::default() });
        pending.put_back(&Change { revision: 1, revoked: vec![a, b], retired: vec![c], ..Change::default() });
        let merged = pending.take(2);
        assert_eq!(merged, Change { revision: 2, added: vec![a], revoked: vec![b], retired: vec![c] });
    }

    #[test]
    fn of_what_another_set_replaced_only_the_fate_of_the_gone_is_kept() {
        let (a, b, c) = (element(1), element(2), element(3));
        let mut pending = Pending::default();
        pending.merge(&Change { revision: 1, added: vec![a], revoked: vec![b], retired: vec![c] });
        pending.keep_gone(|element| *element == b);
        assert_eq!(pending.take(2), Change { revision: 2, retired: vec![c], ..Change::default() });
    }
}
