//! A snapshot file in the hands of an operator: what it holds in short, and its content, to be put into another cluster.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use allowlist::{Entry, Target};
use uuid::Uuid;

use super::file::{RoomCheck, Temporary};
use super::format::{self, Bounds, FORMAT_VERSION};
use super::{MAX_SNAPSHOT_BYTES, SnapshotFile};
use crate::command::RestorePart;
use crate::features::FeatureLevel;
use crate::space::Space;
use crate::state::State;

/// What a backup may hold, many times a cluster at its limits. A file of a few megabytes can unpack to more.
const BOUNDS: Bounds = Bounds { bytes: 4 * 1024 * 1024 * 1024, items: 4_000_000 };

/// What a snapshot file says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The cluster it is of.
    pub cluster: Option<Uuid>,
    /// The revision it was made at.
    pub revision: u64,
    /// How many entries it holds.
    pub entries: u64,
    /// How many tokens it holds.
    pub tokens: u64,
    /// SHA-256 of everything before the digest, which is the file's last 32 bytes.
    pub sha256: [u8; 32],
}

/// Why a file cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Something else.
    #[error("this is not a backup of OutputGuard; give a file that `outputguardctl backup` wrote")]
    Other,
    /// A newer program wrote it.
    #[error(
        "backup has format version {found}, this server reads up to {known}: restore it with the release that made it, \
         or a newer one"
    )]
    Version {
        /// Of the file.
        found: u32,
        /// Of this program.
        known: u32,
    },
    /// It is not as it was written, or holds what no list may hold: in words, with what to do.
    #[error("{0}")]
    Damaged(String),
    /// This node's disk.
    #[error("keep the backup while it is read: {0}")]
    Io(io::Error),
}

/// A verified backup.
#[derive(Debug)]
pub struct Backup {
    state: State,
}

/// A backup on its way in. Without an owner its file goes. All methods block.
#[derive(Debug)]
pub struct IncomingBackup {
    file: File,
    temporary: Arc<Temporary>,
    len: u64,
    room: RoomCheck,
}

impl SnapshotFile {
    /// What the file says of itself. It is not verified.
    ///
    /// # Errors
    /// What the file system says, or that it is no snapshot.
    pub fn summary(&self) -> io::Result<Summary> {
        format::read_summary(self.file())
    }
}

impl IncomingBackup {
    pub(super) fn create(path: &Path, space: &Space) -> io::Result<Self> {
        let file = File::create_new(path)?;
        Ok(Self {
            file,
            temporary: Arc::new(Temporary(path.to_owned())),
            len: 0,
            room: RoomCheck::new(space),
        })
    }

    /// Whether a file that starts like this can be a backup: what cannot is not worth keeping.
    ///
    /// # Errors
    /// [`BackupError::Other`], [`BackupError::Version`].
    pub fn check_start(start: &[u8; 8]) -> Result<(), BackupError> {
        check_magic(format::parse_magic(*start))
    }

    /// Appends the next bytes.
    ///
    /// # Errors
    /// What the file system says, or that it is too long.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.len += bytes.len() as u64;
        if self.len > MAX_SNAPSHOT_BYTES {
            return Err(io::Error::other(format!("it is longer than {MAX_SNAPSHOT_BYTES} bytes")));
        }
        self.room.take(bytes.len() as u64)?;
        self.file.write_all(bytes)
    }

    /// Reads and checks all of it.
    ///
    /// # Errors
    /// [`BackupError`].
    pub fn finish(self) -> Result<Backup, BackupError> {
        let file = SnapshotFile::open_temporary(self.temporary).map_err(BackupError::Io)?;
        Backup::read(file.file())
    }
}

impl Backup {
    /// The version is looked at before the checksum: a newer program may have changed what is summed.
    fn read(file: &File) -> Result<Self, BackupError> {
        check_magic(format::read_magic(file).map_err(|_| BackupError::Other)?)?;
        format::verify_sum(file).map_err(damaged)?;
        let header = format::read_any_header(file).map_err(damaged)?;
        let (found, known) = (header.data_version.0, FeatureLevel::NEWEST.0);
        if found > known {
            return Err(BackupError::Version { found, known });
        }
        let content = format::read_within(file, BOUNDS).map_err(damaged)?;
        content.state.entries().values().try_for_each(|entry| check_target(entry))?;
        Ok(Self { state: content.state })
    }

    /// The state it holds.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Everything a new cluster takes over: the tokens, and the entries, each with what was known of its domain.
    pub fn parts(&self) -> impl Iterator<Item = RestorePart> + '_ {
        let tokens = self.state.tokens().values().cloned().map(RestorePart::Token);
        let entries = self.state.entries().values().map(|entry| {
            let resolution = match &entry.target {
                Target::Domain(domain) => self.state.resolutions().get(domain).map(|known| (**known).clone()),
                _ => None,
            };
            RestorePart::Entry { entry: (**entry).clone(), resolution }
        });
        tokens.chain(entries)
    }

    /// True when everything in `state` is in this backup too, as it is: a restore of it may begin, or go on where one
    /// broke off.
    pub fn covers(&self, state: &State) -> bool {
        state.entries().values().all(|entry| self.state.entries().get(&entry.id) == Some(entry))
    }
}

fn check_magic((ours, version): (bool, u8)) -> Result<(), BackupError> {
    if !ours {
        return Err(BackupError::Other);
    }
    if version > FORMAT_VERSION {
        let (found, known) = (u32::from(version), u32::from(FORMAT_VERSION));
        return Err(BackupError::Version { found, known });
    }
    Ok(())
}

/// A checksum says that a file is whole, not who made it: what cannot be added to a list cannot be restored to one.
fn check_target(entry: &Entry) -> Result<(), BackupError> {
    let target = entry.target.to_string();
    let refused = |reason: &dyn fmt::Display| {
        let id = entry.id.0;
        BackupError::Damaged(format!(
            "entry {id} of the backup, `{target}`, cannot be on a list: {reason}; remove it where the backup was made and \
             make another one"
        ))
    };
    match target.parse::<Target>() {
        Ok(parsed) if parsed == entry.target => Ok(()),
        Ok(parsed) => Err(refused(&format_args!("it would be written `{parsed}`"))),
        Err(error) => Err(refused(&error)),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn damaged(error: io::Error) -> BackupError {
    let text = match error.kind() {
        io::ErrorKind::UnexpectedEof => "it ends too early".to_owned(),
        _ => error.to_string(),
    };
    let reason = text.trim_start_matches("not a valid snapshot: ");
    BackupError::Damaged(format!("backup is damaged: {reason}; take another copy of it, or an older backup"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Batch, Command, NewEntry, Operation, Origin, Reply};
    use crate::driving::new_entry;
    use crate::snapshot::Content;

    fn content() -> Content {
        content_with("9.9.9.9".parse().unwrap())
    }

    fn content_with(target: Target) -> Content {
        let entry = |number: u128, target: Target| {
            Command::AddEntry(NewEntry { target, ..new_entry(number, "9.9.9.9") })
        };
        let commands = [
            Command::InitCluster { cluster: Uuid::from_u128(7) },
            entry(1, target),
            entry(2, "a.example.com".parse().unwrap()),
        ];
        let operations =
            commands.map(|command| Operation { origin: Origin::default(), command }).into_iter().collect();
        let mut state = State::default();
        state.apply(0, &Batch { at_ms: 5, operations });
        Content { state, ..Content::default() }
    }

    fn read(bytes: &[u8]) -> Result<Backup, BackupError> {
        let dir = tempfile::tempdir().unwrap();
        let mut incoming =
            IncomingBackup::create(&dir.path().join("0.part"), &Space::without_limits(dir.path()).unwrap())
                .unwrap();
        bytes.chunks(100).for_each(|piece| incoming.write(piece).unwrap());
        let read = incoming.finish();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
        read
    }

    fn file() -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot");
        format::write(&crate::disk::Disk::default(), &path, &content()).unwrap();
        let summary = SnapshotFile::open(&path).unwrap().summary().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let sha256: [u8; 32] = bytes[bytes.len() - 32..].try_into().unwrap();
        let cluster = Some(Uuid::from_u128(7));
        assert_eq!(summary, Summary { cluster, revision: 0, entries: 2, tokens: 0, sha256 });
        bytes
    }

    #[test]
    fn no_more_is_unpacked_than_the_bounds_allow() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot");
        format::write(&crate::disk::Disk::default(), &path, &content()).unwrap();
        let file = File::open(&path).unwrap();
        let read = |bytes, items| format::read_within(&file, Bounds { bytes, items }).map(|_| ());
        read(10_000, 3).unwrap();
        for error in [read(10_000, 2).unwrap_err(), read(10, 3).unwrap_err()] {
            assert!(error.to_string().contains("it holds too much"), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_a_backup_is_known_by_its_first_bytes() {
        IncomingBackup::check_start(file().first_chunk().unwrap()).unwrap();
        assert!(matches!(IncomingBackup::check_start(b"entries:"), Err(BackupError::Other)));
        let newer = IncomingBackup::check_start(b"OGSNAP\0\x09");
        assert!(matches!(newer, Err(BackupError::Version { found: 9, .. })));
    }

    #[test]
    fn a_backup_put_into_another_state_gives_the_same_list() {
        let backup = read(&file()).unwrap();
        let mut state = State::default();
        assert!(backup.covers(&state));
        let command = Command::Restore(backup.parts().collect());
        let operations = vec![Operation { origin: Origin::default(), command }];
        let (_, reply) = state.apply(1, &Batch { at_ms: 9, operations });
        assert!(
            matches!(&reply.replies[0], Reply::Restored { entries: 2, refused, .. } if refused.is_empty())
        );
        assert_eq!(state.entries(), backup.state().entries());
        assert_eq!(state.published().digest(), backup.state().published().digest());
        assert!(state.cluster().is_none() && backup.covers(&state));
        assert!(!read(&file_of_nothing()).unwrap().covers(&state));
    }

    fn file_of_nothing() -> Vec<u8> {
        file_of(&Content::default())
    }

    fn file_of(content: &Content) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot");
        format::write(&crate::disk::Disk::default(), &path, content).unwrap();
        std::fs::read(&path).unwrap()
    }

    #[test]
    fn a_backup_with_a_target_that_no_list_lets_in_is_refused_and_the_entry_named() {
        let suffix = "com".parse::<allowlist::DomainName>().unwrap_or_else(|_| "co.uk".parse().unwrap());
        let targets = [
            Target::Address("10.0.0.1".parse().unwrap()),
            Target::Address("169.254.169.254".parse().unwrap()),
            Target::Network("0.0.0.0/0".parse().unwrap()),
            Target::Network("fd00::/8".parse().unwrap()),
            Target::Wildcard { suffix, any_depth: true },
        ];
        for target in targets {
            let said = read(&file_of(&content_with(target.clone()))).unwrap_err().to_string();
            let entry =
                format!("entry {} of the backup, `{target}`, cannot be on a list: ", Uuid::from_u128(1));
            assert!(said.starts_with(&entry), "{said}");
        }
    }

    #[test]
    fn what_is_cut_changed_newer_or_something_else_is_refused_with_the_reason() {
        let good = file();
        let said = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
        for len in [8, 9, 40, good.len() - 1] {
            assert!(said(&good[..len]).starts_with("backup is damaged: "), "{len}: {}", said(&good[..len]));
        }
        let mut flipped = good.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        assert!(said(&flipped).starts_with("backup is damaged: "), "{}", said(&flipped));
        let mut newer = good;
        newer[7] = 9;
        let words = said(&newer);
        assert!(words.starts_with("backup has format version 9, this server reads up to 1: "), "{words}");
        for other in [&b"entries:\n  - target: a.example.com\n"[..], b"", b"OGSNAP"] {
            assert!(said(other).starts_with("this is not a backup"), "{}", said(other));
        }
    }
}
