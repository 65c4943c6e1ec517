//! Finding the newest state on disk that the log can go on from: the checkpoint, else a snapshot. A checkpoint that
//! cannot be read is set aside and rebuilt; a state that cannot be rebuilt is an error that says so, never an empty
//! state.

use std::fs;
use std::path::{Path, PathBuf};

use super::checkpoint::Generation;
use super::database::{self, Database, LoadError};
use crate::disk::Disk;
use crate::error::OpenError;
use crate::features::FeatureLevel;
use crate::log::LogEnds;
use crate::snapshot::{Content, Snapshots, format};
use crate::space::Space;
use crate::types::LogId;

const DIR_NAME: &str = "db";
/// A generation is written only when so many times the bytes of what will be in it are free …
const CREATE_TIMES: u64 = 2;
/// … and so many more.
const CREATE_MARGIN_BYTES: u64 = 4 * 1024 * 1024;

/// Where the generations of the checkpoint are.
pub(crate) fn root(data_dir: &Path) -> PathBuf {
    data_dir.join(DIR_NAME)
}

/// The state to start from, and an open checkpoint that holds exactly it. Where the disk has no room for one, what holds the
/// state is the snapshot it was read from and the log; the checkpoint follows when there is room.
pub(crate) fn recover(
    data_dir: &Path,
    log: LogEnds,
    snapshots: &Snapshots,
    space: &Space,
    known: FeatureLevel,
) -> Result<(Generation, Content), OpenError> {
    let root = root(data_dir);
    Disk::default().create_dir(&root).map_err(OpenError::at(&root))?;
    let checkpoint = newest_checkpoint(&root, known)?;
    let applied = checkpoint.as_ref().and_then(|(_, content)| content.applied);
    let lost = |reason: String| OpenError::State { path: data_dir.to_owned(), reason };

    let newest = snapshots.newest();
    let reaches = newest.as_ref().and_then(|snapshot| snapshot.meta.last_log_id);
    let index = |id: Option<LogId>| id.map(|id| id.index);
    // By index, too: the last entry may be of a newer term than what was applied, and before it.
    if applied > log.last.max(reaches) || index(applied) > index(log.last).max(index(reaches)) {
        return Err(lost(format!(
            "the checkpoint reaches to {}, the log ends at {}: acknowledged entries are missing from the log",
            show(applied),
            show(log.last)
        )));
    }
    let (generation, content) = match (checkpoint, newest) {
        (Some((database, content)), None) => (Generation::Open(database), content),
        (Some((database, content)), Some(_)) if reaches <= applied => (Generation::Open(database), content),
        (checkpoint, Some(snapshot)) => {
            let old = checkpoint.map(|(database, _)| {
                let dir = database.dir().to_owned();
                database.close();
                dir
            });
            let content = format::read(snapshot.snapshot.file())
                .map_err(|error| lost(format!("read {}: {error}", snapshot.snapshot.path().display())))?;
            tracing::info!(applied = show(content.applied), "state taken from the newest snapshot");
            (Generation::Superseded(old), content)
        }
        (None, None) => (Generation::Superseded(None), Content::default()),
    };
    let next_needed = content.applied.map_or(0, |id| id.index + 1);
    if let Some(purged) = log.purged
        && purged.index >= next_needed
    {
        return Err(lost(format!(
            "the log begins after entry {}, but the newest readable state ends at {}",
            purged.index,
            show(content.applied)
        )));
    }
    if !matches!(generation, Generation::Superseded(_)) {
        remove_others(&root, &generation);
        return Ok((generation, content));
    }
    match create(&root, &content, space) {
        Ok(database) => {
            let generation = Generation::Open(database);
            remove_others(&root, &generation);
            Ok((generation, content))
        }
        Err(reason) if is_no_space(&reason, space) => {
            tracing::error!(
                reason,
                "the disk is full: the checkpoint is written when there is room, until then each start reads the log \
                 since the newest snapshot"
            );
            Ok((generation, content))
        }
        Err(reason) => Err(lost(format!("write the checkpoint: {reason}"))),
    }
}

/// A new generation, if there is room for it. The reserve is the log's, and so is what a generation would take that does
/// not fit in the end: it can wait.
pub(super) fn create(root: &Path, content: &Content, space: &Space) -> Result<Database, String> {
    let needed = CREATE_TIMES * database::bytes_of(content)? + CREATE_MARGIN_BYTES;
    space.room_for("the checkpoint", needed).map_err(no_space)?;
    Database::create(root, content)
}

/// In words that [`database::is_no_space`] knows.
#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn no_space(error: std::io::Error) -> String {
    format!("{}: {error}", std::io::ErrorKind::StorageFull)
}

/// sled does not always say why it fails.
pub(super) fn is_no_space(reason: &str, space: &Space) -> bool {
    database::is_no_space(reason) || space.is_full()
}

/// The newest generation that can be read. Those that cannot are set aside.
fn newest_checkpoint(root: &Path, known: FeatureLevel) -> Result<Option<(Database, Content)>, OpenError> {
    for (_, dir) in database::generations(root).map_err(OpenError::at(root))?.into_iter().rev() {
        if !database::is_complete(&dir).map_err(OpenError::at(&dir))? {
            fs::remove_dir_all(&dir).map_err(OpenError::at(&dir))?;
            continue;
        }
        match Database::load(&dir, known) {
            Ok(loaded) => return Ok(Some(loaded)),
            Err(LoadError::TooNew(refusal)) => return Err(OpenError::TooNew { path: dir, refusal }),
            Err(LoadError::Damaged(reason)) if database::is_no_space(&reason) => return Err(full(&dir)),
            Err(LoadError::Damaged(reason)) => {
                let aside = dir.with_extension("damaged");
                if aside.try_exists().map_err(OpenError::at(&aside))? {
                    fs::remove_dir_all(&aside).map_err(OpenError::at(&aside))?;
                }
                tracing::error!(
                    reason,
                    dir = %dir.display(),
                    aside = %aside.display(),
                    "the checkpoint cannot be read: set aside, rebuilding it from snapshot and log"
                );
                Disk::default().rename(&dir, &aside).map_err(OpenError::at(&dir))?;
            }
        }
    }
    Ok(None)
}

/// Older generations.
fn remove_others(root: &Path, current: &Generation) {
    let current = current.dir();
    let others = database::generations(root).unwrap_or_default().into_iter();
    let others = others.filter(|(_, dir)| Some(dir.as_path()) != current);
    for (_, dir) in others {
        if let Err(error) = fs::remove_dir_all(&dir) {
            tracing::warn!(%error, dir = %dir.display(), "remove an old checkpoint");
        }
    }
}

/// A full disk is no damage.
fn full(path: &Path) -> OpenError {
    OpenError::at(path)(std::io::ErrorKind::StorageFull.into())
}

fn show(id: Option<LogId>) -> String {
    id.map_or_else(|| "nothing".to_owned(), |id| format!("entry {}", id.index))
}
