//! Opening everything that is in one data directory.
//!
//! ```text
//! lock         held while open
//! reserve      room for what must be written when the disk is full
//! identity     the node's id
//! log/         write-ahead log: entries, vote, committed
//! db/<n>/      checkpoint of the state (sled), newest generation
//! snapshots/   whole states
//! superseded   clusters that this one took the place of, if any
//! recovery     how far that is, while it is under way (then also recovered/)
//! lost-<n>/    what was there before, kept until somebody removes it
//! ```

use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use crate::data_dir::DataDir;
use crate::disk::Disk;
use crate::error::OpenError;
use crate::fatal::FatalHook;
use crate::features::FeatureLevel;
use crate::identity;
use crate::log::LogStore;
use crate::machine::checkpoint::{CheckpointPace, Checkpointer, GrowthLimit};
use crate::machine::{StateMachine, recover};
use crate::reader::{self, StateReader};
use crate::recovery;
use crate::snapshot::Snapshots;
use crate::space::{Space, SpaceLimits};
use crate::types::NodeId;

/// What the store needs to be told.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// A random number, used as the node's id when the directory has none yet.
    pub new_id: NodeId,
    /// When the disk counts as nearly full.
    pub space: SpaceLimits,
    /// How soon the checkpoint follows.
    pub checkpoint: CheckpointPace,
    /// Called when the disk fails. The default ends the process.
    pub on_fatal: FatalHook,
    /// The highest level this program applies; what is on disk must not be above it. Below
    /// [`FeatureLevel::NEWEST`] only in tests, which play an older release with it.
    pub features: FeatureLevel,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            new_id: 0,
            space: SpaceLimits::default(),
            checkpoint: CheckpointPace::default(),
            on_fatal: FatalHook::default(),
            features: FeatureLevel::NEWEST,
        }
    }
}

/// An open data directory, ready for `openraft::Raft::new`.
#[derive(Debug)]
pub struct Store {
    /// The node's id.
    pub id: NodeId,
    /// Log and vote.
    pub log: LogStore,
    /// The applied state.
    pub machine: StateMachine,
    /// Snapshot files, for the network to receive into.
    pub snapshots: Snapshots,
    /// Room on the disk: ask it before a write that makes the state larger.
    pub space: Space,
    /// What the rest of the server reads.
    pub reader: StateReader,
    /// True when this node has never voted, logged or applied anything: it may found a cluster or join one.
    pub pristine: bool,
    /// Clusters that lost their majority and that this one took the place of.
    pub superseded: Vec<Uuid>,
}

impl Store {
    /// True while the data directory `dir` is open, here or in another process. What openraft took ends in tasks and
    /// threads of its own: only when this is false again nothing works on the disk any more.
    pub fn is_open(dir: &Path) -> bool {
        DataDir::is_locked(dir)
    }

    /// Opens the data directory `dir`, which is created when it is missing.
    ///
    /// # Errors
    /// [`OpenError`], which says what to do.
    pub async fn open(dir: &Path, options: StoreOptions) -> Result<Self, OpenError> {
        Self::open_on(Disk::default(), dir, options).await
    }

    pub(crate) async fn open_on(disk: Disk, dir: &Path, options: StoreOptions) -> Result<Self, OpenError> {
        let dir = dir.to_owned();
        let at = dir.clone();
        let opened = tokio::task::spawn_blocking(move || open_blocking(&disk, &dir, options)).await;
        opened.map_err(|error| OpenError::at(at)(std::io::Error::other(error)))?
    }
}

fn open_blocking(disk: &Disk, dir: &Path, options: StoreOptions) -> Result<Store, OpenError> {
    let lock = Arc::new(DataDir::lock(dir)?);
    let space = Space::open(disk, dir, options.space).map_err(OpenError::at(dir))?;
    open_with(disk, dir, options, lock, space.clone()).map_err(|error| error.or_full(&space))
}

fn open_with(
    disk: &Disk,
    dir: &Path,
    options: StoreOptions,
    lock: Arc<DataDir>,
    space: Space,
) -> Result<Store, OpenError> {
    let StoreOptions { new_id, checkpoint: pace, on_fatal, features, .. } = options;
    recovery::finish(dir, &lock)?;
    let known_id = identity::read(dir)?;
    let log = LogStore::open(disk, dir, known_id, Arc::clone(&lock), &space, on_fatal.clone())?;
    let ends = log.ends();
    let snapshots = Snapshots::open(disk, dir, &space, features)?;
    let (generation, content) = recover::recover(dir, ends, &snapshots, &space, features)?;
    // What was applied is in the state, whose level was looked at.
    log.check_features(content.applied.map_or(0, |id| id.index + 1), features)?;
    let pristine = !ends.has_vote && ends.last.is_none() && content.applied.is_none();
    let id = match known_id {
        Some(id) => id,
        None if !pristine => {
            let reason = "it is missing, but the directory holds a node's log".to_owned();
            return Err(OpenError::Identity { path: dir.to_owned(), reason });
        }
        None => {
            // Last, so that a crash before it leaves a directory that is simply begun again.
            identity::write(disk, dir, new_id)?;
            new_id
        }
    };
    let checkpointer = Checkpointer::start(
        &recover::root(dir),
        (generation, &content),
        log.flushed(),
        pace,
        GrowthLimit::default(),
        space.clone(),
        on_fatal.clone(),
    )
    .map_err(OpenError::at(dir))?;
    let (publisher, reader) = reader::channel(content.state.clone());
    let machine =
        StateMachine::new(content, publisher, checkpointer, snapshots.clone(), space.clone(), on_fatal, lock);
    let superseded = recovery::superseded(dir)?;
    Ok(Store { id, log, machine, snapshots, space, reader, pristine, superseded })
}
