//! What survives the process: the held set on disk, as a checkpoint and the records since.
//!
//! - `state`: a whole set, replaced atomically (temporary file, fsync, rename, fsync of the directory).
//! - `state.log.<n>`: one checksummed record for every step since, from number n on, appended *before* the kernel is
//!   asked. So after a crash of the process the files are never behind the kernel, and what they say can be enforced
//!   as it stands. Each start and each checkpoint begins a new log; a finished checkpoint removes those it covers.
//!
//! The disk is only waited for on a thread of its own (the keeper), at most once a second: power loss may cost the
//! last second, but then the kernel's sets are gone too.

mod checkpoint;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod keeper;
mod log;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use allowlist::feed::FeedState;
use allowlist::{Change, Element};
use nix::fcntl::{Flock, FlockArg};
use prometheus::{IntCounter, Registry};

use self::keeper::Keeper;
use self::log::{Log, Record};
use crate::held::Held;

/// Most bytes of one record or checkpoint, unpacked: many times a full list. A length within it that says more is wrong, and is
/// not allocated first.
const MAX_DECODED_BYTES: usize = 512 * 1024 * 1024;

/// A log longer than this and than the checkpoint is folded into a new checkpoint.
const MIN_LOG_BYTES_BEFORE_CHECKPOINT: u64 = 1024 * 1024;

const CHECKPOINT: &str = "state";
const CHECKPOINT_TEMPORARY: &str = "state.new";
const LOG_PREFIX: &str = "state.log.";
const LOCK: &str = "lock";

/// The state directory, locked: one gateway process at a time.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Number of the newest record read.
    sequence: u64,
    _lock: Flock<File>,
}

/// What the files said.
#[derive(Debug)]
pub enum Loaded {
    /// There are none: the first start.
    Nothing,
    /// A state to enforce.
    State(Held),
    /// They cannot be trusted, and were set aside.
    Unusable {
        /// What is wrong with them.
        reason: String,
        /// Where they are now.
        aside: Vec<PathBuf>,
    },
}

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another gateway runs here.
    #[error("another gateway process is running with state directory {}; stop it first", .0.display())]
    Locked(PathBuf),
    /// A file operation failed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl StateError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// Why stored bytes are of no use.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("{0}")]
    Corrupt(String),
    #[error("{file} has format version {found}, this build reads version {known}")]
    Version { file: String, found: u32, known: u32 },
    #[error("read {file}: {source}")]
    Io { file: String, source: io::Error },
}

impl StateDir {
    /// Creates the directory when it is missing, and locks it.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn open(path: &Path) -> Result<Self, StateError> {
        fs::create_dir_all(path).map_err(StateError::io("create state directory", path))?;
        let lock_path = path.join(LOCK);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(StateError::io("open lock file", &lock_path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { path: path.to_owned(), sequence: 0, _lock: lock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(StateError::Locked(path.to_owned())),
            Err((_, errno)) => Err(StateError::io("lock", &lock_path)(errno.into())),
        }
    }

    /// Reads what a former process stored. Files that cannot be trusted are renamed, never deleted.
    ///
    /// # Errors
    /// [`StateError`] when files cannot be renamed.
    pub fn load(&mut self) -> Result<Loaded, StateError> {
        match self.read() {
            Ok(None) => Ok(Loaded::Nothing),
            Ok(Some(base)) => {
                self.sequence = base.sequence;
                Ok(Loaded::State(base.held))
            }
            Err(unusable) => {
                let kind = match unusable {
                    Unusable::Version { found, .. } => format!("version-{found}"),
                    Unusable::Corrupt(_) | Unusable::Io { .. } => "corrupt".to_owned(),
                };
                Ok(Loaded::Unusable { reason: unusable.to_string(), aside: self.set_aside(&kind)? })
            }
        }
    }

    /// Opens the store for writing, to go on from what [`Self::load`] found.
    ///
    /// # Errors
    /// When the log or the keeper's thread cannot be created, or metric families are registered twice.
    pub fn store(self, registry: &Registry) -> anyhow::Result<StateStore> {
        let metrics = StateMetrics::register(registry)?;
        let fold_now = !log::list(&self.path).map_err(StateError::io("list", &self.path))?.is_empty();
        let log =
            Log::begin(&self.path, self.sequence).map_err(StateError::io("create a log in", &self.path))?;
        let keeper = Keeper::start(self.path.clone(), metrics.clone())?;
        Ok(StateStore { dir: self, log, keeper, metrics, fold_now })
    }

    fn read(&self) -> Result<Option<Base>, Unusable> {
        let mut base = checkpoint::read(&self.path.join(CHECKPOINT))?;
        let logs = log::list(&self.path)
            .map_err(|source| Unusable::Io { file: self.path.display().to_string(), source })?;
        for (_, path) in logs {
            log::replay(&path, &mut base)?;
        }
        Ok(base)
    }

    fn set_aside(&self, kind: &str) -> Result<Vec<PathBuf>, StateError> {
        let stamp = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_millis());
        let mut aside = Vec::new();
        let logs = log::list(&self.path).map_err(StateError::io("list", &self.path))?;
        let checkpoint = self.path.join(CHECKPOINT);
        let found = checkpoint.exists().then_some(checkpoint);
        for from in found.into_iter().chain(logs.into_iter().map(|(_, path)| path)) {
            let mut to = from.clone().into_os_string();
            to.push(format!(".{kind}-{stamp}"));
            fs::rename(&from, &to).map_err(StateError::io("set aside", &from))?;
            aside.push(to.into());
        }
        Ok(aside)
    }
}

/// A set and the number of the record that led to it.
#[derive(Debug)]
struct Base {
    sequence: u64,
    held: Held,
}

/// The open store. Errors are counted and logged here and do not stop anything: enforcing goes before storing.
#[derive(Debug)]
pub struct StateStore {
    dir: StateDir,
    log: Log,
    keeper: Keeper,
    metrics: StateMetrics,
    /// There are logs of former processes, or a record is missing: write a checkpoint soon.
    fold_now: bool,
}

impl StateStore {
    /// Appends a step that leads to `point`.
    pub fn append(&mut self, point: FeedState, change: &Change) {
        let removed = change.revoked.iter().chain(&change.retired).copied().collect();
        self.write(Record::change(point, change.added.clone(), removed));
    }

    /// Appends a whole new set.
    pub fn append_whole(&mut self, point: FeedState, elements: &BTreeSet<Element>) {
        self.write(Record::whole(point, elements.iter().copied().collect()));
    }

    /// True when [`Self::checkpoint`] should be called with the set after the last record.
    pub fn wants_checkpoint(&self) -> bool {
        let long = self.log.bytes() > MIN_LOG_BYTES_BEFORE_CHECKPOINT.max(self.keeper.checkpoint_bytes());
        (self.fold_now || self.keeper.failed() || long) && !self.keeper.is_busy()
    }

    /// Starts a new log and has `held`, the set after the last record, written as a checkpoint.
    pub fn checkpoint(&mut self, held: Held) {
        match Log::begin(&self.dir.path, self.log.sequence()) {
            Ok(log) => {
                self.fold_now = false;
                self.log = log;
                self.keeper.checkpoint(self.log.sequence(), held);
            }
            Err(error) => {
                self.metrics.errors.inc();
                tracing::error!(error = %error, "a new state log could not be begun");
            }
        }
    }

    /// Waits until everything is on disk.
    pub fn close(self) {
        let Self { dir, log, keeper, .. } = self;
        keeper.sync_soon(log.file());
        keeper.close();
        // The lock last: the next process finds finished files.
        drop(dir);
    }

    fn write(&mut self, record: Record) {
        match self.log.append(record) {
            Ok(()) => {
                self.metrics.writes.inc();
                self.keeper.sync_soon(self.log.file());
            }
            Err(error) => {
                self.fold_now = true;
                self.metrics.errors.inc();
                tracing::error!(error = %error, "state could not be stored; a restart would enforce an older one");
            }
        }
    }
}

#[derive(Debug, Clone)]
struct StateMetrics {
    writes: IntCounter,
    errors: IntCounter,
}

impl StateMetrics {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let writes = IntCounter::new("outputguard_state_writes_total", "Records and checkpoints stored.")?;
        let errors =
            IntCounter::new("outputguard_state_errors_total", "Writes of the stored state that failed.")?;
        registry.register(Box::new(writes.clone()))?;
        registry.register(Box::new(errors.clone()))?;
        Ok(Self { writes, errors })
    }
}

/// How records and checkpoints are read.
const fn decoding() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_DECODED_BYTES>()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
