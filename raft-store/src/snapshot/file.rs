//! A handle on a snapshot file: what travels between nodes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::space::Space;

/// The free space is looked at each time so many bytes have come.
const ROOM_STEP_BYTES: u64 = 1024 * 1024;

/// A snapshot file, open for reading. The handle keeps the content readable even after the file was pruned from
/// the directory, so that a slow peer can finish.
#[derive(Debug, Clone)]
pub struct SnapshotFile {
    file: Arc<File>,
    path: PathBuf,
    len: u64,
    /// Set for a file that has no name of its own yet.
    _temporary: Option<Arc<Temporary>>,
}

/// Looks at the free space again and again while a file comes in: others should not fill the disk.
#[derive(Debug)]
pub(super) struct RoomCheck {
    space: Space,
    /// Bytes that may come before the next look.
    granted: u64,
}

impl RoomCheck {
    pub(super) fn new(space: &Space) -> Self {
        Self { space: space.clone(), granted: 0 }
    }

    /// An error of the kind `StorageFull` when `bytes` more are not to be written.
    pub(super) fn take(&mut self, bytes: u64) -> io::Result<()> {
        if self.granted < bytes {
            let wanted = bytes.max(ROOM_STEP_BYTES);
            self.space.room_for("the file that comes in", wanted)?;
            self.granted = wanted;
        }
        self.granted -= bytes;
        Ok(())
    }
}

/// Removes a file when the last handle goes, unless it was given another name by then.
#[derive(Debug)]
pub(super) struct Temporary(pub(super) PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %self.0.display(), "remove an unused snapshot");
            }
            _ => {}
        }
    }
}

impl SnapshotFile {
    /// Opens the file at `path`. The content is verified when it is installed, not here.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), path: path.to_owned(), len, _temporary: None })
    }

    pub(super) fn open_temporary(temporary: Arc<Temporary>) -> io::Result<Self> {
        let opened = Self::open(&temporary.0)?;
        Ok(Self { _temporary: Some(temporary), ..opened })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Where it is (or was).
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True for a file without content, which is never a valid snapshot.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads up to `max` bytes at `offset`; less only at the end. Blocks: call it off the async threads.
    ///
    /// # Errors
    /// What the file system says.
    pub fn read_at(&self, offset: u64, max: usize) -> io::Result<Vec<u8>> {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; left.min(max)];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}
