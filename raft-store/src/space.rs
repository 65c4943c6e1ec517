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
/// The file system is asked at most so often.
pub const SPACE_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// With less than this (and less than what is needed) a store opens only after giving up its reserve.
const OPENING_BYTES: u64 = 64 * 1024 * 1024;
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
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    state: SpaceState,
    at: Instant,
    /// Bytes of the reserve that is in place.
    reserve: u64,
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
        let seen = Seen { state: SpaceState::Ok, at: Instant::now(), reserve };
        let shared = Shared { disk: disk.clone(), dir: dir.to_owned(), limits, seen: Mutex::new(seen) };
        let space = Self { shared: Arc::new(shared) };
        let (free, total) = space.shared.measure()?;
        if free < space.shared.needed(total).min(OPENING_BYTES) {
            space.release();
        }
        let mut seen = space.shared.seen();
        space.shared.look(&mut seen);
        drop(seen);
        Ok(space)
    }

    /// For a store that is opened for a moment, to be read or prepared.
    pub(crate) fn without_limits(dir: &Path) -> Result<Self, OpenError> {
        let limits = SpaceLimits { low_bytes: 0, reserve_bytes: 0, ..SpaceLimits::default() };
        Self::open(&Disk::default(), dir, limits).map_err(OpenError::at(dir))
    }

    /// How the disk stands. Cheap: call it for each write.
    pub fn state(&self) -> SpaceState {
        let mut seen = self.shared.seen();
        if seen.at.elapsed() >= SPACE_CHECK_INTERVAL {
            self.shared.look(&mut seen);
        }
        seen.state
    }

    /// [`Self::state`] as of now.
    pub fn check(&self) -> SpaceState {
        let mut seen = self.shared.seen();
        self.shared.look(&mut seen);
        seen.state
    }

    /// Gives up the reserve because a write met a full disk. True when there was one: the write should be tried again.
    pub(crate) fn release(&self) -> bool {
        let mut seen = self.shared.seen();
        if seen.reserve == 0 {
            return false;
        }
        let path = self.shared.dir.join(FILE_NAME);
        // Blocks of a removed file can be used only after the removal is on disk.
        let removed =
            self.shared.disk.remove(&path).and_then(|()| self.shared.disk.sync_dir(&self.shared.dir));
        match removed {
            Ok(()) => {
                tracing::error!(bytes = seen.reserve, "the disk is full, the reserve is given up");
                seen.reserve = 0;
                self.shared.look(&mut seen);
                true
            }
            Err(error) => {
                tracing::error!(%error, path = %path.display(), "give up the reserve");
                false
            }
        }
    }
}

impl Shared {
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

    fn look(&self, seen: &mut Seen) {
        seen.at = Instant::now();
        let (free, total) = match self.measure() {
            Ok(measured) => measured,
            // The last answer is the best there is.
            Err(error) => {
                return tracing::warn!(%error, dir = %self.dir.display(), "measure the free space");
            }
        };
        let reserve = (total / 100 * self.limits.reserve_percent).min(self.limits.reserve_bytes);
        let absent = reserve.saturating_sub(seen.reserve);
        let needed = self.needed(total) + absent;
        let state = match free < needed {
            true => SpaceState::Low { free, needed },
            false => SpaceState::Ok,
        };
        if state == SpaceState::Ok && absent > 0 {
            match self.allocate(reserve) {
                Ok(()) => seen.reserve = reserve,
                Err(error) => tracing::warn!(%error, bytes = reserve, "put a reserve on the disk"),
            }
        }
        match (seen.state, state) {
            (SpaceState::Ok, SpaceState::Low { free, needed }) => {
                tracing::error!(free, needed, "the disk is nearly full: growth is refused");
            }
            (SpaceState::Low { .. }, SpaceState::Ok) => tracing::info!(free, "the disk has room again"),
            _ => {}
        }
        seen.state = state;
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let path = self.dir.join(FILE_NAME);
        let file = File::options().create(true).truncate(false).write(true).open(&path)?;
        let len = i64::try_from(bytes).map_err(io::Error::other)?;
        fallocate(&file, FallocateFlags::empty(), 0, len).map_err(|error| {
            drop(std::fs::remove_file(&path));
            io::Error::from(error)
        })
    }
}
