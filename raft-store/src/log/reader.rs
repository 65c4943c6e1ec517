//! Reading the log: replication to followers, and apply.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use openraft::RaftLogReader;

use super::Shared;
use super::memory::Source;
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

    async fn read(&self, start: u64, end: u64, amount: Amount) -> io::Result<Vec<Entry>> {
        let (max_entries, max_bytes) = match amount {
            Amount::Slice => (SLICE_MAX_ENTRIES, SLICE_MAX_BYTES),
            Amount::All => (usize::MAX, usize::MAX),
        };
        let sources = {
            let inner = self.shared.core.inner();
            let first = inner.memory.marks.first_index();
            if let Amount::Slice = amount
                && start < first.min(end)
            {
                let reason = format!("entry {start} is purged, the log begins at {first}");
                return Err(io::Error::new(io::ErrorKind::NotFound, reason));
            }
            inner.memory.sources(start, end, max_entries, max_bytes)
        };
        let on_disk = sources.iter().any(Source::is_on_disk);
        let read = move || sources.iter().map(Source::read).collect();
        match on_disk {
            // Off the async threads with it.
            true => tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?,
            false => read(),
        }
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
        Ok(self.shared.core.inner().memory.marks.vote)
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
