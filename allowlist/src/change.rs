//! One step of the published set.

use serde::{Deserialize, Serialize};

use crate::element::Element;

/// The raft log index of an applied change. 0 is "before the first change".
pub type Revision = u64;

/// What one revision did to the published set: net effect, each list sorted, no element in two lists.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Change {
    /// The log index that caused it.
    pub revision: Revision,
    /// Elements that pass from now on.
    pub added: Vec<Element>,
    /// Elements a person removed: flows through them are cut at once.
    pub revoked: Vec<Element>,
    /// Elements that left DNS: no new flows, established ones may finish.
    pub retired: Vec<Element>,
}

impl Change {
    /// True when the published set did not change.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.revoked.is_empty() && self.retired.is_empty()
    }

    /// How many elements the change names.
    pub fn len(&self) -> usize {
        self.added.len() + self.revoked.len() + self.retired.len()
    }
}
