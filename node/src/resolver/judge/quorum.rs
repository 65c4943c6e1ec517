//! Who gives an address: new ones that too few upstreams vouch for wait, and those that stay are told with their givers.
//!
//! Pools rotate, and two caches rarely hold the same part of one at a moment. So what an upstream gave counts for as long as
//! an address lingers, and one that is silent has taken nothing back. What counts against an address are the upstreams
//! that answered in this very round without vouching for it. A failing upstream thus has no vote; yet one alone never
//! opens anything where there are several, or whoever can silence the others could.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use raft_store::command::SeenAddress;
use raft_store::state::Resolution;

use super::super::answer::{Family, UpstreamSet};
use super::{MAX_ADDRESSES_PER_NAME, Memory, Rules, Union};

/// What an upstream gave counts at least so long.
pub const GIVEN_COUNTS: Duration = Duration::from_secs(600);
/// Givers of stored addresses that changed are told once they have differed for this time, …
const GIVERS_SETTLE: Duration = Duration::from_secs(60);
/// … and not sooner than this after the last time, for all addresses of a name at once: pools would cost a write a minute.
const GIVERS_TOLD_EVERY: Duration = Duration::from_secs(600);
/// A name is said to wait for a majority after so many rounds in a row in which all it has waits.
const WAITING_TOLD_AFTER: u32 = 3;
/// Upstreams of a majority, where there are several.
const FEWEST_OF_SEVERAL: usize = 2;

/// How many upstreams must give an address before it is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Quorum {
    /// One.
    #[default]
    Any,
    /// More than half of those that answered, and two at least where there are several.
    Majority,
}

/// Upstreams, by when each last gave an address.
#[derive(Debug, Clone, Default)]
pub(super) struct Givers(Vec<(usize, Duration)>);

impl Givers {
    pub(super) fn hear(&mut self, given_by: UpstreamSet, now: Duration) {
        for place in given_by.places() {
            match self.0.iter_mut().find(|(known, _)| *known == place) {
                Some((_, last)) => *last = now,
                None => {
                    // There are many of these, and few of them ever hold another.
                    self.0.reserve_exact(1);
                    self.0.push((place, now));
                }
            }
        }
    }

    /// Those whose word still counts, among them those that are silent now.
    fn standing(&mut self, heard: UpstreamSet, now: Duration, rules: &Rules) -> UpstreamSet {
        let counts = rules.word_counts;
        for (place, last) in &mut self.0 {
            if !heard.contains(*place) {
                *last = now;
            }
        }
        self.0.retain(|(_, last)| now.saturating_sub(*last) < counts);
        self.0.iter().map(|(place, _)| *place).collect()
    }
}

/// New addresses that too few upstreams gave so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Waiting {
    known: BTreeMap<IpAddr, Givers>,
    /// How many of them the last round let in.
    admitted: usize,
    /// Rounds in a row in which there was nothing but them.
    rounds: u32,
}

impl Waiting {
    /// Takes in what is new in a round; returns what may be published, with all who gave it. `heard` are the upstreams
    /// that answered for a family.
    pub(super) fn admit(
        &mut self,
        union: &Union,
        stored: &Resolution,
        heard: impl Fn(Family) -> UpstreamSet,
        now: Duration,
        rules: &Rules,
    ) -> BTreeMap<IpAddr, (u32, UpstreamSet)> {
        let new = union.public.iter().filter(|(address, _)| !stored.addresses.contains_key(address));
        if rules.quorum == Quorum::Any {
            return new.map(|(address, given)| (*address, *given)).collect();
        }
        let mut admitted = BTreeMap::new();
        for (&address, &(ttl_s, given_by)) in new {
            let heard = heard(Family::of(address));
            let mut givers = self.known.remove(&address).unwrap_or_default();
            givers.hear(given_by, now);
            let vouching = givers.standing(heard, now, rules);
            if rules.is_majority(vouching, heard) {
                admitted.insert(address, (ttl_s, vouching));
            }
            // It stays until it is stored: the write may fail.
            if self.known.len() < MAX_ADDRESSES_PER_NAME {
                self.known.insert(address, givers);
            }
        }
        self.admitted = admitted.len();
        self.known.retain(|address, givers| {
            let standing = givers.standing(heard(Family::of(*address)), now, rules);
            !standing.is_empty() && !stored.addresses.contains_key(address)
        });
        let only_waits = admitted.is_empty() && stored.addresses.is_empty() && !union.public.is_empty();
        self.rounds = if only_waits { self.rounds.saturating_add(1) } else { 0 };
        admitted
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.known.len().saturating_sub(self.admitted)
    }

    /// What people are told while a name has nothing but addresses that wait, and has had for some rounds.
    pub(super) fn text(&self, rules: &Rules) -> Option<String> {
        let (address, givers) = self.known.first_key_value().filter(|_| self.rounds >= WAITING_TOLD_AFTER)?;
        let upstreams = rules.names_of(givers.0.iter().map(|(place, _)| *place).collect());
        let upstreams: Vec<String> = upstreams.into_iter().collect();
        let more = match self.known.len() - 1 {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        Some(format!(
            "no majority of the upstreams gives an address: {address} only from {}{more}",
            upstreams.join(", ")
        ))
    }
}

impl Rules {
    fn is_majority(&self, vouching: UpstreamSet, heard: UpstreamSet) -> bool {
        let voters = heard.and(vouching);
        vouching.len() * 2 > voters.len() && vouching.len() >= FEWEST_OF_SEVERAL.min(self.upstreams.len())
    }
}

/// When the givers of a name's addresses were told, and since when they differ from that.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Told {
    last: Option<Duration>,
    differ_since: Option<Duration>,
}

impl Memory {
    /// Stored addresses whose givers are not those that are stored, as they should be stored; empty when that can wait.
    /// `writes` says that the name costs a write anyway.
    pub(super) fn changed_givers(
        &mut self,
        stored: &Resolution,
        heard: impl Fn(Family) -> UpstreamSet,
        writes: bool,
        now: Duration,
        rules: &Rules,
    ) -> BTreeMap<IpAddr, SeenAddress> {
        let mut changed = BTreeMap::new();
        if rules.upstreams.len() < FEWEST_OF_SEVERAL {
            return changed;
        }
        for (&address, kept) in &stored.addresses {
            let Some(sighting) = self.sightings.get_mut(&address) else { continue };
            let standing = sighting.givers.standing(heard(Family::of(address)), now, rules);
            // Nobody gives one that lingers; who gave it last stays told.
            if standing.is_empty() || standing == rules.set_of(&kept.upstreams) {
                continue;
            }
            changed.insert(address, SeenAddress { upstreams: rules.names_of(standing), ..kept.clone() });
        }
        let told = &mut self.told;
        if changed.is_empty() {
            told.differ_since = None;
            return changed;
        }
        let since = *told.differ_since.get_or_insert(now);
        let settled = now.saturating_sub(since) >= GIVERS_SETTLE;
        let due = told.last.is_none_or(|last| now.saturating_sub(last) >= GIVERS_TOLD_EVERY);
        let tell = writes || (settled && due);
        if !tell {
            return BTreeMap::new();
        }
        *told = Told { last: Some(now), differ_since: None };
        changed
    }
}
