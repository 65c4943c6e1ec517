//! The file operations that durability rests on, in one place, so that a test can record them, withhold them or make
//! them fail. Outside tests each is the call of the standard library and nothing else.

#[cfg(test)]
pub(crate) mod watch;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Where files are: the real disk, watched in tests.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    #[cfg(test)]
    watch: Option<std::sync::Arc<watch::Watch>>,
}

/// An open file on a [`Disk`].
#[derive(Debug)]
pub(crate) struct DiskFile {
    disk: Disk,
    file: File,
    path: PathBuf,
    /// Where [`Write`] goes on.
    position: u64,
}

/// What is about to be done.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(test), allow(dead_code, reason = "read by the watch of tests alone"))]
pub(crate) enum Op<'a> {
    Create(&'a Path),
    Write { path: &'a Path, offset: u64, bytes: &'a [u8] },
    SetLen { path: &'a Path, len: u64 },
    Sync(&'a Path),
    Rename { from: &'a Path, to: &'a Path },
    Remove(&'a Path),
    SyncDir(&'a Path),
}

/// How an operation goes on.
#[derive(Debug)]
#[cfg_attr(not(test), allow(dead_code, reason = "only the watch of tests holds back"))]
pub(crate) enum Permit {
    Act,
    /// Pretend.
    Skip,
    /// Write so many bytes, then fail.
    Short(usize, io::Error),
}

impl Disk {
    #[cfg(test)]
    pub(crate) fn watched(watch: std::sync::Arc<watch::Watch>) -> Self {
        Self { watch: Some(watch) }
    }

    #[cfg(test)]
    fn permit(&self, op: Op<'_>) -> io::Result<Permit> {
        self.watch.as_ref().map_or(Ok(Permit::Act), |watch| watch.permit(op))
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests answer otherwise")]
    fn permit(&self, _: Op<'_>) -> io::Result<Permit> {
        Ok(Permit::Act)
    }

    fn act(&self, op: Op<'_>, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match self.permit(op)? {
            Permit::Act => act(),
            Permit::Skip => Ok(()),
            Permit::Short(_, error) => Err(error),
        }
    }

    /// Creates the file at `path`, or empties it.
    pub(crate) fn create(&self, path: &Path) -> io::Result<DiskFile> {
        self.permit(Op::Create(path))?;
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(self.file(file, path))
    }

    /// Opens the file at `path` for reading and writing.
    pub(crate) fn open(&self, path: &Path) -> io::Result<DiskFile> {
        Ok(self.file(File::options().read(true).write(true).open(path)?, path))
    }

    fn file(&self, file: File, path: &Path) -> DiskFile {
        DiskFile { disk: self.clone(), file, path: path.to_owned(), position: 0 }
    }

    /// Creates `dir` when it is missing, durably.
    pub(crate) fn create_dir(&self, dir: &Path) -> io::Result<()> {
        match fs::create_dir(dir) {
            Ok(()) => dir.parent().map_or(Ok(()), |parent| self.sync_dir(parent)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes new, renamed and removed names in `dir` durable. Syncing a file does not do that.
    pub(crate) fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.act(Op::SyncDir(dir), || File::open(dir)?.sync_all())
    }

    /// Replaces the file at `path`: after a crash it holds the old bytes or the new ones, never a mixture.
    pub(crate) fn replace_file(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let temporary = path.with_extension("new");
        let mut file = self.create(&temporary)?;
        file.write_all(bytes)?;
        file.sync()?;
        self.rename(&temporary, path)
    }

    /// Renames a file whose content is already synced, durably.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.act(Op::Rename { from, to }, || fs::rename(from, to))?;
        to.parent().map_or(Ok(()), |parent| self.sync_dir(parent))
    }

    /// Removes a file. Durable only after [`Self::sync_dir`].
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        self.act(Op::Remove(path), || fs::remove_file(path))
    }
}

impl DiskFile {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    pub(crate) fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    pub(crate) fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self.disk.permit(Op::Write { path: &self.path, offset, bytes })? {
            Permit::Act => self.file.write_all_at(bytes, offset),
            Permit::Skip => Ok(()),
            Permit::Short(len, error) => {
                self.file.write_all_at(&bytes[..len.min(bytes.len())], offset)?;
                Err(error)
            }
        }
    }

    pub(crate) fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.act(Op::SetLen { path: &self.path, len }, || self.file.set_len(len))
    }

    /// Content and length are on the device when this returns.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.disk.act(Op::Sync(&self.path), || self.file.sync_data())
    }
}

impl Write for DiskFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all_at(bytes, self.position)?;
        self.position += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
