//! openraft's log and vote on the write-ahead log crate `raft-log`. Nothing outside this module knows that crate, so
//! that it can be replaced by exchanging this directory.
//!
//! What the crate needs to be told (each found out by breaking it): no waiting before a flush, small files and a
//! bounded cache, checksummed lengths ([`codec`]), one completion type ([`flushed`]), a sync after opening because
//! replayed records of a killed process may be in the page cache only, and a mark of the chain's end ([`ends`]).

mod codec;
mod ends;
mod flushed;
mod reader;
mod writer;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use raft_log::RaftLog;
use raft_log::api::raft_log_writer::RaftLogWriter;
use tokio::sync::{mpsc, oneshot};

use codec::{Wal, WalLogId, WalPayload, WalVote};
use ends::ChainEnd;
use flushed::Completion;
use writer::{Done, Request, Writer};

use crate::data_dir::DataDir;
use crate::durable;
use crate::error::OpenError;
use crate::fatal::FatalHook;
use crate::types::{Entry, LogId, NodeId, TypeConfig, Vote};

pub(crate) use flushed::Flushed;
pub use reader::LogReader;

const DIR_NAME: &str = "log";
/// A file of the log is closed at this size. The payloads of the open one stay in memory.
const CHUNK_MAX_BYTES: usize = 16 * 1024 * 1024;
const READ_BUFFER_BYTES: usize = 1024 * 1024;
/// Payloads kept in memory beyond the open file's, for followers that are a little behind.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

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
    wal: Arc<RwLock<RaftLog<Wal>>>,
    /// `None` only while dropping.
    requests: Option<mpsc::Sender<Request>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    flushed: Arc<Flushed>,
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
        data_dir: &Path,
        known_id: Option<NodeId>,
        lock: Arc<DataDir>,
        fatal: FatalHook,
    ) -> Result<Self, OpenError> {
        let dir = data_dir.join(DIR_NAME);
        let damaged = |reason: String| OpenError::Log { path: dir.clone(), reason };
        let mark = ChainEnd::read(data_dir).map_err(|error| damaged(error.to_string()))?;
        let begun = dir.try_exists().map_err(OpenError::at(&dir))?;
        if (mark.is_some() || known_id.is_some()) && !begun {
            return Err(damaged("the directory is gone".to_owned()));
        }
        if known_id.is_some() && mark.is_none() {
            return Err(damaged("the mark of its end is gone".to_owned()));
        }
        durable::create_dir(&dir).map_err(OpenError::at(&dir))?;
        let wal = RaftLog::<Wal>::open(Arc::new(config(&dir))).map_err(|error| damaged(error.to_string()))?;
        let newest = *wal.stat().open_chunk.chunk_id;
        check_chain(&wal, mark, newest).map_err(&damaged)?;
        let wal = Arc::new(RwLock::new(wal));
        sync_opened(&wal).map_err(OpenError::at(&dir))?;
        durable::sync_dir(&dir).map_err(OpenError::at(&dir))?;
        let end = ChainEnd::begin(data_dir, mark, newest).map_err(OpenError::at(data_dir))?;

        let flushed = Arc::new(Flushed::default());
        let (requests, queue) = writer::queue();
        let log = Self {
            shared: Arc::new(Shared {
                wal: Arc::clone(&wal),
                requests: Some(requests),
                thread: Mutex::new(None),
                flushed: Arc::clone(&flushed),
                _lock: lock,
            }),
        };
        flushed.advance(log.ends().last.map_or(0, |last| last.index + 1));
        let writer = Writer { wal, end, flushed, fatal };
        let thread = std::thread::Builder::new()
            .name("raft-log".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(OpenError::at(&dir))?;
        *log.shared.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(log)
    }

    /// How much it holds.
    pub fn size(&self) -> LogSize {
        let wal = self.shared.wal.read().unwrap_or_else(PoisonError::into_inner);
        let next = |id: Option<&WalLogId>| id.map_or(0, |id| id.0.index + 1);
        let entries = next(wal.log_state().last()).saturating_sub(next(wal.log_state().purged()));
        LogSize { bytes: wal.on_disk_size(), entries }
    }

    pub(crate) fn ends(&self) -> LogEnds {
        let wal = self.shared.wal.read().unwrap_or_else(PoisonError::into_inner);
        let state = wal.log_state();
        LogEnds {
            purged: state.purged().map(|id| id.0),
            last: state.last().map(|id| id.0),
            has_vote: state.vote().is_some(),
        }
    }

    pub(crate) fn flushed(&self) -> Arc<Flushed> {
        Arc::clone(&self.shared.flushed)
    }

    async fn request(&self, make: impl FnOnce(Done) -> Request) -> io::Result<()> {
        let stopped = || io::Error::other("the log's writer thread has stopped");
        let (done, answer) = oneshot::channel();
        let requests = self.shared.requests.as_ref().ok_or_else(stopped)?;
        requests.send(make(done)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

impl fmt::Debug for Shared {
    /// Short: the log crate's own would print every payload.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("flushed", &self.flushed).finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.flushed.end();
        self.requests = None;
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the raft log's writer thread panicked");
        }
    }
}

fn config(dir: &Path) -> raft_log::Config {
    let mut config = raft_log::Config::new(dir.to_string_lossy());
    // The default delays every flush by a millisecond to gather more; what queues up during a sync is enough.
    config.wal.flush_batch_wait = Some(std::time::Duration::ZERO);
    config.wal.chunk_max_size = Some(CHUNK_MAX_BYTES);
    // Only the size ends a file: the writer tells from it that a new one was begun.
    config.wal.chunk_max_records = Some(usize::MAX);
    config.wal.read_buffer_size = Some(READ_BUFFER_BYTES);
    config.log_cache_capacity = Some(CACHE_BYTES);
    config
}

/// `raft-log` checks that its files follow each other, but not that none is missing at either end.
fn check_chain(wal: &RaftLog<Wal>, mark: Option<u64>, newest: u64) -> Result<(), String> {
    match mark {
        Some(mark) if newest < mark => {
            return Err(format!(
                "its newest file starts at {newest}, but one starting at {mark} was there: it is missing"
            ));
        }
        None if newest != 0 => return Err("the mark of its end is missing".to_owned()),
        _ => {}
    }
    let state = wal.log_state();
    let first = state.purged().map_or(0, |id| id.0.index + 1);
    let Some(last) = state.last().map(|id| id.0.index).filter(|last| *last >= first) else { return Ok(()) };
    match wal.read(first, last + 1).next() {
        Some(Ok((id, _))) if id.0.index == first => Ok(()),
        Some(Ok((id, _))) => Err(format!("entries {first} to {} are missing", id.0.index - 1)),
        Some(Err(error)) => Err(format!("read entry {first}: {error}")),
        None => Err(format!("entries {first} to {last} are missing")),
    }
}

fn sync_opened(wal: &RwLock<RaftLog<Wal>>) -> io::Result<()> {
    let (sender, receiver) = sync_channel(1);
    wal.write().unwrap_or_else(PoisonError::into_inner).flush(true, Some(Completion::Wait(sender)))?;
    receiver.recv().map_err(|_| io::Error::other("the log's flush thread has stopped"))?
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let LogEnds { purged, last, .. } = self.ends();
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.or(purged) })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader::new(Arc::clone(&self.shared))
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let vote = WalVote(*vote);
        self.request(|done| Request::Vote { vote, done }).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        match committed {
            Some(id) => self.request(|done| Request::Committed { id, done }).await,
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let wal = self.shared.wal.read().unwrap_or_else(PoisonError::into_inner);
        Ok(wal.log_state().committed().map(|id| id.0))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries = entries
            .into_iter()
            .map(|entry| Ok((WalLogId(entry.log_id), WalPayload::new(entry.payload)?)))
            .collect::<io::Result<Vec<_>>>()?;
        self.request(|done| Request::Append { entries, callback, done }).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let next_index = last_log_id.map_or(0, |id| id.index + 1);
        self.request(|done| Request::Truncate { next_index, done }).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.request(|done| Request::Purge { upto, done }).await
    }
}
