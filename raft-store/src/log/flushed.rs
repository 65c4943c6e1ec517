//! How far the log is on disk, and who is told.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use openraft::storage::IOFlushed;

use crate::types::TypeConfig;

/// The next log index that is not known to be on this disk. Everything below survives a power cut.
#[derive(Debug, Default)]
pub(crate) struct Flushed {
    next: Mutex<Progress>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct Progress {
    next_index: u64,
    /// Nobody will move it any more, or nobody wants to wait any more.
    ended: bool,
}

impl Flushed {
    pub(super) fn advance(&self, next_index: u64) {
        let mut progress = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        if next_index > progress.next_index {
            progress.next_index = next_index;
            self.moved.notify_all();
        }
    }

    #[cfg(test)]
    pub(crate) fn reach(&self, next_index: u64) {
        self.advance(next_index);
    }

    /// The log was cut: what comes at these indexes from now on is not on disk yet.
    pub(super) fn retreat(&self, next_index: u64) {
        let mut progress = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        progress.next_index = progress.next_index.min(next_index);
    }

    /// Wakes everybody who waits, for good.
    pub(crate) fn end(&self) {
        self.next.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.moved.notify_all();
    }

    /// Blocks until the entry at `index` is on disk. False when that will not be known any more.
    pub(crate) fn wait_for(&self, index: u64) -> bool {
        let mut progress = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        while progress.next_index <= index && !progress.ended {
            progress = self.moved.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
        progress.next_index > index
    }
}

/// Completes an append of openraft, which may count this node's copy from then on (promise 2). Called by the writer
/// after the sync, in the order of the requests. Dropped without an answer it reports a failure, so that openraft never
/// waits for ever.
pub(super) struct AppendCompletion {
    pub(super) callback: Option<IOFlushed<TypeConfig>>,
    pub(super) next_index: u64,
    pub(super) flushed: Arc<Flushed>,
}

impl std::fmt::Debug for AppendCompletion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppendCompletion").field("next_index", &self.next_index).finish_non_exhaustive()
    }
}

impl AppendCompletion {
    pub(super) fn finish(mut self, result: io::Result<()>) {
        self.report(result);
    }

    fn report(&mut self, result: io::Result<()>) {
        let Some(callback) = self.callback.take() else { return };
        match result {
            Ok(()) => {
                self.flushed.advance(self.next_index);
                callback.io_completed(Ok(()));
            }
            Err(error) => callback.io_completed(Err(error)),
        }
    }
}

impl Drop for AppendCompletion {
    fn drop(&mut self) {
        self.report(Err(io::Error::other("the log's writer thread has stopped")));
    }
}
