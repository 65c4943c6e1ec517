//! The real driver: a few rules, the elements in kernel sets.

mod logging;
mod opening;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use allowlist::feed::CutCause;
use allowlist::{Change, Element};

use super::chain_watch::{ChainWatch, Expected, ExpectedChains};
use super::chains::Chains;
use super::closing::{chains, close_host, close_where_open, guarded};
use super::conntrack::{FlowRoom, switch_on_accounting};
use super::cut::CutSink;
use super::cutter::Cutter;
use super::denial_log::LogStanding;
use super::holding::Holding;
use super::in_use::{InUse, Lingering};
use super::layout::{Family, KernelOptions, SourceOptions};
use super::rules::{Chain, Mode, closed_forward_body};
use super::sources::{Covering, SourceMeter, SourceWatch};
use super::{DenialSink, Denied, ElementCounters, Firewall, FirewallError, Outcome, Repair};

/// Enforces elements in the network namespace of the thread that made it; every call has to come from a thread in
/// that namespace.
pub struct KernelFirewall {
    holding: Holding,
    chains: [Chains; 2],
    /// Compares the chains with what they should be, once they were.
    watch: Option<ChainWatch>,
    /// Each chain's rules as the kernel's tool prints them after we wrote them.
    bodies: [[Option<Vec<String>>; 4]; 2],
    options: KernelOptions,
    /// The pairs of sets that have rules.
    in_use: InUse,
    /// By family: rules were being exchanged when something failed, so that nobody knows which are there.
    unsure: [bool; 2],
    lingering: Lingering,
    /// Cuts flows, once the firewall is up; never in an audit.
    cutter: Option<Cutter>,
    sink: Option<CutSink>,
    log: LogStanding,
    sources: Option<SourceWatch>,
    /// Held while the sets change, until the cutter has its order.
    changing: Arc<Mutex<()>>,
    /// All flows are to be looked at when the sets hold what they should.
    unswept: bool,
}

impl KernelFirewall {
    /// Opens the way to the kernel; touches nothing.
    ///
    /// # Errors
    /// [`FirewallError::Missing`] when the kernel has no ipset or permission is missing.
    pub fn new(options: &KernelOptions) -> Result<Self, FirewallError> {
        let options = guarded(options);
        Ok(Self {
            holding: Holding::new(&options)?,
            chains: chains(&options),
            watch: None,
            bodies: Default::default(),
            options,
            in_use: InUse::default(),
            unsure: [false; 2],
            lingering: Lingering::default(),
            cutter: None,
            sink: None,
            log: LogStanding::default(),
            sources: None,
            changing: Arc::default(),
            unswept: true,
        })
    }

    /// Chains of ours in the iptables backend that is not the default, in words; they bite until
    /// [`Firewall::cleanup`] removes them.
    pub fn leftovers(&self) -> Vec<String> {
        Family::BOTH
            .into_iter()
            .filter_map(Chains::leftovers)
            .map(|other| {
                format!("{} still holds chains of ours; remove them with --cleanup", other.program())
            })
            .collect()
    }

    /// Chains and jumps as they should be, closed at every moment between. Says what was different.
    fn establish(&mut self) -> Result<Vec<String>, FirewallError> {
        let mut different = Vec::new();
        for family in 0..self.chains.len() {
            let forward_is_right = self.body_is_right(family, Chain::Forward)?;
            let nat_is_right = self.body_is_right(family, Chain::Nat)?;
            if !forward_is_right {
                let place = self.chains[family].place(Chain::Forward);
                different.push(format!("{place}: rules were not ours"));
                // Nothing passes before NAT is known to hide the private source. When it does, the rules are exchanged
                // in one step, and flows that both the old and the new ones let through feel nothing of it.
                let closes = self.options.policy.mode == Mode::Enforce;
                if closes && !(nat_is_right && self.chains[family].is_led_in()?) {
                    let closed = closed_forward_body(self.options.policy.mode);
                    self.chains[family].set_body(Chain::Forward, &closed)?;
                } else if self.chains[family].body(Chain::Forward)?.is_none() {
                    self.write_body(family, Chain::Forward)?;
                }
            }
            different.extend(self.chains[family].lead_in(Chain::Forward)?);
            if !nat_is_right {
                different.push(format!("{}: rules were not ours", self.chains[family].place(Chain::Nat)));
                self.write_body(family, Chain::Nat)?;
            }
            different.extend(self.chains[family].lead_in(Chain::Nat)?);
            if !forward_is_right {
                self.write_body(family, Chain::Forward)?;
            }
            self.unsure[family] = false;
        }
        Ok(different)
    }

    /// The chains that guard the machine itself, or none of them.
    fn establish_guard(&mut self) -> Result<Vec<String>, FirewallError> {
        let mut different = Vec::new();
        if self.options.guard.is_none() {
            return Ok(different);
        }
        for family in 0..self.chains.len() {
            for chain in Chain::HOST {
                if !self.body_is_right(family, chain)? {
                    different.push(format!("{}: rules were not ours", self.chains[family].place(chain)));
                    self.write_body(family, chain)?;
                }
                different.extend(self.chains[family].lead_in(chain)?);
            }
        }
        Ok(different)
    }

    /// Takes away what guarded the machine before, when it is not to be guarded any more.
    fn end_guard(&self) -> Result<(), FirewallError> {
        if self.options.guard.is_some() {
            return Ok(());
        }
        for chains in &self.chains {
            for chain in Chain::HOST {
                if let Some(reason) = chains.remove(chain).into_iter().next() {
                    let action = format!("remove {}", chains.place(chain));
                    return Err(FirewallError::Failed { action, reason });
                }
            }
        }
        Ok(())
    }

    fn body_is_right(&self, family: usize, chain: Chain) -> Result<bool, FirewallError> {
        let present = self.chains[family].body(chain)?;
        Ok(self.expected(family, chain).is(present.as_ref()))
    }

    fn expected(&self, family: usize, chain: Chain) -> Expected {
        let wanted = chain.body(Family::BOTH[family], &self.options, self.in_use);
        Expected { wanted, printed: self.bodies[family][chain as usize].clone() }
    }

    fn expected_chains(&self) -> [ExpectedChains; 2] {
        let guard = self.options.guard.iter().flat_map(|_| Chain::HOST);
        let watched: Vec<Chain> = Chain::BOTH.into_iter().chain(guard).collect();
        [0, 1].map(|family| watched.iter().map(|chain| (*chain, self.expected(family, *chain))).collect())
    }

    /// Has the chains watched, which are as they should be.
    fn watch(&mut self) {
        let expected = self.expected_chains();
        match &self.watch {
            Some(watch) => watch.expect(expected),
            None => match ChainWatch::start(chains(&self.options), expected) {
                Ok(watch) => self.watch = Some(watch),
                Err(error) => tracing::warn!(%error, "changes wait for comparisons of the chains"),
            },
        }
    }

    /// Remembers how this version of the tool prints the rules, since that differs between versions.
    fn write_body(&mut self, family: usize, chain: Chain) -> Result<(), FirewallError> {
        let mut wanted = chain.body(Family::BOTH[family], &self.options, self.in_use);
        if let Err(error) = self.chains[family].set_body(chain, &wanted) {
            wanted = self.write_without_log(family, chain, &wanted, error)?;
        }
        self.remember_printed(family, chain, wanted.len());
        Ok(())
    }

    /// Rules that are there and cannot be listed are no failure: at worst they are written again.
    fn remember_printed(&mut self, family: usize, chain: Chain, rules: usize) {
        let printed = self.chains[family].body(chain).ok().flatten();
        self.bodies[family][chain as usize] = printed.filter(|printed| printed.len() == rules);
    }

    /// Sets of our names but another kind (a former version, or somebody's own) give way; until then nothing passes.
    fn evict_misfits(&mut self) -> Result<Vec<&'static str>, FirewallError> {
        let misfits = self.holding.misfits()?;
        if misfits.is_empty() {
            return Ok(misfits);
        }
        tracing::warn!(sets = ?misfits, "sets of another kind give way to ours");
        for (chains, family) in self.chains.iter().zip(Family::BOTH) {
            for chain in Chain::ALL {
                if chains.body(chain)?.is_some() {
                    chains.set_body(chain, &chain.closed_body(family, &self.options))?;
                }
            }
        }
        for name in &misfits {
            self.holding.destroy_when_released(name)?;
        }
        Ok(misfits)
    }

    /// Starts cutting flows, and counting them, unless nothing is to be blocked.
    fn start_cutter(&mut self) -> Result<(), FirewallError> {
        if self.options.policy.mode == Mode::Audit || self.cutter.is_some() {
            return Ok(());
        }
        count_flows();
        self.cutter = Some(Cutter::start(
            self.options.internal_cidrs.clone(),
            self.sink.clone(),
            Arc::clone(&self.changing),
        )?);
        Ok(())
    }

    /// Has the flows cut of what passes no more.
    fn cut_closed(&mut self, cause: CutCause, revision: u64) {
        let closed = self.holding.take_closed();
        if let Some(cutter) = &self.cutter {
            cutter.cut(closed, cause, revision);
        }
    }

    fn sweep_when_settled(&mut self) {
        if self.unswept
            && self.holding.is_settled()
            && let Some(cutter) = &self.cutter
        {
            cutter.sweep();
            self.unswept = false;
        }
    }
}

/// Has the kernel count the bytes of each flow.
fn count_flows() {
    if let Err(error) = switch_on_accounting() {
        tracing::warn!(
            %error,
            "the kernel does not count the bytes of flows, so that reports of cut flows and of source hosts lack them; \
             run `sysctl -w net.netfilter.nf_conntrack_acct=1`"
        );
    }
}

impl Firewall for KernelFirewall {
    fn install(&mut self) -> Result<BTreeSet<Element>, FirewallError> {
        for leftover in self.leftovers() {
            tracing::warn!("{leftover}");
        }
        if let Some(complaint) = FlowRoom::read().and_then(FlowRoom::complaint) {
            tracing::warn!("{complaint}");
        }
        // Before anything that can fail: after a boot the machine forwards already.
        close_where_open(&self.chains)?;
        close_host(&self.chains, &self.options)?;
        self.end_guard()?;
        self.evict_misfits()?;
        self.holding.adopt()?;
        self.in_use = self.present_in_use()?;
        for difference in self.establish()?.into_iter().chain(self.establish_guard()?) {
            tracing::debug!("{difference}; now it is");
        }
        // Not as part of the above, which closes what it cannot make right.
        self.open_for(self.holding.occupied())?;
        self.unswept = true;
        self.start_cutter()?;
        Ok(self.holding.held().clone())
    }

    fn hold(&mut self, elements: &BTreeSet<Element>, way: &Change) -> Result<Outcome, FirewallError> {
        let changing = Arc::clone(&self.changing);
        let _changing = changing.lock();
        let needed = InUse::of(elements, way, self.holding.held());
        let opened = self.open_for(needed.union(self.holding.occupied()));
        let result = self.holding.replace(elements, way);
        self.cut_closed(CutCause::Revoked, way.revision);
        self.sweep_when_settled();
        opened.and(result)
    }

    fn apply(&mut self, change: &Change) -> Result<Outcome, FirewallError> {
        let changing = Arc::clone(&self.changing);
        let _changing = changing.lock();
        let needed = InUse::of(&change.added, change, self.holding.held());
        let opened = self.open_for(needed.union(self.holding.occupied()));
        let result = self.holding.apply(change);
        self.cut_closed(CutCause::Revoked, change.revision);
        opened.and(result)
    }

    fn counters(&mut self) -> Result<Vec<ElementCounters>, FirewallError> {
        Ok(self.holding.counters()?)
    }

    fn denied(&mut self) -> Result<Denied, FirewallError> {
        let [v4, v6] = self.holding.denied()?;
        Ok(Denied { packets_v4: v4.packets, bytes_v4: v4.bytes, packets_v6: v6.packets, bytes_v6: v6.bytes })
    }

    fn flows(&self) -> FlowRoom {
        FlowRoom::read().unwrap_or_default()
    }

    fn end_draining(&mut self, now: Instant) -> Result<(), FirewallError> {
        let changing = Arc::clone(&self.changing);
        let _changing = changing.lock();
        let (ended, result) = self.holding.end_draining(now);
        if let Some(cutter) = &self.cutter {
            cutter.cut(ended, CutCause::Drained, 0);
        }
        result.and(self.close_unused(now))
    }

    fn report_cuts(&mut self, sink: CutSink) {
        if let Some(cutter) = &self.cutter {
            cutter.report_to(sink.clone());
        }
        self.sink = Some(sink);
    }

    fn report_denials(&mut self, sink: DenialSink) {
        self.log.report_to(self.options.policy.log_group, sink);
    }

    fn watch_sources(&mut self, covering: Covering) -> Result<Option<SourceMeter>, FirewallError> {
        let SourceOptions { top, interval } = self.options.sources;
        if top == 0 {
            return Ok(None);
        }
        count_flows();
        let failed = |error: prometheus::Error| FirewallError::Failed {
            action: "make the metrics of source hosts".into(),
            reason: error.to_string(),
        };
        let meter = SourceMeter::new(top).map_err(failed)?;
        let watch =
            SourceWatch::start(meter.clone(), self.options.internal_cidrs.clone(), interval, covering)?;
        self.sources = Some(watch);
        Ok(Some(meter))
    }

    fn repair(&mut self) -> Result<Vec<Repair>, FirewallError> {
        let mut wrong = Vec::new();
        let mut failure = None;
        // Chains first: a way around them is open to everybody, a wrong set only to some. What fails holds up nothing.
        match close_where_open(&self.chains) {
            Ok(different) => wrong.extend(different),
            Err(error) => failure = Some(error),
        }
        match self.evict_misfits() {
            Ok(misfits) => {
                wrong.extend(misfits.iter().map(|name| format!("ipset {name} was of another kind")));
            }
            Err(error) => failure = failure.or(Some(error)),
        }
        let (different, unmended) = self.holding.mend();
        wrong.extend(different);
        failure = failure.or(unmended.map(FirewallError::from));
        let lacked = self.lacks_rules();
        // What is there first, as it is: rules that are new and cannot be written close nothing.
        let opened = self.establish().and_then(|mut different| {
            self.open_for(self.holding.occupied())?;
            different.extend(lacked.then(|| "rules of a pair of sets were missing".to_owned()));
            Ok(different)
        });
        for established in [opened, self.establish_guard()] {
            match established {
                Ok(different) => wrong.extend(different),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        // While something was wrong, flows may have begun that should not be, or that show their source.
        self.unswept |= !wrong.is_empty();
        let Some(error) = failure else {
            self.bring_back_log();
            self.sweep_when_settled();
            return Ok(wrong.into_iter().map(|what| Repair { what }).collect());
        };
        for what in wrong {
            tracing::warn!(what, "found beside what could not be repaired");
        }
        Err(error)
    }

    fn repair_what_was_seen(&mut self) -> Result<Vec<Repair>, FirewallError> {
        let is_well = self.watch.as_ref().is_some_and(ChainWatch::is_well);
        let mut seen = Vec::new();
        if is_well && self.has_rules_for_all() && self.holding.are_there()? {
            let (wrong, failure) = self.holding.mend_if_due();
            self.unswept |= !wrong.is_empty();
            let repairs = wrong.into_iter().map(|what| Repair { what });
            if !self.holding.has_misfits() {
                return match failure {
                    Some(error) => Err(error.into()),
                    None => {
                        self.bring_back_log();
                        self.sweep_when_settled();
                        Ok(repairs.collect())
                    }
                };
            }
            seen.extend(repairs);
        }
        let mut repairs = self.repair()?;
        repairs.splice(0..0, seen);
        self.watch();
        Ok(repairs)
    }

    fn cleanup(&mut self) -> Result<(), FirewallError> {
        self.watch = None;
        self.cutter = None;
        self.log = LogStanding::default();
        self.sources = None;
        let mut errors = Vec::new();
        let others = Family::BOTH.into_iter().filter_map(Chains::leftovers);
        for chains in self.chains.iter().chain(&others.collect::<Vec<_>>()) {
            // NAT last: what still passes in between keeps its private source hidden.
            for chain in Chain::ALL {
                errors.extend(chains.remove(chain));
            }
        }
        errors.extend(self.holding.destroy());
        if errors.is_empty() { Ok(()) } else { Err(FirewallError::Cleanup(errors)) }
    }
}
