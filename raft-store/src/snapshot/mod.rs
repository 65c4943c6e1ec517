//! Whole states in files: the ones this node built, and the ones it got from a leader. The newest two are kept.
//!
//! A file gets its name only when it is complete and on disk, so every file with a snapshot's name is one, unless the
//! disk damaged it later; the SHA-256 at its end tells.

mod backup;
mod file;
pub(crate) mod format;
mod incoming;
#[cfg(test)]
mod power_tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::disk::Disk;
use crate::error::OpenError;
use crate::features::{FeatureLevel, TooNew};
use crate::reader::StateReader;
use crate::space::Space;
use crate::state::State;
use crate::types::{LogId, Snapshot, SnapshotMeta, StoredMembership};

pub use backup::{Backup, BackupError, IncomingBackup, Summary};
pub use file::SnapshotFile;
pub use incoming::{IncomingSnapshot, MAX_SNAPSHOT_BYTES};

const DIR_NAME: &str = "snapshots";
const SUFFIX: &str = ".snapshot";
const PART_SUFFIX: &str = ".part";
/// The newest and the one before: if the newest cannot be read, the log still reaches back to the other.
const KEPT: usize = 2;

/// A snapshot may be so much larger than the one before.
const BUILD_MARGIN_BYTES: u64 = 4 * 1024 * 1024;

/// A state and where in the log it stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Content {
    pub(crate) state: State,
    pub(crate) applied: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

impl Content {
    pub(crate) fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() }
    }
}

/// The snapshots of this node. Clones are handles on the same directory.
#[derive(Debug, Clone)]
pub struct Snapshots {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    disk: Disk,
    dir: PathBuf,
    space: Space,
    /// Of this program: no snapshot above it is taken.
    known: FeatureLevel,
    newest: Mutex<Option<Snapshot>>,
    parts: AtomicU64,
}

impl Snapshots {
    /// Opens the directory in `data_dir`, removes what was not finished and finds the newest valid file.
    pub(crate) fn open(
        disk: &Disk,
        data_dir: &Path,
        space: &Space,
        known: FeatureLevel,
    ) -> Result<Self, OpenError> {
        let dir = data_dir.join(DIR_NAME);
        disk.create_dir(&dir).map_err(OpenError::at(&dir))?;
        let mut newest = None;
        for path in sorted_files(&dir, SUFFIX).map_err(OpenError::at(&dir))?.into_iter().rev() {
            match open_verified(&path) {
                Ok((_, level)) if level > known => {
                    let refusal = TooNew { found: level, known };
                    return Err(OpenError::TooNew { path, refusal });
                }
                Ok((snapshot, _)) => {
                    newest = Some(snapshot);
                    break;
                }
                Err(error) => {
                    let aside = path.with_extension("damaged");
                    tracing::error!(%error, path = %path.display(), aside = %aside.display(), "set a damaged snapshot aside");
                    disk.rename(&path, &aside).map_err(OpenError::at(&path))?;
                }
            }
        }
        for part in sorted_files(&dir, PART_SUFFIX).map_err(OpenError::at(&dir))? {
            disk.remove(&part).map_err(OpenError::at(&part))?;
        }
        Ok(Self {
            shared: Arc::new(Shared {
                disk: disk.clone(),
                dir,
                space: space.clone(),
                known,
                newest: Mutex::new(newest),
                parts: AtomicU64::new(0),
            }),
        })
    }

    /// The newest one.
    pub fn newest(&self) -> Option<Snapshot> {
        self.shared.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A place to write a snapshot to that arrives from a peer. `reader` tells which cluster this node is in.
    ///
    /// # Errors
    /// What the file system says.
    pub fn receive(&self, reader: &StateReader) -> io::Result<IncomingSnapshot> {
        let Shared { disk, space, known, .. } = &*self.shared;
        IncomingSnapshot::create(disk, &self.new_part(), space, reader.state().cluster(), *known)
    }

    /// A place to write a backup to that an operator sends.
    ///
    /// # Errors
    /// What the file system says.
    pub fn receive_backup(&self) -> io::Result<IncomingBackup> {
        IncomingBackup::create(&self.new_part(), &self.shared.space)
    }

    /// An error that says so when the disk has no room for a snapshot of about the newest one's size: none is made then,
    /// neither to shorten the log nor as a backup.
    ///
    /// # Errors
    /// `StorageFull`.
    pub fn room_to_build(&self) -> io::Result<()> {
        let size = self.newest().map_or(0, |newest| newest.snapshot.len());
        self.shared.space.room_for("a snapshot", size + BUILD_MARGIN_BYTES)
    }

    /// Writes `content` and makes it the newest. Blocks.
    pub(crate) fn build(&self, content: &Content) -> io::Result<Snapshot> {
        let part = self.new_part();
        format::write(&self.shared.disk, &part, content).inspect_err(|_| drop(fs::remove_file(&part)))?;
        self.adopt(&part, content.meta())
    }

    /// Gives a complete, verified file its name and makes it the newest. One that was overtaken (a leader's snapshot came
    /// while this node wrote its own) goes, and the answer is the newer one. Blocks.
    pub(crate) fn adopt(&self, path: &Path, meta: SnapshotMeta) -> io::Result<Snapshot> {
        let named = self.shared.dir.join(file_name(meta.last_log_id));
        // Held over the renaming, so that two that end at once are judged one after the other.
        let mut newest = self.shared.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(newest) = newest.as_ref().filter(|newest| newest.meta.last_log_id >= meta.last_log_id) {
            if path != named {
                self.shared.disk.remove(path)?;
            }
            return Ok(newest.clone());
        }
        if path != named {
            self.shared.disk.rename(path, &named)?;
        }
        let snapshot = Snapshot { meta, snapshot: SnapshotFile::open(&named)? };
        *newest = Some(snapshot.clone());
        self.prune();
        Ok(snapshot)
    }

    fn prune(&self) {
        let pruned = sorted_files(&self.shared.dir, SUFFIX).and_then(|files| {
            files.iter().rev().skip(KEPT).try_for_each(|file| self.shared.disk.remove(file))
        });
        if let Err(error) = pruned {
            tracing::warn!(%error, dir = %self.shared.dir.display(), "remove old snapshots");
        }
    }

    fn new_part(&self) -> PathBuf {
        let number = self.shared.parts.fetch_add(1, Ordering::Relaxed);
        self.shared.dir.join(format!("{number}{PART_SUFFIX}"))
    }
}

fn open_verified(path: &Path) -> io::Result<(Snapshot, FeatureLevel)> {
    let file = SnapshotFile::open(path)?;
    format::verify_sum(file.file())?;
    let header = format::read_any_header(file.file())?;
    let meta = SnapshotMeta { last_log_id: header.last_log_id, last_membership: header.membership };
    Ok((Snapshot { meta, snapshot: file }, header.data_version))
}

/// Sorts by index.
fn file_name(last: Option<LogId>) -> String {
    match last {
        Some(id) => format!("{:020}-{}-{}{SUFFIX}", id.index, id.leader_id.term, id.leader_id.node_id),
        None => format!("empty{SUFFIX}"),
    }
}

fn sorted_files(dir: &Path, suffix: &str) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for file in fs::read_dir(dir)? {
        let path = file?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.ends_with(suffix)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
