//! Rules for pairs of sets before they hold something, and none when they have held nothing for a while.

use std::time::Instant;

use super::{Chain, ChainWatch, FirewallError, InUse, KernelFirewall, Mode};
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

    /// True when a pair holds something and has no rules, because they could not be written.
    pub(super) fn lacks_rules(&self) -> bool {
        self.in_use.union(self.holding.occupied()) != self.in_use
    }

    /// False when a pair lacks rules, and when nobody knows.
    pub(super) fn has_rules_for_all(&self) -> bool {
        !self.unsure.contains(&true) && !self.lacks_rules()
    }

    /// Takes away the rules of pairs that have been empty for a while. Where something is wrong with the chains, repair
    /// comes first: it may have closed them on purpose.
    pub(super) fn close_unused(&mut self, now: Instant) -> Result<(), FirewallError> {
        let is_well = self.watch.as_ref().is_none_or(ChainWatch::is_well) && !self.unsure.contains(&true);
        if !is_well || !self.holding.is_settled() {
            return Ok(());
        }
        let narrowed = self.lingering.narrowed(self.in_use, self.holding.occupied(), now);
        self.exchange(narrowed, [Chain::Forward, Chain::Nat])
    }

    /// Exchanges the rules for those of `in_use`, family by family and going on past errors. A family whose rules could
    /// not be written is still to have the former ones, and the next call tries again.
    fn exchange(&mut self, in_use: InUse, order: [Chain; 2]) -> Result<(), FirewallError> {
        let changes =
            |(at, family): &(usize, Family)| self.unsure[*at] || in_use.differs(self.in_use, *family);
        let changing: Vec<_> = Family::BOTH.into_iter().enumerate().filter(changes).collect();
        if changing.is_empty() {
            return Ok(());
        }
        if let Some(watch) = &self.watch {
            watch.exchanging();
        }
        let mut result = Ok(());
        for (at, family) in changing {
            result = result.and(self.exchange_family(at, self.in_use.with(family, in_use), order));
        }
        if let Some(watch) = &self.watch {
            watch.exchanged(self.expected_chains());
        }
        tracing::debug!(in_use = ?self.in_use, ?result, "exchanged rules");
        result
    }

    /// Each chain in one step.
    fn exchange_family(
        &mut self,
        family: usize,
        in_use: InUse,
        order: [Chain; 2],
    ) -> Result<(), FirewallError> {
        self.refuse_where_closed(family, order)?;
        let former = (self.in_use, self.bodies[family].clone());
        self.in_use = in_use;
        // How the tool printed other rules says nothing about these.
        for chain in Chain::BOTH {
            self.bodies[family][chain as usize] = None;
        }
        let written = order.into_iter().try_for_each(|chain| self.write_body(family, chain));
        self.unsure[family] = written.is_err();
        if written.is_err() {
            (self.in_use, self.bodies[family]) = former;
        }
        written
    }

    /// Where NAT might not hide the source, FORWARD may have been closed on purpose, and repair opens it. Rules that come
    /// with new ones of NAT before them need only the jumps.
    fn refuse_where_closed(&self, family: usize, order: [Chain; 2]) -> Result<(), FirewallError> {
        if self.options.policy.mode == Mode::Audit {
            return Ok(());
        }
        let reason = if !self.chains[family].is_led_in()? {
            "the jumps to our chains are not in their places"
        } else if order[0] != Chain::Nat && !self.body_is_right(family, Chain::Nat)? {
            "the rules of NAT are not ours"
        } else {
            return Ok(());
        };
        let action = format!("exchange the rules of {}", self.chains[family].place(Chain::Forward));
        Err(FirewallError::Failed { action, reason: format!("{reason}; they are repaired first") })
    }
}
