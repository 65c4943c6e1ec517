//! What the resolver counts.

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};
use raft_store::command::NameStatus;
use raft_store::state::State;

use super::answer::Answer;

/// The resolver's metric families. Clones count into the same place; [`Metrics::register`] makes them visible.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Lookups of a name (both families, all upstreams) by `result`: `changed`, `unchanged`.
    pub lookups: IntCounterVec,
    /// Answers of single upstreams by `upstream` and `result`: `addresses`, `nothing`, `failed`.
    pub answers: IntCounterVec,
    /// Names of the list by `state`; zero on nodes that do not lead.
    pub names: IntGaugeVec,
    /// Addresses that were refused because they are not public.
    pub refused_addresses: IntCounter,
    /// Updates the cluster did not take.
    pub failed_writes: IntCounter,
}

impl Metrics {
    /// Counters that nobody sees yet.
    ///
    /// # Errors
    /// Never in practice: the names are constants.
    pub fn new() -> Result<Self, prometheus::Error> {
        let counters = |name, help, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        Ok(Self {
            lookups: counters(
                "outputguard_resolver_lookups_total",
                "Lookups of a name over all upstreams.",
                &["result"],
            )?,
            answers: counters(
                "outputguard_resolver_answers_total",
                "Answers of single upstreams to a question for one name and address family.",
                &["upstream", "result"],
            )?,
            names: IntGaugeVec::new(
                Opts::new("outputguard_resolver_names", "Domains of the list by state; zero unless leader."),
                &["state"],
            )?,
            refused_addresses: IntCounter::new(
                "outputguard_resolver_refused_addresses_total",
                "Addresses in DNS answers that were refused because they are not public.",
            )?,
            failed_writes: IntCounter::new(
                "outputguard_resolver_failed_writes_total",
                "Updates found by the resolver that the cluster did not take in time.",
            )?,
        })
    }

    /// Adds the families to a page of metrics.
    ///
    /// # Errors
    /// When one of the names is taken there.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.lookups.clone()))?;
        registry.register(Box::new(self.answers.clone()))?;
        registry.register(Box::new(self.names.clone()))?;
        registry.register(Box::new(self.refused_addresses.clone()))?;
        registry.register(Box::new(self.failed_writes.clone()))
    }

    pub(super) fn count_answer(&self, upstream: &str, answer: &Answer) {
        let result = match answer {
            Answer::Addresses { .. } => "addresses",
            Answer::Nothing { .. } => "nothing",
            Answer::Failed(_) => "failed",
        };
        self.answers.with_label_values(&[upstream, result]).inc();
    }

    pub(super) fn count_lookup(&self, changed: bool) {
        self.lookups.with_label_values(&[if changed { "changed" } else { "unchanged" }]).inc();
    }

    pub(super) fn show_names(&self, state: &State) {
        let mut counts = [0_i64; STATES.len()];
        for resolution in state.resolutions().values() {
            counts[place(&resolution.status)] += 1;
        }
        for (label, count) in STATES.iter().zip(counts) {
            self.names.with_label_values(&[*label]).set(count);
        }
    }

    pub(super) fn show_no_names(&self) {
        for label in STATES {
            self.names.with_label_values(&[label]).set(0);
        }
    }
}

const STATES: [&str; 5] = ["pending", "ok", "stale", "no_such_name", "refused"];

fn place(status: &NameStatus) -> usize {
    match status {
        NameStatus::Pending => 0,
        NameStatus::Ok => 1,
        NameStatus::Stale { .. } => 2,
        NameStatus::NoSuchName => 3,
        NameStatus::Refused { .. } => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_families_can_be_registered_once() {
        let metrics = Metrics::new().expect("constant names");
        let registry = Registry::new();
        metrics.register(&registry).expect("an empty registry");
        assert!(metrics.register(&registry).is_err());
    }
}
