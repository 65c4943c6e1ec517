//! Whole states in files.

mod file;

pub use file::SnapshotFile;
