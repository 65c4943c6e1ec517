//! What the feed counts.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use allowlist::feed::{CutReport, DeniedFlow, TrafficDelta};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

/// Most gateways with traffic totals of their own; further ones are counted together.
const MAX_NAMED_GATEWAYS: usize = 1_000;
const OTHER_GATEWAYS: &str = "other";

/// Metric families of the feed. Clones count into the same.
///
/// Traffic reports are summed up per gateway here. Totals per entry, the denied log and budgets start from the same
/// two calls, [`Self::traffic`] and [`Self::denied`].
#[derive(Debug, Clone)]
pub struct FeedMetrics {
    snapshots: IntCounter,
    resync_requests: IntCounter,
    ends: IntCounterVec,
    bytes: IntCounterVec,
    packets: IntCounterVec,
    denied_packets: IntCounterVec,
    cut_flows: IntCounterVec,
    named: Arc<Mutex<BTreeSet<String>>>,
}

impl FeedMetrics {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let vector =
            |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        Ok(Self {
            snapshots: IntCounter::new("outputguard_feed_snapshots_total", "Snapshots sent to gateways")?,
            resync_requests: IntCounter::new(
                "outputguard_feed_resync_requests_total",
                "Snapshots gateways asked for because their digest disagreed",
            )?,
            ends: vector(
                "outputguard_feed_session_ends_total",
                "Gateway sessions ended, by reason",
                &["reason"],
            )?,
            bytes: vector(
                "outputguard_feed_traffic_bytes_total",
                "Bytes gateways reported, by direction seen from the clients",
                &["gateway", "direction"],
            )?,
            packets: vector(
                "outputguard_feed_traffic_packets_total",
                "Packets gateways reported, by direction seen from the clients",
                &["gateway", "direction"],
            )?,
            denied_packets: vector(
                "outputguard_feed_denied_packets_total",
                "Packets gateways reported as denied",
                &["gateway"],
            )?,
            cut_flows: vector(
                "outputguard_feed_cut_flows_total",
                "Flows gateways reported as cut, by cause",
                &["gateway", "cause"],
            )?,
            named: Arc::default(),
        })
    }

    /// Makes the families part of a registry.
    ///
    /// # Errors
    /// They are in it already.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.snapshots.clone()))?;
        registry.register(Box::new(self.resync_requests.clone()))?;
        for family in [&self.ends, &self.bytes, &self.packets, &self.denied_packets, &self.cut_flows] {
            registry.register(Box::new(family.clone()))?;
        }
        Ok(())
    }

    pub(super) fn snapshot_sent(&self) {
        self.snapshots.inc();
    }

    pub(super) fn resync_requested(&self) {
        self.resync_requests.inc();
    }

    pub(super) fn session_ended(&self, reason: &str) {
        self.ends.with_label_values(&[reason]).inc();
    }

    pub(super) fn traffic(&self, gateway: &str, deltas: &[TrafficDelta]) {
        let gateway = self.label(gateway);
        let sum = |of: fn(&TrafficDelta) -> u64| {
            deltas.iter().fold(0_u64, |sum, delta| sum.saturating_add(of(delta)))
        };
        self.bytes.with_label_values(&[gateway, "out"]).inc_by(sum(|delta| delta.bytes_out));
        self.bytes.with_label_values(&[gateway, "in"]).inc_by(sum(|delta| delta.bytes_in));
        self.packets.with_label_values(&[gateway, "out"]).inc_by(sum(|delta| delta.packets_out));
        self.packets.with_label_values(&[gateway, "in"]).inc_by(sum(|delta| delta.packets_in));
    }

    pub(super) fn denied(&self, gateway: &str, flows: &[DeniedFlow]) {
        let packets = flows.iter().fold(0_u64, |sum, flow| sum.saturating_add(flow.packets));
        self.denied_packets.with_label_values(&[self.label(gateway)]).inc_by(packets);
    }

    pub(super) fn cut(&self, gateway: &str, report: &CutReport) {
        self.cut_flows.with_label_values(&[self.label(gateway), report.cause.word()]).inc_by(report.flows);
    }

    fn label<'a>(&self, gateway: &'a str) -> &'a str {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.contains(gateway) {
            return gateway;
        }
        if named.len() >= MAX_NAMED_GATEWAYS {
            return OTHER_GATEWAYS;
        }
        named.insert(gateway.to_owned());
        gateway
    }
}
