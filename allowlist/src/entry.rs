//! What a person added.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ports::Ports;
use crate::target::Target;
use crate::texts::{Labels, SharedText};

/// Most characters in a comment, owner or ticket.
pub const MAX_TEXT_CHARS: usize = 1_000;
/// Most labels on one entry.
pub const MAX_LABELS: usize = 32;
/// Most characters in a label's key or value.
pub const MAX_LABEL_CHARS: usize = 128;

/// Names an entry for ever; drawn by the leader (UUID version 7), never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EntryId(pub Uuid);

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for EntryId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

/// One line of the allowlist. `target` + `ports` is its natural key: adding the same pair again returns the entry
/// that is there. Times are Unix milliseconds, taken by the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub id: EntryId,
    /// What it opens.
    pub target: Target,
    /// Which ports of it.
    pub ports: Ports,
    /// Protected entries can be neither deleted nor weakened.
    pub protected: bool,
    /// Why it exists, free text.
    pub comment: Box<str>,
    /// Who answers for it.
    pub owner: SharedText,
    /// The request it came from.
    pub ticket: SharedText,
    /// Free key/value pairs.
    pub labels: Labels,
    /// Name of the token that added it.
    pub created_by: SharedText,
    /// When it was added, Unix milliseconds.
    pub created_at_ms: u64,
    /// When it ends by itself, Unix milliseconds; `None` for never.
    pub expires_at_ms: Option<u64>,
}

/// A text or label longer than the limits above.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} has {len} {unit}, at most {max} are possible")]
pub struct TooLong {
    /// `comment`, `owner`, `ticket`, `labels`, `labels key` or `labels value`.
    pub field: &'static str,
    /// What was counted: `characters` or `labels`.
    pub unit: &'static str,
    /// How many there were.
    pub len: usize,
    /// How many there may be.
    pub max: usize,
}

/// Checks the free texts of an entry against the limits of this module.
///
/// # Errors
/// [`TooLong`] for the first field over its limit.
pub fn check_texts(
    comment: &str,
    owner: &str,
    ticket: &str,
    labels: &BTreeMap<String, String>,
) -> Result<(), TooLong> {
    let chars = |field, text: &str, max| match text.chars().count() {
        len if len > max => Err(TooLong { field, unit: "characters", len, max }),
        _ => Ok(()),
    };
    chars("comment", comment, MAX_TEXT_CHARS)?;
    chars("owner", owner, MAX_TEXT_CHARS)?;
    chars("ticket", ticket, MAX_TEXT_CHARS)?;
    if labels.len() > MAX_LABELS {
        return Err(TooLong { field: "labels", unit: "labels", len: labels.len(), max: MAX_LABELS });
    }
    for (key, value) in labels {
        chars("labels key", key, MAX_LABEL_CHARS)?;
        chars("labels value", value, MAX_LABEL_CHARS)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an allocator gives out in one piece, with the two counts of an `Arc`.
    const ROOM_BYTES: usize = 160 - 2 * size_of::<usize>();

    #[test]
    fn a_million_entries_take_160_bytes_each_beside_their_comments() {
        assert!(size_of::<Entry>() <= ROOM_BYTES, "{} bytes", size_of::<Entry>());
    }
}
