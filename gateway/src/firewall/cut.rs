//! What is to be cut, and what was.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use allowlist::feed::{CutCause, CutElement, CutReport, MAX_CUT_ELEMENTS};
use allowlist::{Element, Revision};
use ipnet::IpNet;

use super::conntrack::Flow;
use super::covering::covers_port;

/// Takes reports of flows that were cut; called on the thread that cut them.
pub type CutSink = Arc<dyn Fn(CutReport) + Send + Sync>;

/// What waits to be cut, merged: it grows with the number of distinct elements, not with the number of changes.
#[derive(Debug, Default)]
pub(super) struct Orders {
    elements: BTreeMap<Element, CutCause>,
    /// Look at every flow.
    pub(super) sweep: bool,
    pub(super) revision: Revision,
    /// When the first of them was given.
    since: Option<Instant>,
}

impl Orders {
    pub(super) fn is_empty(&self) -> bool {
        self.elements.is_empty() && !self.sweep
    }

    pub(super) fn add(
        &mut self,
        elements: impl IntoIterator<Item = Element>,
        cause: CutCause,
        revision: Revision,
    ) {
        for element in elements {
            self.elements.insert(element, cause);
        }
        self.revision = self.revision.max(revision);
        self.since.get_or_insert_with(Instant::now);
    }

    pub(super) fn sweep(&mut self) {
        self.sweep = true;
        self.since.get_or_insert_with(Instant::now);
    }

    /// Puts back what could not be done; what was ordered meanwhile has the last word.
    pub(super) fn put_back(&mut self, failed: Self) {
        for (element, cause) in failed.elements {
            self.elements.entry(element).or_insert(cause);
        }
        self.sweep |= failed.sweep;
        self.revision = self.revision.max(failed.revision);
        self.since = failed.since.or(self.since);
    }

    /// The one address all of it is about, if there is only one.
    pub(super) fn single_address(&self) -> Option<IpAddr> {
        let (element, _) =
            self.elements.first_key_value().filter(|_| self.elements.len() == 1 && !self.sweep)?;
        let prefix = element.prefix;
        (prefix.prefix_len() == prefix.max_prefix_len()).then(|| prefix.addr())
    }

    /// True when some of it is about IPv4, and when about IPv6.
    pub(super) fn families(&self) -> (bool, bool) {
        let any = |v4: bool| self.elements.keys().any(|element| element.prefix.addr().is_ipv4() == v4);
        (self.sweep || any(true), self.sweep || any(false))
    }

    /// Finds the ordered elements again by flow.
    pub(super) fn matcher(&self) -> Matcher {
        let mut matcher = Matcher::default();
        for (element, cause) in &self.elements {
            let prefix = element.prefix;
            matcher.lengths.insert((prefix.addr().is_ipv4(), prefix.prefix_len()));
            matcher.elements.entry(prefix).or_default().push((*element, *cause));
        }
        matcher
    }

    /// Reports to fill: one for each cause that was ordered, so that a person's removal is answered even when nothing
    /// was open.
    pub(super) fn tally(&self) -> Tally {
        let revoked = self.elements.values().any(|cause| *cause == CutCause::Revoked);
        let reports = revoked.then(|| (CutCause::Revoked, BTreeMap::new()));
        Tally { parts: reports.into_iter().collect(), others: BTreeMap::new() }
    }

    /// Time since the first of them was given, microseconds.
    fn age_us(&self) -> u64 {
        self.since.map_or(0, |since| u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

/// Elements by what they cover.
#[derive(Debug, Default)]
pub(super) struct Matcher {
    lengths: BTreeSet<(bool, u8)>,
    elements: BTreeMap<IpNet, Vec<(Element, CutCause)>>,
}

impl Matcher {
    /// The most specific element that covers the flow.
    pub(super) fn find(&self, flow: &Flow) -> Option<(Element, CutCause)> {
        let v4 = flow.destination.is_ipv4();
        self.lengths.iter().rev().filter(|(of_v4, _)| *of_v4 == v4).find_map(|(_, length)| {
            let prefix = IpNet::new(flow.destination, *length).ok()?.trunc();
            self.elements
                .get(&prefix)?
                .iter()
                .find(|(element, _)| covers_port(element.ports, flow.place()))
                .copied()
        })
    }
}

/// Sums of what was cut.
#[derive(Debug, Default)]
pub(super) struct Tally {
    parts: BTreeMap<CutCause, BTreeMap<Element, Sum>>,
    /// Of flows that no ordered element covered.
    others: BTreeMap<CutCause, Sum>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Sum {
    flows: u64,
    uncounted: u64,
    bytes_out: u64,
    bytes_in: u64,
}

impl Sum {
    fn add(&mut self, other: Self) {
        self.flows += other.flows;
        self.uncounted += other.uncounted;
        self.bytes_out = self.bytes_out.saturating_add(other.bytes_out);
        self.bytes_in = self.bytes_in.saturating_add(other.bytes_in);
    }
}

impl Tally {
    pub(super) fn count(&mut self, flow: &Flow, cause: CutCause, element: Option<Element>) {
        let sum = match flow.counted {
            Some((out, back)) => Sum { flows: 1, uncounted: 0, bytes_out: out.bytes, bytes_in: back.bytes },
            None => Sum { flows: 1, uncounted: 1, ..Sum::default() },
        };
        match element {
            Some(element) => self.parts.entry(cause).or_default().entry(element).or_default().add(sum),
            None => self.others.entry(cause).or_default().add(sum),
        }
    }

    /// One report for each cause.
    pub(super) fn reports(self, orders: &Orders) -> Vec<CutReport> {
        let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let Self { mut parts, others } = self;
        for cause in others.keys() {
            parts.entry(*cause).or_default();
        }
        parts
            .into_iter()
            .map(|(cause, elements)| {
                let mut total = others.get(&cause).copied().unwrap_or_default();
                elements.values().for_each(|sum| total.add(*sum));
                let mut elements: Vec<CutElement> = elements
                    .into_iter()
                    .map(|(element, Sum { flows, bytes_out, bytes_in, .. })| CutElement {
                        element,
                        flows,
                        bytes_out,
                        bytes_in,
                    })
                    .collect();
                elements.sort_by_key(|element| (std::cmp::Reverse(element.flows), element.element));
                elements.truncate(MAX_CUT_ELEMENTS);
                CutReport {
                    revision: orders.revision,
                    cause,
                    flows: total.flows,
                    uncounted: total.uncounted,
                    bytes_out: total.bytes_out,
                    bytes_in: total.bytes_in,
                    at_ms: u64::try_from(at_ms).unwrap_or(u64::MAX),
                    took_us: orders.age_us(),
                    elements,
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(prefix: &str, ports: Option<&str>) -> Element {
        Element::new(prefix.parse().unwrap(), ports.map(|ports| ports.parse().unwrap()))
    }

    #[test]
    fn a_removal_is_answered_even_when_nothing_was_open() {
        let mut orders = Orders::default();
        assert!(orders.is_empty());
        orders.add([element("8.8.8.8/32", None)], CutCause::Revoked, 7);
        orders.add([element("8.8.4.4/32", None)], CutCause::Drained, 6);
        let reports = orders.tally().reports(&orders);
        let said: Vec<_> =
            reports.iter().map(|report| (report.cause, report.revision, report.flows)).collect();
        assert_eq!(said, [(CutCause::Revoked, 7, 0)]);
    }

    #[test]
    fn a_single_address_is_found_and_a_network_is_none() {
        let mut orders = Orders::default();
        orders.add([element("8.8.8.8/32", Some("tcp/443"))], CutCause::Revoked, 1);
        assert_eq!(orders.single_address(), Some("8.8.8.8".parse().unwrap()));
        assert_eq!(orders.families(), (true, false));
        let mut network = Orders::default();
        network.add([element("8.8.8.0/24", None)], CutCause::Revoked, 1);
        assert_eq!(network.single_address(), None);
        orders.put_back(network);
        assert_eq!(orders.single_address(), None);
        orders.sweep();
        assert_eq!(orders.families(), (true, true));
    }
}
