//! An own mark of where the log's chain of files ends. `raft-log` opens a chain whose last file is missing without a
//! word, and with it acknowledged entries and votes would be gone; this mark tells.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::durable;

/// Beside the log's directory, so that it also tells when that is gone.
const FILE_NAME: &str = "log-end";

/// The mark: the start (global offset) of the newest file whose first record is on disk.
#[derive(Debug)]
pub(super) struct ChainEnd {
    path: PathBuf,
    newest_start: u64,
}

impl ChainEnd {
    /// Reads the mark of the log in `data_dir`; `None` for a log that was never begun.
    pub(super) fn read(data_dir: &Path) -> io::Result<Option<u64>> {
        let bytes = match fs::read(data_dir.join(FILE_NAME)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the mark of the log's end is damaged");
        let (start, sum) = bytes.split_at_checked(8).ok_or_else(damaged)?;
        if crc32fast::hash(start).to_be_bytes() != sum {
            return Err(damaged());
        }
        Ok(Some(u64::from_be_bytes(start.try_into().map_err(|_| damaged())?)))
    }

    /// Writes the mark when it differs from `known`.
    pub(super) fn begin(data_dir: &Path, known: Option<u64>, newest_start: u64) -> io::Result<Self> {
        let end = Self { path: data_dir.join(FILE_NAME), newest_start };
        if known != Some(newest_start) {
            end.write()?;
        }
        Ok(end)
    }

    /// Where the newest file starts.
    pub(super) fn newest_start(&self) -> u64 {
        self.newest_start
    }

    /// The file that starts here is on disk with its first record: it must be found from now on. Before that, a
    /// power cut may legitimately lose it.
    pub(super) fn advance(&mut self, newest_start: u64) -> io::Result<()> {
        self.newest_start = newest_start;
        self.write()
    }

    fn write(&self) -> io::Result<()> {
        durable::replace_file(&self.path, &mark(self.newest_start))
    }
}

/// Start, big endian, and its CRC32.
fn mark(start: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&start.to_be_bytes());
    let sum = crc32fast::hash(&bytes[..8]);
    bytes[8..].copy_from_slice(&sum.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_has_these_exact_bytes_and_damage_is_seen() {
        assert_eq!(mark(0x0102), [0, 0, 0, 0, 0, 0, 1, 2, 0x92, 0x37, 0x8f, 0x04]);
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ChainEnd::read(dir.path()).unwrap(), None);
        ChainEnd::begin(dir.path(), None, 258).unwrap();
        assert_eq!(ChainEnd::read(dir.path()).unwrap(), Some(258));
        let mut damaged = mark(258);
        damaged[3] ^= 1;
        fs::write(dir.path().join(FILE_NAME), damaged).unwrap();
        ChainEnd::read(dir.path()).unwrap_err();
    }
}
