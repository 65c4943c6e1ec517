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

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Takes the merged change out.
    pub(super) fn take(&mut self, revision: Revision) -> Change {
        let mut change = Change { revision, ..Change::default() };
        for (element, fate) in std::mem::take(&mut self.0) {
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
}
