//! The elements in the kernel's sets: what passes, what drains, and the way from one to the other.

mod draining;
mod upkeep;
mod whole;

use std::collections::BTreeSet;
use std::time::Instant;

use allowlist::feed::RefusedElement;
use allowlist::{Change, Element};

use super::denied::{mend_deny_sets, read_denied};
use super::drain::{DrainBook, covered};
use super::failures::all_done;
use super::in_flight::wait_for_packets_in_flight;
use super::in_use::InUse;
use super::ipset::{Client, Counters, IpsetError};
use super::layout::{DRAIN_PAIRS, KernelOptions, PAIRS, pair_of};
use super::sets::{Last, SetPair, Taken};
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
    /// For reading two sets at the same time.
    second: Client,
    pairs: [SetPair; 4],
    drains: [SetPair; 4],
    book: DrainBook,
    held: BTreeSet<Element>,
    /// Elements that drain already and are still in the sets of what passes, until [`Self::end_draining`] comes by.
    leaving: BTreeSet<Element>,
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
            second: Client::connect()?,
            pairs: PAIRS.map(|layout| SetPair::new(layout, options.set_capacity)),
            drains: DRAIN_PAIRS.map(|layout| SetPair::new(layout, options.set_capacity)),
            book: DrainBook::new(options.drain.clone()),
            held: BTreeSet::new(),
            leaving: BTreeSet::new(),
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

    /// The pairs that should have members.
    pub(super) fn occupied(&self) -> InUse {
        let is_occupied = |pair: &SetPair| !pair.is_empty();
        InUse {
            passing: self.pairs.each_ref().map(is_occupied),
            draining: self.drains.each_ref().map(is_occupied),
        }
    }

    /// What was closed since the last call.
    pub(super) fn take_closed(&mut self) -> Vec<Element> {
        std::mem::take(&mut self.closed)
    }

    /// Makes the sets and takes over what they hold.
    pub(super) fn adopt(&mut self) -> Result<(), IpsetError> {
        self.settled = false;
        self.held.clear();
        self.leaving.clear();
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

    /// Makes one change.
    pub(super) fn apply(&mut self, change: &Change) -> Result<Outcome, FirewallError> {
        let (admitted, refused) = admit::sift(&change.added);
        let mut revoked: BTreeSet<Element> = change.revoked.iter().copied().collect();
        let mut retired: BTreeSet<Element> =
            change.retired.iter().filter(|element| !revoked.contains(element)).copied().collect();
        // What is removed around an address ends its flows, also those that were to drain from the same moment on.
        for element in covered(retired.iter(), &revoked) {
            retired.remove(&element);
            revoked.insert(element);
        }
        if !self.settled {
            let removed: Vec<Element> = revoked.union(&retired).copied().collect();
            let wanted = self.guess_after(admitted, &removed);
            return self.hold(wanted, refused, &retired, &revoked);
        }
        let stays = |element: &&Element| !revoked.contains(element) && !retired.contains(element);
        let step = Step {
            added: admitted.difference(&self.held).filter(stays).copied().collect(),
            revoked: (revoked.iter())
                .filter(|element| self.held.contains(element) || self.book.contains(element))
                .copied()
                .chain(
                    self.book.covered_by(&revoked).into_iter().filter(|element| !admitted.contains(element)),
                )
                .collect(),
            retired: retired.intersection(&self.held).copied().collect(),
        };
        self.step(step, refused)
    }

    fn step(&mut self, step: Step, mut refused: Vec<RefusedElement>) -> Result<Outcome, FirewallError> {
        let Step { added, revoked, retired } = step;
        self.settled = false;
        let mut outcome = Outcome::default();
        let mut failures = Vec::new();
        let mut taken: [Taken; 4] = Default::default();
        let mut drained: [Taken; 4] = Default::default();
        // Out everywhere before in anywhere: what was revoked waits for nothing.
        let passes = |element: &Element| self.held.contains(element) || self.leaving.contains(element);
        let (no_longer, ending) =
            (parts(&revoked, passes), parts(&revoked, |element| self.book.contains(element)));
        let coming = parts(&added, |element| !self.leaving.contains(element));
        failures.extend(self.close(&no_longer, &coming, &ending, &mut taken, &mut drained));
        for element in &revoked {
            self.book.end(element);
            self.leaving.remove(element);
            outcome.removed += usize::from(self.held.remove(element));
            self.closed.push(*element);
        }
        failures.extend(self.begin_draining(&retired));
        let (draining, homeless): (Vec<Element>, Vec<Element>) =
            retired.iter().partition(|element| self.book.contains(element));
        let none = Default::default();
        failures.extend(self.close(&parts(&homeless, |_| true), &none, &none, &mut taken, &mut drained));
        self.leaving.extend(draining);
        for element in &retired {
            outcome.removed += usize::from(self.held.remove(element));
        }
        self.held.extend(&added);
        outcome.added = added.iter().filter(|element| self.leaving.remove(element)).count();
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
        let returned = parts(&added, |element| self.book.contains(element));
        failures.extend(self.last_part(&taken, &drained, &returned, Last::ReadIfQuick));
        all_done(failures)?;
        self.settled = true;
        outcome.refused = refused;
        Ok(outcome)
    }

    /// First part of a change: takes what passes no more, and what drains no more, off the way out.
    fn close(
        &mut self,
        no_longer: &[Vec<Element>; 4],
        coming: &[Vec<Element>; 4],
        ending: &[Vec<Element>; 4],
        taken: &mut [Taken; 4],
        drained: &mut [Taken; 4],
    ) -> Vec<IpsetError> {
        let mut failures = Vec::new();
        for at in 0..PAIRS.len() {
            for (pair, removed, added, into) in [
                (&mut self.pairs[at], &no_longer[at], coming[at].as_slice(), &mut taken[at]),
                (&mut self.drains[at], &ending[at], &[], &mut drained[at]),
            ] {
                if removed.is_empty() && added.is_empty() {
                    continue;
                }
                match pair.take_out(&mut self.client, removed, added, Last::ReadIfQuick) {
                    Ok(out) => into.extend(out),
                    Err(error) => failures.push(error),
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
        last: Last,
    ) -> Vec<IpsetError> {
        let mut failures = Vec::new();
        let gone = |taken: &[Taken; 4]| taken.iter().any(|taken| !taken.gone.is_empty());
        if !gone(taken) && !gone(drained) && returned.iter().all(Vec::is_empty) {
            return failures;
        }
        wait_for_packets_in_flight();
        for at in 0..PAIRS.len() {
            let finished = [
                self.pairs[at].finish(&mut self.client, &taken[at].gone, last),
                self.drains[at].finish(&mut self.client, &drained[at].gone, last),
                (self.drains[at].take_out(&mut self.client, &returned[at], &[], last))
                    .and_then(|taken| self.drains[at].finish(&mut self.client, &taken.gone, last)),
            ];
            failures.extend(finished.into_iter().filter_map(Result::err));
            returned[at].iter().for_each(|element| self.book.end(element));
        }
        failures
    }

    /// Counters of what passes and what drains.
    pub(super) fn counters(&mut self) -> Result<Vec<ElementCounters>, IpsetError> {
        for pair in self.pairs.iter_mut().chain(&mut self.drains) {
            pair.read(&mut self.client, &mut self.second)?;
        }
        let draining = self.book.elements().filter(|element| !self.held.contains(element));
        let mut elements: Vec<Element> = self.held.iter().chain(draining).copied().collect();
        // Two sorted runs.
        elements.sort();
        let nothing_drained = self.drains.each_ref().map(SetPair::counted_nothing);
        Ok(elements
            .into_iter()
            .map(|element| {
                let at = pair_of(&element);
                let passed = self.pairs[at].total(&element);
                let drained = match nothing_drained[at] {
                    true => Default::default(),
                    false => self.drains[at].total(&element),
                };
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
