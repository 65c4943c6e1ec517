//! Whole lists at once.
//!
//! [`import`] reads a list in one of three [`mod@format`]s, checks all of it, and writes it in batches, several of which are
//! on their way at a time; [`export`] streams the list as import reads it.

pub(super) mod export;
mod format;
pub(super) mod import;
pub(super) mod paced;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures_util::{StreamExt as _, TryStreamExt as _};
use raft_store::command::{Command, MAX_OPERATIONS_PER_BATCH, NewEntry, Operation, Reply};
use tokio::sync::OwnedSemaphorePermit;

use super::AppState;
use super::once::OnceKey;
use super::problem::{Code, Problem, UNAVAILABLE_RETRY_S};
use crate::auth::Caller;

/// Most entries in one import.
pub(super) const MAX_IMPORT_ENTRIES: usize = 200_000;
/// Largest body of an import, bytes: that many entries with half a kilobyte of text each.
pub(super) const MAX_IMPORT_BYTES: usize = 96 * 1024 * 1024;
/// Imports and restores at a time on one node; each holds its list in memory.
pub(super) const BULK_AT_A_TIME: usize = 2;
/// A request that moves a whole list or state is answered within this time whatever happens.
pub(super) const BULK_DEADLINE: Duration = Duration::from_secs(300);
/// The body of an import must be here within this time: it holds one of few places.
const BODY_DEADLINE: Duration = Duration::from_secs(60);
/// How long one batch may take: it waits behind the others.
const BATCH_TIMEOUT: Duration = Duration::from_secs(30);
/// Batches on their way at a time. Other writers wait behind no more than these.
const BATCHES_IN_FLIGHT: usize = 8;
/// A batch is cut when its parts hold this much text; far below what a log entry may hold.
const BATCH_BYTES: usize = 192 * 1024;
/// About what a part holds beside its texts, bytes.
const PART_OVERHEAD_BYTES: usize = 64;

/// How long a request to `path` may take, when that is longer than for most.
pub(super) fn deadline(path: &str) -> Option<Duration> {
    let is_bulk = ["/api/v1/import", "/api/v1/export", "/api/v1/backup", "/api/v1/restore"].contains(&path);
    is_bulk.then_some(BULK_DEADLINE)
}

/// Gathers parts into batches.
pub(super) struct Batches<T> {
    done: Vec<Vec<T>>,
    open: Vec<T>,
    bytes: usize,
}

impl<T> Batches<T> {
    pub(super) fn new() -> Self {
        Self { done: Vec::new(), open: Vec::new(), bytes: 0 }
    }

    pub(super) fn push(&mut self, part: T, text_bytes: usize) {
        let bytes = text_bytes + PART_OVERHEAD_BYTES;
        let full = self.open.len() >= MAX_OPERATIONS_PER_BATCH || self.bytes + bytes > BATCH_BYTES;
        if full && !self.open.is_empty() {
            self.done.push(std::mem::take(&mut self.open));
            self.bytes = 0;
        }
        self.bytes += bytes;
        self.open.push(part);
    }

    pub(super) fn end(mut self) -> Vec<Vec<T>> {
        if !self.open.is_empty() {
            self.done.push(self.open);
        }
        self.done
    }
}

/// The text of an entry, bytes.
pub(super) fn text_bytes<'a>(
    texts: [&str; 3],
    labels: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> usize {
    let labels: usize = labels.into_iter().map(|(key, value)| key.len() + value.len() + 2).sum();
    texts.iter().map(|text| text.len()).sum::<usize>() + labels
}

fn cut(entries: Vec<NewEntry>) -> Vec<Vec<NewEntry>> {
    let mut batches = Batches::new();
    for entry in entries {
        let bytes = text_bytes([&entry.comment, &entry.owner, &entry.ticket], &*entry.labels);
        batches.push(entry, bytes);
    }
    batches.end()
}

/// What became of all parts of a write, in their order.
pub(super) struct WrittenParts {
    /// The newest revision among them.
    pub(super) revision: u64,
    pub(super) replies: Vec<Reply>,
    /// All answers were given before.
    pub(super) replayed: bool,
}

impl AppState {
    /// A place for a request that holds a whole list in memory. Whatever works on the list holds the place, also when the
    /// request is gone meanwhile.
    fn bulk_place(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.shared.bulk).try_acquire_owned().map_err(|_| {
            let detail =
                format!("{BULK_AT_A_TIME} imports or restores are under way on this node; try again later");
            Problem::new(Code::Unavailable, detail).retry_after(UNAVAILABLE_RETRY_S)
        })
    }

    /// As [`Self::bulk_place`], and waits for it.
    pub(super) async fn bulk_turn(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let place = Arc::clone(&self.shared.bulk).acquire_owned().await;
        place.map_err(|error| Problem::new(Code::Internal, format!("wait for other lists: {error}")))
    }

    /// Writes `commands`, several at a time, each once under a part of `once`: what is sent again is answered as before.
    pub(super) async fn write_parts(
        &self,
        caller: &Caller,
        once: &OnceKey,
        commands: Vec<Command>,
    ) -> Result<WrittenParts, Problem> {
        let all = commands.len();
        let parts = commands.into_iter().enumerate().map(|(number, command)| {
            let command = once.part(number).command(vec![command]);
            let operation = Operation { origin: caller.origin(), command };
            async move { self.cluster().propose_for(caller.token(), vec![operation], BATCH_TIMEOUT).await }
        });
        let written: Vec<_> = futures_util::stream::iter(parts)
            .buffered(BATCHES_IN_FLIGHT)
            .map_err(|error| {
                let code = Problem::from(error.clone()).code();
                let detail =
                    format!("{error}; a part may be written: send the whole request again to finish it, that is harmless");
                Problem::new(code, detail).retry_after(UNAVAILABLE_RETRY_S)
            })
            .try_collect()
            .await?;
        let mut parts = WrittenParts { revision: 0, replies: Vec::with_capacity(all), replayed: all > 0 };
        for answer in written {
            match answer.replies.into_iter().next() {
                Some(Reply::Once { replayed, revision, mut replies, .. }) => {
                    parts.revision = parts.revision.max(revision);
                    parts.replayed &= replayed;
                    parts.replies.extend(replies.pop());
                }
                Some(Reply::Refused(refusal)) => return Err(refusal.into()),
                _ => return Err(Problem::new(Code::Internal, "a part was answered with something else")),
            }
        }
        Ok(parts)
    }
}

/// The whole body, at most `max` bytes and within `limit`.
async fn whole_body(body: Body, max: usize, limit: Duration) -> Result<Vec<u8>, Problem> {
    let whole = tokio::time::timeout(limit, read_body(body, max)).await;
    whole.unwrap_or_else(|_| {
        let detail = format!(
            "nothing was written; the body was not here within {} s: send the list in several parts",
            limit.as_secs_f32()
        );
        Err(Problem::new(Code::DeadlineExceeded, detail))
    })
}

async fn read_body(body: Body, max: usize) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| {
            Problem::new(Code::BadRequest, format!("the body broke off after {} bytes: {error}", bytes.len()))
        })?;
        if bytes.len() + piece.len() > max {
            let detail = format!("the body is larger than {max} bytes; send it in several parts");
            return Err(Problem::new(Code::BodyTooLarge, detail));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Runs what takes long off the async threads.
pub(super) async fn off_the_async_threads<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Problem::new(Code::Internal, format!("the work ended early: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let body = Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
        let problem = whole_body(body, 1, Duration::from_millis(1)).await.unwrap_err();
        assert_eq!(problem.code(), Code::DeadlineExceeded);
    }

    #[test]
    fn batches_are_bounded_by_count_and_by_text_and_keep_the_order() {
        let mut batches = Batches::new();
        (0..2_500).for_each(|number| batches.push(number, 0));
        let cut = batches.end();
        assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [1_000, 1_000, 500]);
        assert!(cut.concat().is_sorted());
        let mut batches = Batches::new();
        (0..10).for_each(|number| batches.push(number, BATCH_BYTES / 3));
        assert_eq!(batches.end().iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 2, 2, 2]);
        let mut batches = Batches::new();
        (0..2).for_each(|number| batches.push(number, BATCH_BYTES * 2));
        assert_eq!(batches.end().len(), 2);
    }
}
