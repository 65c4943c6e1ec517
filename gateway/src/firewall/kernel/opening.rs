//! Rules for pairs of sets before they hold something, and none when they have held nothing for a while.

use std::time::Instant;

use super::{Chain, FirewallError, InUse, KernelFirewall};
use crate::firewall::layout::Family;

impl KernelFirewall {
    /// The pairs that the rules which are there ask for. A process that ends leaves them, and the next goes on with them:
    /// others would have to be exchanged before anything is known.
    pub(super) fn present_in_use(&self) -> Result<InUse, FirewallError> {
        let mut present = InUse::default();
        for chains in &self.chains {
            for chain in Chain::BOTH {
                let rules = chains.body(chain)?.unwrap_or_default();
                present = present.union(InUse::of_rules(&rules));
            }
        }
        Ok(present)
    }

    /// Makes sure that the `needed` pairs have rules, before they hold what needs them: an element that goes from one pair
    /// to another would not pass for as long as the rules are on their way. It is seldom that something revoked by the
    /// same change waits for them, and not for long. An error is no reason not to make the change: what is new does not
    /// pass yet, what is revoked passes no more.
    pub(super) fn open_for(&mut self, needed: InUse) -> Result<(), FirewallError> {
        // NAT first: nothing passes before its source is hidden.
        self.exchange(self.in_use.union(needed), [Chain::Nat, Chain::Forward])
    }

    /// False when a pair holds something and has no rules, because they could not be written.
    pub(super) fn has_rules_for_all(&self) -> bool {
        self.in_use.union(self.holding.occupied()) == self.in_use
    }

    /// The rules should be such from now on that every pair that holds something has some.
    pub(super) fn give_rules_to_all(&mut self) {
        self.expect_rules_of(self.in_use.union(self.holding.occupied()));
    }

    /// Takes away the rules of pairs that have been empty for a while.
    pub(super) fn close_unused(&mut self, now: Instant) -> Result<(), FirewallError> {
        if !self.holding.is_settled() {
            return Ok(());
        }
        let narrowed = self.lingering.narrowed(self.in_use, self.holding.occupied(), now);
        self.exchange(narrowed, [Chain::Forward, Chain::Nat])
    }

    /// Exchanges the rules for those of `in_use`, each chain in one step. When one could not be written, what is there is
    /// what drift repair calls wrong, and the next call tries again.
    fn exchange(&mut self, in_use: InUse, order: [Chain; 2]) -> Result<(), FirewallError> {
        let before = self.in_use;
        if in_use == before {
            return Ok(());
        }
        self.expect_rules_of(in_use);
        let mut written = Ok(());
        for (family, _) in Family::BOTH.iter().enumerate().filter(|(_, one)| in_use.differs(before, **one)) {
            for chain in order {
                written = written.and_then(|()| self.write_body(family, chain));
            }
        }
        if written.is_err() {
            self.expect_rules_of(before);
            return written;
        }
        tracing::debug!(?in_use, "exchanged rules");
        if self.watch.is_some() {
            self.watch();
        }
        written
    }

    /// How the tool printed other rules says nothing about these.
    fn expect_rules_of(&mut self, in_use: InUse) {
        for (at, family) in Family::BOTH.into_iter().enumerate() {
            if in_use.differs(self.in_use, family) {
                for chain in Chain::BOTH {
                    self.bodies[at][chain as usize] = None;
                }
            }
        }
        self.in_use = in_use;
    }
}
