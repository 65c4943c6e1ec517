//! One run: its id, its directory, and the removal of what a crashed run left.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};

use crate::namespace;

/// Set to anything to keep a run's directory (logs, data, configs) for reading.
const KEEP_VARIABLE: &str = "OUTPUTGUARD_LAB_KEEP";
/// Starts the names of all our namespaces; the maker's process id follows.
const NAMESPACE_PREFIX: &str = "oglab-";
/// Starts the names of all our directories in the temporary directory.
const DIRECTORY_PREFIX: &str = "outputguard-lab-";
/// Starts the names of those that are kept for reading.
const KEPT_PREFIX: &str = "outputguard-kept-";

static RUNS_OF_THIS_PROCESS: AtomicU32 = AtomicU32::new(0);

/// A run of the lab. Its id holds the process id, so that runs side by side differ and a leftover is recognised by
/// its maker being dead. Dropping it removes its directory.
#[derive(Debug)]
pub struct Run {
    id: String,
    directory: PathBuf,
    kept: AtomicBool,
}

impl Run {
    /// Removes leftovers of dead runs and begins a new one.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn begin() -> Result<Self> {
        remove_leftovers();
        let number = RUNS_OF_THIS_PROCESS.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{number}", process::id());
        let directory = std::env::temp_dir().join(format!("{DIRECTORY_PREFIX}{id}"));
        // Nobody alive can have made it (our own process id), so it is a leftover whose number came round again.
        let _ = fs::remove_dir_all(&directory);
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
        Ok(Self { id, directory, kept: AtomicBool::new(false) })
    }

    /// Where logs, configs and data of this run are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Lets the directory outlive the run, and tells where it will be: under another name, so that no later run takes it
    /// for a leftover.
    pub(crate) fn keep(&self) -> PathBuf {
        self.kept.store(true, Ordering::Relaxed);
        self.kept_directory()
    }

    fn kept_directory(&self) -> PathBuf {
        std::env::temp_dir().join(format!("{KEPT_PREFIX}{}", self.id))
    }

    /// Name of this run's namespace for `host`.
    pub fn namespace_name(&self, host: &str) -> String {
        format!("{NAMESPACE_PREFIX}{}-{host}", self.id)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.kept.load(Ordering::Relaxed) {
            let kept = self.kept_directory();
            // Of an earlier process with our number.
            let _ = fs::remove_dir_all(&kept);
            let _ = fs::rename(&self.directory, kept);
        } else if std::env::var_os(KEEP_VARIABLE).is_none() {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// Removes namespaces and directories whose maker is dead. Its processes died with it (see `Process`).
fn remove_leftovers() {
    for name in names_in(Path::new(namespace::MOUNT_DIRECTORY), NAMESPACE_PREFIX) {
        namespace::remove(&name);
    }
    let temporary = std::env::temp_dir();
    for name in names_in(&temporary, DIRECTORY_PREFIX) {
        let directory = temporary.join(name);
        unmount_below(&directory);
        let _ = fs::remove_dir_all(directory);
    }
}

/// Takes away what a dead run mounted, the newest first.
fn unmount_below(directory: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
    for point in points.filter(|point| point.starts_with(directory)).collect::<Vec<_>>().into_iter().rev() {
        let _ = umount2(point, MntFlags::MNT_DETACH);
    }
}

/// Names in `directory` that start with `prefix` and a dead process id.
fn names_in(directory: &Path, prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.strip_prefix(prefix).is_some_and(made_by_a_dead_process))
        .collect()
}

fn made_by_a_dead_process(id: &str) -> bool {
    let Some(pid) = id.split('-').next().and_then(|text| text.parse::<u32>().ok()) else { return false };
    matches!(fs::metadata(format!("/proc/{pid}")), Err(error) if error.kind() == ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_of_dead_processes_are_leftovers() {
        assert!(!made_by_a_dead_process(&format!("{}-0-core", process::id())));
        assert!(made_by_a_dead_process("4194305-0-core"), "above the kernel's largest process id");
        assert!(!made_by_a_dead_process("somebody-elses"));
    }

    #[test]
    fn two_runs_of_one_process_have_different_names_and_directories() {
        let (first, second) = (Run::begin().unwrap(), Run::begin().unwrap());
        assert_ne!(first.namespace_name("core"), second.namespace_name("core"));
        let directory = first.directory().to_owned();
        assert_ne!(directory, second.directory());
        drop(first);
        assert!(!directory.exists());
    }
}
