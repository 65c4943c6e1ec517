//! Up to where the bytes of each flow were counted.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use allowlist::Element;

use crate::firewall::conntrack::Flow;
use crate::firewall::ipset::Counters;

/// Most flows remembered, about 100 bytes each. One that finds no room is counted as a whole when it ends, unless it was
/// there before us.
pub(super) const MAX_SEEN_FLOWS: usize = 262_144;
/// Most flows of before us remembered beyond them, about 20 bytes each.
const MAX_UNCOUNTED_FLOWS: usize = 1 << 20;
/// Listings that lack a flow before it is forgotten: one may miss a flow while the kernel's table is rebuilt, and a flow
/// that is forgotten too early would count twice.
const LISTINGS_TO_FORGET: u32 = 2;

/// What was counted since the flow was looked at last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) source: IpAddr,
    /// The element that covered the flow when it was seen first.
    pub(super) element: Option<Element>,
    /// Towards the destination.
    pub(super) out: Counters,
    /// Towards the source.
    pub(super) back: Counters,
}

/// The flows.
pub(super) struct SeenFlows {
    flows: HashMap<FlowId, Seen>,
    /// Flows of before us that found no room, and the listing that had them last: it is not known up to where they were
    /// counted, hence they are not until there is room.
    uncounted: HashMap<FlowId, u32>,
    /// Secret, so that nobody can choose flows that share an id.
    hasher: RandomState,
    listing: u32,
}

/// The kernel's number for a flow alone may come again; with addresses and ports it does not while the flow lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FlowId(u64);

struct Seen {
    element: Option<Element>,
    out: Counters,
    back: Counters,
    listing: u32,
}

impl Seen {
    /// A flow of which nothing was counted yet.
    fn new(element: Option<Element>, listing: u32) -> Self {
        Self { element, out: Counters::default(), back: Counters::default(), listing }
    }
}

impl SeenFlows {
    pub(super) fn new() -> Self {
        Self { flows: HashMap::new(), uncounted: HashMap::new(), hasher: RandomState::new(), listing: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    /// A listing of the kernel's table begins.
    pub(super) fn begin_listing(&mut self) {
        self.listing = self.listing.wrapping_add(1);
    }

    /// The listing is complete, and the ends of flows that it lacks are read: what it lacked for some time is gone.
    pub(super) fn end_listing(&mut self) {
        let listing = self.listing;
        self.flows.retain(|_, seen| listing.wrapping_sub(seen.listing) < LISTINGS_TO_FORGET);
        self.uncounted.retain(|_, listed| listing.wrapping_sub(*listed) < LISTINGS_TO_FORGET);
        // A flood of flows must not hold its memory for good.
        if self.flows.capacity() > 4 * self.flows.len().max(1_024) {
            self.flows.shrink_to_fit();
        }
        if self.uncounted.is_empty() {
            self.uncounted = HashMap::new();
        }
    }

    /// Remembers a flow that was there before we were: what it moved until now was counted by a former process, or by
    /// none.
    pub(super) fn adopt(&mut self, flow: &Flow, covering: impl FnOnce(&Flow) -> Option<Element>) {
        let Some((out, back)) = flow.counted else { return };
        let id = self.id(flow);
        let listing = self.listing;
        if self.flows.len() >= MAX_SEEN_FLOWS && !self.flows.contains_key(&id) {
            if self.uncounted.len() < MAX_UNCOUNTED_FLOWS {
                self.uncounted.insert(id, listing);
            }
            return;
        }
        self.flows.entry(id).or_insert_with(|| Seen { element: covering(flow), out, back, listing });
    }

    /// A flow as listed. `None` when it moved nothing since, is not counted by the kernel, or finds no room.
    pub(super) fn listed(
        &mut self,
        flow: &Flow,
        covering: impl FnOnce(&Flow) -> Option<Element>,
    ) -> Option<Moved> {
        let (out, back) = flow.counted?;
        let id = self.id(flow);
        let listing = self.listing;
        let has_room = self.flows.len() < MAX_SEEN_FLOWS;
        let seen = match self.flows.get_mut(&id) {
            Some(seen) => seen,
            None if !has_room => {
                self.uncounted.entry(id).and_modify(|listed| *listed = listing);
                return None;
            }
            None if self.uncounted.remove(&id).is_some() => {
                self.adopt(flow, covering);
                return None;
            }
            None => self.flows.entry(id).or_insert(Seen::new(covering(flow), listing)),
        };
        let moved = moved(flow.source, seen, out, back);
        (seen.out, seen.back, seen.listing) = (out, back, listing);
        moved
    }

    /// A flow that has ended, with its last counters.
    pub(super) fn ended(
        &mut self,
        flow: &Flow,
        covering: impl FnOnce(&Flow) -> Option<Element>,
    ) -> Option<Moved> {
        let (out, back) = flow.counted?;
        let id = self.id(flow);
        if self.uncounted.remove(&id).is_some() {
            return None;
        }
        let seen = self.flows.remove(&id).unwrap_or_else(|| Seen::new(covering(flow), 0));
        moved(flow.source, &seen, out, back)
    }

    /// True for one whose counters are known up to a point.
    pub(super) fn knows(&self, flow: &Flow) -> bool {
        self.flows.contains_key(&self.id(flow))
    }

    fn id(&self, flow: &Flow) -> FlowId {
        FlowId(self.hasher.hash_one(flow.identity()))
    }
}

fn moved(source: IpAddr, seen: &Seen, out: Counters, back: Counters) -> Option<Moved> {
    // Counters that went back are those of another flow with the same identity, whose predecessor's end was lost.
    let went_back = out.packets < seen.out.packets || back.packets < seen.back.packets;
    let since = |now: Counters, before: Counters| {
        if went_back {
            return now;
        }
        Counters {
            packets: now.packets.saturating_sub(before.packets),
            bytes: now.bytes.saturating_sub(before.bytes),
        }
    };
    let (out, back) = (since(out, seen.out), since(back, seen.back));
    let moved = out.packets | out.bytes | back.packets | back.bytes != 0;
    moved.then_some(Moved { source, element: seen.element, out, back })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flow(number: u16, packets: u64) -> Flow {
        let counters = Counters { packets, bytes: packets * 100 };
        Flow::for_tests([10, 9, 0, 2].into(), [8, 8, 8, 8].into(), number, Some((counters, counters)))
    }

    fn none(_: &Flow) -> Option<Element> {
        None
    }

    fn packets(moved: Option<Moved>) -> u64 {
        moved.map_or(0, |moved| moved.out.packets)
    }

    #[test]
    fn what_was_there_before_counts_only_from_then_on() {
        let mut seen = SeenFlows::new();
        seen.begin_listing();
        seen.adopt(&flow(1, 50), none);
        assert_eq!(packets(seen.listed(&flow(1, 53), none)), 3);
        assert_eq!(packets(seen.ended(&flow(1, 60), none)), 7);
        assert_eq!(packets(seen.ended(&flow(2, 9), none)), 9, "short, never listed");
    }

    #[test]
    fn a_flow_that_one_listing_misses_does_not_count_twice() {
        let mut seen = SeenFlows::new();
        seen.begin_listing();
        assert_eq!(packets(seen.listed(&flow(1, 5), none)), 5);
        seen.end_listing();
        seen.begin_listing();
        seen.end_listing();
        seen.begin_listing();
        assert_eq!(packets(seen.listed(&flow(1, 6), none)), 1);
        seen.end_listing();
        for _ in 0..LISTINGS_TO_FORGET {
            seen.begin_listing();
            seen.end_listing();
        }
        assert_eq!(seen.len(), 0);
    }

    #[test]
    fn flows_without_room_are_counted_when_they_end() {
        let mut seen = SeenFlows::new();
        for number in 0..MAX_SEEN_FLOWS as u64 {
            let id = FlowId(number);
            let counters = Counters::default();
            seen.flows.insert(id, Seen { element: None, out: counters, back: counters, listing: 0 });
        }
        assert_eq!(packets(seen.listed(&flow(1, 5), none)), 0);
        assert_eq!(packets(seen.ended(&flow(1, 8), none)), 8);
    }

    #[test]
    fn flows_of_before_us_without_room_count_from_when_there_is_room() {
        let mut seen = SeenFlows::new();
        seen.begin_listing();
        for number in 0..MAX_SEEN_FLOWS as u64 {
            let counters = Counters::default();
            seen.flows
                .insert(FlowId(number), Seen { element: None, out: counters, back: counters, listing: 1 });
        }
        for number in 1..=3 {
            seen.adopt(&flow(number, 50), none);
        }
        seen.end_listing();
        assert_eq!(packets(seen.ended(&flow(1, 55), none)), 0, "a former process counted most of it");
        assert_eq!(packets(seen.ended(&flow(4, 5), none)), 5, "a new one");
        for _ in 0..LISTINGS_TO_FORGET {
            seen.begin_listing();
            assert_eq!(packets(seen.listed(&flow(2, 60), none)), 0);
            seen.end_listing();
        }
        assert_eq!(seen.len(), 0);
        seen.begin_listing();
        assert_eq!(packets(seen.listed(&flow(2, 62), none)), 0);
        assert_eq!(packets(seen.listed(&flow(2, 65), none)), 3);
        assert_eq!(
            packets(seen.ended(&flow(3, 70), none)),
            70,
            "its end was not told for so long that it is another"
        );
    }

    proptest! {
        /// Whatever listings and ends come, the sum is what the kernel counted.
        #[test]
        fn every_packet_is_counted_once(steps in prop::collection::vec((0_u16..3, 0_u64..5, any::<bool>()), 0..60)) {
            let mut seen = SeenFlows::new();
            let (mut live, mut moved, mut sum) = ([0_u64; 3], 0, 0);
            for (number, more, ends) in steps {
                live[usize::from(number)] += more;
                moved += more;
                let now = flow(number, live[usize::from(number)]);
                if ends {
                    sum += packets(seen.ended(&now, none));
                    live[usize::from(number)] = 0;
                } else {
                    sum += packets(seen.listed(&now, none));
                }
            }
            prop_assert_eq!(sum, moved);
        }
    }
}
