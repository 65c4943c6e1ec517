//! The lock on a data directory.

use std::fs::{File, TryLockError};
use std::path::Path;

use crate::disk::Disk;
use crate::error::OpenError;

const FILE_NAME: &str = "lock";

/// Held while a store is open; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct DataDir {
    _lock: File,
}

impl DataDir {
    pub(crate) fn lock(dir: &Path) -> Result<Self, OpenError> {
        std::fs::create_dir_all(dir).map_err(OpenError::at(dir))?;
        dir.parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .map_or(Ok(()), |parent| Disk::default().sync_dir(parent))
            .map_err(OpenError::at(dir))?;
        let path = dir.join(FILE_NAME);
        let lock = File::options().create(true).append(true).open(&path).map_err(OpenError::at(&path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(OpenError::Locked { path: dir.to_owned() }),
            Err(TryLockError::Error(error)) => Err(OpenError::at(path)(error)),
        }
    }

    /// True while some store, here or in another process, has the directory open.
    pub(crate) fn is_locked(dir: &Path) -> bool {
        File::options()
            .append(true)
            .open(dir.join(FILE_NAME))
            .is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
    }
}
