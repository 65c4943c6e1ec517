//! Files that appear whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::TlsError;

/// Who may read a new file.
#[derive(Clone, Copy)]
pub(super) enum Access {
    Everyone,
    Owner,
}

/// Creates `path` with `content` unless it exists. Of several processes one wins; true for the winner. Losers find the
/// winner's whole file.
pub(super) fn create(path: &Path, content: &str, access: Access) -> Result<bool, TlsError> {
    let temporary = write_temporary(path, content, access)?;
    let linked = std::fs::hard_link(&temporary, path);
    let _ = std::fs::remove_file(&temporary);
    match linked {
        Ok(()) => sync_dir(path).map(|()| true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(TlsError::Io { action: "create", path: path.to_owned(), source }),
    }
}

/// A whole file that waits beside the place it is for. Without an owner it goes.
pub(super) struct Staged {
    temporary: PathBuf,
    path: PathBuf,
}

impl Staged {
    pub(super) fn write(path: &Path, content: &str, access: Access) -> Result<Self, TlsError> {
        let temporary = write_temporary(path, content, access)?;
        Ok(Self { temporary, path: path.to_owned() })
    }

    /// Puts it in the place of whatever is there.
    pub(super) fn put(self) -> Result<(), TlsError> {
        std::fs::rename(&self.temporary, &self.path).map_err(|source| TlsError::Io {
            action: "write",
            path: self.path.clone(),
            source,
        })?;
        sync_dir(&self.path)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Gone already when it was put.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

fn write_temporary(path: &Path, content: &str, access: Access) -> Result<PathBuf, TlsError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{:016x}.tmp", rand::random::<u64>()));
    let temporary = PathBuf::from(temporary);
    let mode = match access {
        Access::Everyone => 0o644,
        Access::Owner => 0o600,
    };
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| {
        let _ = std::fs::remove_file(&temporary);
        TlsError::Io { action: "write", path: temporary.clone(), source }
    })?;
    Ok(temporary)
}

fn sync_dir(path: &Path) -> Result<(), TlsError> {
    let dir = path.parent().unwrap_or(path);
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| TlsError::Io {
        action: "sync directory",
        path: dir.to_owned(),
        source,
    })
}
