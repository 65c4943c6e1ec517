//! The thread that owns the firewall driver.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use allowlist::feed::{Applied, RefusedElement};
use allowlist::{Change, Element};
use tokio::sync::watch;

use super::desk::{Answer, Desk, Job, KernelStep, Ready, Record};
use super::{
    EnforceMetrics, KERNEL_RETRY_BASE, KERNEL_RETRY_MAX, KernelHealth, MAX_REFUSED_IN_REPORT, REPAIR_INTERVAL,
};
use crate::firewall::{Firewall, FirewallError, Outcome};
use crate::state::StateStore;

/// The owner.
pub(super) struct Owner {
    desk: Arc<Desk>,
    firewall: Box<dyn Firewall>,
    /// `None` in a dry run: nothing is enforced, hence nothing is stored or reported as applied.
    store: Option<StateStore>,
    metrics: EnforceMetrics,
    applied: watch::Sender<Option<Applied>>,
    health: watch::Sender<KernelHealth>,
    /// Elements that do not pass although they are published, with reasons.
    refused: BTreeMap<Element, String>,
    /// The set could not be given to the kernel.
    trouble: Option<Trouble>,
    /// Chains and sets could not be compared or repaired; only a repair ends that.
    unrepaired: Option<Trouble>,
    next_repair: Instant,
}

/// The kernel refused, and this is when we ask again.
#[derive(Debug)]
struct Trouble {
    error: String,
    attempts: u32,
    retry_at: Instant,
}

impl Trouble {
    /// The trouble after one more failed attempt.
    fn after(before: Option<&Self>, error: &FirewallError) -> Self {
        let attempts = before.map_or(0, |trouble| trouble.attempts).saturating_add(1);
        let wait = KERNEL_RETRY_BASE.saturating_mul(2_u32.saturating_pow(attempts - 1)).min(KERNEL_RETRY_MAX);
        tracing::error!(error = %error, attempts, retry_ms = wait.as_millis(), "kernel could not be changed");
        Self { error: error.to_string(), attempts, retry_at: Instant::now() + wait }
    }
}

impl Owner {
    pub(super) fn new(
        desk: Arc<Desk>,
        firewall: Box<dyn Firewall>,
        store: Option<StateStore>,
        metrics: EnforceMetrics,
        applied: watch::Sender<Option<Applied>>,
        health: watch::Sender<KernelHealth>,
    ) -> Self {
        metrics.elements.set(gauge(desk.with_held(|held| held.elements().len())));
        Self {
            desk,
            firewall,
            store,
            metrics,
            applied,
            health,
            refused: BTreeMap::new(),
            trouble: None,
            unrepaired: None,
            next_repair: Instant::now() + REPAIR_INTERVAL,
        }
    }

    /// Works until stopped. A step that fails while stopping is left to the next start.
    pub(super) fn run(mut self) {
        if self.desk.with_held(|held| held.cluster().is_none()) {
            // What was adopted needs no step.
            self.health.send_replace(KernelHealth::InSync);
        }
        loop {
            let now = Instant::now();
            let ready = Ready {
                for_jobs: self.trouble.as_ref().is_none_or(|trouble| trouble.retry_at <= now),
                for_checkpoint: self.store.as_ref().is_some_and(StateStore::wants_checkpoint),
            };
            let retry_at = self.trouble.as_ref().map_or(self.next_repair, |trouble| trouble.retry_at);
            let work = self.desk.take(ready, self.next_repair.min(retry_at.max(now)));
            if let Some(job) = work.job {
                self.make(job);
            } else if ready.for_checkpoint
                && let Some(held) = self.desk.settled()
                && let Some(store) = &mut self.store
            {
                store.checkpoint(held);
            }
            if !work.questions.is_empty() {
                self.answer(work.questions);
            }
            if work.stopping {
                break;
            }
            if Instant::now() >= self.next_repair {
                self.repair();
                self.look_around();
            }
        }
        // What was retired a moment ago takes no new flows while nobody is there.
        if let Err(error) = self.firewall.end_draining(Instant::now()) {
            tracing::warn!(%error, "draining could not be ended");
        }
        if let Some(store) = self.store {
            store.close();
        }
    }

    fn make(&mut self, mut job: Job) {
        self.write_down(&mut job);
        let whole = matches!(job.step, KernelStep::Replace(..));
        let result = match &job.step {
            KernelStep::Apply(change) => self.apply(change),
            KernelStep::Replace(elements, way) => self.hold(elements, way),
        };
        match result {
            Ok(()) => {
                let took = job.since.elapsed();
                let histogram = if whole { &self.metrics.apply_whole } else { &self.metrics.apply_change };
                histogram.observe(took.as_secs_f64());
                self.metrics.elements.set(gauge(job.elements));
                self.metrics.refused.set(gauge(self.refused.len()));
                if self.trouble.take().is_some() {
                    tracing::info!("the kernel holds what it should again");
                }
                self.show_health();
                if let Some(point) = job.point
                    && self.store.is_some()
                {
                    self.metrics.revision.set(i64::try_from(point.revision).unwrap_or(i64::MAX));
                    tracing::debug!(
                        revision = point.revision,
                        kernel_us = micros(took),
                        elements = job.elements,
                        "kernel holds revision"
                    );
                    self.applied.send_replace(Some(Applied {
                        revision: point.revision,
                        digest: point.digest,
                        kernel_us: micros(took),
                        refused: self.refused_report(),
                    }));
                }
            }
            Err(error) => {
                self.desk.put_back(job.step.change(), job.since);
                self.note_trouble(&error);
            }
        }
    }

    /// The state file first: should this process die in between, the next one brings the kernel here. It is a write to
    /// the page cache; the disk is waited for elsewhere, so that a slow one cannot delay a revocation.
    fn write_down(&mut self, job: &mut Job) {
        let Some(store) = &mut self.store else { return };
        if let Some(point) = job.point {
            match (&job.record, &job.step) {
                (Record::None, _) => {}
                (Record::Change(change), _) => store.append(point, change),
                (Record::Whole, KernelStep::Replace(elements, _)) => store.append_whole(point, elements),
                (Record::Whole, KernelStep::Apply(_)) => {}
            }
        }
        if let Some(held) = job.checkpoint.take() {
            store.checkpoint(held);
        }
    }

    fn apply(&mut self, change: &Change) -> Result<(), FirewallError> {
        if change.is_empty() {
            return Ok(());
        }
        let outcome = self.firewall.apply(change)?;
        for element in change.added.iter().chain(&change.revoked).chain(&change.retired) {
            self.refused.remove(element);
        }
        self.note_outcome(outcome);
        Ok(())
    }

    fn hold(&mut self, elements: &BTreeSet<Element>, way: &Change) -> Result<(), FirewallError> {
        let outcome = self.firewall.hold(elements, way)?;
        self.refused.clear();
        self.note_outcome(outcome);
        Ok(())
    }

    fn note_outcome(&mut self, outcome: Outcome) {
        for refused in outcome.refused {
            tracing::warn!(element = %refused.element, reason = %refused.reason, "element refused, it does not pass");
            self.refused.insert(refused.element, refused.reason);
        }
    }

    fn refused_report(&self) -> Vec<RefusedElement> {
        self.refused
            .iter()
            .take(MAX_REFUSED_IN_REPORT)
            .map(|(element, reason)| RefusedElement { element: *element, reason: reason.clone() })
            .collect()
    }

    fn note_trouble(&mut self, error: &FirewallError) {
        self.metrics.kernel_errors.inc();
        self.trouble = Some(Trouble::after(self.trouble.as_ref(), error));
        self.show_health();
    }

    fn show_health(&self) {
        self.health.send_replace(match self.trouble.as_ref().or(self.unrepaired.as_ref()) {
            Some(trouble) => KernelHealth::Failing(trouble.error.clone()),
            None => KernelHealth::InSync,
        });
    }

    /// A failure does not hold up changes: what they revoke is closed whatever else is wrong.
    fn repair(&mut self) {
        match self.firewall.repair_what_was_seen() {
            Ok(repairs) => {
                for repair in &repairs {
                    tracing::warn!(what = %repair.what, "repaired what somebody changed in our firewall");
                }
                self.metrics.repairs.inc_by(repairs.len() as u64);
                self.next_repair = Instant::now() + REPAIR_INTERVAL;
                if self.unrepaired.take().is_some() {
                    tracing::info!("chains and sets are as they should be again");
                    self.show_health();
                }
            }
            Err(error) => {
                self.metrics.kernel_errors.inc();
                let trouble = Trouble::after(self.unrepaired.as_ref(), &error);
                self.next_repair = trouble.retry_at;
                self.unrepaired = Some(trouble);
                self.show_health();
            }
        }
    }

    /// What has to be seen to every few seconds besides repairs.
    fn look_around(&mut self) {
        if let Err(error) = self.firewall.end_draining(Instant::now()) {
            self.metrics.kernel_errors.inc();
            tracing::warn!(%error, "draining could not be ended");
        }
        self.metrics.flows.show(self.firewall.flows());
        match self.firewall.denied() {
            Ok(denied) => self.metrics.denied.show(denied),
            Err(error) => {
                self.metrics.kernel_errors.inc();
                tracing::warn!(%error, "denied packets could not be read");
            }
        }
    }

    fn answer(&mut self, questions: Vec<Answer>) {
        let counters = self.firewall.counters().map(Arc::new).map_err(|error| error.to_string());
        if let Err(error) = &counters {
            self.metrics.kernel_errors.inc();
            tracing::warn!(error = %error, "counters could not be read");
        }
        for question in questions {
            // Who asked may have gone away meanwhile.
            let _ = question.send(counters.clone());
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

pub(super) fn gauge(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}
