//! One gateway for each network namespace: what two of them would fight over is the kernel's, not a directory's.
//!
//! The lock is on a file named after the namespace, in a directory that only root can enter, so that nobody else can
//! keep the gateway from starting. It goes with the process, however that ends.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Where run-time files are, if it is there.
const RUN: &str = "/run";
/// Our directory in it.
const DIRECTORY: &str = "outputguard";
/// The network namespace of the calling thread.
const NAMESPACE: &str = "/proc/thread-self/ns/net";

/// Held while this process is the gateway of its network namespace.
#[derive(Debug)]
pub struct OnlyGateway {
    path: PathBuf,
    _lock: Flock<File>,
}

/// Why this process cannot be the gateway.
#[derive(Debug, thiserror::Error)]
pub enum OnlyGatewayError {
    /// Another one is.
    #[error(
        "another gateway process is running in this network namespace; stop it first (`systemctl stop \
         outputguard-gateway`, or find it with `fuser {}`)", .0.display()
    )]
    Taken(PathBuf),
    /// Others than root could take the lock.
    #[error("{} must be a directory of root's that nobody else can write to; remove it", .0.display())]
    Shared(PathBuf),
    /// The lock could not be taken.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl OnlyGateway {
    /// Becomes the gateway of the calling thread's network namespace. Where there is no /run, the lock is beside
    /// `state_dir`.
    ///
    /// # Errors
    /// [`OnlyGatewayError`].
    pub fn become_it(state_dir: &Path) -> Result<Self, OnlyGatewayError> {
        let parent = if Path::new(RUN).is_dir() { Some(Path::new(RUN)) } else { state_dir.parent() };
        Self::below(&parent.unwrap_or(state_dir).join(DIRECTORY))
    }

    fn below(directory: &Path) -> Result<Self, OnlyGatewayError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| OnlyGatewayError::Io { action, path, source }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed("create directory", directory))?;
        let found = fs::symlink_metadata(directory).map_err(failed("look at", directory))?;
        if !found.is_dir() || found.uid() != nix::unistd::geteuid().as_raw() || found.mode() & 0o022 != 0 {
            return Err(OnlyGatewayError::Shared(directory.to_owned()));
        }
        let namespace = fs::metadata(NAMESPACE).map_err(failed("look at", Path::new(NAMESPACE)))?.ino();
        let path = directory.join(format!("gateway-{namespace}.lock"));
        loop {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&path)
                .map_err(failed("open lock file", &path))?;
            let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((_, Errno::EWOULDBLOCK)) => return Err(OnlyGatewayError::Taken(path)),
                Err((_, errno)) => return Err(failed("lock", &path)(errno.into())),
            };
            // Whoever ended between opening and locking took the file away: then this lock is on nothing.
            let locked = lock.metadata().map_err(failed("look at", &path))?;
            if fs::metadata(&path).is_ok_and(|named| named.ino() == locked.ino()) {
                return Ok(Self { path, _lock: lock });
            }
        }
    }
}

impl Drop for OnlyGateway {
    /// Under the lock still, so that nobody has taken it yet.
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "the lock file could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn there_is_one_gateway_for_each_network_namespace() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join(DIRECTORY);
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let only = OnlyGateway::below(&directory).unwrap();
        assert!(matches!(OnlyGateway::below(&directory), Err(OnlyGatewayError::Taken(_))));
        let elsewhere = directory.clone();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            OnlyGateway::below(&elsewhere).unwrap();
        })
        .join()
        .unwrap();
        drop(only);
        drop(OnlyGateway::below(&directory).unwrap());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "nothing is left behind");
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_no_place_for_the_lock() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join(DIRECTORY);
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(OnlyGateway::below(&directory), Err(OnlyGatewayError::Shared(_))));
    }
}
