//! From cumulative counters to what was counted since the last report.

use std::collections::{HashMap, HashSet};

use allowlist::Element;
use allowlist::feed::{MAX_ELEMENTS_PER_FRAME, ToServer, TrafficDelta};

use crate::firewall::ElementCounters;

/// Marks of elements that are gone, kept because the driver's counters go on when they come back.
pub const MAX_MARKS_OF_GONE_ELEMENTS: usize = 65_536;

/// Remembers what was reported. It outlives sessions, so that what was counted between two sessions is reported by
/// the next.
#[derive(Debug, Default)]
pub struct TrafficMeter {
    /// The counters up to which traffic was reported; none means that nothing was counted yet.
    marks: Option<HashMap<Element, ElementCounters>>,
}

/// A frame to send, and what it reports.
#[derive(Debug)]
pub struct TrafficReport {
    /// The frame.
    pub frame: ToServer,
    marks: Vec<ElementCounters>,
}

impl TrafficMeter {
    /// Reports from `counters` on: what the kernel counted before was reported by a former process.
    pub fn from_mark(counters: &[ElementCounters]) -> Self {
        let marks = counters.iter().map(|counters| (counters.element, *counters)).collect();
        Self { marks: Some(marks) }
    }

    /// What was counted since the reports that were sent; elements without traffic are left out. Without a mark the
    /// first call only sets it.
    pub fn due(&mut self, counters: &[ElementCounters]) -> Vec<TrafficReport> {
        let Some(marks) = &mut self.marks else {
            *self = Self::from_mark(counters);
            return Vec::new();
        };
        if marks.len() > counters.len() + MAX_MARKS_OF_GONE_ELEMENTS {
            let held: HashSet<Element> = counters.iter().map(|counters| counters.element).collect();
            marks.retain(|element, _| held.contains(element));
        }
        let mut counted: Vec<(TrafficDelta, ElementCounters)> = counters
            .iter()
            .filter_map(|now| delta(marks.get(&now.element), now).map(|delta| (delta, *now)))
            .collect();
        // What moved most first: who keeps a bounded number of lines keeps those that matter.
        counted.sort_by_key(|(delta, _)| std::cmp::Reverse(delta.bytes_out.saturating_add(delta.bytes_in)));
        counted
            .chunks(MAX_ELEMENTS_PER_FRAME)
            .map(|part| {
                let (deltas, marks) = part.iter().copied().unzip();
                TrafficReport { frame: ToServer::Traffic(deltas), marks }
            })
            .collect()
    }

    /// The report was sent: what it says is not due again.
    pub fn sent(&mut self, report: TrafficReport) {
        let marks = report.marks.into_iter().map(|counters| (counters.element, counters));
        self.marks.get_or_insert_default().extend(marks);
    }
}

fn delta(before: Option<&ElementCounters>, now: &ElementCounters) -> Option<TrafficDelta> {
    // A counter that went back was forgotten by the driver and began again: all of it is new.
    let since = |read: fn(&ElementCounters) -> u64| {
        let value = read(now);
        before.map_or(value, |before| value.checked_sub(read(before)).unwrap_or(value))
    };
    let delta = TrafficDelta {
        element: now.element,
        packets_out: since(|counters| counters.packets_out),
        bytes_out: since(|counters| counters.bytes_out),
        packets_in: since(|counters| counters.packets_in),
        bytes_in: since(|counters| counters.bytes_in),
    };
    (delta.packets_out | delta.bytes_out | delta.packets_in | delta.bytes_in != 0).then_some(delta)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(index: u32, out: u64) -> ElementCounters {
        let address = std::net::Ipv4Addr::from(0x0101_0000 + index);
        ElementCounters {
            element: Element::host(address.into(), None),
            packets_out: out,
            bytes_out: out * 100,
            packets_in: 0,
            bytes_in: 0,
        }
    }

    /// The deltas that are due, after sending them.
    fn report(meter: &mut TrafficMeter, counters: &[ElementCounters]) -> Vec<TrafficDelta> {
        let mut all = Vec::new();
        for report in meter.due(counters) {
            let ToServer::Traffic(deltas) = &report.frame else { panic!("a traffic frame") };
            all.extend(deltas.clone());
            meter.sent(report);
        }
        all
    }

    #[test]
    fn only_what_was_counted_since_the_last_report_is_sent() {
        let mut meter = TrafficMeter::default();
        assert!(report(&mut meter, &[counters(1, 5)]).is_empty());
        let deltas = report(&mut meter, &[counters(1, 8), counters(2, 1), counters(3, 0)]);
        assert_eq!(deltas.iter().map(|delta| delta.packets_out).collect::<Vec<_>>(), [3, 1]);
        assert!(report(&mut meter, &[counters(1, 8), counters(2, 1)]).is_empty());
    }

    #[test]
    fn an_element_that_comes_back_is_not_reported_with_its_history_again() {
        let mut meter = TrafficMeter::from_mark(&[counters(1, 50)]);
        assert!(report(&mut meter, &[]).is_empty());
        let deltas = report(&mut meter, &[counters(1, 52)]);
        assert_eq!(deltas.iter().map(|delta| delta.packets_out).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn what_could_not_be_sent_is_due_again() {
        let mut meter = TrafficMeter::from_mark(&[]);
        assert_eq!(meter.due(&[counters(1, 3)]).len(), 1);
        assert_eq!(report(&mut meter, &[counters(1, 4)])[0].packets_out, 4);
    }

    #[test]
    fn marks_of_gone_elements_are_bounded() {
        let many: Vec<_> =
            (0..=MAX_MARKS_OF_GONE_ELEMENTS as u32 + 1).map(|index| counters(index, 1)).collect();
        let mut meter = TrafficMeter::from_mark(&many);
        assert!(report(&mut meter, &[counters(1, 1)]).is_empty());
        assert_eq!(meter.marks.unwrap().len(), 1);
    }

    #[test]
    fn a_counter_that_went_back_counts_from_zero() {
        let mut meter = TrafficMeter::default();
        report(&mut meter, &[counters(1, 50)]);
        let deltas = report(&mut meter, &[counters(1, 2)]);
        assert_eq!((deltas[0].packets_out, deltas[0].bytes_out), (2, 200));
    }

    #[test]
    fn long_reports_are_cut_into_frames() {
        let mut meter = TrafficMeter::default();
        report(&mut meter, &[]);
        let many: Vec<_> = (0..MAX_ELEMENTS_PER_FRAME as u32 + 1).map(|index| counters(index, 1)).collect();
        assert_eq!(meter.due(&many).len(), 2);
    }
}
