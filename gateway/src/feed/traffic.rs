//! From cumulative counters to what was counted since the last report.

use std::collections::HashMap;

use allowlist::Element;
use allowlist::feed::{MAX_ELEMENTS_PER_FRAME, ToServer, TrafficDelta};

use crate::firewall::ElementCounters;

/// Remembers what was reported. It outlives sessions, so that what was counted between two sessions is reported by
/// the next.
#[derive(Debug, Default)]
pub struct TrafficMeter {
    reported: Option<HashMap<Element, ElementCounters>>,
}

impl TrafficMeter {
    /// Reports from `counters` on: what the kernel counted before was reported by a former process.
    pub fn from_mark(counters: &[ElementCounters]) -> Self {
        let mut meter = Self::default();
        meter.report(counters);
        meter
    }

    /// Frames with what was counted since the last call; elements without traffic are left out. Without a mark the
    /// first call only sets it.
    pub fn report(&mut self, counters: &[ElementCounters]) -> Vec<ToServer> {
        let now: HashMap<Element, ElementCounters> =
            counters.iter().map(|counters| (counters.element, *counters)).collect();
        let Some(before) = self.reported.replace(now) else { return Vec::new() };
        let deltas: Vec<TrafficDelta> =
            counters.iter().filter_map(|now| delta(before.get(&now.element), now)).collect();
        deltas.chunks(MAX_ELEMENTS_PER_FRAME).map(|part| ToServer::Traffic(part.to_vec())).collect()
    }
}

fn delta(before: Option<&ElementCounters>, now: &ElementCounters) -> Option<TrafficDelta> {
    // A counter that went back belongs to an element that left and came again: all of it is new.
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

    #[test]
    fn only_what_was_counted_since_the_last_report_is_sent() {
        let mut meter = TrafficMeter::default();
        assert!(meter.report(&[counters(1, 5)]).is_empty());
        let frames = meter.report(&[counters(1, 8), counters(2, 1), counters(3, 0)]);
        let [ToServer::Traffic(deltas)] = frames.as_slice() else { panic!("one frame") };
        assert_eq!(deltas.iter().map(|delta| delta.packets_out).collect::<Vec<_>>(), [3, 1]);
        assert!(meter.report(&[counters(1, 8), counters(2, 1)]).is_empty());
    }

    #[test]
    fn an_element_that_left_and_came_again_counts_from_zero() {
        let mut meter = TrafficMeter::default();
        meter.report(&[counters(1, 50)]);
        let frames = meter.report(&[counters(1, 2)]);
        let [ToServer::Traffic(deltas)] = frames.as_slice() else { panic!("one frame") };
        assert_eq!((deltas[0].packets_out, deltas[0].bytes_out), (2, 200));
    }

    #[test]
    fn long_reports_are_cut_into_frames() {
        let mut meter = TrafficMeter::default();
        meter.report(&[]);
        let many: Vec<_> = (0..MAX_ELEMENTS_PER_FRAME as u32 + 1).map(|index| counters(index, 1)).collect();
        assert_eq!(meter.report(&many).len(), 2);
    }
}
