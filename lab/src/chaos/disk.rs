//! A node's disk: ext4 on a loop device, so that it can be full, empty, or lose power.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::namespace::output;
use crate::wait;

/// Size of a disk, bytes. A sparse file: only what was written takes memory.
const DISK_BYTES: u64 = 384 * 1024 * 1024;
/// Most bytes of all disks of a run together.
const STORE_BYTES: u64 = 3 * 1024 * 1024 * 1024;
/// ext4 writes its journal this often by itself, seconds. Long, so that what was not synced is really lost.
const COMMIT_INTERVAL_S: u32 = 600;
/// The file that fills a disk.
const BALLAST: &str = "ballast";
/// The first step in which a disk is filled, bytes; halved down to one block.
const FILL_STEP_BYTES: i64 = 64 * 1024 * 1024;
const BLOCK_BYTES: i64 = 4096;
/// How long a killed process may keep its disk busy.
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(10);
/// `EXT4_IOC_SHUTDOWN`, `_IOR('X', 125, __u32)` in the kernel's `fs/ext4/ext4.h`.
const EXT4_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
/// `EXT4_GOING_FLAGS_NOLOGFLUSH`: at once, without writing the journal.
const NO_LOG_FLUSH: u32 = 2;

/// Where the disks' images are: a file system in memory. What "power loss" loses is decided above it, and it spares a
/// loaded machine's real disk.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    /// How many disks were made.
    made: AtomicU32,
}

impl Store {
    /// Mounts it at `directory`.
    ///
    /// # Errors
    /// When we may not mount.
    pub(super) fn mount(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let size = format!("size={STORE_BYTES}");
        mount(Some("outputguard-lab"), &directory, Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
            .with_context(|| format!("mount a tmpfs at {} (needs root)", directory.display()))?;
        Ok(Self { directory, made: AtomicU32::new(0) })
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = umount2(&self.directory, MntFlags::MNT_DETACH);
    }
}

/// A mounted disk. Dropping it unmounts it, which frees its loop device.
#[derive(Debug)]
pub(super) struct Disk {
    image: PathBuf,
    directory: PathBuf,
    /// How often the image was copied.
    copies: u32,
}

impl Disk {
    /// Makes an empty disk and mounts it at `directory`.
    ///
    /// # Errors
    /// When the file system cannot be made or mounted.
    pub(super) fn create(store: &Store, name: &str, directory: PathBuf) -> Result<Self> {
        // The kernel may hold on to the image of a namesake that is gone.
        let number = store.made.fetch_add(1, Ordering::Relaxed);
        let image = store.directory.join(format!("{name}-{number}.ext4"));
        let file = File::create(&image).with_context(|| format!("create {}", image.display()))?;
        file.set_len(DISK_BYTES).with_context(|| format!("size {}", image.display()))?;
        output(
            Command::new("mkfs.ext4")
                .args(["-q", "-F", "-m", "0", "-J", "size=8", "-E", "lazy_itable_init=1,nodiscard"])
                .arg(&image),
        )
        .context("make a file system (package e2fsprogs)")?;
        fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let disk = Self { image, directory, copies: 0 };
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&self) -> Result<()> {
        let options = format!("loop,noatime,commit={COMMIT_INTERVAL_S}");
        output(
            Command::new("mount").args(["-t", "ext4", "-o", &options]).arg(&self.image).arg(&self.directory),
        )
        .map(drop)
    }

    /// Where it is mounted.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes everything to the disk, whether anybody asked for it or not.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn sync(&self) -> Result<()> {
        let root = self.root()?;
        // SAFETY: the descriptor is open as long as `root` lives.
        Errno::result(unsafe { libc::syncfs(root.as_raw_fd()) }).context("sync a disk")?;
        Ok(())
    }

    /// The power goes: from this instant nothing more reaches the disk, not even what the kernel still holds in memory.
    /// Whoever uses the disk must not run (or would be told of I/O errors) and never run again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn cut_power(&self) -> Result<()> {
        let (root, flags) = (self.root()?, NO_LOG_FLUSH);
        // SAFETY: the request reads one u32 from the pointer, which outlives the call.
        Errno::result(unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_SHUTDOWN, &raw const flags) })
            .with_context(|| format!("cut the power of {}", self.directory.display()))?;
        Ok(())
    }

    /// The power is back: mounted again, with what had reached the disk.
    ///
    /// # Errors
    /// When somebody still uses it, or what is left is no file system.
    pub(super) fn power_on(&mut self) -> Result<()> {
        wait::until("a disk is let go", UNMOUNT_TIMEOUT, || umount2(&self.directory, MntFlags::empty()))?;
        // The kernel may hold the dead file system for a while yet (or a mount namespace that somebody made meanwhile
        // does), and would hand it out again for the same image. It writes nothing any more, so a copy is the disk.
        let attached =
            output(Command::new("losetup").arg("-j").arg(&self.image)).context("list loop devices")?;
        if !attached.is_empty() {
            let copy = self.image.with_extension(format!("{}.ext4", self.copies));
            output(Command::new("cp").arg("--sparse=always").arg(&self.image).arg(&copy))
                .context("copy a disk")?;
            fs::remove_file(&self.image).with_context(|| format!("remove {}", self.image.display()))?;
            self.image = copy;
            self.copies += 1;
        }
        self.mount()
    }

    /// Takes all its space.
    ///
    /// # Errors
    /// Any but the expected one.
    pub(super) fn fill(&self) -> Result<()> {
        let path = self.directory.join(BALLAST);
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("open {}", path.display()))?;
        let (mut step, mut length) = (FILL_STEP_BYTES, 0);
        while step >= BLOCK_BYTES {
            // SAFETY: a plain system call on an open descriptor.
            match Errno::result(unsafe { libc::fallocate(file.as_raw_fd(), 0, length, step) }) {
                Ok(_) => length += step,
                Err(Errno::ENOSPC) => step /= 2,
                Err(Errno::EINTR) => {}
                Err(error) => bail!("fill {}: {error}", self.directory.display()),
            }
        }
        Ok(())
    }

    /// Gives back the space that [`Self::fill`] took, for good: a power cut does not bring the file back.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub(super) fn free(&self) -> Result<()> {
        let path = self.directory.join(BALLAST);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        self.root()?.sync_all().with_context(|| format!("sync {}", self.directory.display()))
    }

    fn root(&self) -> Result<File> {
        File::open(&self.directory).with_context(|| format!("open {}", self.directory.display()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.directory, MntFlags::MNT_DETACH);
        // Its memory is free once the loop device is.
        let _ = fs::remove_file(&self.image);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::run::Run;

    fn disk(run: &Run) -> (Disk, Store) {
        let store = Store::mount(run.directory().join("disks")).unwrap();
        (Disk::create(&store, "one", run.directory().join("one")).unwrap(), store)
    }

    #[test]
    fn what_was_synced_outlives_the_power_and_nothing_else_does() {
        let run = Run::begin().unwrap();
        let (mut disk, _store) = disk(&run);
        let write = |name: &str, synced: bool| {
            let mut file = File::create(disk.directory().join(name)).unwrap();
            file.write_all(b"words").unwrap();
            if synced {
                file.sync_all().unwrap();
                disk.root().unwrap().sync_all().unwrap();
            }
        };
        write("kept", true);
        write("lost", false);
        disk.cut_power().unwrap();
        disk.power_on().unwrap();
        assert_eq!(fs::read(disk.directory().join("kept")).unwrap(), b"words");
        assert!(!disk.directory().join("lost").exists());
    }

    #[test]
    fn a_dead_file_system_that_somebody_still_holds_is_not_handed_out_again() {
        let run = Run::begin().unwrap();
        let (mut disk, _store) = disk(&run);
        let elsewhere = run.directory().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        output(Command::new("mount").arg("--bind").arg(disk.directory()).arg(&elsewhere)).unwrap();
        disk.cut_power().unwrap();
        disk.power_on().unwrap();
        fs::write(disk.directory().join("file"), b"words").unwrap();
        umount2(&elsewhere, MntFlags::empty()).unwrap();
    }

    #[test]
    fn a_full_disk_takes_nothing_until_it_is_freed() {
        let run = Run::begin().unwrap();
        let (disk, _store) = disk(&run);
        let write = || fs::write(disk.directory().join("file"), vec![1; 64 * 1024]);
        disk.fill().unwrap();
        assert_eq!(write().unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        disk.free().unwrap();
        write().unwrap();
    }

    #[test]
    fn a_disk_that_was_freed_is_not_full_again_after_a_power_cut() {
        let run = Run::begin().unwrap();
        let (mut disk, _store) = disk(&run);
        disk.fill().unwrap();
        disk.sync().unwrap();
        disk.free().unwrap();
        disk.cut_power().unwrap();
        disk.power_on().unwrap();
        assert!(!disk.directory().join(BALLAST).exists());
    }

    #[test]
    fn nothing_stays_mounted() {
        let run = Run::begin().unwrap();
        let (disk, store) = disk(&run);
        drop(disk);
        drop(store);
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(run.directory().to_str().unwrap()), "{mounts}");
    }
}
