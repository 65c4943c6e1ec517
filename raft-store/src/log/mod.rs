//! openraft's log and vote: a write-ahead log of our own. DESIGN.md of this crate tells why, and what was measured.
//!
//! The way of an append: [`LogStore`] encodes the entries, the [`queue`] accepts them ([`memory`] shows them to readers
//! from then on), the [`writer`] puts what has gathered into one [`frame`] of [`record`]s at the end of the open
//! [`segment`], syncs, and tells [`flushed`] and openraft. [`opening`] reads it all again after a restart.

mod flushed;
mod frame;
mod marks;
mod memory;
mod opening;
mod queue;
mod reader;
mod record;
mod segment;
mod sync_times;
mod writer;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use tokio::sync::oneshot;

use flushed::AppendCompletion;
use memory::Memory;
use queue::{Core, PIECE_BYTES, Piece, Request};
use record::Record;
use writer::{Counts, Files, Writer};

use crate::data_dir::DataDir;
use crate::disk::Disk;
use crate::error::OpenError;
use crate::fatal::FatalHook;
use crate::features::FeatureLevel;
use crate::space::Space;
use crate::types::{Entry, LogId, NodeId, TypeConfig, Vote};

pub(crate) use flushed::Flushed;
pub use reader::LogReader;
pub use sync_times::{SYNC_BUCKETS_S, SyncTimes, SyncTimesSnapshot};

const DIR_NAME: &str = "log";
/// The file of an earlier, unreleased format, beside the log's directory.
const OLD_FORMAT_MARK: &str = "log-end";

/// The log of this node. Clones are handles on the same one; the last one to go closes it, which blocks until what
/// was written is on disk.
#[derive(Debug, Clone)]
pub struct LogStore {
    shared: Arc<Shared>,
}

/// How much the log holds, to decide when a snapshot is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSize {
    /// Bytes of its files.
    pub bytes: u64,
    /// Entries that are not purged.
    pub entries: u64,
}

struct Shared {
    dir: PathBuf,
    core: Arc<Core>,
    thread: Mutex<Option<JoinHandle<()>>>,
    flushed: Arc<Flushed>,
    counts: Arc<Counts>,
    /// Keeps other processes out as long as the log is open.
    _lock: Arc<DataDir>,
}

/// What a log holds when it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LogEnds {
    pub(crate) purged: Option<LogId>,
    pub(crate) last: Option<LogId>,
    pub(crate) has_vote: bool,
}

impl LogStore {
    /// Opens the log in `data_dir`, or begins it.
    pub(crate) fn open(
        disk: &Disk,
        data_dir: &Path,
        known_id: Option<NodeId>,
        lock: Arc<DataDir>,
        space: &Space,
        fatal: FatalHook,
    ) -> Result<Self, OpenError> {
        let dir = data_dir.join(DIR_NAME);
        let damaged = |reason: &str| OpenError::Log { path: dir.clone(), reason: reason.to_owned() };
        let exists = |path: &Path| path.try_exists().map_err(OpenError::at(path));
        if exists(&data_dir.join(OLD_FORMAT_MARK))? {
            let reason = "it is in the format of an unreleased version, which this program does not read";
            return Err(damaged(reason));
        }
        if known_id.is_some() && !exists(&dir)? {
            return Err(damaged("the directory is gone"));
        }
        disk.create_dir(&dir).map_err(OpenError::at(&dir))?;
        let (files, memory) = opening::open(disk, &dir, space, known_id.is_some())?;
        Self::start(&dir, files, memory, lock, fatal).map_err(OpenError::at(&dir))
    }

    fn start(
        dir: &Path,
        files: Files,
        memory: Memory,
        lock: Arc<DataDir>,
        fatal: FatalHook,
    ) -> io::Result<Self> {
        let flushed = Arc::new(Flushed::default());
        flushed.advance(memory.marks.next_index());
        let counts = Arc::new(Counts::default());
        counts.bytes.store(files.bytes(), Ordering::Relaxed);
        let core = Arc::new(Core::new(memory));
        let writer = Writer {
            files,
            core: Arc::clone(&core),
            flushed: Arc::clone(&flushed),
            fatal,
            counts: Arc::clone(&counts),
        };
        let thread = std::thread::Builder::new().name("raft-log".to_owned()).spawn(move || writer.run())?;
        let thread = Mutex::new(Some(thread));
        Ok(Self {
            shared: Arc::new(Shared { dir: dir.to_owned(), core, thread, flushed, counts, _lock: lock }),
        })
    }

    /// How much it holds.
    pub fn size(&self) -> LogSize {
        LogSize {
            bytes: self.shared.counts.bytes.load(Ordering::Relaxed),
            entries: self.shared.core.inner().memory.entries(),
        }
    }

    /// Bytes of the entries after `index`.
    pub fn bytes_after(&self, index: u64) -> u64 {
        self.shared.core.inner().memory.bytes_after(index)
    }

    /// The newest entry that can be purged when, of the entries up to `index`, the last `bytes` are to stay; `None` when
    /// nothing can.
    pub fn surplus(&self, index: u64, bytes: u64) -> Option<u64> {
        self.shared.core.inner().memory.surplus(index, bytes)
    }

    /// How long its syncs took so far.
    pub fn sync_times(&self) -> &SyncTimes {
        &self.shared.counts.syncs
    }

    pub(crate) fn ends(&self) -> LogEnds {
        let marks = self.shared.core.inner().memory.marks;
        LogEnds { purged: marks.purged, last: marks.last, has_vote: marks.vote.is_some() }
    }

    pub(crate) fn flushed(&self) -> Arc<Flushed> {
        Arc::clone(&self.shared.flushed)
    }

    /// Reads the entries from index `first` on, to refuse those that a program with the level `known` cannot apply before
    /// raft meets them.
    pub(crate) fn check_features(&self, first: u64, known: FeatureLevel) -> Result<(), OpenError> {
        let marks = self.shared.core.inner().memory.marks;
        for index in first.max(marks.first_index())..marks.next_index() {
            let sources = self.shared.core.inner().memory.sources(index, index + 1, 1, usize::MAX);
            for source in sources {
                let entry = source.read().map_err(|error| OpenError::Log {
                    path: self.shared.dir.clone(),
                    reason: format!("entry {index}: {error}"),
                })?;
                let refused = |refusal| OpenError::TooNew { path: self.shared.dir.clone(), refusal };
                known.check_entry(&entry).map_err(refused)?;
            }
        }
        Ok(())
    }

    /// Writes a record and waits until it is on disk.
    async fn record(&self, record: Record) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        self.shared.core.accept(|inner| {
            inner.memory.note(&record);
            inner.push(Request::Record { record, done });
            Ok(())
        })?;
        answer.await.map_err(|_| io::Error::other("the log's writer thread has stopped"))?
    }
}

impl fmt::Debug for Shared {
    /// Short: the rest would print every entry in memory.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("flushed", &self.flushed).finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.flushed.end();
        self.core.end();
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the raft log's writer thread panicked");
        }
    }
}

/// Encodes entries, and refuses one that would not fit before anything of it is in the log.
fn pieces(entries: impl Iterator<Item = Entry>) -> io::Result<Vec<Piece>> {
    let mut pieces: Vec<Piece> = Vec::new();
    for entry in entries {
        if pieces.last().is_none_or(|piece| piece.bytes.len() >= PIECE_BYTES) {
            pieces.push(Piece::default());
        }
        if let Some(piece) = pieces.last_mut() {
            let len = record::put_entry(&mut piece.bytes, &entry)?;
            piece.entries.push((Arc::new(entry), len));
        }
    }
    Ok(pieces)
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let LogEnds { purged, last, .. } = self.ends();
        Ok(LogState { last_purged_log_id: purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader::new(Arc::clone(&self.shared))
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.record(Record::Vote(*vote)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let Some(id) = committed else { return Ok(()) };
        self.shared.core.accept(|inner| {
            let marks = inner.memory.marks;
            // Beyond the last entry after a snapshot came; backwards when openraft starts. Both are no news.
            if Some(id) <= marks.last && Some(id) > marks.committed {
                inner.memory.note(&Record::Committed(id));
                inner.push(Request::Committed(id));
            }
            Ok(())
        })
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.shared.core.inner().memory.marks.committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let pieces = pieces(entries.into_iter())?;
        let indexes = || pieces.iter().flat_map(|piece| &piece.entries).map(|(entry, _)| entry.log_id.index);
        let (Some(first_index), Some(last_index)) = (indexes().next(), indexes().next_back()) else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        let consecutive = indexes().eq(first_index..=last_index);
        let room = self.shared.core.room_for(pieces.iter().map(|piece| piece.bytes.len()).sum()).await?;
        self.shared.core.accept(|inner| {
            if !consecutive || !inner.memory.follows(first_index) {
                let next_index = inner.memory.marks.next_index();
                let reason =
                    format!("entries from {first_index} cannot follow here, the next is {next_index}");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
            }
            let (flushed, mut room) = (Arc::clone(&self.shared.flushed), Some(room));
            let completion =
                AppendCompletion { callback: Some(callback), next_index: last_index + 1, flushed };
            let mut completion = Some(completion);
            let last = pieces.len() - 1;
            for (number, piece) in pieces.into_iter().enumerate() {
                for (entry, len) in &piece.entries {
                    inner.memory.push(Arc::clone(entry), *len);
                }
                let completion = if number == last { completion.take() } else { None };
                let room = if number == last { room.take() } else { None };
                inner.push(Request::Entries { piece, completion, _room: room });
            }
            Ok(())
        })
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        match self.ends().last > last_log_id {
            true => self.record(Record::Truncate(last_log_id)).await,
            false => Ok(()),
        }
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        match self.ends().purged < Some(upto) {
            true => self.record(Record::Purge(upto)).await,
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
