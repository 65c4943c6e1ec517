//! The wall clock of one process, by libfaketime: time namespaces do not have one, and the machine's must not be touched.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where Debian's multiarch directories are.
const LIBRARY_DIRECTORY: &str = "/usr/lib";

/// A file that says how far a process's wall clock is off. The process reads it every time it looks at the clock.
#[derive(Debug)]
pub(super) struct Clock {
    file: PathBuf,
}

impl Clock {
    /// A right clock, kept in `file`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn new(file: PathBuf) -> Result<Self> {
        let clock = Self { file };
        clock.set_off(0)?;
        Ok(clock)
    }

    /// Puts the clock so many seconds ahead (or, below zero, behind).
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn set_off(&self, seconds: i64) -> Result<()> {
        // Renamed into place: never half written for whoever reads it in between.
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{seconds:+}\n")).with_context(|| format!("write {}", new.display()))?;
        fs::rename(&new, &self.file).with_context(|| format!("write {}", self.file.display()))
    }

    /// What the process needs in its environment beside the library.
    pub(super) fn environment(&self) -> Vec<(String, String)> {
        [
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string().as_str()),
            ("FAKETIME_NO_CACHE", "1"),
            // Timers, and the times of files, are left alone.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("NO_FAKE_STAT", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }
}

/// The path of a library to be loaded before others: `name` below one of Debian's multiarch directories.
///
/// # Errors
/// When it is not installed, naming `package`.
pub(super) fn library(name: &str, package: &str) -> Result<PathBuf> {
    let directories = fs::read_dir(LIBRARY_DIRECTORY).context("list the library directories")?;
    let mut paths = directories.flatten().map(|directory| directory.path().join(name));
    paths.find(|path: &PathBuf| Path::is_file(path)).with_context(|| {
        format!("{name} is nowhere below {LIBRARY_DIRECTORY}: install the package {package} (scripts/install-packages test)")
    })
}
