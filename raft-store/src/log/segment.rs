//! A file of the log: a header in a block of its own, then batches, then zeros.
//!
//! ```text
//! magic     8   "OGLOG" 0 0 0
//! version   u32 of the format of header, frames and records
//! first     u64 sequence of the first batch; the file's name
//! previous  u64 the same of the segment before, 0 for the very first
//! salt      u64 random, in every frame of this segment
//! marks     vote, committed, purged, last as they were when it was begun: each u8 0, or u8 1 and the value
//! zeros
//! sum       u32 CRC32C of the 508 bytes before
//! ```
//! Little endian. A segment is begun only when everything in it can be found again: header and name are on disk before
//! the one before is sealed, and that seal is on disk before the first batch is written here.

use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::frame;
use super::marks::Marks;
use super::record::take_u64;
use crate::disk::{Disk, DiskFile};

/// A segment is sealed with the batch that brings it over this size.
pub(super) const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// The header's block, so that no later write touches its sector.
pub(super) const HEADER_BYTES: usize = 512;
/// Zeros written ahead in steps: overwriting them needs no journal commit of the file system with every sync, which
/// made a sync 1.7 to 2.4 times as fast as in a growing file (ext4; reserving space with fallocate gained less).
const AHEAD_BYTES: u64 = 256 * 1024;
/// Version of everything in the log's files.
pub(super) const FORMAT_VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"OGLOG\0\0\0";
const SUFFIX: &str = ".segment";

/// What stands at the start of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) first: u64,
    pub(super) previous: u64,
    pub(super) salt: u64,
    pub(super) marks: Marks,
}

/// Why bytes are not a header.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    Damaged,
    NewerVersion(u32),
}

/// A segment's file. Entries in it stay readable by whoever holds it, also after it was removed.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) first: u64,
    file: DiskFile,
}

/// The segment that is written.
#[derive(Debug)]
pub(super) struct OpenSegment {
    pub(super) segment: std::sync::Arc<Segment>,
    salt: u64,
    /// Where the next batch goes.
    len: u64,
    /// How far the file is filled, with zeros behind `len`.
    filled: u64,
}

impl Segment {
    pub(super) fn new(first: u64, file: DiskFile) -> Self {
        Self { first, file }
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    /// The record at `offset`.
    pub(super) fn read(&self, offset: u32, len: u32) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        self.file.read_exact_at(&mut bytes, u64::from(offset))?;
        Ok(bytes)
    }

    /// Everything up to `end` is on disk on return; what is before `from` was already. A process that was killed may have
    /// left the rest in the page cache only, and after a failed sync Linux counts it as clean, so that a sync alone would
    /// do nothing: the same bytes are written once more.
    pub(super) fn settle(&self, from: u64, end: u64) -> io::Result<()> {
        let len = usize::try_from(end.saturating_sub(from)).map_err(io::Error::other)?;
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, from)?;
        self.file.write_all_at(&bytes, from)?;
        self.file.sync()
    }
}

impl OpenSegment {
    /// Begins a segment; header and name are on disk on return.
    pub(super) fn begin(
        disk: &Disk,
        dir: &Path,
        first: u64,
        previous: u64,
        marks: Marks,
    ) -> io::Result<Self> {
        let (_, salt) = Uuid::new_v4().as_u64_pair();
        let file = disk.create(&dir.join(file_name(first)))?;
        file.write_all_at(&Header { first, previous, salt, marks }.bytes(), 0)?;
        file.sync()?;
        disk.sync_dir(dir)?;
        let len = HEADER_BYTES as u64;
        Ok(Self { segment: Segment { first, file }.into(), salt, len, filled: len })
    }

    /// Goes on with one that is there, behind its last good batch, which begins at `last_batch`. Everything of it is on
    /// disk on return, and nothing stands behind.
    pub(super) fn resume(
        segment: std::sync::Arc<Segment>,
        salt: u64,
        last_batch: u64,
        len: u64,
    ) -> io::Result<Self> {
        if segment.file.len()? != len {
            segment.file.set_len(len)?;
        }
        segment.settle(last_batch, len)?;
        Ok(Self { segment, salt, len, filled: len })
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Writes a frame, whose header is filled in here, and zeros ahead; answers with the offset of its payload. Nothing
    /// of it counts before [`Self::sync`].
    pub(super) fn write(&mut self, frame: &mut Vec<u8>, sequence: u64) -> io::Result<u32> {
        let start = self.len;
        frame::close(frame, sequence, self.salt);
        let frame_len = frame.len();
        let end = start + frame_len as u64;
        let fill = match end > self.filled {
            true => end + AHEAD_BYTES,
            false => end,
        };
        frame.resize(frame_len + (fill - end) as usize, 0);
        let written = match self.segment.file.write_all_at(frame, start) {
            // The zeros are only for speed.
            Err(error) if error.kind() == io::ErrorKind::StorageFull && fill > end => {
                frame.truncate(frame_len);
                self.segment.file.write_all_at(frame, start).map(|()| end)
            }
            written => written.map(|()| fill),
        };
        frame.truncate(frame_len);
        self.filled = self.filled.max(written?);
        self.len = end;
        u32::try_from(start + frame::HEADER_BYTES as u64).map_err(io::Error::other)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.segment.file.sync()
    }

    /// Gives the zeros back when nothing more will be written. It does not matter when a crash undoes that.
    pub(super) fn trim(&self) -> io::Result<()> {
        self.segment.file.set_len(self.len)
    }
}

impl Header {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        for number in [self.first, self.previous, self.salt] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        self.marks.put(&mut bytes);
        bytes.resize(HEADER_BYTES - 4, 0);
        let sum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self, HeaderError> {
        let header = bytes.get(..HEADER_BYTES).ok_or(HeaderError::Damaged)?;
        let (covered, sum) = header.split_at(HEADER_BYTES - 4);
        if crc32c::crc32c(covered).to_le_bytes() != sum {
            return Err(HeaderError::Damaged);
        }
        let rest = covered.strip_prefix(&MAGIC).ok_or(HeaderError::Damaged)?;
        let (version, mut rest) = rest.split_first_chunk().ok_or(HeaderError::Damaged)?;
        match u32::from_le_bytes(*version) {
            FORMAT_VERSION => {}
            newer => return Err(HeaderError::NewerVersion(newer)),
        }
        let fields = &mut rest;
        let numbers = (take_u64(fields), take_u64(fields), take_u64(fields));
        let (Some(first), Some(previous), Some(salt)) = numbers else { return Err(HeaderError::Damaged) };
        let marks = Marks::take(fields).ok_or(HeaderError::Damaged)?;
        Ok(Self { first, previous, salt, marks })
    }
}

pub(super) fn file_name(first: u64) -> String {
    format!("{first:020}{SUFFIX}")
}

/// The sequence in a segment's name; `None` for other files.
pub(super) fn first_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_suffix(SUFFIX)?.parse().ok()
}

/// Segments in `dir`, oldest first.
pub(super) fn files(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(dir)? {
        let path = file?.path();
        found.extend(first_of(&path).map(|first| (first, path)));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use openraft::vote::{RaftLeaderId, RaftVote};

    use super::*;
    use crate::types::{LogId, Vote};

    #[test]
    fn a_header_has_these_exact_bytes_and_any_flipped_bit_is_seen() {
        let id = |index| Some(LogId::new(RaftLeaderId::new(1, 2), index));
        let vote = Some(Vote::from_leader_id(RaftLeaderId::new(3, 4), true));
        let marks = Marks { vote, committed: id(5), purged: None, last: id(6) };
        let header = Header { first: 7, previous: 8, salt: 9, marks };
        let bytes = header.bytes();
        let hex: String = bytes[..120].iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = [
            "4f474c4f470000000100000007000000000000000800000000000000090000000000000001030000000000000004000000000000",
            "00010101000000000000000200000000000000050000000000000000010100000000000000020000000000000006000000000000",
            "0000000000000000000000000000000000",
        ];
        assert_eq!(hex, expected.concat()[..240]);
        assert_eq!(Header::read(&bytes), Ok(header));
        for bit in 0..HEADER_BYTES * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::read(&flipped), Err(HeaderError::Damaged));
        }
    }

    #[test]
    fn names_sort_by_sequence_and_other_files_are_none() {
        assert_eq!(first_of(Path::new("a/00000000000000000012.segment")), Some(12));
        assert_eq!(first_of(Path::new("a/x.segment")), None);
        assert!(file_name(2) < file_name(10));
    }
}
