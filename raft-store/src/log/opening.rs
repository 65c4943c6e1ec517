//! Reading the log when it is opened: what is a torn tail, what is damage, what is left over.
//!
//! A batch is written only after the one before is synced, so a power cut can leave at most the last one incomplete, in
//! any way: missing, in parts, with zeros. Such a tail is cut off; nobody was told that it is there. A damaged batch
//! with a later one behind it was on disk once: that is not a power cut, and the log is refused. So is a chain of
//! segments with a gap, unless everything before the gap was purged.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame;
use super::marks::Marks;
use super::memory::Memory;
use super::record::Record;
use super::segment::{
    self, FORMAT_VERSION, HEADER_BYTES, Header, HeaderError, OpenSegment, SEGMENT_BYTES, Segment,
};
use super::writer::{Closed, Files};
use crate::disk::Disk;
use crate::error::OpenError;
use crate::space::Space;

/// Sequence of the first batch of a log.
const FIRST_SEQUENCE: u64 = 1;
/// End of the names of the files that the crate `raft-log` wrote.
const OLD_FORMAT_ENDING: &str = "wal";

/// A segment that was read to its end.
struct Found {
    segment: Arc<Segment>,
    header: Header,
    /// Of the good batches.
    len: u64,
    /// Where the last good batch begins; without one the header.
    last_batch: u64,
    largest: Option<u64>,
    /// Of the batch after the last good one.
    sequence: u64,
    sealed: Option<u64>,
}

/// How an open log ended, when not well.
enum Refusal {
    Damaged(String),
    Open(OpenError),
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self::Damaged(reason)
    }
}

/// Opens the log in `dir`, which exists. `known` is true when this node was fully begun once: an empty directory is then
/// a loss.
pub(super) fn open(
    disk: &Disk,
    dir: &Path,
    space: &Space,
    known: bool,
) -> Result<(Files, Memory), OpenError> {
    read(disk, dir, space, known).map_err(|refusal| match refusal {
        Refusal::Damaged(reason) => OpenError::Log { path: dir.to_owned(), reason },
        Refusal::Open(error) => error,
    })
}

fn read(disk: &Disk, dir: &Path, space: &Space, known: bool) -> Result<(Files, Memory), Refusal> {
    let at = |error| Refusal::Open(OpenError::at(dir)(error));
    refuse_old_format(dir).map_err(at)??;
    let files = segment::files(dir).map_err(at)?;
    let mut chain: VecDeque<Found> = VecDeque::new();
    let mut memory = Memory::default();
    // Removed at the end, when it is certain that nothing in them is needed.
    let mut surplus: Vec<PathBuf> = Vec::new();
    let count = files.len();
    for (number, (first, path)) in files.into_iter().enumerate() {
        let is_last = number + 1 == count;
        let file = disk.open(&path).map_err(|error| Refusal::Open(OpenError::at(&path)(error)))?;
        let bytes = std::fs::read(&path).map_err(|error| Refusal::Open(OpenError::at(&path)(error)))?;
        let unsealed = chain.back().is_none_or(|before| before.sealed.is_none());
        let header = match Header::read(&bytes) {
            Ok(header) if header.first == first => header,
            // Begun, and not on disk as a whole before a crash: nothing was written behind it.
            Err(HeaderError::Damaged) if is_last && unsealed && !(known && chain.is_empty()) => {
                surplus.push(path);
                continue;
            }
            Err(HeaderError::NewerVersion(found)) => {
                return Err(Refusal::Open(OpenError::NewerVersion { path, found, known: FORMAT_VERSION }));
            }
            _ => return Err(format!("the header of {} is damaged", name(&path)).into()),
        };
        let segment = Arc::new(Segment::new(first, file));
        match chain.back() {
            Some(before) if before.sealed == Some(first) && header.previous == before.header.first => {
                if header.marks != memory.marks {
                    return Err(format!("{} does not continue the file before it", name(&path)).into());
                }
            }
            // Begun, and the one before not sealed before a crash: empty.
            Some(before) if before.sealed.is_none() && header.previous == before.header.first => {
                if is_last && header.first == before.sequence + 1 && is_empty(&bytes, header) {
                    surplus.push(path);
                    continue;
                }
                return Err(format!("the end of {} is missing", name(before.segment.path())).into());
            }
            // A gap: what is before it must have been purged, or is missed below.
            _ => {
                surplus.extend(chain.drain(..).map(|found| found.segment.path().to_owned()));
                memory = Memory::starting_at(header.marks);
            }
        }
        chain.push_back(read_batches(segment, header, &bytes, &mut memory)?);
    }
    let whole = chain.front().is_none_or(|oldest| oldest.header.previous == 0);
    if let Some((from, to)) = memory.missing().filter(|_| !whole) {
        return Err(format!("entries {from} to {to} are missing: the files that held them are gone").into());
    }
    let Some(last) = chain.pop_back() else {
        return begin(disk, dir, space, known, &surplus);
    };
    if let Some(next) = last.sealed {
        return Err(format!("{} is missing", segment::file_name(next)).into());
    }
    // Its seal may be the last thing that was written: without it, what is written from now on has no beginning.
    if let Some(sealed) = chain.back() {
        sealed.segment.settle(sealed.last_batch, sealed.len).map_err(at)?;
    }
    let open = OpenSegment::resume(last.segment, last.header.salt, last.last_batch, last.len).map_err(at)?;
    surplus.iter().try_for_each(|path| disk.remove(path)).map_err(at)?;
    disk.sync_dir(dir).map_err(at)?;
    let closed = chain.into_iter().map(|found| Closed {
        segment: found.segment,
        bytes: found.len,
        largest: found.largest,
    });
    let mut files = Files {
        disk: disk.clone(),
        dir: dir.to_owned(),
        space: space.clone(),
        segment_bytes: SEGMENT_BYTES,
        open,
        closed: closed.collect(),
        sequence: last.sequence,
        marks: memory.marks,
        largest: last.largest,
    };
    files.remove_purged();
    Ok((files, memory))
}

fn begin(
    disk: &Disk,
    dir: &Path,
    space: &Space,
    known: bool,
    surplus: &[PathBuf],
) -> Result<(Files, Memory), Refusal> {
    if known {
        return Err("all its files are gone".to_owned().into());
    }
    let at = |error| Refusal::Open(OpenError::at(dir)(error));
    surplus.iter().try_for_each(|path| disk.remove(path)).map_err(at)?;
    let open = OpenSegment::begin(disk, dir, FIRST_SEQUENCE, 0, Marks::default()).map_err(at)?;
    let files = Files {
        disk: disk.clone(),
        dir: dir.to_owned(),
        space: space.clone(),
        segment_bytes: SEGMENT_BYTES,
        open,
        closed: VecDeque::new(),
        sequence: FIRST_SEQUENCE,
        marks: Marks::default(),
        largest: None,
    };
    Ok((files, Memory::default()))
}

fn refuse_old_format(dir: &Path) -> std::io::Result<Result<(), String>> {
    for file in std::fs::read_dir(dir)? {
        let path = file?.path();
        if path.extension().is_some_and(|ending| ending == OLD_FORMAT_ENDING) {
            return Ok(Err(format!(
                "{} is in the format of an unreleased version, which this program does not read",
                name(&path)
            )));
        }
    }
    Ok(Ok(()))
}

/// Takes the good batches of a segment into `memory`.
fn read_batches(
    segment: Arc<Segment>,
    header: Header,
    bytes: &[u8],
    memory: &mut Memory,
) -> Result<Found, String> {
    let mut sequence = header.first;
    let (mut at, mut largest, mut sealed) = (HEADER_BYTES, None, None);
    let mut last_batch = 0;
    loop {
        let rest = &bytes[at.min(bytes.len())..];
        let here = frame::header(rest, header.salt);
        let payload = here.filter(|found| found.sequence == sequence).and_then(|found| found.payload(rest));
        let Some(payload) = payload else {
            if let Some(later) = frame::find_other(rest, header.salt, sequence) {
                return Err(format!(
                    "batch {sequence} in {} at {at} is damaged, and batch {later} behind it is not: it was on disk once, so this is no interrupted write",
                    name(segment.path())
                ));
            }
            break;
        };
        if sealed.is_some() {
            return Err(format!("{} goes on after its end", name(segment.path())));
        }
        let records = Record::all(payload)
            .map_err(|error| format!("batch {sequence} in {}: {error}", name(segment.path())))?;
        for record in &records {
            match record {
                Record::Entry { id, .. } if !memory.follows(id.index) => {
                    return Err(format!(
                        "entry {} in {} does not follow the one before, entry {} would",
                        id.index,
                        name(segment.path()),
                        memory.marks.next_index()
                    ));
                }
                Record::Entry { id, .. } => largest = largest.max(Some(id.index)),
                Record::Seal(next) => sealed = Some(*next),
                _ => {}
            }
            memory.replay(record, &segment, (at + frame::HEADER_BYTES) as u64);
        }
        last_batch = at as u64;
        at += frame::HEADER_BYTES + payload.len();
        sequence += 1;
    }
    Ok(Found { segment, header, len: at as u64, last_batch, largest, sequence, sealed })
}

/// True when no batch was ever written behind the header.
fn is_empty(bytes: &[u8], header: Header) -> bool {
    frame::find_other(&bytes[HEADER_BYTES..], header.salt, 0).is_none()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
