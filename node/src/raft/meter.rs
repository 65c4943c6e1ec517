//! What replication counts, and what `/metrics` reads from it.

use std::time::{Duration, UNIX_EPOCH};

use openraft::async_runtime::WatchReceiver as _;
use openraft::{Instant as _, LogIdOptionExt as _};
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::Metrics;
use super::sync_histogram::SyncHistogram;
use super::wire::ProposeFailure;
use crate::cluster::Cluster;

/// A peer that acknowledged something this lately can be reached.
const REACHABLE: Duration = Duration::from_secs(1);

/// The metric families of replication.
#[derive(Clone)]
pub(crate) struct Meter {
    proposals: IntCounterVec,
    /// Leaders this node followed after the first.
    pub(crate) leader_changes: IntCounter,
    /// Linearizable reads, and …
    pub(crate) reads: IntCounter,
    /// … the rounds that confirmed them.
    pub(crate) read_rounds: IntCounter,
    is_leader: IntGauge,
    last: IntGauge,
    applied: IntGauge,
    log_bytes: IntGauge,
    log_entries: IntGauge,
    snapshot_index: IntGauge,
    snapshot_bytes: IntGauge,
    snapshot_at: IntGauge,
    disk_low: IntGauge,
    features: IntGaugeVec,
    syncs: SyncHistogram,
    lag: IntGaugeVec,
    reachable: IntGaugeVec,
}

impl Meter {
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| IntGauge::new(name, help);
        let peers = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &["peer"]);
        let counter = |name: &str, help: &str| IntCounter::new(name, help);
        let proposals = IntCounterVec::new(
            Opts::new("outputguard_raft_proposals_total", "Writes proposed on this node as the leader"),
            &["result"],
        )?;
        for result in RESULTS {
            proposals.with_label_values(&[result]);
        }
        Ok(Self {
            proposals,
            leader_changes: counter(
                "outputguard_raft_leader_changes_total",
                "Changes of the leader this node has seen",
            )?,
            reads: counter("outputguard_raft_reads_total", "Linearizable reads on this node")?,
            read_rounds: counter(
                "outputguard_raft_read_rounds_total",
                "Confirmations that linearizable reads shared",
            )?,
            is_leader: gauge("outputguard_raft_is_leader", "1 while this node leads")?,
            last: gauge("outputguard_raft_last_log_index", "Index of the newest log entry on this node")?,
            applied: gauge(
                "outputguard_raft_applied_index",
                "Index of the newest log entry applied on this node",
            )?,
            log_bytes: gauge("outputguard_raft_log_bytes", "Size of the log's files")?,
            log_entries: gauge("outputguard_raft_log_entries", "Entries in the log")?,
            snapshot_index: gauge(
                "outputguard_raft_snapshot_index",
                "Newest log index in the newest snapshot; 0 without one",
            )?,
            snapshot_bytes: gauge(
                "outputguard_raft_snapshot_bytes",
                "Size of the newest snapshot; 0 without one",
            )?,
            snapshot_at: gauge(
                "outputguard_raft_snapshot_timestamp_seconds",
                "When the newest snapshot was written, Unix time; 0 without one",
            )?,
            disk_low: gauge(
                "outputguard_disk_low",
                "1 while the disk of the data directory has so little room that growth is refused",
            )?,
            features: IntGaugeVec::new(
                Opts::new(
                    "outputguard_feature_level",
                    "Feature level: `active` is what the cluster has agreed on, `supported` what this node can apply",
                ),
                &["kind"],
            )?,
            syncs: SyncHistogram::new()?,
            lag: peers("outputguard_raft_peer_lag_entries", "Log entries a peer lacks, as the leader knows")?,
            reachable: peers(
                "outputguard_raft_peer_reachable",
                "1 when a peer answered the leader within the last second",
            )?,
        })
    }

    /// # Errors
    /// A family of the same name is there already.
    pub(crate) fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.proposals.clone()))?;
        for counter in [&self.leader_changes, &self.reads, &self.read_rounds] {
            registry.register(Box::new(counter.clone()))?;
        }
        for gauge in [
            &self.is_leader,
            &self.last,
            &self.applied,
            &self.log_bytes,
            &self.log_entries,
            &self.snapshot_index,
            &self.snapshot_bytes,
            &self.snapshot_at,
            &self.disk_low,
        ] {
            registry.register(Box::new(gauge.clone()))?;
        }
        registry.register(Box::new(self.features.clone()))?;
        registry.register(Box::new(self.syncs.clone()))?;
        registry.register(Box::new(self.lag.clone()))?;
        registry.register(Box::new(self.reachable.clone()))
    }

    pub(crate) fn proposed<T>(&self, result: &Result<T, ProposeFailure>) {
        let label = match result {
            Ok(_) => "committed",
            Err(ProposeFailure::NotLeader) => "not_leader",
            Err(ProposeFailure::NotEntered(_)) => "not_entered",
            Err(ProposeFailure::Unknown(_)) => "unknown",
            Err(ProposeFailure::Unavailable(_)) => "unavailable",
            Err(ProposeFailure::TokenGone) => "token_gone",
            Err(ProposeFailure::NoRoom(_)) => "no_room",
            Err(ProposeFailure::FeatureNotActive(_)) => "feature_not_active",
        };
        self.proposals.with_label_values(&[label]).inc();
    }

    /// Reads what is true at this moment.
    pub(crate) fn read_from(&self, cluster: &Cluster) {
        let metrics = cluster.raft().metrics().borrow_watched().clone();
        self.is_leader.set(i64::from(cluster.term().is_some()));
        self.last.set(signed(metrics.last_log_index.unwrap_or(0)));
        self.applied.set(signed(metrics.last_applied.index().unwrap_or(0)));
        let log = cluster.log_standing();
        self.log_bytes.set(signed(log.size.bytes));
        self.log_entries.set(signed(log.size.entries));
        self.syncs.show(log.syncs);
        self.disk_low.set(i64::from(cluster.room().is_err()));
        let (active, supported) = (cluster.reader().state().features(), cluster.supported_features());
        for (kind, level) in [("active", active), ("supported", supported)] {
            self.features.with_label_values(&[kind]).set(i64::from(level.0));
        }
        if let Some(snapshot) = cluster.snapshots().newest() {
            self.snapshot_index.set(signed(snapshot.meta.last_log_id.index().unwrap_or(0)));
            self.snapshot_bytes.set(signed(snapshot.snapshot.len()));
            let written = std::fs::metadata(snapshot.snapshot.path()).and_then(|file| file.modified()).ok();
            let written = written.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            self.snapshot_at.set(written.map_or(0, |at| signed(at.as_secs())));
        }
        self.read_peers(&metrics);
    }

    fn read_peers(&self, metrics: &Metrics) {
        // Peers come and go, and only the leader knows them.
        self.lag.reset();
        self.reachable.reset();
        let (Some(replication), Some(heard)) = (&metrics.replication, &metrics.heartbeat) else { return };
        let membership = metrics.membership_config.membership();
        for (id, node) in membership.nodes().filter(|(id, _)| **id != metrics.id) {
            let matched = replication.get(id).copied().flatten().map_or(0, |log_id| log_id.index);
            let lag = metrics.last_log_index.unwrap_or(0).saturating_sub(matched);
            self.lag.with_label_values(&[&node.name]).set(signed(lag));
            let at = heard.get(id).copied().flatten();
            let reachable = at.is_some_and(|at| at.into_inner().elapsed() < REACHABLE);
            self.reachable.with_label_values(&[&node.name]).set(i64::from(reachable));
        }
    }
}

const RESULTS: [&str; 8] = [
    "committed",
    "not_leader",
    "not_entered",
    "unknown",
    "unavailable",
    "token_gone",
    "no_room",
    "feature_not_active",
];

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
