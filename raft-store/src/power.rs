//! Power cuts of whole stores on a real ext4, and disks that are full. Needs root, mkfs.ext4 and loop devices.
//!
//! A writer process works on a file system in an image file. It is stopped at a random moment and the image copied: what
//! the kernel still holds for the mounted file system is not in the copy, and that is the power cut. The copy is mounted
//! (its journal is replayed), the store opened and compared with what the writer had acknowledged. Everything runs in a
//! mount namespace of its own, so that mounts and loop devices go with the process, however it ends.

mod cuts;
mod full;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::driving::options;
use crate::space::SpaceLimits;
use crate::{FatalHook, StoreOptions};

const IMAGE_BYTES: u64 = 128 * 1024 * 1024;
/// Set for the processes a test starts from its own program: `judge` or a directory to write in.
const ROLE: &str = "RAFT_STORE_POWER_ROLE";

fn with_limits(space: SpaceLimits) -> StoreOptions {
    StoreOptions { space, ..options() }
}

fn no_reserve() -> SpaceLimits {
    SpaceLimits { low_bytes: 0, reserve_bytes: 0, ..SpaceLimits::default() }
}

/// This test program again, with only `test` (of a module below) in it.
fn again(test: &str, role: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("power::{test}"), "--nocapture"]).env(ROLE, role);
    command
}

/// True in the process that has a mount namespace of its own; else starts it and waits for it.
fn in_own_namespace(test: &str) -> bool {
    if std::env::var_os(ROLE).is_some() {
        return true;
    }
    let output = again(test, Path::new("judge")).output().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", said(&output.stdout), said(&output.stderr));
    false
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A file system in a file. Unmounted when dropped, or with the namespace.
struct Ext4 {
    mount: PathBuf,
}

impl Ext4 {
    fn make(image: &Path, bytes: u64) {
        fs::File::create(image).unwrap().set_len(bytes).unwrap();
        run("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0", image.to_str().unwrap()]);
    }

    fn mount(image: &Path, mount: &Path) -> Self {
        fs::create_dir_all(mount).unwrap();
        run("mount", &["-o", "loop", image.to_str().unwrap(), mount.to_str().unwrap()]);
        Self { mount: mount.to_owned() }
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        // In use by a writer that was killed a moment ago: it goes when the last of it does.
        drop(Command::new("umount").arg("--lazy").arg(&self.mount).output());
    }
}

/// A new file system, mounted.
struct SmallDisk {
    mounted: Ext4,
    work: TempDir,
}

impl SmallDisk {
    fn new() -> Self {
        let work = tempfile::tempdir().unwrap();
        let image = work.path().join("image");
        Ext4::make(&image, IMAGE_BYTES);
        Self { mounted: Ext4::mount(&image, &work.path().join("mount")), work }
    }

    fn root(&self) -> &Path {
        &self.mounted.mount
    }

    /// Of a store.
    fn data(&self) -> PathBuf {
        self.root().join("data")
    }

    /// A place that is not on it.
    fn elsewhere(&self) -> PathBuf {
        self.work.path().join("elsewhere")
    }

    /// Takes all the room there is.
    fn fill(&self, name: &str) -> PathBuf {
        let path = self.root().join(name);
        let file = fs::File::create(&path).unwrap();
        let mut offset = 0;
        for step in [1024 * 1024, 4096] {
            let bytes = vec![1; step];
            while file.write_all_at(&bytes, offset).is_ok() {
                offset += step as u64;
            }
        }
        file.sync_all().unwrap();
        path
    }
}

/// Tells when a store says that its disk has failed.
fn listening() -> (FatalHook, std::sync::mpsc::Receiver<String>) {
    let (sender, fatal) = std::sync::mpsc::channel();
    (FatalHook::new(move |reason| drop(sender.send(reason.to_owned()))), fatal)
}
