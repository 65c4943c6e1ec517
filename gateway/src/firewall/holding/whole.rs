//! Holding a set as a whole: after a snapshot, at the start, and whenever it is not known what the kernel holds.

use std::collections::{BTreeSet, HashSet};

use allowlist::feed::RefusedElement;
use allowlist::{Change, Element};

use super::{Holding, parts};
use crate::firewall::failures::all_done;
use crate::firewall::layout::{Member, PAIRS, elements_of, members_of, pair_of};
use crate::firewall::sets::{Last, Taken};
use crate::firewall::{FirewallError, Outcome, admit};

impl Holding {
    /// Holds exactly `elements`. What drains goes on draining, and so does from now on what `way` calls retired.
    pub(in crate::firewall) fn replace(
        &mut self,
        elements: &BTreeSet<Element>,
        way: &Change,
    ) -> Result<Outcome, FirewallError> {
        let (admitted, refused) = admit::sift(elements);
        let set = |elements: &[Element]| elements.iter().copied().collect();
        self.hold(admitted, refused, &set(&way.retired), &set(&way.revoked))
    }

    /// Hands each pair its part and settles what is held afterwards.
    pub(super) fn hold(
        &mut self,
        wanted: BTreeSet<Element>,
        mut refused: Vec<RefusedElement>,
        retired: &BTreeSet<Element>,
        revoked: &BTreeSet<Element>,
    ) -> Result<Outcome, FirewallError> {
        self.settled = false;
        let retiring: Vec<Element> = retired
            .iter()
            .filter(|element| self.held.contains(element) && !wanted.contains(element))
            .copied()
            .collect();
        let mut failures = self.begin_draining(&retiring);
        self.leaving.clear();
        let wanted_parts = [0, 1, 2, 3].map(|at| -> BTreeSet<Element> {
            // Sorted, hence made in one go.
            wanted.iter().filter(|element| pair_of(element) == at).copied().collect()
        });
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
        let added = held.difference(&self.held).count();
        let removed = self.held.difference(&held).count();
        let closed = self.closed_by(&held, &taken);
        let named = revoked.iter().filter(|element| !held.contains(element));
        let gone: BTreeSet<Element> = closed.iter().chain(named).copied().collect();
        let mut ended = self.book.covered_by(&gone);
        ended.extend(gone.iter().filter(|element| self.book.contains(element)));
        self.closed.extend(closed.iter().chain(&ended));
        let over: Vec<Element> =
            (self.book.elements().filter(|element| held.contains(element) && !ended.contains(element)))
                .chain(&ended)
                .copied()
                .collect();
        let taken = taken.map(Option::unwrap_or_default);
        let none = Default::default();
        failures.extend(self.last_part(&taken, &none, &parts(&over, |_| true), Last::ReadIfQuick));
        self.held = held;
        all_done(failures)?;
        self.settled = true;
        Ok(Outcome { added, removed, refused })
    }

    /// What the change makes of what is held while ports of adopted elements are a guess: an adopted element that shares
    /// a member with a removed one goes whole, so that nothing removed stays open.
    pub(super) fn guess_after(&self, added: BTreeSet<Element>, removed: &[Element]) -> BTreeSet<Element> {
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

    /// What passes no more and does not drain. Ports of adopted elements are a guess, hence an element counts when a member
    /// of it is gone, and the rest of what is gone makes elements of its own.
    fn closed_by(&self, held: &BTreeSet<Element>, taken: &[Option<Taken>; 4]) -> BTreeSet<Element> {
        let mut closed = BTreeSet::new();
        let mut explained: HashSet<Member> = self.book.elements().flat_map(members_of).collect();
        for element in self.held.difference(held).filter(|element| !self.book.contains(element)) {
            // Of a pair that failed nothing is known.
            let is_gone = |member: &Member| {
                taken[pair_of(element)].as_ref().is_none_or(|taken| taken.gone.contains(member))
            };
            if members_of(element).any(|member| is_gone(&member)) {
                closed.insert(*element);
                explained.extend(members_of(element));
            }
        }
        for at in 0..PAIRS.len() {
            let gone = taken[at].iter().flat_map(|taken| &taken.gone);
            let rest: Vec<Member> = gone.filter(|member| !explained.contains(member)).copied().collect();
            closed.extend(elements_of(&rest));
        }
        closed
    }
}
