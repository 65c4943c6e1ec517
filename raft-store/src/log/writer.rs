//! The one thread that writes the log. Requests are carried out in the order they came: completions that overtake each
//! other have been a class of bugs elsewhere. Appends only queue their bytes here; `raft-log`'s flush thread writes
//! what has gathered and syncs once for all of it.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};

use openraft::storage::IOFlushed;
use raft_log::RaftLog;
use raft_log::api::raft_log_writer::RaftLogWriter;
use raft_log::codeq::Span;
use tokio::sync::oneshot;

use super::CHUNK_MAX_BYTES;
use super::codec::{Wal, WalLogId, WalPayload, WalVote};
use super::ends::ChainEnd;
use super::flushed::{AppendCompletion, Completion, Flushed};
use crate::fatal::FatalHook;
use crate::types::{LogId, TypeConfig};

/// Requests that may wait for the thread. openraft sends one at a time for most of them; a full queue holds the
/// sender back.
const QUEUE_REQUESTS: usize = 256;

pub(super) type Done = oneshot::Sender<io::Result<()>>;

pub(super) enum Request {
    Append { entries: Vec<(WalLogId, WalPayload)>, callback: IOFlushed<TypeConfig>, done: Done },
    Vote { vote: WalVote, done: Done },
    Committed { id: LogId, done: Done },
    Truncate { next_index: u64, done: Done },
    Purge { upto: LogId, done: Done },
}

pub(super) struct Writer {
    pub(super) wal: Arc<RwLock<RaftLog<Wal>>>,
    pub(super) end: ChainEnd,
    pub(super) flushed: Arc<Flushed>,
    pub(super) fatal: FatalHook,
}

pub(super) fn queue() -> (tokio::sync::mpsc::Sender<Request>, tokio::sync::mpsc::Receiver<Request>) {
    tokio::sync::mpsc::channel(QUEUE_REQUESTS)
}

impl Writer {
    /// Works until the senders are gone.
    pub(super) fn run(mut self, mut requests: tokio::sync::mpsc::Receiver<Request>) {
        while let Some(request) = requests.blocking_recv() {
            match request {
                Request::Append { entries, callback, done } => self.append(entries, callback, done),
                Request::Vote { vote, done } => {
                    let result = self.write_and_sync(|wal| wal.save_vote(vote).map(drop));
                    answer(done, result);
                }
                Request::Committed { id, done } => answer(done, self.committed(id)),
                Request::Truncate { next_index, done } => answer(done, self.truncate(next_index)),
                Request::Purge { upto, done } => {
                    let result = self.write_and_sync(|wal| wal.purge(WalLogId(upto)).map(drop));
                    if result.is_ok() {
                        self.flushed.advance(upto.index + 1);
                    }
                    answer(done, result);
                }
            }
        }
    }

    fn append(&mut self, entries: Vec<(WalLogId, WalPayload)>, callback: IOFlushed<TypeConfig>, done: Done) {
        let Some(next_index) = entries.last().map(|(id, _)| id.0.index + 1) else {
            callback.io_completed(Ok(()));
            return answer(done, Ok(()));
        };
        let completion = AppendCompletion {
            callback: Some(callback),
            next_index,
            flushed: Arc::clone(&self.flushed),
            fatal: self.fatal.clone(),
        };
        let appended = self.with(|wal| wal.append(entries));
        let last = match appended {
            Ok(last) => last,
            Err(error) => {
                // openraft takes the error from the answer; its callback must not report a second one.
                let mut completion = completion;
                drop(completion.callback.take());
                self.judge(&error);
                return answer(done, Err(error));
            }
        };
        // In memory it can be read from now on, as openraft asks.
        answer(done, Ok(()));
        if last.end().0 < self.end.newest_start() + CHUNK_MAX_BYTES as u64 {
            let queued = self.with(|wal| wal.flush(true, Some(Completion::Append(completion))));
            if let Err(error) = queued {
                self.judge(&error);
            }
            return;
        }
        // A new file was begun. It counts only once the mark names it, so nothing in it is acknowledged before.
        let result = self.sync();
        completion.finish(result);
    }

    fn committed(&self, id: LogId) -> io::Result<()> {
        self.with(|wal| {
            let (last, committed) = (wal.log_state().last().copied(), wal.log_state().committed().copied());
            // Beyond the last entry after a snapshot came; backwards when openraft starts. Both are no news.
            if Some(WalLogId(id)) > last || Some(WalLogId(id)) <= committed {
                return Ok(());
            }
            wal.commit(WalLogId(id))?;
            // Not synced: it only saves work after a restart, and rides along with the next entry.
            wal.flush(false, None)
        })
        .inspect_err(|error| self.judge(error))
    }

    fn truncate(&mut self, next_index: u64) -> io::Result<()> {
        let result = self.write_and_sync(|wal| match wal.log_state().last() {
            Some(last) if last.0.index >= next_index => wal.truncate(next_index).map(drop),
            _ => Ok(()),
        });
        // Everything queued before is on disk by now, so no older completion can raise it again.
        self.flushed.retreat(next_index);
        result
    }

    fn write_and_sync(&mut self, write: impl FnOnce(&mut RaftLog<Wal>) -> io::Result<()>) -> io::Result<()> {
        let written = self.with(write).inspect_err(|error| self.judge(error));
        written.and_then(|()| {
            self.sync().inspect_err(|error| self.fatal.call(&format!("sync the raft log: {error}")))
        })
    }

    /// Waits until everything written so far is on disk, and marks the newest file.
    fn sync(&mut self) -> io::Result<()> {
        let (sender, receiver): (SyncSender<_>, Receiver<_>) = sync_channel(1);
        self.with(|wal| wal.flush(true, Some(Completion::Wait(sender))))?;
        receiver.recv().map_err(|_| io::Error::other("the log's flush thread has stopped"))??;
        let newest = self.with(|wal| *wal.stat().open_chunk.chunk_id);
        if newest != self.end.newest_start() {
            self.end.advance(newest)?;
        }
        Ok(())
    }

    /// A refused request left the log as it was. Any other error leaves its memory ahead of its disk.
    fn judge(&self, error: &io::Error) {
        if error.kind() != io::ErrorKind::InvalidInput {
            self.fatal.call(&format!("write the raft log: {error}"));
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut RaftLog<Wal>) -> T) -> T {
        act(&mut self.wal.write().unwrap_or_else(PoisonError::into_inner))
    }
}

fn answer(done: Done, result: io::Result<()>) {
    // The asking future may have been dropped; the work is done all the same.
    drop(done.send(result));
}
