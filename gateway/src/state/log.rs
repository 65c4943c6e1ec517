//! The files `state.log.<n>`: the steps since the checkpoint.
//!
//! Layout: magic (8 bytes) and format version (u32); then for each record its length (u32), the CRC-32 of its body
//! (u32), all little endian, and the body in bincode. Records are numbered; the digest after each is part of it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use allowlist::feed::FeedState;
use allowlist::{Change, Digest, Element, Revision};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::checkpoint::u32_at;
use super::{Base, LOG_PREFIX, Unusable};
use crate::held::Held;

const MAGIC: &[u8; 8] = b"OGSTLOG\n";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 12;
const RECORD_HEADER_BYTES: usize = 8;

/// One step.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    sequence: u64,
    cluster: Uuid,
    revision: Revision,
    digest: Digest,
    step: Step,
}

#[derive(Debug, Serialize, Deserialize)]
enum Step {
    /// From the set before.
    Change { added: Vec<Element>, removed: Vec<Element> },
    /// Whatever was before.
    Whole(Vec<Element>),
}

impl Record {
    pub(super) fn change(point: FeedState, added: Vec<Element>, removed: Vec<Element>) -> Self {
        Self::new(point, Step::Change { added, removed })
    }

    pub(super) fn whole(point: FeedState, elements: Vec<Element>) -> Self {
        Self::new(point, Step::Whole(elements))
    }

    /// Its bytes under that number; none when it cannot be written.
    #[cfg(feature = "fuzzing")]
    pub(super) fn body(mut self, sequence: u64) -> Vec<u8> {
        self.sequence = sequence;
        bincode::serde::encode_to_vec(&self, bincode::config::standard()).unwrap_or_default()
    }

    fn new(point: FeedState, step: Step) -> Self {
        let FeedState { cluster, revision, digest } = point;
        Self { sequence: 0, cluster, revision, digest, step }
    }
}

/// The log being written.
#[derive(Debug)]
pub(super) struct Log {
    file: Arc<File>,
    sequence: u64,
    bytes: u64,
    /// A record was written in part or not at all; what follows could not be read in order.
    broken: bool,
}

impl Log {
    /// Begins a log for the records after number `sequence`. A file of that name holds none: nothing after
    /// `sequence` was ever read or written whole.
    pub(super) fn begin(dir: &Path, sequence: u64) -> io::Result<Self> {
        let path = dir.join(format!("{LOG_PREFIX}{}", sequence + 1));
        let mut file = File::create(&path)?;
        file.write_all(&header())?;
        Ok(Self { file: Arc::new(file), sequence, bytes: HEADER_BYTES as u64, broken: false })
    }

    /// Appends a record; it is in the page cache afterwards, so a crash of this process cannot lose it.
    pub(super) fn append(&mut self, mut record: Record) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("an earlier write to this log failed; waiting for a new one"));
        }
        record.sequence = self.sequence + 1;
        let mut bytes = vec![0; RECORD_HEADER_BYTES];
        bincode::serde::encode_into_std_write(&record, &mut bytes, bincode::config::standard())
            .map_err(io::Error::other)?;
        fill_header(&mut bytes)?;
        if let Err(error) = (&*self.file).write_all(&bytes) {
            self.broken = true;
            return Err(error);
        }
        self.sequence += 1;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Number of the newest record.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }
}

/// What a log begins with.
pub(super) fn header() -> Vec<u8> {
    [&MAGIC[..], &VERSION.to_le_bytes()].concat()
}

/// Writes length and checksum of the body behind it into a record's header.
fn fill_header(record: &mut [u8]) -> io::Result<()> {
    let body = &record[RECORD_HEADER_BYTES..];
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let crc = crc32fast::hash(body);
    record[..4].copy_from_slice(&length.to_le_bytes());
    record[4..8].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// A body behind its header; none when it is too long for one.
#[cfg(feature = "fuzzing")]
pub(super) fn frame(body: &[u8]) -> Vec<u8> {
    let mut record = [&[0; RECORD_HEADER_BYTES], body].concat();
    fill_header(&mut record).map(|()| record).unwrap_or_default()
}

/// The logs in `dir`, in order, with the number of the first record each was begun for.
pub(super) fn list(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut logs = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.strip_prefix(LOG_PREFIX))
            .and_then(|number| number.parse().ok());
        if let Some(number) = number {
            logs.push((number, entry.path()));
        }
    }
    logs.sort_unstable();
    Ok(logs)
}

/// Goes through the records of one log. A torn end is what power loss leaves, and ends the log; anything else that
/// does not read is corruption.
pub(super) fn replay(path: &Path, base: &mut Option<Base>) -> Result<(), Unusable> {
    let file = path.display().to_string();
    let bytes = fs::read(path).map_err(|source| Unusable::Io { file: file.clone(), source })?;
    follow_all(&file, &bytes, base)
}

/// As [`replay`], of the bytes of a log; `file` is its name in messages.
pub(super) fn follow_all(file: &str, bytes: &[u8], base: &mut Option<Base>) -> Result<(), Unusable> {
    let Some((header, mut rest)) = bytes.split_at_checked(HEADER_BYTES) else { return Ok(()) };
    if header.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    if &header[..8] != MAGIC {
        return Err(Unusable::Corrupt(format!("{file}: not a state log of an OutputGuard gateway")));
    }
    let version = u32_at(header, 8);
    if version != VERSION {
        return Err(Unusable::Version { file: file.to_owned(), found: version, known: VERSION });
    }
    while !rest.is_empty() {
        let Some(body) = whole_record(rest) else {
            tracing::warn!(
                file,
                bytes = rest.len(),
                "state log ends in a torn record, as after a power loss"
            );
            return Ok(());
        };
        let next = &rest[RECORD_HEADER_BYTES + body.len()..];
        if crc32fast::hash(body) != u32_at(rest, 4) {
            if next.iter().all(|byte| *byte == 0) {
                tracing::warn!(
                    file,
                    bytes = rest.len(),
                    "state log ends in a torn record, as after a power loss"
                );
                return Ok(());
            }
            return Err(Unusable::Corrupt(format!("{file}: the checksum of a record is wrong")));
        }
        let (record, _): (Record, usize) = bincode::serde::decode_from_slice(body, super::decoding())
            .map_err(|error| Unusable::Corrupt(format!("{file}: {error}")))?;
        follow(file, record, base)?;
        rest = next;
    }
    Ok(())
}

/// The body of the first record, when it is all there.
fn whole_record(rest: &[u8]) -> Option<&[u8]> {
    let (header, bodies) = rest.split_at_checked(RECORD_HEADER_BYTES)?;
    let length = usize::try_from(u32_at(header, 0)).ok()?;
    // No record is empty; a length of zero is a page that was never written.
    if length == 0 { None } else { bodies.get(..length) }
}

fn follow(file: &str, record: Record, base: &mut Option<Base>) -> Result<(), Unusable> {
    let corrupt = |what: String| Unusable::Corrupt(format!("{file}: {what}"));
    let sequence = record.sequence;
    if base.as_ref().is_some_and(|base| sequence <= base.sequence) {
        return Ok(());
    }
    let held = match (record.step, base.take()) {
        (Step::Whole(elements), _) => {
            let elements: BTreeSet<Element> = elements.into_iter().collect();
            Held::published(record.cluster, record.revision, elements)
        }
        (Step::Change { added, removed }, Some(before))
            if sequence == before.sequence + 1 && before.held.cluster() == Some(record.cluster) =>
        {
            let mut held = before.held;
            held.apply(&Change { revision: record.revision, added, revoked: removed, retired: Vec::new() });
            held
        }
        (Step::Change { .. }, before) => {
            let after = before.map_or(0, |before| before.sequence);
            return Err(corrupt(format!("record {sequence} does not follow record {after}")));
        }
    };
    if held.digest() != record.digest {
        return Err(corrupt(format!("record {sequence} does not lead to its digest")));
    }
    *base = Some(Base { sequence, held });
    Ok(())
}
