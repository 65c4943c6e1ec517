//! How far the log is on disk, and who is told.

use std::io;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use openraft::storage::IOFlushed;

use crate::fatal::FatalHook;
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

/// Called by the log's flush thread after fdatasync, in the order of the requests.
pub(super) enum Completion {
    /// Entries of openraft: it may count this node's copy from now on (promise 2).
    Append(AppendCompletion),
    /// Somebody waits.
    Wait(SyncSender<io::Result<()>>),
}

/// See [`Completion::Append`]. Dropped without an answer (the flush thread is gone) it reports a failure, so that
/// openraft never waits for ever.
pub(super) struct AppendCompletion {
    pub(super) callback: Option<IOFlushed<TypeConfig>>,
    pub(super) next_index: u64,
    pub(super) flushed: Arc<Flushed>,
    pub(super) fatal: FatalHook,
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
            Err(error) => {
                let reason = format!("write the raft log: {error}");
                callback.io_completed(Err(error));
                self.fatal.call(&reason);
            }
        }
    }
}

impl Drop for AppendCompletion {
    fn drop(&mut self) {
        self.report(Err(io::Error::other("the log's flush thread has stopped")));
    }
}

impl raft_log::Callback for Completion {
    fn send(self, result: io::Result<()>) {
        match self {
            Self::Append(append) => append.finish(result),
            // The waiting side is gone only when the store is being dropped.
            Self::Wait(sender) => drop(sender.try_send(result)),
        }
    }
}
