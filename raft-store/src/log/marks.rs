//! What the log says besides its entries. It is small, and stands in the header of every segment, so that older
//! segments can be removed.

use super::record::{self, Record};
use crate::types::{LogId, Vote};

/// The state of the log after some record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Marks {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    /// The last entry that is not needed any more.
    pub(crate) purged: Option<LogId>,
    /// The last entry, at least `purged`.
    pub(crate) last: Option<LogId>,
}

impl Marks {
    /// Takes a record into account.
    pub(super) fn note(&mut self, record: &Record) {
        match *record {
            Record::Entry { id, .. } => self.last = Some(id),
            Record::Vote(vote) => self.vote = Some(vote),
            Record::Committed(id) => self.committed = Some(id),
            Record::Truncate(last) => self.last = last,
            Record::Purge(id) => {
                self.purged = self.purged.max(Some(id));
                // By index: a snapshot may reach beyond the last entry and be of an older term than that.
                if self.last.map(|last| last.index) < Some(id.index) {
                    self.last = self.purged;
                }
            }
            Record::Seal(_) => {}
        }
    }

    /// The index of the next entry.
    pub(super) fn next_index(&self) -> u64 {
        next(self.last)
    }

    /// The index of the first entry that is needed.
    pub(super) fn first_index(&self) -> u64 {
        next(self.purged)
    }

    pub(super) fn put(&self, bytes: &mut Vec<u8>) {
        record::put_optional(bytes, self.vote, record::put_vote);
        for id in [self.committed, self.purged, self.last] {
            record::put_optional(bytes, id, record::put_log_id);
        }
    }

    pub(super) fn take(bytes: &mut &[u8]) -> Option<Self> {
        Some(Self {
            vote: record::take_optional(bytes, record::take_vote)?,
            committed: record::take_optional(bytes, record::take_log_id)?,
            purged: record::take_optional(bytes, record::take_log_id)?,
            last: record::take_optional(bytes, record::take_log_id)?,
        })
    }
}

fn next(id: Option<LogId>) -> u64 {
    id.map_or(0, |id| id.index + 1)
}
