//! From what passes to what drains, and from there to the end.

use std::collections::BTreeSet;
use std::time::Instant;

use allowlist::Element;

use super::{Holding, parts};
use crate::firewall::FirewallError;
use crate::firewall::failures::all_done;
use crate::firewall::ipset::IpsetError;
use crate::firewall::layout::pair_of;
use crate::firewall::sets::{Last, Taken};

impl Holding {
    /// Lets flows of `elements` go on before the elements go. One that finds no room is closed.
    pub(super) fn begin_draining(&mut self, elements: &[Element]) -> Vec<IpsetError> {
        let mut failures = Vec::new();
        let now = Instant::now();
        let new = parts(elements, |element| !self.book.contains(element));
        for (at, elements) in new.iter().enumerate() {
            let pair = &mut self.drains[at];
            let put = pair
                .take_out(&mut self.client, &[], elements, Last::Read)
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
                    // Nobody would end it: what is in the sets of it is found by a comparison.
                    pair.disown(elements);
                    self.closed.extend(elements);
                    failures.push(error);
                }
            }
        }
        failures
    }

    /// Takes what was retired out of the sets of what passes, and ends the draining of what is idle or whose time is over;
    /// gives what drains no more.
    pub(in crate::firewall) fn end_draining(
        &mut self,
        now: Instant,
    ) -> (Vec<Element>, Result<(), FirewallError>) {
        let mut failures = self.let_leave();
        let mut due = Vec::new();
        if !self.book.is_empty() {
            match self.read_drains(now) {
                Ok(()) => due = self.book.due(now),
                Err(error) => failures.push(error),
            }
            let none = Default::default();
            failures.extend(self.last_part(&none, &Default::default(), &parts(&due, |_| true), Last::Read));
        }
        self.book.write(now);
        (due, all_done(failures))
    }

    fn read_drains(&mut self, now: Instant) -> Result<(), IpsetError> {
        for pair in &mut self.drains {
            pair.read(&mut self.client, &mut self.second)?;
        }
        for element in self.book.elements().copied().collect::<Vec<_>>() {
            let (out, back) = self.drains[pair_of(&element)].total(&element);
            self.book.observe(&element, out.packets.saturating_add(back.packets), now);
        }
        Ok(())
    }

    /// Takes what drains out of the sets of what passes. Together, since each time a whole set is read for the last
    /// counts of a few. What fails is still in a set that should not have it, and a comparison finds that.
    fn let_leave(&mut self) -> Vec<IpsetError> {
        let leaving: Vec<Element> = std::mem::take(&mut self.leaving).into_iter().collect();
        let (mut failures, mut taken): (Vec<_>, [Taken; 4]) = Default::default();
        for (at, leaving) in parts(&leaving, |_| true).iter().enumerate() {
            if leaving.is_empty() {
                continue;
            }
            match self.pairs[at].take_out(&mut self.client, leaving, &[], Last::ReadIfQuick) {
                Ok(out) => taken[at] = out,
                Err(error) => failures.push(error),
            }
        }
        let none = Default::default();
        failures.extend(self.last_part(&taken, &Default::default(), &none, Last::ReadIfQuick));
        failures
    }
}
