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
                    self.closed.extend(elements);
                    failures.push(error);
                }
            }
        }
        failures
    }

    /// Ends the draining of what is idle or whose time is over; gives those elements.
    pub(in crate::firewall) fn end_draining(&mut self, now: Instant) -> Result<Vec<Element>, FirewallError> {
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
        let mut failures = self.let_leave();
        failures.extend(self.last_part(
            &Default::default(),
            &Default::default(),
            &parts(&due, |_| true),
            Last::Read,
        ));
        self.book.write(now);
        all_done(failures)?;
        Ok(due)
    }

    /// Takes what drains out of the sets of what passes. Together, since each time a whole set is read for the last
    /// counts of a few.
    fn let_leave(&mut self) -> Vec<IpsetError> {
        let leaving: Vec<Element> = std::mem::take(&mut self.leaving).into_iter().collect();
        let (mut failures, mut taken): (Vec<_>, [Taken; 4]) = Default::default();
        for (at, leaving) in parts(&leaving, |_| true).iter().enumerate() {
            if leaving.is_empty() {
                continue;
            }
            match self.pairs[at].take_out(&mut self.client, leaving, &[], Last::Read) {
                Ok(out) => taken[at] = out,
                Err(error) => failures.push(error),
            }
        }
        // What is in the sets is not known for sure; the next change finds out.
        self.settled &= failures.is_empty();
        let none = Default::default();
        failures.extend(self.last_part(&taken, &Default::default(), &none, Last::Read));
        failures
    }
}
