//! What this gateway is to hold: the published set as far as the servers told us, with its revision and digest.

use std::collections::BTreeSet;

use allowlist::feed::FeedState;
use allowlist::{Change, Digest, Element, Revision};
use uuid::Uuid;

/// The published set as this gateway knows it. The digest is kept with every change, never recomputed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    cluster: Option<Uuid>,
    revision: Revision,
    digest: Digest,
    elements: BTreeSet<Element>,
}

impl Held {
    /// What a kernel held when no stored state could confirm it: elements without a point in any feed.
    pub fn adopted(elements: BTreeSet<Element>) -> Self {
        Self { cluster: None, revision: 0, digest: Digest::of(&elements), elements }
    }

    /// The published set of `cluster` at `revision`.
    pub fn published(cluster: Uuid, revision: Revision, elements: BTreeSet<Element>) -> Self {
        Self { cluster: Some(cluster), revision, digest: Digest::of(&elements), elements }
    }

    /// The point in the feed this set stands for; `None` when no server confirmed it yet.
    pub fn point(&self) -> Option<FeedState> {
        self.cluster.map(|cluster| FeedState { cluster, revision: self.revision, digest: self.digest })
    }

    /// The cluster the set came from.
    pub fn cluster(&self) -> Option<Uuid> {
        self.cluster
    }

    /// The newest revision the set stands for.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The digest of the set.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The set.
    pub fn elements(&self) -> &BTreeSet<Element> {
        &self.elements
    }

    /// Makes one step. Applying the same change twice changes nothing.
    pub fn apply(&mut self, change: &Change) {
        self.add(&change.added);
        self.remove(&change.revoked);
        self.remove(&change.retired);
        self.advance(change.revision);
    }

    /// Notes that nothing changed up to `revision`. Never goes back.
    pub fn advance(&mut self, revision: Revision) {
        self.revision = self.revision.max(revision);
    }

    fn add(&mut self, elements: &[Element]) {
        for element in elements {
            if self.elements.insert(*element) {
                self.digest.toggle(element);
            }
        }
    }

    fn remove(&mut self, elements: &[Element]) {
        for element in elements {
            if self.elements.remove(element) {
                self.digest.toggle(element);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(text: &str) -> Element {
        Element::new(text.parse().unwrap(), None)
    }

    #[test]
    fn applying_a_change_twice_changes_nothing() {
        let mut held = Held::published(Uuid::nil(), 1, BTreeSet::from([element("1.1.1.1/32")]));
        let change = Change {
            revision: 4,
            added: vec![element("8.8.8.8/32")],
            revoked: vec![element("1.1.1.1/32")],
            retired: vec![],
        };
        held.apply(&change);
        let once = held.clone();
        held.apply(&change);
        assert_eq!(held, once);
        assert_eq!(held.digest(), Digest::of(held.elements()));
        assert_eq!(held.revision(), 4);
    }

    #[test]
    fn an_adopted_set_claims_no_point_in_any_feed() {
        assert_eq!(Held::adopted(BTreeSet::from([element("1.1.1.1/32")])).point(), None);
    }
}
