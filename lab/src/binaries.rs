//! Where the built programs are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Directory that holds the workspace's built binaries; `make` sets it for tests.
const DIRECTORY_VARIABLE: &str = "OUTPUTGUARD_BIN_DIR";

/// The directory of the built programs.
#[derive(Debug, Clone)]
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// `$OUTPUTGUARD_BIN_DIR`, or where the running executable is (for a test: the directory above its `deps`).
    ///
    /// # Errors
    /// When the running executable's path is unknown.
    pub fn find() -> Result<Self> {
        if let Some(directory) = std::env::var_os(DIRECTORY_VARIABLE) {
            return Ok(Self { directory: directory.into() });
        }
        let executable = std::env::current_exe().context("find the running executable")?;
        let directory = executable.parent().unwrap_or(Path::new("/"));
        let directory =
            if directory.ends_with("deps") { directory.parent().unwrap_or(directory) } else { directory };
        Ok(Self { directory: directory.to_owned() })
    }

    /// Path of one program.
    ///
    /// # Errors
    /// When it is not built, saying how to build it.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        ensure!(
            path.is_file(),
            "{} is not there: build the workspace (cargo build --workspace) or set {DIRECTORY_VARIABLE}",
            path.display()
        );
        Ok(path)
    }
}
