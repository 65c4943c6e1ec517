//! Reading the log: replication to followers, and apply.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, PoisonError};

use futures_util::{Stream, StreamExt, stream};
use openraft::RaftLogReader;

use super::Shared;
use crate::types::{Entry, TypeConfig, Vote};

/// Most entries read from the log in one go.
const SLICE_MAX_ENTRIES: usize = 1_024;
/// A slice ends with the entry that brings it over this size.
const SLICE_MAX_BYTES: usize = 4 * 1024 * 1024;

/// A reader of this node's log.
#[derive(Debug, Clone)]
pub struct LogReader {
    shared: Arc<Shared>,
}

/// How much one read may answer.
#[derive(Debug, Clone, Copy)]
enum Amount {
    /// The first entries of the range, within the limits above.
    Slice,
    /// The whole range.
    All,
}

impl LogReader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Entries below what is in memory come from disk, and a writer may hold the lock while a file is begun: off the
    /// async threads with it.
    async fn read(&self, start: u64, end: u64, amount: Amount) -> io::Result<Vec<Entry>> {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || shared.read(start, end, amount))
            .await
            .map_err(io::Error::other)?
    }
}

impl Shared {
    fn read(&self, start: u64, end: u64, amount: Amount) -> io::Result<Vec<Entry>> {
        let wal = self.wal.read().unwrap_or_else(PoisonError::into_inner);
        let after_last = wal.log_state().last().map_or(0, |id| id.0.index + 1);
        let (start, end) = (start, end.min(after_last));
        if start >= end {
            return Ok(Vec::new());
        }
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        for record in wal.read(start, end) {
            let (id, payload) = record?;
            if let Some(previous) = entries.last()
                && previous.log_id.index + 1 != id.0.index
            {
                let reason = format!("the log has no entry {}", previous.log_id.index + 1);
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
            }
            bytes += payload.len();
            entries.push(payload.into_entry(id));
            if let Amount::Slice = amount
                && (entries.len() == SLICE_MAX_ENTRIES || bytes >= SLICE_MAX_BYTES)
            {
                break;
            }
        }
        Ok(entries)
    }
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        let (start, end) = bounds(&range);
        self.read(start, end, Amount::All).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        let wal = self.shared.wal.read().unwrap_or_else(PoisonError::into_inner);
        Ok(wal.log_state().vote().map(|vote| vote.0))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, Amount::Slice).await
    }

    /// Slice by slice, so that applying a long log does not need it in memory.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + Send
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        let (start, end) = bounds(&range);
        let slices = stream::unfold((self.clone(), start, true), move |(reader, next, more)| async move {
            if !more {
                return None;
            }
            let slice = reader.read(next, end, Amount::Slice).await;
            let (next, more) = match &slice {
                Ok(entries) => entries.last().map_or((next, false), |last| (last.log_id.index + 1, true)),
                Err(_) => (next, false),
            };
            let items: Vec<io::Result<Entry>> = match slice {
                Ok(entries) => entries.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            };
            Some((stream::iter(items), (reader, next, more)))
        });
        slices.flatten().boxed()
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}
