//! The elements in the kernel's sets: what passes, what drains, and the way from one to the other.

mod upkeep;

use std::collections::{BTreeSet, HashSet};
use std::time::Instant;

use allowlist::feed::RefusedElement;
use allowlist::{Change, Element};

use super::denied::{mend_deny_sets, read_denied};
use super::drain::DrainBook;
use super::failures::all_done;
use super::in_flight::wait_for_packets_in_flight;
use super::ipset::{Client, Counters, IpsetError};
use super::layout::{DRAIN_PAIRS, KernelOptions, Member, PAIRS, members_of, pair_of};
use super::sets::{SetPair, Taken};
use super::{ElementCounters, FirewallError, Outcome, admit, cutter};

/// A change in the words of the sets; no element in two of them.
#[derive(Debug, Default)]
struct Step {
    added: Vec<Element>,
    revoked: Vec<Element>,
    retired: Vec<Element>,
}

/// What is in the sets.
pub(super) struct Holding {
    client: Client,
    pairs: [SetPair; 4],
    drains: [SetPair; 4],
    book: DrainBook,
    held: BTreeSet<Element>,
    /// Elements that pass no more and whose flows are to be cut; until somebody takes them.
    closed: Vec<Element>,
    /// True while `held` is known to be what the sets hold, element by element.
    settled: bool,
}

impl Holding {
    /// Opens the way to the sets; touches nothing.
    pub(super) fn new(options: &KernelOptions) -> Result<Self, IpsetError> {
        Ok(Self {
            client: Client::connect()?,
            pairs: PAIRS.map(|layout| SetPair::new(layout, options.set_capacity)),
            drains: DRAIN_PAIRS.map(|layout| SetPair::new(layout, options.set_capacity)),
            book: DrainBook::new(options.drain.clone()),
            held: BTreeSet::new(),
            closed: Vec::new(),
            settled: false,
        })
    }

    pub(super) fn held(&self) -> &BTreeSet<Element> {
        &self.held
    }

    /// True while the sets are known to hold exactly what they should.
    pub(super) fn is_settled(&self) -> bool {
        self.settled
    }

    /// What was closed since the last call.
    pub(super) fn take_closed(&mut self) -> Vec<Element> {
        std::mem::take(&mut self.closed)
    }

    /// Makes the sets and takes over what they hold.
    pub(super) fn adopt(&mut self) -> Result<(), IpsetError> {
        self.settled = false;
        self.held.clear();
        for pair in &mut self.pairs {
            self.held.extend(pair.adopt(&mut self.client)?);
        }
        let mut draining = Vec::new();
        for pair in &mut self.drains {
            draining.extend(pair.adopt(&mut self.client)?);
        }
        self.book.adopt(draining, Instant::now());
        cutter::create_cut_sets(&mut self.client)?;
        mend_deny_sets(&mut self.client)?;
        self.settled = self.held.iter().all(|element| element.ports.is_none());
        Ok(())
    }

    /// Holds exactly `wanted`. What drains goes on draining.
    pub(super) fn replace(&mut self, elements: &BTreeSet<Element>) -> Result<Outcome, FirewallError> {
        let (admitted, refused) = admit::sift(elements);
        self.hold(admitted, refused)
    }

    /// Makes one change.
    pub(super) fn apply(&mut self, change: &Change) -> Result<Outcome, FirewallError> {
        let (admitted, refused) = admit::sift(&change.added);
        let revoked: BTreeSet<Element> = change.revoked.iter().copied().collect();
        let retired: BTreeSet<Element> = change.retired.iter().copied().collect();
        let stays = |element: &&Element| !revoked.contains(element) && !retired.contains(element);
        let retiring = || retired.difference(&revoked).filter(|element| self.held.contains(element)).copied();
        if !self.settled {
            let (removed, draining) =
                (revoked.union(&retired).copied().collect::<Vec<_>>(), retiring().collect::<Vec<_>>());
            let wanted = self.guess_after(admitted, &removed);
            let begun = self.begin_draining(&draining);
            return self.hold(wanted, refused).and_then(|outcome| all_done(begun).map(|()| outcome));
        }
        let step = Step {
            added: admitted.difference(&self.held).filter(stays).copied().collect(),
            revoked: (revoked.iter())
                .filter(|element| self.held.contains(element) || self.book.contains(element))
                .copied()
                .collect(),
            retired: retiring().collect(),
        };
        self.step(&step, refused)
    }

    fn step(&mut self, step: &Step, mut refused: Vec<RefusedElement>) -> Result<Outcome, FirewallError> {
        let Step { added, revoked, retired } = step;
        self.settled = false;
        let mut outcome = Outcome::default();
        let mut failures = Vec::new();
        let mut taken: [Taken; 4] = Default::default();
        let mut drained: [Taken; 4] = Default::default();
        // Out everywhere before in anywhere: what was revoked waits for nothing.
        let (no_longer, ending) = (
            parts(revoked, |element| self.held.contains(element)),
            parts(revoked, |element| self.book.contains(element)),
        );
        let (coming, leaving) = (parts(added, |_| true), parts(retired, |_| true));
        for at in 0..PAIRS.len() {
            first_part(
                &mut self.pairs[at],
                &mut self.client,
                &no_longer[at],
                &coming[at],
                &mut taken[at],
                &mut failures,
            );
            first_part(
                &mut self.drains[at],
                &mut self.client,
                &ending[at],
                &[],
                &mut drained[at],
                &mut failures,
            );
        }
        for element in revoked {
            self.book.end(element);
            outcome.removed += usize::from(self.held.remove(element));
            self.closed.push(*element);
        }
        failures.extend(self.begin_draining(retired));
        for at in 0..PAIRS.len() {
            first_part(
                &mut self.pairs[at],
                &mut self.client,
                &leaving[at],
                &[],
                &mut taken[at],
                &mut failures,
            );
        }
        for element in retired {
            outcome.removed += usize::from(self.held.remove(element));
        }
        self.held.extend(added);
        for at in 0..PAIRS.len() {
            match self.pairs[at].put_in(&mut self.client, &coming[at], &taken[at].missing) {
                Ok(refused_here) => {
                    for refusal in &refused_here {
                        self.held.remove(&refusal.element);
                    }
                    outcome.added += coming[at].len() - refused_here.len();
                    refused.extend(refused_here);
                }
                Err(error) => failures.push(error),
            }
        }
        let returned = parts(added, |element| self.book.contains(element));
        failures.extend(self.last_part(&taken, &drained, &returned));
        all_done(failures)?;
        self.settled = true;
        outcome.refused = refused;
        Ok(outcome)
    }

    /// Hands each pair its part and settles what is held afterwards.
    fn hold(
        &mut self,
        wanted: BTreeSet<Element>,
        mut refused: Vec<RefusedElement>,
    ) -> Result<Outcome, FirewallError> {
        self.settled = false;
        let mut wanted_parts: [BTreeSet<Element>; 4] = Default::default();
        for element in &wanted {
            wanted_parts[pair_of(element)].insert(*element);
        }
        let mut failures = Vec::new();
        let mut taken: [Option<Taken>; 4] = Default::default();
        // Out everywhere before in anywhere: what was revoked waits for nothing.
        for (at, pair) in self.pairs.iter_mut().enumerate() {
            match pair.take_out_all_but(&mut self.client, &wanted_parts[at]) {
                Ok(out) => taken[at] = Some(out),
                Err(error) => failures.push(error),
            }
        }
        let mut held = wanted;
        for (at, pair) in self.pairs.iter_mut().enumerate() {
            let Some(taken) = &taken[at] else { continue };
            match pair.put_in(&mut self.client, &wanted_parts[at], &taken.missing) {
                Ok(refused_here) => {
                    for refusal in refused_here {
                        held.remove(&refusal.element);
                        refused.push(refusal);
                    }
                }
                Err(error) => failures.push(error),
            }
        }
        let returned: Vec<Element> =
            self.book.elements().filter(|element| held.contains(element)).copied().collect();
        let taken = taken.map(Option::unwrap_or_default);
        failures.extend(self.last_part(&taken, &Default::default(), &parts(&returned, |_| true)));
        let added = held.difference(&self.held).count();
        let gone = self.held.difference(&held);
        let removed = gone.clone().count();
        self.closed.extend(gone.filter(|element| !self.book.contains(element)));
        self.held = held;
        all_done(failures)?;
        self.settled = true;
        Ok(Outcome { added, removed, refused })
    }

    /// Lets flows of `elements` go on before the elements go. One that finds no room is closed.
    fn begin_draining(&mut self, elements: &[Element]) -> Vec<IpsetError> {
        let mut failures = Vec::new();
        let now = Instant::now();
        let new = parts(elements, |element| !self.book.contains(element));
        for (at, elements) in new.iter().enumerate() {
            let pair = &mut self.drains[at];
            let put = pair
                .take_out(&mut self.client, &[], elements)
                .and_then(|taken| pair.put_in(&mut self.client, elements, &taken.missing));
            match put {
                Ok(refused) => {
                    let refused: BTreeSet<Element> = refused.iter().map(|refusal| refusal.element).collect();
                    for element in elements {
                        if refused.contains(element) {
                            self.closed.push(*element);
                        } else {
                            self.book.begin(*element, now);
                        }
                    }
                }
                Err(error) => {
                    self.closed.extend(elements);
                    failures.push(error);
                }
            }
        }
        failures
    }

    /// When no packet is under way that an earlier part let in: takes what is gone out of the replies' sets, and lets
    /// what came back drain no more. Those packets still see NAT, and one that looked in vain for what came back still
    /// finds it draining.
    fn last_part(
        &mut self,
        taken: &[Taken; 4],
        drained: &[Taken; 4],
        returned: &[Vec<Element>; 4],
    ) -> Vec<IpsetError> {
        let mut failures = Vec::new();
        let gone = |taken: &[Taken; 4]| taken.iter().any(|taken| !taken.gone.is_empty());
        if !gone(taken) && !gone(drained) && returned.iter().all(Vec::is_empty) {
            return failures;
        }
        wait_for_packets_in_flight();
        for at in 0..PAIRS.len() {
            let finished = [
                self.pairs[at].finish(&mut self.client, &taken[at].gone),
                self.drains[at].finish(&mut self.client, &drained[at].gone),
                (self.drains[at].take_out(&mut self.client, &returned[at], &[]))
                    .and_then(|taken| self.drains[at].finish(&mut self.client, &taken.gone)),
            ];
            failures.extend(finished.into_iter().filter_map(Result::err));
            returned[at].iter().for_each(|element| self.book.end(element));
        }
        failures
    }

    /// Ends the draining of what is idle or whose time is over; gives those elements.
    pub(super) fn end_draining(&mut self, now: Instant) -> Result<Vec<Element>, FirewallError> {
        if self.book.is_empty() {
            self.book.write(now);
            return Ok(Vec::new());
        }
        for pair in &mut self.drains {
            pair.read(&mut self.client)?;
        }
        for element in self.book.elements().copied().collect::<Vec<_>>() {
            let (out, back) = self.drains[pair_of(&element)].total(&element);
            self.book.observe(&element, out.packets.saturating_add(back.packets), now);
        }
        let due = self.book.due(now);
        let failures = self.last_part(&Default::default(), &Default::default(), &parts(&due, |_| true));
        self.book.write(now);
        all_done(failures)?;
        Ok(due)
    }

    /// What the change makes of what is held while ports of adopted elements are a guess: an adopted element that shares
    /// a member with a removed one goes whole, so that nothing removed stays open.
    fn guess_after(&self, added: BTreeSet<Element>, removed: &[Element]) -> BTreeSet<Element> {
        let closed: HashSet<Member> = removed.iter().flat_map(members_of).collect();
        let mut wanted: BTreeSet<Element> = self
            .held
            .iter()
            .filter(|element| !members_of(element).any(|member| closed.contains(&member)))
            .copied()
            .collect();
        wanted.extend(added);
        for element in removed {
            wanted.remove(element);
        }
        wanted
    }

    /// Counters of what passes and what drains.
    pub(super) fn counters(&mut self) -> Result<Vec<ElementCounters>, IpsetError> {
        for pair in self.pairs.iter_mut().chain(&mut self.drains) {
            pair.read(&mut self.client)?;
        }
        let draining = self.book.elements().filter(|element| !self.held.contains(element));
        let mut elements: Vec<Element> = self.held.iter().chain(draining).copied().collect();
        // Two sorted runs.
        elements.sort();
        Ok(elements
            .into_iter()
            .map(|element| {
                let at = pair_of(&element);
                let (passed, drained) = (self.pairs[at].total(&element), self.drains[at].total(&element));
                ElementCounters {
                    element,
                    packets_out: passed.0.packets.saturating_add(drained.0.packets),
                    bytes_out: passed.0.bytes.saturating_add(drained.0.bytes),
                    packets_in: passed.1.packets.saturating_add(drained.1.packets),
                    bytes_in: passed.1.bytes.saturating_add(drained.1.bytes),
                }
            })
            .collect())
    }

    /// What was denied, or passed unlisted in an audit, for each family.
    pub(super) fn denied(&mut self) -> Result<[Counters; 2], IpsetError> {
        read_denied(&mut self.client)
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.book.write(Instant::now());
    }
}

/// Those elements that `belongs` says yes to, by the pair they are in.
fn parts(elements: &[Element], belongs: impl Fn(&Element) -> bool) -> [Vec<Element>; 4] {
    let mut parts: [Vec<Element>; 4] = Default::default();
    for element in elements.iter().filter(|element| belongs(element)) {
        parts[pair_of(element)].push(*element);
    }
    parts
}

/// Takes a pair's part out and notes what is left to do.
fn first_part(
    pair: &mut SetPair,
    client: &mut Client,
    removed: &[Element],
    added: &[Element],
    into: &mut Taken,
    failures: &mut Vec<IpsetError>,
) {
    if removed.is_empty() && added.is_empty() {
        return;
    }
    match pair.take_out(client, removed, added) {
        Ok(taken) => {
            into.missing.extend(taken.missing);
            into.gone.extend(taken.gone);
        }
        Err(error) => failures.push(error),
    }
}
