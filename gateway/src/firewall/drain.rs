//! What drains: elements that left DNS, whose flows may go on until they are idle or their time is over.
//!
//! The kernel's sets say what drains, a file in the state directory until when. Without the file (or without a line in it)
//! the time begins anew at the start; after a reboot there are no flows that could drain.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use allowlist::{Element, PortRange};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Idle time after which an element stops draining. Long enough for pools of kept-alive connections, short enough that
/// an address somebody else may get next does not stay open.
pub const DRAIN_IDLE: Duration = Duration::from_secs(300);
/// Time after which it stops draining, whatever flows.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(3_600);

/// How long flows of what left DNS may go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainLimits {
    /// Without a packet for so long, it ends.
    pub idle: Duration,
    /// After so long it ends in any case.
    pub limit: Duration,
    /// File that remembers the ends across restarts.
    pub record: Option<PathBuf>,
}

impl Default for DrainLimits {
    fn default() -> Self {
        Self { idle: DRAIN_IDLE, limit: DRAIN_LIMIT, record: None }
    }
}

/// The elements that drain.
#[derive(Debug)]
pub(super) struct DrainBook {
    limits: DrainLimits,
    entries: BTreeMap<Element, Draining>,
    /// The file is behind.
    unwritten: bool,
}

#[derive(Debug, Clone, Copy)]
struct Draining {
    until: Instant,
    /// Packets at the last look, and when they last moved.
    packets: u64,
    moved: Instant,
}

/// The file.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    draining: Vec<RecordLine>,
}

#[derive(Debug, Serialize, Deserialize)]
struct RecordLine {
    element: Element,
    until_ms: u64,
}

const RECORD_VERSION: u32 = 1;

impl DrainBook {
    pub(super) fn new(limits: DrainLimits) -> Self {
        Self { limits, entries: BTreeMap::new(), unwritten: false }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn contains(&self, element: &Element) -> bool {
        self.entries.contains_key(element)
    }

    pub(super) fn elements(&self) -> impl Iterator<Item = &Element> {
        self.entries.keys()
    }

    /// It drains from now on; one that drains already keeps its end.
    pub(super) fn begin(&mut self, element: Element, now: Instant) {
        let until = now + self.limits.limit;
        self.entries.entry(element).or_insert(Draining { until, packets: 0, moved: now });
        self.unwritten = true;
    }

    /// It drains no more.
    pub(super) fn end(&mut self, element: &Element) {
        self.unwritten |= self.entries.remove(element).is_some();
    }

    /// Takes over what a former process left draining.
    pub(super) fn adopt(&mut self, elements: impl IntoIterator<Item = Element>, now: Instant) {
        let known = self.limits.record.as_deref().map(read).unwrap_or_default();
        let now_ms = unix_ms();
        self.entries.clear();
        for element in elements {
            let left =
                known.get(&element).map(|until_ms| Duration::from_millis(until_ms.saturating_sub(now_ms)));
            // A clock that was set back must not make it drain for longer.
            let left = left.unwrap_or(self.limits.limit).min(self.limits.limit);
            self.entries.insert(element, Draining { until: now + left, packets: 0, moved: now });
        }
        self.unwritten = true;
    }

    /// Notes how many packets were counted for it so far.
    pub(super) fn observe(&mut self, element: &Element, packets: u64, now: Instant) {
        if let Some(draining) = self.entries.get_mut(element)
            && packets != draining.packets
        {
            draining.packets = packets;
            draining.moved = now;
        }
    }

    /// What drains within what is `removed`, without the elements that are named there themselves.
    pub(super) fn covered_by(&self, removed: &BTreeSet<Element>) -> Vec<Element> {
        covered(self.entries.keys(), removed)
    }

    /// The elements whose time is over.
    pub(super) fn due(&self, now: Instant) -> Vec<Element> {
        let idle = self.limits.idle;
        let is_due = |draining: &Draining| draining.until <= now || draining.moved + idle <= now;
        self.entries.iter().filter(|(_, draining)| is_due(draining)).map(|(element, _)| *element).collect()
    }

    /// Brings the file up to date. Failing costs no more than that the time begins anew after a restart.
    pub(super) fn write(&mut self, now: Instant) {
        let Some(path) = self.limits.record.clone().filter(|_| self.unwritten) else { return };
        let now_ms = unix_ms();
        let line = |(element, draining): (&Element, &Draining)| {
            let left = draining.until.saturating_duration_since(now);
            let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            RecordLine { element: *element, until_ms: now_ms.saturating_add(left_ms) }
        };
        let record = Record { version: RECORD_VERSION, draining: self.entries.iter().map(line).collect() };
        let temporary = path.with_extension("new");
        let written = serde_json::to_vec(&record)
            .map_err(std::io::Error::other)
            .and_then(|bytes| fs::write(&temporary, bytes))
            .and_then(|()| fs::rename(&temporary, &path));
        match written {
            Ok(()) => self.unwritten = false,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "ends of draining were not kept for a restart");
            }
        }
    }
}

/// Those `elements` that are within what is `removed`, without those that are named there themselves.
pub(super) fn covered<'a>(
    elements: impl Iterator<Item = &'a Element>,
    removed: &BTreeSet<Element>,
) -> Vec<Element> {
    let mut ports: BTreeMap<IpNet, Vec<Option<PortRange>>> = BTreeMap::new();
    for element in removed {
        ports.entry(element.prefix).or_default().push(element.ports);
    }
    let lengths: BTreeSet<u8> = ports.keys().map(IpNet::prefix_len).collect();
    let is_covered = |element: &Element| {
        let length_of = |length: &u8| IpNet::new(element.prefix.addr(), *length).ok();
        (lengths.iter().take_while(|length| **length <= element.prefix.prefix_len()))
            .filter_map(|length| ports.get(&length_of(length)?.trunc()))
            .flatten()
            .any(|ports| ports.zip(element.ports).is_none_or(|(one, other)| overlap(one, other)))
    };
    elements.filter(|element| !removed.contains(element) && is_covered(element)).copied().collect()
}

fn overlap(one: PortRange, other: PortRange) -> bool {
    one.protocol() == other.protocol() && one.first() <= other.last() && other.first() <= one.last()
}

fn read(path: &Path) -> BTreeMap<Element, u64> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "ends of draining could not be read and begin anew");
            }
            return BTreeMap::new();
        }
    };
    match serde_json::from_slice::<Record>(&bytes) {
        Ok(record) if record.version == RECORD_VERSION => {
            record.draining.into_iter().map(|line| (line.element, line.until_ms)).collect()
        }
        Ok(Record { version, .. }) => {
            tracing::warn!(path = %path.display(), version, "ends of draining are of another version and begin anew");
            BTreeMap::new()
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "ends of draining could not be read and begin anew");
            BTreeMap::new()
        }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(last: u8) -> Element {
        Element::host(std::net::IpAddr::from([8, 8, 8, last]), Some("tcp/443".parse().unwrap()))
    }

    fn limits(record: Option<PathBuf>) -> DrainLimits {
        DrainLimits { idle: Duration::from_secs(10), limit: Duration::from_secs(100), record }
    }

    #[test]
    fn an_element_drains_while_packets_move_and_never_beyond_the_limit() {
        let mut book = DrainBook::new(limits(None));
        let start = Instant::now();
        book.begin(element(1), start);
        book.begin(element(2), start);
        let after = |seconds| start + Duration::from_secs(seconds);
        for second in 1..99 {
            book.observe(&element(1), second, after(second));
            assert!(!book.due(after(second)).contains(&element(1)));
        }
        assert_eq!(book.due(after(9)), []);
        assert_eq!(book.due(after(10)), [element(2)]);
        assert_eq!(book.due(after(100)), [element(1), element(2)]);
        book.end(&element(2));
        assert_eq!(book.due(after(100)), [element(1)]);
    }

    #[test]
    fn what_is_removed_covers_what_drains_within_it() {
        let mut book = DrainBook::new(limits(None));
        book.begin(element(1), Instant::now());
        let covered = |removed: &str| {
            let (prefix, ports) = removed.split_once(' ').map_or((removed, None), |(p, q)| (p, Some(q)));
            let removed = Element::new(prefix.parse().unwrap(), ports.map(|ports| ports.parse().unwrap()));
            !book.covered_by(&[removed].into()).is_empty()
        };
        for removed in ["8.8.8.0/24", "8.8.8.1/32", "8.8.0.0/16 tcp/400-500"] {
            assert!(covered(removed), "{removed}");
        }
        for removed in
            ["8.8.4.0/24", "8.8.8.0/24 udp/443", "8.8.8.0/24 tcp/444", "8.8.8.1/32 tcp/443", "::/1"]
        {
            assert!(!covered(removed), "{removed}");
        }
    }

    #[test]
    fn the_end_of_draining_survives_a_restart_and_a_damaged_file_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("draining");
        let start = Instant::now();
        let mut book = DrainBook::new(limits(Some(path.clone())));
        book.begin(element(1), start);
        // Half of its time is over when it is written.
        let later = start + Duration::from_secs(50);
        book.write(later);
        let adopted = |elements: &[Element]| {
            let mut book = DrainBook::new(limits(Some(path.clone())));
            book.adopt(elements.iter().copied(), later);
            // Busy all the time.
            for element in elements {
                book.observe(element, 1, later + Duration::from_secs(60));
                book.observe(element, 2, later + Duration::from_secs(99));
            }
            book.due(later + Duration::from_secs(60))
        };
        assert_eq!(adopted(&[element(1), element(2)]), [element(1)], "element 2 is not in the file");
        fs::write(&path, b"{").unwrap();
        assert_eq!(adopted(&[element(1)]), []);
    }
}
