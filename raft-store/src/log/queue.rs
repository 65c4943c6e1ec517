//! Requests on their way to the writer. What is accepted here changes the log in memory at once and is written in the
//! same order: both happen under one lock.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::flushed::AppendCompletion;
use super::memory::Memory;
use super::record::Record;
use crate::types::{Entry, LogId};

/// Bytes of entries that may wait for the writer; then whoever appends waits. One append may be larger.
const QUEUE_BYTES: usize = 64 * 1024 * 1024;
/// The writer takes requests until a batch has so many bytes.
pub(super) const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Entries of one append are handed over in pieces of about this size, so that a batch stays near [`BATCH_BYTES`].
pub(super) const PIECE_BYTES: usize = 1024 * 1024;
/// What need not be synced (how far the log is committed) is written with the next request that must be, or, if none
/// comes, after this time.
const RIDE_ALONG: Duration = Duration::from_millis(200);

pub(super) type Done = oneshot::Sender<io::Result<()>>;

/// Something to be written.
#[derive(Debug)]
pub(super) enum Request {
    Entries {
        piece: Piece,
        /// With the last piece of an append.
        completion: Option<AppendCompletion>,
        /// Given back when the piece is written.
        _room: Option<OwnedSemaphorePermit>,
    },
    /// A record that somebody waits for.
    Record { record: Record, done: Done },
    /// A record that rides along.
    Committed(LogId),
}

/// Entries as they will stand in a batch: encoded before anybody holds a lock or the writer waits for them.
#[derive(Debug, Default)]
pub(super) struct Piece {
    pub(super) bytes: Vec<u8>,
    /// With the length of their records.
    pub(super) entries: Vec<(Arc<Entry>, usize)>,
}

/// What the log's handles and its writer share.
#[derive(Debug)]
pub(super) struct Core {
    inner: Mutex<Inner>,
    changed: Condvar,
    room: Arc<Semaphore>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) memory: Memory,
    requests: VecDeque<Request>,
    /// Since when something waits to ride along.
    riding_since: Option<Instant>,
    /// Requests that must be synced.
    urgent: usize,
    ended: bool,
    /// Why nothing is accepted any more.
    broken: Option<String>,
}

impl Core {
    pub(super) fn new(memory: Memory) -> Self {
        let inner = Inner {
            memory,
            requests: VecDeque::new(),
            riding_since: None,
            urgent: 0,
            ended: false,
            broken: None,
        };
        let room = Arc::new(Semaphore::new(QUEUE_BYTES));
        Self { inner: Mutex::new(inner), changed: Condvar::new(), room }
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is room for so many bytes.
    pub(super) async fn room_for(&self, bytes: usize) -> io::Result<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes.min(QUEUE_BYTES)).unwrap_or(u32::MAX);
        Arc::clone(&self.room).acquire_many_owned(permits).await.map_err(io::Error::other)
    }

    /// Lets `accept` change the log in memory and say what is to be written.
    pub(super) fn accept(&self, accept: impl FnOnce(&mut Inner) -> io::Result<()>) -> io::Result<()> {
        let mut inner = self.inner();
        if let Some(reason) = &inner.broken {
            return Err(io::Error::other(reason.clone()));
        }
        accept(&mut inner)?;
        drop(inner);
        self.changed.notify_one();
        Ok(())
    }

    /// The requests of the next batch; blocks until there are some, `None` when there will be none any more.
    pub(super) fn next_batch(&self) -> Option<Vec<Request>> {
        let mut inner = self.inner();
        loop {
            let wait = match inner.riding_since {
                _ if inner.urgent > 0 || inner.ended => Some(Duration::ZERO),
                since => since.map(|since| RIDE_ALONG.saturating_sub(since.elapsed())),
            };
            match wait {
                Some(wait) if wait.is_zero() && inner.requests.is_empty() => return None,
                Some(wait) if wait.is_zero() => return Some(inner.take_batch()),
                Some(wait) => {
                    inner = self.changed.wait_timeout(inner, wait).unwrap_or_else(PoisonError::into_inner).0;
                }
                None => inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Lets the writer end when everything is written.
    pub(super) fn end(&self) {
        self.inner().ended = true;
        self.changed.notify_all();
    }

    /// Nothing is accepted from now on. Answers with what was accepted and is not written.
    pub(super) fn break_off(&self, reason: &str) -> Vec<Request> {
        let mut inner = self.inner();
        inner.broken.get_or_insert_with(|| reason.to_owned());
        inner.requests.drain(..).collect()
    }
}

impl Inner {
    pub(super) fn push(&mut self, request: Request) {
        match request {
            Request::Committed(_) => drop(self.riding_since.get_or_insert_with(Instant::now)),
            Request::Entries { .. } | Request::Record { .. } => self.urgent += 1,
        }
        self.requests.push_back(request);
    }

    fn take_batch(&mut self) -> Vec<Request> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && let Some(request) = self.requests.pop_front()
        {
            match &request {
                Request::Entries { piece, .. } => {
                    bytes += piece.bytes.len();
                    self.urgent -= 1;
                }
                Request::Record { .. } => self.urgent -= 1,
                Request::Committed(_) => {}
            }
            batch.push(request);
        }
        let rides = self.requests.iter().any(|request| matches!(request, Request::Committed(_)));
        self.riding_since = self.riding_since.filter(|_| rides);
        batch
    }
}
