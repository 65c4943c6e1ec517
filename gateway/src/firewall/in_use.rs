//! Which pairs of sets have rules: those that hold something, and those that did a moment ago.
//!
//! A rule whose set is empty lets nothing pass and still costs every packet that comes by it a look at the connection and
//! one into the set. Most lists need one pair of a family, hence the others have no rules until they hold something.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use allowlist::{Change, Element};

use super::layout::{DRAIN_PAIRS, Family, PAIRS, PairLayout, pair_of};

/// For so long a pair has to be empty before its rules go: exchanging them runs programs, and what leaves often comes back.
pub(super) const RULES_LINGER: Duration = Duration::from_secs(60);

/// Which pairs have rules, as indices of [`PAIRS`] and [`DRAIN_PAIRS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct InUse {
    pub(super) passing: [bool; 4],
    pub(super) draining: [bool; 4],
}

impl InUse {
    /// Every pair.
    #[cfg(test)]
    pub(super) const ALL: Self = Self { passing: [true; 4], draining: [true; 4] };

    /// What a driver needs that is to hold `elements`, of which it lets drain what `way` calls retired and it `held`.
    pub(super) fn of<'a>(
        elements: impl IntoIterator<Item = &'a Element>,
        way: &Change,
        held: &BTreeSet<Element>,
    ) -> Self {
        let mut needed = Self::default();
        for element in elements {
            needed.passing[pair_of(element)] = true;
        }
        for element in way.retired.iter().filter(|element| held.contains(element)) {
            needed.draining[pair_of(element)] = true;
        }
        needed
    }

    /// The pairs that `rules` ask for.
    pub(super) fn of_rules(rules: &[String]) -> Self {
        let asked = |pair: PairLayout| {
            let names = |word: &str| word == pair.out || word == pair.back;
            rules.iter().any(|rule| rule.split(' ').any(names))
        };
        Self { passing: PAIRS.map(asked), draining: DRAIN_PAIRS.map(asked) }
    }

    pub(super) fn union(self, other: Self) -> Self {
        let either = |one: [bool; 4], other: [bool; 4]| [0, 1, 2, 3].map(|at| one[at] || other[at]);
        Self { passing: either(self.passing, other.passing), draining: either(self.draining, other.draining) }
    }

    /// The same with the pairs of `family` as `other` has them.
    pub(super) fn with(self, family: Family, other: Self) -> Self {
        let chosen = |own: [bool; 4], other: [bool; 4]| {
            [0, 1, 2, 3].map(|at| if PAIRS[at].family == family { other[at] } else { own[at] })
        };
        Self { passing: chosen(self.passing, other.passing), draining: chosen(self.draining, other.draining) }
    }

    /// True when the rules of `family` are others than those of `other`.
    pub(super) fn differs(self, other: Self, family: Family) -> bool {
        let differs =
            |at: &usize| self.passing[*at] != other.passing[*at] || self.draining[*at] != other.draining[*at];
        (0..PAIRS.len()).filter(|at| PAIRS[*at].family == family).any(|at| differs(&at))
    }

    /// The pairs of what passes, port-scoped first, so that traffic of a narrow element is counted on it and not on a wide
    /// one beside it.
    pub(super) fn passing_of(self, family: Family) -> impl Iterator<Item = &'static PairLayout> {
        in_front_first(&PAIRS, self.passing, family)
    }

    /// The pairs of what drains, in the same order.
    pub(super) fn draining_of(self, family: Family) -> impl Iterator<Item = &'static PairLayout> {
        in_front_first(&DRAIN_PAIRS, self.draining, family)
    }
}

fn in_front_first(
    pairs: &'static [PairLayout; 4],
    in_use: [bool; 4],
    family: Family,
) -> impl Iterator<Item = &'static PairLayout> {
    let used = pairs.iter().zip(in_use).filter(|(_, used)| *used).map(|(pair, _)| pair);
    used.rev().filter(move |pair| pair.family == family)
}

/// Since when pairs are empty that have rules.
#[derive(Debug, Default)]
pub(super) struct Lingering {
    passing: [Option<Instant>; 4],
    draining: [Option<Instant>; 4],
}

impl Lingering {
    /// What is left `in_use` when so much is `occupied` now.
    pub(super) fn narrowed(&mut self, in_use: InUse, occupied: InUse, now: Instant) -> InUse {
        let narrowed = |since: &mut [Option<Instant>; 4], in_use: [bool; 4], occupied: [bool; 4]| {
            [0, 1, 2, 3].map(|at| {
                if occupied[at] || !in_use[at] {
                    since[at] = None;
                    return in_use[at];
                }
                now.saturating_duration_since(*since[at].get_or_insert(now)) < RULES_LINGER
            })
        };
        InUse {
            passing: narrowed(&mut self.passing, in_use.passing, occupied.passing),
            draining: narrowed(&mut self.draining, in_use.draining, occupied.draining),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(prefix: &str, ports: Option<&str>) -> Element {
        Element::new(prefix.parse().unwrap(), ports.map(|ports| ports.parse().unwrap()))
    }

    #[test]
    fn what_is_needed_is_what_elements_and_their_draining_ask_for() {
        let (host, port) = (element("8.8.8.8/32", None), element("2a01:4f8::/32", Some("tcp/443")));
        let way = Change { retired: vec![host, port], ..Change::default() };
        let needed = InUse::of([&host], &way, &[port].into());
        assert_eq!(needed.passing, [true, false, false, false]);
        assert_eq!(needed.draining, [false, false, false, true]);
        assert_eq!(InUse::ALL.union(needed), InUse::ALL);
        let names = |family| -> Vec<_> { InUse::ALL.passing_of(family).map(|pair| pair.out).collect() };
        assert_eq!((names(Family::V4), names(Family::V6)), (vec!["og4op", "og4o"], vec!["og6op", "og6o"]));
        assert_eq!(needed.passing_of(Family::V6).count(), 0);
        assert!(needed.differs(InUse::default(), Family::V4) && !needed.differs(needed, Family::V6));
        let only_v6 = InUse::default().with(Family::V6, needed);
        assert_eq!(only_v6, InUse { draining: needed.draining, ..InUse::default() });
    }

    #[test]
    fn rules_name_the_pairs_they_ask_for() {
        let rules = ["-m set --match-set og4op dst,dst -j ACCEPT", "-m set --match-set og4di src -j ACCEPT"];
        let asked = InUse::of_rules(&rules.map(str::to_owned));
        assert_eq!(asked.passing, [false, true, false, false]);
        assert_eq!(asked.draining, [true, false, false, false]);
    }

    #[test]
    fn rules_go_when_their_pair_was_empty_for_a_while_without_a_break() {
        let mut lingering = Lingering::default();
        let start = Instant::now();
        let (nothing, host) =
            (InUse::default(), InUse { passing: [true, false, false, false], ..InUse::default() });
        assert_eq!(lingering.narrowed(host, nothing, start), host);
        assert_eq!(lingering.narrowed(host, host, start + RULES_LINGER), host);
        assert_eq!(lingering.narrowed(host, nothing, start + RULES_LINGER), host);
        assert_eq!(lingering.narrowed(host, nothing, start + 2 * RULES_LINGER), nothing);
        assert_eq!(lingering.narrowed(nothing, nothing, start + 3 * RULES_LINGER), nothing);
    }
}
