//! What the resolver counts.

use std::time::Duration;

use allowlist::DomainName;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use raft_store::state::State;

use super::Standing;
use super::answer::{Answer, Failure};
use super::lookup::Upstream;

/// Bounds of the histogram of answering times, seconds: from a cache next door to the patience for one name.
const LOOKUP_SECONDS: [f64; 10] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.0, 8.0];

/// The resolver's metric families. Clones count into the same place; [`Metrics::register`] makes them visible.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Answers of single upstreams by `upstream` and `result`: `addresses`, `nothing`, `servfail`, `refused`, `timeout`,
    /// `skipped` while it is down, `failed` for everything else.
    pub lookups: IntCounterVec,
    /// How long they took, by `upstream`.
    pub lookup_seconds: HistogramVec,
    /// Rounds over a name (both families, all upstreams) by `result`: `changed`, `unchanged`.
    pub rounds: IntCounterVec,
    /// Whether an `upstream` answers (1) or is only probed until it does (0); absent on nodes that do not lead.
    pub upstreams_up: IntGaugeVec,
    /// Published addresses that only one of several upstreams gives; zero on nodes that do not lead.
    pub single_upstream: IntGauge,
    /// Times that a new address was held back because no majority of the upstreams gives it.
    pub held_back: IntCounter,
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
        let seconds = HistogramOpts::new(
            "outputguard_dns_lookup_seconds",
            "Time from a question to an upstream to its answer.",
        )
        .buckets(LOOKUP_SECONDS.to_vec());
        Ok(Self {
            lookups: counters(
                "outputguard_dns_lookups_total",
                "Answers of single upstreams to a question for one name and address family.",
                &["upstream", "result"],
            )?,
            lookup_seconds: HistogramVec::new(seconds, &["upstream"])?,
            upstreams_up: IntGaugeVec::new(
                Opts::new(
                    "outputguard_dns_upstream_up",
                    "Whether a DNS server answers, or is only probed until it does; absent unless leader.",
                ),
                &["upstream"],
            )?,
            rounds: counters(
                "outputguard_dns_rounds_total",
                "Rounds over a name: both families, all upstreams.",
                &["result"],
            )?,
            single_upstream: IntGauge::new(
                "outputguard_dns_single_upstream_addresses",
                "Published addresses that only one of several DNS servers gives; zero unless leader.",
            )?,
            held_back: IntCounter::new(
                "outputguard_dns_held_back_total",
                "New addresses, in each round anew, that wait because no majority of the DNS servers gives them.",
            )?,
            names: IntGaugeVec::new(
                Opts::new("outputguard_dns_names", "Domains of the list by state; zero unless leader."),
                &["state"],
            )?,
            refused_addresses: IntCounter::new(
                "outputguard_dns_refused_addresses_total",
                "Addresses in DNS answers that were refused because they are not public.",
            )?,
            failed_writes: IntCounter::new(
                "outputguard_dns_failed_writes_total",
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
        registry.register(Box::new(self.lookup_seconds.clone()))?;
        registry.register(Box::new(self.rounds.clone()))?;
        registry.register(Box::new(self.upstreams_up.clone()))?;
        registry.register(Box::new(self.single_upstream.clone()))?;
        registry.register(Box::new(self.held_back.clone()))?;
        registry.register(Box::new(self.names.clone()))?;
        registry.register(Box::new(self.refused_addresses.clone()))?;
        registry.register(Box::new(self.failed_writes.clone()))
    }

    pub(super) fn count_answer(&self, upstream: &str, answer: &Answer, took: Duration) {
        self.lookups.with_label_values(&[upstream, result_of(answer)]).inc();
        if *answer != Answer::Failed(Failure::Skipped) {
            self.lookup_seconds.with_label_values(&[upstream]).observe(took.as_secs_f64());
        }
    }

    pub(super) fn count_round(&self, changed: bool) {
        self.rounds.with_label_values(&[if changed { "changed" } else { "unchanged" }]).inc();
    }

    pub(super) fn show_upstreams(&self, upstreams: &[Upstream]) {
        for upstream in upstreams {
            self.upstreams_up.with_label_values(&[upstream.name()]).set(upstream.is_up().into());
        }
    }

    /// `upstreams` says how many a name is asked of.
    pub(super) fn show_names(&self, state: &State, upstreams: impl Fn(&DomainName) -> usize) {
        let mut counts = [0_i64; Standing::ALL.len()];
        let mut single = 0;
        for (name, resolution) in state.resolutions() {
            counts[Standing::of(name, resolution, state) as usize] += 1;
            if upstreams(name) > 1 {
                single += resolution.addresses.values().filter(|seen| seen.upstreams.len() == 1).count();
            }
        }
        self.single_upstream.set(i64::try_from(single).unwrap_or(i64::MAX));
        for (standing, count) in Standing::ALL.iter().zip(counts) {
            self.names.with_label_values(&[standing.label()]).set(count);
        }
    }

    pub(super) fn show_no_names(&self) {
        self.single_upstream.set(0);
        for standing in Standing::ALL {
            self.names.with_label_values(&[standing.label()]).set(0);
        }
    }
}

fn result_of(answer: &Answer) -> &'static str {
    match answer {
        Answer::Addresses { .. } => "addresses",
        Answer::Nothing { .. } => "nothing",
        Answer::Failed(Failure::Timeout) => "timeout",
        Answer::Failed(Failure::Skipped) => "skipped",
        Answer::Failed(Failure::Code(code)) if code == "SERVFAIL" => "servfail",
        Answer::Failed(Failure::Code(code)) if code == "REFUSED" => "refused",
        Answer::Failed(_) => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_counts_by_its_result_and_with_its_time() {
        let metrics = Metrics::new().expect("constant names");
        let code = |text: &str| Answer::Failed(Failure::Code(text.to_owned()));
        let answers = [
            ("addresses", Answer::Addresses { addresses: [].into(), chain: Vec::new() }),
            ("nothing", Answer::Nothing { chain: Vec::new() }),
            ("timeout", Answer::Failed(Failure::Timeout)),
            ("servfail", code("SERVFAIL")),
            ("refused", code("REFUSED")),
            ("failed", code("FORMERR")),
        ];
        for (result, answer) in &answers {
            metrics.count_answer("u:53", answer, Duration::from_millis(7));
            assert_eq!(metrics.lookups.with_label_values(&["u:53", result]).get(), 1, "{result}");
        }
        let seconds = metrics.lookup_seconds.with_label_values(&["u:53"]);
        assert_eq!(seconds.get_sample_count(), 6);
        assert!((0.04..0.05).contains(&seconds.get_sample_sum()), "{}", seconds.get_sample_sum());
    }

    #[test]
    fn the_families_can_be_registered_once() {
        let metrics = Metrics::new().expect("constant names");
        let registry = Registry::new();
        metrics.register(&registry).expect("an empty registry");
        assert!(metrics.register(&registry).is_err());
    }
}
