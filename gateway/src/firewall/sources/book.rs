//! Who moved how much: the busiest by name, the others together.
//!
//! A source gets a series of its own when it is among the busiest of the last minutes, and what it moves is added to
//! that series from then on; what anybody without one moves is added to `other`. So neither ever falls, and a rate over
//! them says who eats the bandwidth now. When a busier one takes its place a series ends, and what it had counted goes to
//! `ended`, a family of its own: in `other` it would look like traffic of this moment. At every moment the series,
//! `other` and `ended` together are all that was counted.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use allowlist::Element;
use allowlist::feed::{MAX_SOURCES_PER_FRAME, SourceDelta};

use super::seen::Moved;

/// Sources whose recent traffic is known; beyond it the quietest are forgotten, whose bytes are in `other` already.
pub(super) const MAX_SCORED_SOURCES: usize = 65_536;
/// Pairs of source and element that wait for the next report; beyond it they are reported together.
pub(super) const MAX_DUE_PAIRS: usize = 20_000;
/// After this time what was moved counts half for who is busiest.
const HALF_LIFE: Duration = Duration::from_secs(300);
/// A source takes another's series when it is busier by this factor, so that two alike do not take turns.
const LEAD: f64 = 1.5;
/// Scores below this are those of nobody.
const MIN_SCORE: f64 = 1.0;

/// Bytes and packets in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SourceSum {
    /// Packets towards the internet.
    pub packets_out: u64,
    /// Bytes towards the internet (IP length).
    pub bytes_out: u64,
    /// Packets from the internet.
    pub packets_in: u64,
    /// Bytes from the internet (IP length).
    pub bytes_in: u64,
}

impl SourceSum {
    fn add(&mut self, more: Self) {
        self.packets_out = self.packets_out.saturating_add(more.packets_out);
        self.bytes_out = self.bytes_out.saturating_add(more.bytes_out);
        self.packets_in = self.packets_in.saturating_add(more.packets_in);
        self.bytes_in = self.bytes_in.saturating_add(more.bytes_in);
    }

    const fn bytes(self) -> u64 {
        self.bytes_out.saturating_add(self.bytes_in)
    }
}

/// What is counted so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceSums {
    /// Those with series of their own.
    pub named: BTreeMap<IpAddr, SourceSum>,
    /// What the others moved while they had none.
    pub other: SourceSum,
    /// What series that ended had counted.
    pub ended: SourceSum,
}

/// The book.
#[derive(Debug)]
pub(super) struct Book {
    top: usize,
    sums: SourceSums,
    /// Bytes, fading.
    scores: HashMap<IpAddr, f64>,
    /// Not yet reported.
    due: HashMap<(Option<IpAddr>, Option<Element>), SourceSum>,
}

impl Book {
    pub(super) fn new(top: usize) -> Self {
        Self { top, sums: SourceSums::default(), scores: HashMap::new(), due: HashMap::new() }
    }

    pub(super) fn sums(&self) -> &SourceSums {
        &self.sums
    }

    pub(super) fn add(&mut self, moved: &Moved) {
        let Moved { source, element, out, back } = *moved;
        let more = SourceSum {
            packets_out: out.packets,
            bytes_out: out.bytes,
            packets_in: back.packets,
            bytes_in: back.bytes,
        };
        if self.scores.len() < MAX_SCORED_SOURCES || self.scores.contains_key(&source) {
            *self.scores.entry(source).or_default() += more.bytes() as f64;
        }
        if self.sums.named.len() < self.top {
            self.sums.named.entry(source).or_default();
        }
        self.sums.named.get_mut(&source).unwrap_or(&mut self.sums.other).add(more);
        self.make_due((Some(source), element), more);
    }

    /// Time has passed: what was moved before counts less, and the busiest get series.
    pub(super) fn turn(&mut self, passed: Duration) {
        let fade = 0.5_f64.powf(passed.as_secs_f64() / HALF_LIFE.as_secs_f64());
        let named = &self.sums.named;
        self.scores.retain(|source, score| {
            *score *= fade;
            *score >= MIN_SCORE || named.contains_key(source)
        });
        let score = |source: &IpAddr| self.scores.get(source).copied().unwrap_or_default();
        let mut quietest: Vec<(f64, IpAddr)> = named.keys().map(|source| (score(source), *source)).collect();
        quietest.sort_by(|one, other| one.0.total_cmp(&other.0));
        let mut others: Vec<(f64, IpAddr)> = self
            .scores
            .iter()
            .filter(|(source, _)| !named.contains_key(source))
            .map(|(source, score)| (*score, *source))
            .collect();
        others.sort_by(|one, other| other.0.total_cmp(&one.0).then(one.1.cmp(&other.1)));
        for ((low, loser), (high, winner)) in quietest.iter().zip(&others) {
            if *high <= low * LEAD {
                break;
            }
            if let Some(sum) = self.sums.named.remove(loser) {
                self.sums.ended.add(sum);
            }
            self.sums.named.insert(*winner, SourceSum::default());
        }
        // Room for those that come until the next turn.
        for (_, source) in others.iter().skip(MAX_SCORED_SOURCES / 2) {
            self.scores.remove(source);
        }
    }

    /// What is to be reported, the largest first, at most [`MAX_SOURCES_PER_FRAME`]; the rest is one line.
    pub(super) fn take_due(&mut self) -> Vec<SourceDelta> {
        let mut due: Vec<_> = std::mem::take(&mut self.due).into_iter().collect();
        due.sort_by_key(|(pair, sum)| (Reverse(sum.bytes()), *pair));
        let rest = due.split_off(due.len().min(MAX_SOURCES_PER_FRAME - 1));
        if !rest.is_empty() {
            let mut sum = SourceSum::default();
            rest.iter().for_each(|(_, more)| sum.add(*more));
            match due.iter_mut().find(|(pair, _)| *pair == (None, None)) {
                Some((_, known)) => known.add(sum),
                None => due.push(((None, None), sum)),
            }
        }
        due.into_iter()
            .map(|((source, element), sum)| SourceDelta {
                source,
                element,
                packets_out: sum.packets_out,
                bytes_out: sum.bytes_out,
                packets_in: sum.packets_in,
                bytes_in: sum.bytes_in,
            })
            .collect()
    }

    /// A report that nobody was told is due again.
    pub(super) fn put_back(&mut self, report: &[SourceDelta]) {
        for delta in report {
            let sum = SourceSum {
                packets_out: delta.packets_out,
                bytes_out: delta.bytes_out,
                packets_in: delta.packets_in,
                bytes_in: delta.bytes_in,
            };
            self.make_due((delta.source, delta.element), sum);
        }
    }

    fn make_due(&mut self, pair: (Option<IpAddr>, Option<Element>), more: SourceSum) {
        let has_room = self.due.len() < MAX_DUE_PAIRS || self.due.contains_key(&pair);
        self.due.entry(if has_room { pair } else { (None, None) }).or_default().add(more);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::firewall::ipset::Counters;

    fn host(number: u32) -> IpAddr {
        IpAddr::V4((0x0a09_0000 + number).into())
    }

    fn moved(source: u32, bytes: u64) -> Moved {
        let back = Counters { packets: 1, bytes };
        Moved { source: host(source), element: None, out: Counters { packets: 1, bytes: 40 }, back }
    }

    fn total(sums: &SourceSums) -> u64 {
        sums.named.values().chain([&sums.other, &sums.ended]).map(|sum| sum.bytes()).sum()
    }

    #[test]
    fn a_busier_source_takes_the_series_of_the_quietest_and_no_sum_falls() {
        let mut book = Book::new(2);
        for source in 1..=3 {
            book.add(&moved(source, u64::from(source) * 1_000));
        }
        assert_eq!(book.sums().named.keys().copied().collect::<Vec<_>>(), [host(1), host(2)]);
        let other = book.sums().other;
        book.turn(Duration::from_secs(10));
        assert_eq!(book.sums().named.keys().copied().collect::<Vec<_>>(), [host(2), host(3)]);
        assert_eq!(book.sums().named[&host(3)], SourceSum::default(), "what it moved before is in `other`");
        assert_eq!(book.sums().other, other);
        assert_eq!(book.sums().ended.bytes_in, 1_000);
        book.add(&moved(3, 7));
        assert_eq!(book.sums().named[&host(3)].bytes_in, 7);
        // 3 is busier than 2, but not by far: nobody takes turns.
        book.turn(Duration::ZERO);
        assert_eq!(book.sums().named.len(), 2);
    }

    #[test]
    fn a_report_is_bounded_says_everything_and_can_be_put_back() {
        let mut book = Book::new(1);
        let many = MAX_DUE_PAIRS as u32 + 500;
        for source in 0..many {
            book.add(&moved(source, 10));
        }
        assert_eq!(book.due.len(), MAX_DUE_PAIRS + 1);
        let report = book.take_due();
        assert!(report.len() <= MAX_SOURCES_PER_FRAME);
        let packets = |report: &[SourceDelta]| report.iter().map(|delta| delta.packets_in).sum::<u64>();
        assert_eq!(packets(&report), u64::from(many));
        assert!(book.take_due().is_empty());
        book.put_back(&report);
        assert_eq!(packets(&book.take_due()), u64::from(many));
    }

    #[test]
    fn more_sources_than_can_be_known_leave_room_for_a_busy_newcomer() {
        let mut book = Book::new(1);
        for source in 0..=MAX_SCORED_SOURCES as u32 {
            book.add(&moved(source, 10));
        }
        book.turn(Duration::from_secs(10));
        book.add(&moved(9_999_999, 1_000_000));
        book.turn(Duration::from_secs(10));
        assert!(book.sums().named.contains_key(&host(9_999_999)));
    }

    proptest! {
        #[test]
        fn all_sums_together_are_all_that_moved_and_none_falls(
            steps in prop::collection::vec((0_u32..6, 0_u64..10_000, any::<bool>()), 0..80),
        ) {
            let mut book = Book::new(2);
            let mut sent = 0;
            let mut before = SourceSums::default();
            for (source, bytes, turn) in steps {
                book.add(&moved(source, bytes));
                sent += bytes + 40;
                if turn { book.turn(Duration::from_secs(10)); }
                prop_assert_eq!(total(book.sums()), sent);
                prop_assert!(book.sums().named.len() <= 2);
                prop_assert!(book.sums().other.bytes() >= before.other.bytes());
                prop_assert!(book.sums().ended.bytes() >= before.ended.bytes());
                before = book.sums().clone();
            }
        }
    }
}
