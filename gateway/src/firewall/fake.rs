//! A driver for tests of what stands above: it holds elements as the kernel would, records every call, and can be
//! told to refuse, to fail, and what it counted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use allowlist::feed::{CutReport, RefusedElement};
use allowlist::{Change, Element};

use super::{
    Covering, CutSink, DenialNews, DenialSink, Denied, ElementCounters, Firewall, FirewallError, Outcome,
    Repair, SourceMeter, SourceSum, admit,
};

/// One recorded call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// [`Firewall::install`].
    Install,
    /// [`Firewall::hold`] with these elements.
    Replace(BTreeSet<Element>),
    /// [`Firewall::apply`] with this change.
    Apply(Change),
    /// [`Firewall::counters`].
    Counters,
    /// [`Firewall::repair`].
    Repair,
    /// [`Firewall::cleanup`].
    Cleanup,
}

/// The fake driver. Clones share one state, so that a test keeps one while the program owns the other.
#[derive(Debug, Clone, Default)]
pub struct FakeFirewall {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<Call>,
    held: BTreeSet<Element>,
    counted: BTreeMap<Element, ElementCounters>,
    refusals: BTreeMap<Element, String>,
    failure: Option<String>,
    repairs: Vec<Repair>,
    unrepairable: Option<String>,
    denied: Denied,
    sink: Option<Sink<CutSink>>,
    denial_sink: Option<Sink<DenialSink>>,
    sources: Option<SourceMeter>,
}

/// Where reports go.
struct Sink<T>(T);

impl<T> fmt::Debug for Sink<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sink")
    }
}

impl FakeFirewall {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// One whose kernel already holds `elements`, as after a restart.
    pub fn holding(elements: BTreeSet<Element>) -> Self {
        let fake = Self::default();
        fake.state().held = elements;
        fake
    }

    /// Says that `source` moved so much to `element`; to be called before the program starts for the first time.
    pub fn moved(&self, source: IpAddr, element: Option<Element>, sum: SourceSum) {
        let mut state = self.state();
        if state.sources.is_none() {
            state.sources = SourceMeter::new(1).ok();
        }
        if let Some(meter) = &state.sources {
            meter.count(source, element, sum);
        }
    }

    /// Every call so far, oldest first.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// What the "kernel" holds.
    pub fn held(&self) -> BTreeSet<Element> {
        self.state().held.clone()
    }

    /// From now on `element` is refused for `reason`.
    pub fn refuse(&self, element: Element, reason: impl Into<String>) {
        self.state().refusals.insert(element, reason.into());
    }

    /// The next install, replace, apply, counters or repair fails with `reason` and changes nothing.
    pub fn fail_next(&self, reason: impl Into<String>) {
        self.state().failure = Some(reason.into());
    }

    /// Adds to what was counted for `traffic.element`.
    pub fn count(&self, traffic: ElementCounters) {
        let mut state = self.state();
        let total =
            state.counted.entry(traffic.element).or_insert_with(|| ElementCounters::zero(traffic.element));
        total.packets_out += traffic.packets_out;
        total.bytes_out += traffic.bytes_out;
        total.packets_in += traffic.packets_in;
        total.bytes_in += traffic.bytes_in;
    }

    /// The next repair reports `what`.
    pub fn drift(&self, what: impl Into<String>) {
        self.state().repairs.push(Repair { what: what.into() });
    }

    /// From now on every repair fails with `reason`; with `None` they succeed again.
    pub fn break_repair(&self, reason: Option<&str>) {
        self.state().unrepairable = reason.map(str::to_owned);
    }

    /// So much was denied so far.
    pub fn deny(&self, denied: Denied) {
        self.state().denied = denied;
    }

    /// Reports cut flows, as the kernel driver does from a thread of its own.
    pub fn cut(&self, report: CutReport) {
        let sink = self.state().sink.as_ref().map(|Sink(sink)| Arc::clone(sink));
        if let Some(sink) = sink {
            sink(report);
        }
    }

    /// Gives news of denied packets, as the kernel driver does from a thread of its own.
    pub fn tell_denial(&self, news: DenialNews) {
        let sink = self.state().denial_sink.as_ref().map(|Sink(sink)| Arc::clone(sink));
        if let Some(sink) = sink {
            sink(news);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, call: Call) -> Result<MutexGuard<'_, State>, FirewallError> {
        let mut state = self.state();
        state.calls.push(call);
        match state.failure.take() {
            Some(reason) => Err(FirewallError::Failed { action: "change the fake firewall".into(), reason }),
            None => Ok(state),
        }
    }
}

impl State {
    fn sift<'a>(
        &self,
        elements: impl IntoIterator<Item = &'a Element>,
    ) -> (BTreeSet<Element>, Vec<RefusedElement>) {
        let (mut admitted, mut refused) = admit::sift(elements);
        for (element, reason) in &self.refusals {
            if admitted.remove(element) {
                refused.push(RefusedElement { element: *element, reason: reason.clone() });
            }
        }
        (admitted, refused)
    }

    fn hold(&mut self, wanted: BTreeSet<Element>, refused: Vec<RefusedElement>) -> Outcome {
        let added = wanted.difference(&self.held).count();
        let removed = self.held.difference(&wanted).count();
        self.held = wanted;
        Outcome { added, removed, refused }
    }
}

impl Firewall for FakeFirewall {
    fn install(&mut self) -> Result<BTreeSet<Element>, FirewallError> {
        Ok(self.record(Call::Install)?.held.clone())
    }

    fn hold(&mut self, elements: &BTreeSet<Element>, _: &Change) -> Result<Outcome, FirewallError> {
        let mut state = self.record(Call::Replace(elements.clone()))?;
        let (wanted, refused) = state.sift(elements);
        Ok(state.hold(wanted, refused))
    }

    fn apply(&mut self, change: &Change) -> Result<Outcome, FirewallError> {
        let mut state = self.record(Call::Apply(change.clone()))?;
        let (admitted, refused) = state.sift(&change.added);
        let mut wanted = state.held.clone();
        wanted.extend(admitted);
        for element in change.revoked.iter().chain(&change.retired) {
            wanted.remove(element);
        }
        Ok(state.hold(wanted, refused))
    }

    fn counters(&mut self) -> Result<Vec<ElementCounters>, FirewallError> {
        let state = self.record(Call::Counters)?;
        let counted = |element: &Element| state.counted.get(element).copied();
        Ok(state
            .held
            .iter()
            .map(|element| counted(element).unwrap_or_else(|| ElementCounters::zero(*element)))
            .collect())
    }

    fn denied(&mut self) -> Result<Denied, FirewallError> {
        Ok(self.state().denied)
    }

    fn end_draining(&mut self, _: Instant) -> Result<(), FirewallError> {
        Ok(())
    }

    fn report_cuts(&mut self, sink: CutSink) {
        self.state().sink = Some(Sink(sink));
    }

    fn report_denials(&mut self, sink: DenialSink) {
        self.state().denial_sink = Some(Sink(sink));
    }

    fn watch_sources(&mut self, _: Covering) -> Result<Option<SourceMeter>, FirewallError> {
        Ok(self.state().sources.clone())
    }

    fn repair(&mut self) -> Result<Vec<Repair>, FirewallError> {
        let mut state = self.record(Call::Repair)?;
        match state.unrepairable.clone() {
            Some(reason) => Err(FirewallError::Failed { action: "repair the fake firewall".into(), reason }),
            None => Ok(std::mem::take(&mut state.repairs)),
        }
    }

    fn cleanup(&mut self) -> Result<(), FirewallError> {
        self.state().calls.push(Call::Cleanup);
        self.state().held.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(prefix: &str) -> Element {
        Element::new(prefix.parse().unwrap(), None)
    }

    #[test]
    fn the_fake_holds_refuses_fails_and_counts_as_told() {
        let watcher = FakeFirewall::holding([element("9.9.9.9/32")].into());
        let mut fake = watcher.clone();
        assert_eq!(fake.install().unwrap().len(), 1);
        watcher.refuse(element("8.8.4.4/32"), "set is full");
        let wanted = [element("8.8.8.8/32"), element("8.8.4.4/32")].into();
        let outcome = fake.replace(&wanted).unwrap();
        assert_eq!((outcome.added, outcome.removed, outcome.refused.len()), (1, 1, 1));
        watcher.fail_next("no kernel");
        assert!(fake.counters().unwrap_err().to_string().contains("no kernel"));
        watcher.count(ElementCounters { packets_out: 3, ..ElementCounters::zero(element("8.8.8.8/32")) });
        assert_eq!(fake.counters().unwrap()[0].packets_out, 3);
        assert_eq!(watcher.calls().len(), 4);
    }
}
