//! The one thread that writes the log. It takes what has gathered, writes it as one batch, syncs once, and completes the
//! requests in their order: completions that overtake each other have been a class of bugs elsewhere. The next batch
//! is written only after this one is synced; that is what lets [`super::opening`] tell a torn tail from damage.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::flushed::Flushed;
use super::frame;
use super::marks::Marks;
use super::queue::{Core, Request};
use super::record::Record;
use super::segment::{OpenSegment, Segment};
use super::sync_times::SyncTimes;
use crate::disk::Disk;
use crate::fatal::FatalHook;
use crate::space::Space;
use crate::types::Entry;

/// What is written, and where.
pub(super) struct Files {
    pub(super) disk: Disk,
    pub(super) dir: PathBuf,
    pub(super) space: Space,
    /// A segment is sealed with the batch that brings it over this size.
    pub(super) segment_bytes: u64,
    pub(super) open: OpenSegment,
    /// Oldest first.
    pub(super) closed: VecDeque<Closed>,
    /// Of the next batch.
    pub(super) sequence: u64,
    /// As of the last batch: those in memory are ahead of it.
    pub(super) marks: Marks,
    /// The largest index of an entry in the open segment.
    pub(super) largest: Option<u64>,
}

/// A sealed segment.
pub(super) struct Closed {
    pub(super) segment: Arc<Segment>,
    pub(super) bytes: u64,
    /// The largest index of an entry that was ever in it.
    pub(super) largest: Option<u64>,
}

pub(super) struct Writer {
    pub(super) files: Files,
    pub(super) core: Arc<Core>,
    pub(super) flushed: Arc<Flushed>,
    pub(super) fatal: FatalHook,
    pub(super) counts: Arc<Counts>,
}

/// What others may ask about the writer's work.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) syncs: SyncTimes,
    /// Of all segments.
    pub(super) bytes: AtomicU64,
}

/// Tells those who wait when the thread ends, however it ends.
struct Ended(Arc<Core>);

impl Drop for Ended {
    fn drop(&mut self) {
        let reason = "the log's writer thread has stopped";
        self.0.break_off(reason).into_iter().for_each(|request| request.fail(reason));
    }
}

impl Writer {
    /// Works until the handles are gone or the disk fails.
    pub(super) fn run(mut self) {
        let ended = Ended(Arc::clone(&self.core));
        while let Some(batch) = ended.0.next_batch() {
            if let Err(error) = self.write(&batch) {
                let reason = format!("write the raft log in {}: {error}", self.files.dir.display());
                let behind = self.core.break_off(&reason);
                batch.into_iter().chain(behind).for_each(|request| request.fail(&reason));
                self.fatal.call(&reason);
                return;
            }
            batch.into_iter().for_each(|request| self.complete(request));
            self.files.remove_purged();
            self.counts.bytes.store(self.files.bytes(), Ordering::Relaxed);
        }
        if let Err(error) = self.files.open.trim() {
            tracing::warn!(%error, dir = %self.files.dir.display(), "cut the zeros behind the log");
        }
    }

    /// Everything in `batch` is on disk when this returns.
    fn write(&mut self, batch: &[Request]) -> io::Result<()> {
        let mut frame = vec![0; frame::HEADER_BYTES];
        let mut places: Vec<(&Arc<Entry>, usize)> = Vec::new();
        for request in batch {
            match request {
                Request::Entries { piece, .. } => {
                    let mut offset = frame.len() - frame::HEADER_BYTES;
                    for (entry, len) in &piece.entries {
                        places.push((entry, offset));
                        self.files.marks.last = Some(entry.log_id);
                        self.files.largest = self.files.largest.max(Some(entry.log_id.index));
                        offset += len;
                    }
                    frame.extend_from_slice(&piece.bytes);
                }
                Request::Record { record, .. } => self.files.put(*record, &mut frame),
                Request::Committed(id) => self.files.put(Record::Committed(*id), &mut frame),
            }
        }
        let offset = self.files.write(&mut frame, &self.counts.syncs)?;
        let segment = Arc::clone(&self.files.open.segment);
        let mut inner = self.core.inner();
        for (entry, in_payload) in places {
            inner.memory.place(entry, &segment, offset + in_payload as u32);
        }
        inner.memory.evict();
        drop(inner);
        match self.files.open.len() >= self.files.segment_bytes {
            true => self.files.rotate(&self.counts.syncs),
            false => Ok(()),
        }
    }

    fn complete(&self, request: Request) {
        match request {
            Request::Entries { completion, .. } => {
                if let Some(completion) = completion {
                    completion.finish(Ok(()));
                }
            }
            Request::Record { record, done } => {
                match record {
                    // What came before is complete, so nothing older can raise it again.
                    Record::Truncate(last) => self.flushed.retreat(last.map_or(0, |id| id.index + 1)),
                    Record::Purge(upto) => self.flushed.advance(upto.index + 1),
                    _ => {}
                }
                // The asking future may have been dropped; the work is done all the same.
                drop(done.send(Ok(())));
            }
            Request::Committed(_) => {}
        }
    }
}

impl Request {
    pub(super) fn fail(self, reason: &str) {
        match self {
            Self::Entries { completion, .. } => {
                if let Some(completion) = completion {
                    completion.finish(Err(io::Error::other(reason.to_owned())));
                }
            }
            Self::Record { done, .. } => drop(done.send(Err(io::Error::other(reason.to_owned())))),
            Self::Committed(_) => {}
        }
    }
}

impl Files {
    fn put(&mut self, record: Record, frame: &mut Vec<u8>) {
        record.put(frame);
        self.marks.note(&record);
    }

    /// Writes a batch and syncs it; answers with the offset of its payload.
    fn write(&mut self, frame: &mut Vec<u8>, syncs: &SyncTimes) -> io::Result<u32> {
        let offset = match self.open.write(frame, self.sequence) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull && self.space.release() => {
                self.open.write(frame, self.sequence)?
            }
            written => written?,
        };
        let begun = Instant::now();
        self.open.sync()?;
        syncs.note(begun.elapsed());
        self.sequence += 1;
        Ok(offset)
    }

    /// Seals the open segment and begins the next one. The order matters: see [`super::segment`].
    fn rotate(&mut self, syncs: &SyncTimes) -> io::Result<()> {
        let next = self.sequence + 1;
        let begin = || OpenSegment::begin(&self.disk, &self.dir, next, self.open.segment.first, self.marks);
        let begun = match begin() {
            Err(error) if error.kind() == io::ErrorKind::StorageFull && self.space.release() => begin()?,
            begun => begun?,
        };
        let mut seal = vec![0; frame::HEADER_BYTES];
        Record::Seal(next).put(&mut seal);
        self.write(&mut seal, syncs)?;
        self.open.trim()?;
        let sealed = std::mem::replace(&mut self.open, begun);
        let bytes = sealed.len();
        self.closed.push_back(Closed { segment: sealed.segment, bytes, largest: self.largest.take() });
        Ok(())
    }

    /// Removes the oldest segments as far as nothing in them is needed. That can wait when it fails: it is tried again
    /// with the next batch.
    pub(super) fn remove_purged(&mut self) {
        let purged = self.marks.purged.map(|id| id.index);
        while self.closed.front().is_some_and(|oldest| oldest.largest <= purged) {
            let Some(oldest) = self.closed.pop_front() else { return };
            let removed =
                self.disk.remove(oldest.segment.path()).and_then(|()| self.disk.sync_dir(&self.dir));
            if let Err(error) = removed {
                tracing::warn!(%error, path = %oldest.segment.path().display(), "remove a purged segment of the log");
                if oldest.segment.path().exists() {
                    self.closed.push_front(oldest);
                }
                return;
            }
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.closed.iter().map(|closed| closed.bytes).sum::<u64>() + self.open.len()
    }
}
