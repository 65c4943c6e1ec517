//! Room on the disk: refusing growth before there is none, and a reserve for what must be written all the same.
//!
//! A node that is low should refuse writes that make the state larger and go on with those that make it smaller; it
//! becomes well by itself when there is room again. The reserve is a file that is given up when the log meets a full
//! disk: what was already accepted can then still be written.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;

use crate::disk::Disk;
use crate::error::OpenError;

/// See [`SpaceLimits::low_percent`].
pub const LOW_PERCENT: u64 = 10;
/// See [`SpaceLimits::low_bytes`].
pub const LOW_BYTES: u64 = 1024 * 1024 * 1024;
/// See [`SpaceLimits::reserve_percent`].
pub const RESERVE_PERCENT: u64 = 5;
/// See [`SpaceLimits::reserve_bytes`].
pub const RESERVE_BYTES: u64 = 256 * 1024 * 1024;
/// So much more than needed must be free to have room to spare, percent of what is needed.
pub const SPARE_PERCENT: u64 = 25;
/// The file system is asked at most so often.
pub const SPACE_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// With less than this (and less than what is needed) a store opens only after giving up its reserve.
const OPENING_BYTES: u64 = 64 * 1024 * 1024;
/// A store whose disk is full may need so much to open.
const MIN_OPENING_BYTES: u64 = 16 * 1024 * 1024;
/// With less than this free, an error that does not say its reason counts as that of a full disk.
const FULL_BYTES: u64 = 1024 * 1024;
const FILE_NAME: &str = "reserve";

/// When a disk counts as low. Of percentage and bytes the smaller one counts, so that big disks are not wasted and small
/// ones can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceLimits {
    /// Percent of the disk that should be free …
    pub low_percent: u64,
    /// … or bytes.
    pub low_bytes: u64,
    /// Percent of the disk that is kept in reserve …
    pub reserve_percent: u64,
    /// … or bytes; 0 for none.
    pub reserve_bytes: u64,
}

/// How the disk stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpaceState {
    /// Enough.
    Ok,
    /// Too little: refuse what makes the state larger.
    Low {
        /// Free bytes, without the reserve.
        free: u64,
        /// How many there must be to become [`SpaceState::Ok`]. While the reserve is given up, it is part of this.
        needed: u64,
    },
}

/// Watches the disk a store is on. Clones are handles on the same watch.
#[derive(Debug, Clone)]
pub struct Space {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    disk: Disk,
    dir: PathBuf,
    limits: SpaceLimits,
    /// Held while the file system is asked or changed, which may take long.
    work: Mutex<()>,
    /// Held for moments.
    seen: Mutex<Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    state: SpaceState,
    /// True when it will not be low again at once.
    spare: bool,
    at: Instant,
    /// Bytes of the reserve that is in place.
    reserve: u64,
    /// False when this file system cannot reserve room.
    can_reserve: bool,
}

impl Default for SpaceLimits {
    fn default() -> Self {
        Self {
            low_percent: LOW_PERCENT,
            low_bytes: LOW_BYTES,
            reserve_percent: RESERVE_PERCENT,
            reserve_bytes: RESERVE_BYTES,
        }
    }
}

impl Space {
    pub(crate) fn open(disk: &Disk, dir: &Path, limits: SpaceLimits) -> io::Result<Self> {
        let reserve = match dir.join(FILE_NAME).metadata() {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        let seen =
            Seen { state: SpaceState::Ok, spare: true, at: Instant::now(), reserve, can_reserve: true };
        let shared = Shared {
            disk: disk.clone(),
            dir: dir.to_owned(),
            limits,
            work: Mutex::default(),
            seen: Mutex::new(seen),
        };
        let space = Self { shared: Arc::new(shared) };
        let (free, total) = space.shared.measure()?;
        if free < space.shared.needed(total).min(OPENING_BYTES) {
            space.release();
        }
        space.check();
        Ok(space)
    }

    /// Bytes that are free, and bytes that must be to open a store in any case.
    pub(crate) fn opening(&self) -> (u64, u64) {
        let (free, total) = self.shared.measure().unwrap_or_default();
        (free, self.shared.needed(total).clamp(MIN_OPENING_BYTES, OPENING_BYTES))
    }

    /// False when the file system counts its files and takes no more of them.
    pub(crate) fn has_inodes(&self) -> bool {
        statvfs(&self.shared.dir).map_or(true, |found| found.files() == 0 || found.files_available() > 0)
    }

    /// For a store that is opened for a moment, to be read or prepared.
    pub(crate) fn without_limits(dir: &Path) -> Result<Self, OpenError> {
        let limits = SpaceLimits { low_bytes: 0, reserve_bytes: 0, ..SpaceLimits::default() };
        Self::open(&Disk::default(), dir, limits).map_err(OpenError::at(dir))
    }

    /// How the disk stands. Cheap, and never waits for the disk: call it for each write.
    pub fn state(&self) -> SpaceState {
        let seen = *self.shared.seen();
        if seen.at.elapsed() < SPACE_CHECK_INTERVAL {
            return seen.state;
        }
        match self.shared.work.try_lock() {
            Ok(_working) => self.shared.look(),
            // Whoever works there tells how the disk stands in a moment.
            Err(_) => seen.state,
        }
    }

    /// True when [`SPARE_PERCENT`] more than what is needed is free: whoever takes work over from a node that is low
    /// should not be low itself the next moment.
    pub fn has_room_to_spare(&self) -> bool {
        self.state() == SpaceState::Ok && self.shared.seen().spare
    }

    /// [`Self::state`] as of now.
    pub fn check(&self) -> SpaceState {
        let _working = self.shared.work();
        self.shared.look()
    }

    /// An error that says so when fewer than `bytes` are free beyond the reserve, which is the log's alone: `what` is
    /// then not to be written. `Ok` when the file system does not say how it stands.
    ///
    /// # Errors
    /// `StorageFull`.
    pub(crate) fn room_for(&self, what: &str, bytes: u64) -> io::Result<()> {
        let Ok((free, total)) = self.shared.measure() else { return Ok(()) };
        let free = free.saturating_sub(self.shared.absent(total));
        if free >= bytes {
            return Ok(());
        }
        let reason =
            format!("{what} needs {bytes} bytes on the disk, {free} are free for it; free some space");
        Err(io::Error::new(io::ErrorKind::StorageFull, reason))
    }

    /// True when next to nothing is free.
    pub(crate) fn is_full(&self) -> bool {
        self.shared.measure().is_ok_and(|(free, _)| free < FULL_BYTES)
    }

    /// Gives up the reserve because a write met a full disk. True when there was one: the write should be tried again.
    pub(crate) fn release(&self) -> bool {
        let _working = self.shared.work();
        let bytes = std::mem::take(&mut self.shared.seen().reserve);
        if bytes == 0 {
            return false;
        }
        let path = self.shared.dir.join(FILE_NAME);
        // Blocks of a removed file can be used only after the removal is on disk.
        let removed =
            self.shared.disk.remove(&path).and_then(|()| self.shared.disk.sync_dir(&self.shared.dir));
        match removed {
            Ok(()) => {
                tracing::error!(bytes, "the disk is full, the reserve is given up");
                self.shared.look();
                true
            }
            Err(error) => {
                self.shared.seen().reserve = bytes;
                tracing::error!(%error, path = %path.display(), "give up the reserve");
                false
            }
        }
    }
}

impl Shared {
    fn work(&self) -> MutexGuard<'_, ()> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Free bytes and all bytes.
    fn measure(&self) -> io::Result<(u64, u64)> {
        let found = statvfs(&self.dir)?;
        let unit = found.fragment_size();
        Ok((found.blocks_available() * unit, found.blocks() * unit))
    }

    fn needed(&self, total: u64) -> u64 {
        (total / 100 * self.limits.low_percent).min(self.limits.low_bytes)
    }

    /// Bytes of the reserve that are not in place.
    fn absent(&self, total: u64) -> u64 {
        let seen = *self.seen();
        match seen.can_reserve {
            true => self.wanted(total).saturating_sub(seen.reserve),
            false => 0,
        }
    }

    fn wanted(&self, total: u64) -> u64 {
        (total / 100 * self.limits.reserve_percent).min(self.limits.reserve_bytes)
    }

    /// Asks the file system; whoever calls has [`Self::work`].
    fn look(&self) -> SpaceState {
        let before = {
            let mut seen = self.seen();
            seen.at = Instant::now();
            seen.state
        };
        let (free, total) = match self.measure() {
            Ok(measured) => measured,
            // The last answer is the best there is.
            Err(error) => {
                tracing::warn!(%error, dir = %self.dir.display(), "measure the free space");
                return before;
            }
        };
        let absent = self.absent(total);
        let needed = self.needed(total) + absent;
        self.seen().spare = free >= needed + needed / 100 * SPARE_PERCENT;
        let state = match free < needed {
            true => SpaceState::Low { free, needed },
            false => SpaceState::Ok,
        };
        if state == SpaceState::Ok && absent > 0 {
            self.reserve(self.wanted(total));
        }
        match (before, state) {
            (SpaceState::Ok, SpaceState::Low { free, needed }) => {
                tracing::error!(free, needed, "the disk is nearly full: growth is refused");
            }
            (SpaceState::Low { .. }, SpaceState::Ok) => tracing::info!(free, "the disk has room again"),
            _ => {}
        }
        self.seen().state = state;
        state
    }

    fn reserve(&self, bytes: u64) {
        match self.allocate(bytes) {
            Ok(()) => self.seen().reserve = bytes,
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                self.seen().can_reserve = false;
                tracing::warn!(dir = %self.dir.display(), "this file system cannot reserve space: there is no reserve");
            }
            Err(error) => tracing::warn!(%error, bytes, "put a reserve on the disk"),
        }
    }

    fn allocate(&self, bytes: u64) -> Result<(), Errno> {
        let path = self.dir.join(FILE_NAME);
        let errno = |error: io::Error| error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(errno)?;
        let len = i64::try_from(bytes).map_err(|_| Errno::EFBIG)?;
        fallocate(&file, FallocateFlags::empty(), 0, len).inspect_err(|_| drop(std::fs::remove_file(&path)))
    }
}
