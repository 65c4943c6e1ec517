//! Why a data directory could not be opened, in words that say what to do.

use std::io;
use std::path::PathBuf;

use crate::features::TooNew;
use crate::space::Space;

/// What the operator has to do when a node's own copy is beyond use. Starting empty under the same id instead could
/// elect a leader without acknowledged writes.
pub(crate) const REJOIN: &str = "this node's copy cannot be used; stop it, move its data directory away, remove the node from \
the cluster and start it again with an empty directory: it joins with a new id and gets everything from its peers";

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory or a file in it cannot be read or written.
    #[error("open data directory {path}: {source}")]
    Directory {
        /// What was touched.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// Opening needs to write, and the disk is full.
    #[error(
        "open data directory {path}: the disk is full ({free} bytes are free, {needed} are needed); free at least {} bytes \
         on its file system, of anything but this data directory, then start again",
        needed.saturating_sub(*free)
    )]
    Full {
        /// What was to be written or read.
        path: PathBuf,
        /// Free bytes.
        free: u64,
        /// Bytes that must be free.
        needed: u64,
    },
    /// Opening needs to write, and the file system refuses although bytes are free.
    #[error(
        "open data directory {path}: the file system takes no more ({source}) though {free} bytes are free: {}; mend that, \
         then start again",
        lacking(*inodes_left)
    )]
    NoMore {
        /// What was to be written or read.
        path: PathBuf,
        /// Free bytes.
        free: u64,
        /// False when no file can be made any more.
        inodes_left: bool,
        /// What the file system said.
        source: io::Error,
    },
    /// Another process has it open.
    #[error("data directory {path} is in use by another process; stop that one first")]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// A newer program wrote it.
    #[error(
        "data in {path} has version {found}, this program knows versions up to {known}; use the newer program"
    )]
    NewerVersion {
        /// The file or directory.
        path: PathBuf,
        /// The version found.
        found: u32,
        /// The newest version this build reads.
        known: u32,
    },
    /// The cluster uses features that this program does not have. Nothing was changed on disk.
    #[error("open {path}: {refusal}")]
    TooNew {
        /// The directory or file.
        path: PathBuf,
        /// What is needed and what there is.
        refusal: TooNew,
    },
    /// The identity file is damaged, or missing beside data that belongs to one.
    #[error("identity file {path}: {reason}; {REJOIN}")]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The write-ahead log is damaged or incomplete. Nothing was changed on disk.
    #[error("write-ahead log {path}: {reason}; {REJOIN}")]
    Log {
        /// Its directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Neither checkpoint nor snapshot reach far enough for the log to continue from.
    #[error("state in {path}: {reason}; {REJOIN}")]
    State {
        /// The data directory.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// Going on alone after the majority was lost (see [`crate::recovery`]) did not succeed. Nothing was lost.
    #[error(
        "go on alone as {path} asks: {reason}; mend that and start again, or remove the file to leave all as it was"
    )]
    Recovery {
        /// The file that asks for it.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

impl OpenError {
    /// True when the data is beyond use and the node must join again with an empty directory.
    pub fn needs_rejoin(&self) -> bool {
        match self {
            Self::Directory { .. }
            | Self::Full { .. }
            | Self::NoMore { .. }
            | Self::Locked { .. }
            | Self::NewerVersion { .. }
            | Self::TooNew { .. }
            | Self::Recovery { .. } => false,
            Self::Identity { .. } | Self::Log { .. } | Self::State { .. } => true,
        }
    }

    /// Says what is missing, when the file system takes no more.
    pub(crate) fn or_full(self, space: &Space) -> Self {
        let Self::Directory { path, source } = self else { return self };
        let kind = source.kind();
        if !matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return Self::Directory { path, source };
        }
        let (free, needed) = space.opening();
        match kind == io::ErrorKind::StorageFull && free < needed {
            true => Self::Full { path, free, needed },
            false => Self::NoMore { path, free, inodes_left: space.has_inodes(), source },
        }
    }

    pub(crate) fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Directory { path, source }
    }
}

/// What it may be that is not bytes.
fn lacking(inodes_left: bool) -> &'static str {
    match inodes_left {
        true => {
            "a quota may be used up (`quota` shows it, for ext4 and XFS `repquota -a`), or its inodes (`df -i`), or the free \
             bytes are too few for what is written"
        }
        false => {
            "its inodes are used up (`df -i` shows it), so files must be removed, of anything but this data directory"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;
    use crate::space::SpaceLimits;

    #[test]
    fn a_refusal_with_enough_bytes_free_names_inodes_and_quota_and_asks_for_no_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let limits = SpaceLimits { low_bytes: 0, reserve_bytes: 0, ..SpaceLimits::default() };
        let space = Space::open(&Disk::default(), dir.path(), limits).unwrap();
        let (free, needed) = space.opening();
        assert!(free >= needed, "the tests need {needed} bytes, {free} are free");
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            let error = OpenError::at(dir.path())(kind.into()).or_full(&space);
            assert!(matches!(error, OpenError::NoMore { inodes_left: true, .. }) && !error.needs_rejoin());
            let told = error.to_string();
            assert!(told.contains("`df -i`") && told.contains("quota"), "{told}");
            assert!(!told.contains("free at least"), "{told}");
        }
        let other = OpenError::at(dir.path())(io::ErrorKind::PermissionDenied.into()).or_full(&space);
        assert!(matches!(other, OpenError::Directory { .. }), "{other}");
    }

    #[test]
    fn without_inodes_the_error_says_that_files_must_go() {
        let source = io::ErrorKind::StorageFull.into();
        let error = OpenError::NoMore { path: "/data".into(), free: 1 << 40, inodes_left: false, source };
        assert!(error.to_string().contains("inodes are used up (`df -i` shows it)"), "{error}");
    }
}
