//! What gateways said of traffic, by source host and by element, minute by minute: who eats the bandwidth, asked now.
//!
//! Kept in memory on the node that heard it, bounded; Prometheus keeps what is older. Entries are found when somebody
//! asks: what an element moved counts for every entry that owns it by then.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use allowlist::Element;
use allowlist::feed::{MAX_SOURCES_PER_FRAME, SourceDelta, TrafficDelta};
use serde::{Deserialize, Serialize};

/// Minutes kept, the one that runs included.
pub const MAX_WINDOW_MINUTES: u64 = 60;
/// Lines of each kind kept for one minute, about 150 bytes each; what finds no room is summed up without names.
const MAX_LINES_PER_MINUTE: usize = 2_000;
/// Lines of each kind kept since the node started.
const MAX_LINES_SINCE_START: usize = 20_000;

/// Lines of each kind that one node tells another, the largest ones; the rest is summed up for each gateway. A line takes
/// at most 200 bytes.
const MAX_LINES_TOLD: usize = 10_000;

/// Packets and bytes in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Moved {
    /// Packets towards the internet.
    pub packets_out: u64,
    /// Bytes towards the internet.
    pub bytes_out: u64,
    /// Packets from the internet.
    pub packets_in: u64,
    /// Bytes from the internet.
    pub bytes_in: u64,
}

impl Moved {
    /// Adds more.
    pub const fn add(&mut self, more: Self) {
        self.packets_out = self.packets_out.saturating_add(more.packets_out);
        self.bytes_out = self.bytes_out.saturating_add(more.bytes_out);
        self.packets_in = self.packets_in.saturating_add(more.packets_in);
        self.bytes_in = self.bytes_in.saturating_add(more.bytes_in);
    }

    /// In both directions.
    pub const fn bytes(self) -> u64 {
        self.bytes_out.saturating_add(self.bytes_in)
    }
}

/// What one source moved to one element through one gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SourceLine {
    /// Which gateway.
    pub gateway: Arc<str>,
    /// `None` for all that are not named.
    pub source: Option<IpAddr>,
    /// `None` when none covered it, or for several.
    pub element: Option<Element>,
}

/// What one element moved through one gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ElementLine {
    /// Which gateway.
    pub gateway: Arc<str>,
    /// `None` for all that are not named.
    pub element: Option<Element>,
}

/// From when on traffic is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Window {
    /// The last minutes, 1 to [`MAX_WINDOW_MINUTES`], the one that runs included.
    Minutes(u64),
    /// Since the node started.
    SinceStart,
}

/// Sums over a window.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TrafficSums {
    /// By source, from conntrack.
    pub sources: Vec<(SourceLine, Moved)>,
    /// By element, from the counters of the kernel's sets.
    pub elements: Vec<(ElementLine, Moved)>,
}

impl TrafficSums {
    /// At most [`MAX_LINES_TOLD`] lines of each kind and one more for each gateway.
    pub(crate) fn shortened(self) -> Self {
        let sources = shorten(self.sources, |line| SourceLine { source: None, element: None, ..line });
        let elements = shorten(self.elements, |line| ElementLine { element: None, ..line });
        Self { sources, elements }
    }
}

fn shorten<L: Eq + Hash>(mut lines: Vec<(L, Moved)>, unnamed: impl Fn(L) -> L) -> Vec<(L, Moved)> {
    if lines.len() <= MAX_LINES_TOLD {
        return lines;
    }
    lines.sort_by_key(|(_, moved)| std::cmp::Reverse(moved.bytes()));
    let mut rest = HashMap::<L, Moved>::new();
    for (line, moved) in lines.drain(MAX_LINES_TOLD..) {
        rest.entry(unnamed(line)).or_default().add(moved);
    }
    lines.extend(rest);
    lines
}

/// The book. Clones share it.
#[derive(Debug, Clone)]
pub struct TrafficBook(Arc<Mutex<Kept>>);

#[derive(Debug)]
struct Kept {
    started: Instant,
    /// Oldest first, with the minute since the start.
    minutes: VecDeque<(u64, Lines)>,
    since_start: Lines,
}

#[derive(Debug, Default)]
struct Lines {
    sources: HashMap<SourceLine, Moved>,
    elements: HashMap<ElementLine, Moved>,
}

impl Default for TrafficBook {
    fn default() -> Self {
        let kept = Kept { started: Instant::now(), minutes: VecDeque::new(), since_start: Lines::default() };
        Self(Arc::new(Mutex::new(kept)))
    }
}

impl TrafficBook {
    /// Counts what a gateway said of its elements.
    pub(super) fn elements(&self, gateway: &str, deltas: &[TrafficDelta]) {
        let gateway: Arc<str> = gateway.into();
        self.write(|lines, most| {
            for delta in deltas {
                let TrafficDelta { element, packets_out, bytes_out, packets_in, bytes_in } = *delta;
                let moved = Moved { packets_out, bytes_out, packets_in, bytes_in };
                let line = |element| ElementLine { gateway: Arc::clone(&gateway), element };
                add(&mut lines.elements, most, line(Some(element)), || line(None), moved);
            }
        });
    }

    /// Counts what a gateway said of its sources.
    pub(super) fn sources(&self, gateway: &str, deltas: &[SourceDelta]) {
        let gateway: Arc<str> = gateway.into();
        // A gateway says no more than this; one that does is not believed.
        let deltas = deltas.get(..MAX_SOURCES_PER_FRAME).unwrap_or(deltas);
        self.write(|lines, most| {
            for delta in deltas {
                let SourceDelta { source, element, packets_out, bytes_out, packets_in, bytes_in } = *delta;
                let moved = Moved { packets_out, bytes_out, packets_in, bytes_in };
                let line = |source, element| SourceLine { gateway: Arc::clone(&gateway), source, element };
                add(&mut lines.sources, most, line(source, element), || line(None, None), moved);
            }
        });
    }

    /// What moved within the window, of one gateway if `gateway` names one.
    pub fn sums(&self, window: Window, gateway: Option<&str>) -> TrafficSums {
        let kept = self.lock();
        let newest = kept.minute();
        let chosen: Vec<&Lines> = match window {
            Window::SinceStart => vec![&kept.since_start],
            Window::Minutes(minutes) => {
                let wanted = |number: u64| number + minutes > newest;
                kept.minutes.iter().filter(|(number, _)| wanted(*number)).map(|(_, lines)| lines).collect()
            }
        };
        let is_wanted = |name: &Arc<str>| gateway.is_none_or(|gateway| *gateway == **name);
        let mut sources = HashMap::<&SourceLine, Moved>::new();
        let mut elements = HashMap::<&ElementLine, Moved>::new();
        for lines in chosen {
            for (line, moved) in lines.sources.iter().filter(|(line, _)| is_wanted(&line.gateway)) {
                sources.entry(line).or_default().add(*moved);
            }
            for (line, moved) in lines.elements.iter().filter(|(line, _)| is_wanted(&line.gateway)) {
                elements.entry(line).or_default().add(*moved);
            }
        }
        TrafficSums {
            sources: sources.into_iter().map(|(line, moved)| (line.clone(), moved)).collect(),
            elements: elements.into_iter().map(|(line, moved)| (line.clone(), moved)).collect(),
        }
    }

    fn write(&self, write: impl Fn(&mut Lines, usize)) {
        let mut kept = self.lock();
        let now = kept.minute();
        if kept.minutes.back().is_none_or(|(number, _)| *number != now) {
            kept.minutes.push_back((now, Lines::default()));
        }
        while kept.minutes.front().is_some_and(|(number, _)| number + MAX_WINDOW_MINUTES <= now) {
            kept.minutes.pop_front();
        }
        if let Some((_, lines)) = kept.minutes.back_mut() {
            write(lines, MAX_LINES_PER_MINUTE);
        }
        write(&mut kept.since_start, MAX_LINES_SINCE_START);
    }

    /// Sums are added to one by one, hence a panic elsewhere leaves none half written.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets minutes pass.
    #[cfg(test)]
    fn pass(&self, minutes: u64) {
        let mut kept = self.lock();
        for (number, _) in &mut kept.minutes {
            *number = number.wrapping_sub(minutes);
        }
    }
}

impl Kept {
    /// Counts up from the start. Begins high, so that no window reaches below 0.
    fn minute(&self) -> u64 {
        self.started.elapsed().as_secs() / 60 + 10 * MAX_WINDOW_MINUTES
    }
}

fn add<L: Eq + Hash>(
    lines: &mut HashMap<L, Moved>,
    most: usize,
    line: L,
    unnamed: impl FnOnce() -> L,
    moved: Moved,
) {
    let line = if lines.len() < most || lines.contains_key(&line) { line } else { unnamed() };
    lines.entry(line).or_default().add(moved);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(number: u32) -> Element {
        Element::host(IpAddr::V4((0x0808_0000 + number).into()), None)
    }

    fn of_element(number: u32, bytes: u64) -> TrafficDelta {
        TrafficDelta {
            element: element(number),
            packets_out: 1,
            bytes_out: bytes,
            packets_in: 0,
            bytes_in: 0,
        }
    }

    fn of_source(number: u32, bytes: u64) -> SourceDelta {
        SourceDelta {
            source: Some(IpAddr::V4((0x0a00_0000 + number).into())),
            element: Some(element(1)),
            packets_out: 1,
            bytes_out: bytes,
            packets_in: 0,
            bytes_in: 0,
        }
    }

    fn bytes(book: &TrafficBook, window: Window, gateway: Option<&str>) -> (u64, u64) {
        let sums = book.sums(window, gateway);
        let sources = sums.sources.iter().map(|(_, moved)| moved.bytes()).sum();
        (sources, sums.elements.iter().map(|(_, moved)| moved.bytes()).sum())
    }

    #[test]
    fn a_window_holds_what_was_said_in_it_and_the_start_everything() {
        let book = TrafficBook::default();
        book.elements("gw-1", &[of_element(1, 100)]);
        book.sources("gw-1", &[of_source(1, 90)]);
        book.pass(10);
        book.elements("gw-2", &[of_element(1, 7)]);
        assert_eq!(bytes(&book, Window::Minutes(5), None), (0, 7));
        assert_eq!(bytes(&book, Window::Minutes(11), None), (90, 107));
        assert_eq!(bytes(&book, Window::Minutes(11), Some("gw-1")), (90, 100));
        book.pass(MAX_WINDOW_MINUTES);
        book.elements("gw-2", &[of_element(1, 1)]);
        assert_eq!(book.lock().minutes.len(), 1, "what is too old is gone");
        assert_eq!(bytes(&book, Window::SinceStart, None), (90, 108));
    }

    #[test]
    fn what_is_told_to_other_nodes_is_short_and_its_sum_is_kept() {
        let line = |number| ElementLine { gateway: "gw-1".into(), element: Some(element(number)) };
        let moved = Moved { bytes_in: 2, ..Moved::default() };
        let elements = (0..MAX_LINES_TOLD as u32 + 50).map(|number| (line(number), moved)).collect();
        let told = TrafficSums { sources: Vec::new(), elements }.shortened();
        assert_eq!(told.elements.len(), MAX_LINES_TOLD + 1);
        let sum: u64 = told.elements.iter().map(|(_, moved)| moved.bytes()).sum();
        assert_eq!(sum, 2 * (MAX_LINES_TOLD as u64 + 50));
    }

    #[test]
    fn whatever_gateways_say_memory_is_bounded_and_the_sum_is_kept() {
        let book = TrafficBook::default();
        let many: Vec<_> = (0..5_000).map(|number| of_element(number, 1)).collect();
        for gateway in ["gw-1", "gw-2", "gw-3"] {
            book.elements(gateway, &many);
            book.sources(gateway, &(0..5_000).map(|number| of_source(number, 1)).collect::<Vec<_>>());
        }
        let kept = book.lock();
        let (_, lines) = kept.minutes.back().unwrap();
        // One more for each gateway: what found no room.
        assert!(lines.elements.len() <= MAX_LINES_PER_MINUTE + 3);
        assert!(lines.sources.len() <= MAX_LINES_PER_MINUTE + 3);
        drop(kept);
        let believed = 3 * MAX_SOURCES_PER_FRAME as u64;
        assert_eq!(bytes(&book, Window::Minutes(1), None), (believed, 15_000));
    }
}
