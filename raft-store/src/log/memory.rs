//! The log in memory: its marks, where each entry is, and the newest entries themselves.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::marks::Marks;
use super::record::{self, Record};
use super::segment::Segment;
use crate::types::Entry;

/// Bytes (as encoded; in memory they are more) of synced entries kept, newest first, for apply and for followers that
/// are a little behind.
pub(super) const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// Everything known of the log. Requests change it when they are accepted, before they are on disk.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) marks: Marks,
    /// Index of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
    /// How many slots at the front have no entry in memory.
    evicted: usize,
    cached_bytes: usize,
    /// Bytes of all entries that were taken, but for those that were cut off again.
    taken_bytes: u64,
}

/// Where an entry is: in memory, on disk, or both; never nowhere.
#[derive(Debug, Clone)]
struct Slot {
    entry: Option<Arc<Entry>>,
    /// `None` until it is synced.
    segment: Option<Arc<Segment>>,
    offset: u32,
    /// Of the record.
    len: u32,
    /// [`Memory::taken_bytes`] with this entry.
    taken_bytes: u64,
}

/// An entry to be read, without the lock on the memory.
#[derive(Debug)]
pub(super) enum Source {
    Memory(Arc<Entry>),
    Disk { segment: Arc<Segment>, offset: u32, len: u32 },
}

impl Memory {
    /// The log as the header of a segment tells it: its entries are elsewhere.
    pub(super) fn starting_at(marks: Marks) -> Self {
        Self { marks, first: marks.next_index(), ..Self::default() }
    }

    /// Takes an entry that follows the last one.
    pub(super) fn push(&mut self, entry: Arc<Entry>, len: usize) {
        self.begin_at(entry.log_id.index);
        self.marks.last = Some(entry.log_id);
        self.cached_bytes += len;
        self.take(Some(entry), None, 0, len as u32);
    }

    fn take(&mut self, entry: Option<Arc<Entry>>, segment: Option<Arc<Segment>>, offset: u32, len: u32) {
        self.taken_bytes += u64::from(len);
        self.slots.push_back(Slot { entry, segment, offset, len, taken_bytes: self.taken_bytes });
    }

    /// Takes what a segment holds.
    pub(super) fn replay(&mut self, record: &Record, segment: &Arc<Segment>, payload_offset: u64) {
        match *record {
            Record::Entry { id, offset, len } => {
                self.begin_at(id.index);
                self.marks.note(record);
                let offset = (payload_offset + offset as u64) as u32;
                let segment = Some(Arc::clone(segment));
                self.take(None, segment, offset, len as u32);
                self.evicted += 1;
            }
            _ => self.note(record),
        }
    }

    /// True when an entry at `index` leaves no hole. A log that never had one begins anywhere.
    pub(super) fn follows(&self, index: u64) -> bool {
        self.marks.last.is_none_or(|last| last.index + 1 == index)
    }

    fn begin_at(&mut self, index: u64) {
        if self.slots.is_empty() {
            self.first = index;
        }
    }

    /// Takes any record but an entry.
    pub(super) fn note(&mut self, record: &Record) {
        self.marks.note(record);
        match record {
            Record::Truncate(_) => {
                let next = self.marks.next_index();
                while self.first + self.slots.len() as u64 > next {
                    let Some(slot) = self.slots.pop_back() else {
                        self.first = next;
                        break;
                    };
                    self.taken_bytes = slot.taken_bytes - u64::from(slot.len);
                    self.forget(&slot);
                }
                self.evicted = self.evicted.min(self.slots.len());
            }
            Record::Purge(_) => {
                let needed = self.marks.first_index();
                while self.first < needed {
                    let Some(slot) = self.slots.pop_front() else {
                        self.first = needed;
                        break;
                    };
                    self.first += 1;
                    self.evicted = self.evicted.saturating_sub(1);
                    self.forget(&slot);
                }
            }
            _ => {}
        }
    }

    fn forget(&mut self, slot: &Slot) {
        if slot.entry.is_some() {
            self.cached_bytes -= slot.len as usize;
        }
    }

    /// The entry is on disk there, if it still is the one at its index.
    pub(super) fn place(&mut self, entry: &Arc<Entry>, segment: &Arc<Segment>, offset: u32) {
        let Some(at) = entry.log_id.index.checked_sub(self.first) else { return };
        if let Some(slot) = self.slots.get_mut(at as usize)
            && slot.entry.as_ref().is_some_and(|here| Arc::ptr_eq(here, entry))
        {
            slot.segment = Some(Arc::clone(segment));
            slot.offset = offset;
        }
    }

    /// Lets go of the oldest entries that are on disk.
    pub(super) fn evict(&mut self) {
        while self.cached_bytes > CACHE_BYTES
            && let Some(slot) = self.slots.get_mut(self.evicted)
            && slot.segment.is_some()
        {
            if slot.entry.take().is_some() {
                self.cached_bytes -= slot.len as usize;
            }
            self.evicted += 1;
        }
    }

    /// Entries that are not purged.
    pub(super) fn entries(&self) -> u64 {
        self.slots.len() as u64
    }

    /// Bytes of the entries after `index`.
    pub(super) fn bytes_after(&self, index: u64) -> u64 {
        self.taken_bytes - self.taken_up_to(index)
    }

    /// The newest entry that can go when, of those up to `index`, the last `bytes` are to stay.
    pub(super) fn surplus(&self, index: u64, bytes: u64) -> Option<u64> {
        let goes = self.taken_up_to(index).saturating_sub(bytes);
        // What is only partly among the last bytes goes, too.
        let count = self.slots.partition_point(|slot| slot.taken_bytes - u64::from(slot.len) < goes);
        let last = self.first + (count as u64).checked_sub(1)?;
        Some(last.min(index))
    }

    fn taken_up_to(&self, index: u64) -> u64 {
        let before =
            self.slots.front().map_or(self.taken_bytes, |slot| slot.taken_bytes - u64::from(slot.len));
        let Some(at) = index.checked_sub(self.first) else { return before };
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        self.slots.get(at).map_or(self.taken_bytes, |slot| slot.taken_bytes)
    }

    /// Indexes of entries that are needed and not here, of a log that had a beginning.
    pub(super) fn missing(&self) -> Option<(u64, u64)> {
        let (needed, end) = (self.marks.first_index(), self.first.min(self.marks.next_index()));
        (needed < end).then(|| (needed, end - 1))
    }

    /// Where the entries from `start` on (or the first one that is left) are, before `end`, at most `max_entries`, and no more after those that reach
    /// `max_bytes`.
    pub(super) fn sources(&self, start: u64, end: u64, max_entries: usize, max_bytes: usize) -> Vec<Source> {
        let start = start.max(self.first);
        let skip = start - self.first;
        let wanted = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX).min(max_entries);
        let mut bytes = 0;
        let slots = self.slots.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX)).take(wanted);
        slots
            .take_while(|slot| {
                let fits = bytes < max_bytes;
                bytes = bytes.saturating_add(slot.len as usize);
                fits
            })
            .filter_map(|slot| match (&slot.entry, &slot.segment) {
                (Some(entry), _) => Some(Source::Memory(Arc::clone(entry))),
                (None, Some(segment)) => {
                    Some(Source::Disk { segment: Arc::clone(segment), offset: slot.offset, len: slot.len })
                }
                (None, None) => None,
            })
            .collect()
    }
}

impl Source {
    pub(super) fn is_on_disk(&self) -> bool {
        matches!(self, Self::Disk { .. })
    }

    /// Blocks when it is on disk.
    pub(super) fn read(&self) -> io::Result<Entry> {
        match self {
            Self::Memory(entry) => Ok((**entry).clone()),
            Self::Disk { segment, offset, len } => {
                record::entry(&segment.read(*offset, *len)?).map_err(|error| {
                    let place = format!("entry at {offset} of {}: {error}", segment.path().display());
                    io::Error::new(error.kind(), place)
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;
    use openraft::vote::RaftLeaderId;

    use super::*;
    use crate::disk::Disk;
    use crate::types::LogId;

    fn id(index: u64) -> LogId {
        LogId::new(RaftLeaderId::new(1, 1), index)
    }

    fn entry(index: u64) -> Arc<Entry> {
        Arc::new(Entry { log_id: id(index), payload: EntryPayload::Blank })
    }

    fn segment(dir: &tempfile::TempDir) -> Arc<Segment> {
        Arc::new(Segment::new(1, Disk::default().create(&dir.path().join("x")).unwrap()))
    }

    #[test]
    fn an_entry_leaves_memory_only_when_it_is_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let segment = segment(&dir);
        let mut memory = Memory::default();
        let entries: Vec<_> = (0..4).map(entry).collect();
        entries.iter().for_each(|entry| memory.push(Arc::clone(entry), CACHE_BYTES / 2));
        memory.evict();
        assert!(memory.sources(0, 9, 9, usize::MAX).iter().all(|source| !source.is_on_disk()));
        entries.iter().take(3).for_each(|entry| memory.place(entry, &segment, 0));
        memory.evict();
        let on_disk: Vec<_> = memory.sources(0, 9, 9, usize::MAX).iter().map(Source::is_on_disk).collect();
        assert_eq!(on_disk, [true, true, false, false]);
    }

    #[test]
    fn an_entry_that_was_cut_off_before_it_was_written_does_not_place_its_successor() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = Memory::default();
        let first = entry(0);
        memory.push(Arc::clone(&first), 10);
        memory.note(&Record::Truncate(None));
        memory.push(entry(0), CACHE_BYTES * 2);
        memory.place(&first, &segment(&dir), 0);
        memory.evict();
        assert!(!memory.sources(0, 1, 1, 1)[0].is_on_disk());
    }

    #[test]
    fn purging_and_truncating_keep_the_count_of_what_is_in_memory() {
        let mut memory = Memory::default();
        (0..10).for_each(|index| memory.push(entry(index), 100));
        memory.note(&Record::Purge(id(3)));
        memory.note(&Record::Truncate(Some(id(6))));
        assert_eq!((memory.cached_bytes, memory.entries(), memory.missing()), (300, 3, None));
        memory.note(&Record::Purge(id(20)));
        assert_eq!((memory.cached_bytes, memory.entries()), (0, 0));
        assert_eq!(memory.marks.last, Some(id(20)));
        memory.push(entry(21), 1);
        assert_eq!(memory.sources(21, 22, 1, 1).len(), 1);
    }

    /// Entries 10 to 19, of 100 bytes each.
    fn memory() -> Memory {
        let mut memory = Memory::default();
        (10..20).for_each(|index| memory.push(entry(index), 100));
        memory
    }

    #[test]
    fn bytes_are_those_of_the_entries_that_are_left() {
        let mut memory = memory();
        assert_eq!(
            [0, 9, 10, 18, 19, 99].map(|index| memory.bytes_after(index)),
            [1_000, 1_000, 900, 100, 0, 0]
        );
        memory.note(&Record::Purge(id(12)));
        assert_eq!([0, 12, 13].map(|index| memory.bytes_after(index)), [700, 700, 600]);
        memory.note(&Record::Truncate(Some(id(16))));
        memory.push(entry(17), 50);
        assert_eq!([12, 16, 17].map(|index| memory.bytes_after(index)), [450, 50, 0]);
        memory.note(&Record::Truncate(Some(id(12))));
        assert_eq!(memory.bytes_after(0), 0);
    }

    #[test]
    fn what_goes_leaves_no_more_bytes_than_were_asked_for() {
        let memory = memory();
        assert_eq!(
            [1_000, 999, 300, 299, 0].map(|bytes| memory.surplus(19, bytes)),
            [None, Some(10), Some(16), Some(17), Some(19)]
        );
        assert_eq!(memory.surplus(14, 200), Some(12));
        assert_eq!(memory.surplus(14, 0), Some(14), "what comes after is not asked about");
        assert_eq!(memory.surplus(9, 0), None);
        assert_eq!(Memory::default().surplus(9, 0), None);
    }
}
