//! openraft's settings, measured in STORAGE.md.

use std::sync::Arc;

use openraft::{Config, ConfigError, SnapshotPolicy};
use raft_store::FeatureLevel;

/// See [`Tuning::max_log_bytes`].
const MAX_LOG_BYTES: u64 = 256 * 1024 * 1024;

/// How a cluster paces itself. The defaults are for production; tests of rare events shorten them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// The leader shows itself this often, milliseconds.
    pub heartbeat_ms: u64,
    /// A follower waits at least this long for a leader, milliseconds.
    pub election_min_ms: u64,
    /// … and at most this long.
    pub election_max_ms: u64,
    /// A snapshot is made after this many log entries (give or take a tenth, drawn per node, so that nodes do not
    /// write theirs at the same time).
    pub snapshot_after_entries: u64,
    /// Entries kept behind a snapshot, so that a node that was away for a moment catches up by log.
    pub entries_kept: u64,
    /// A snapshot is made earlier, and fewer entries are kept, where the log would else become larger than this, bytes.
    pub max_log_bytes: u64,
    /// The highest feature level the node applies and announces. Below the newest only in tests, which play an older
    /// release with it.
    pub features: FeatureLevel,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            heartbeat_ms: 50,
            election_min_ms: 250,
            election_max_ms: 400,
            snapshot_after_entries: 200_000,
            entries_kept: 20_000,
            max_log_bytes: MAX_LOG_BYTES,
            features: FeatureLevel::NEWEST,
        }
    }
}

/// Sending a snapshot and installing it may take this long, milliseconds.
pub(crate) const INSTALL_SNAPSHOT_TIMEOUT_MS: u64 = 60_000;
/// Most entries handed to the network at once; [`super::wire::append_parts`] bounds the bytes.
const MAX_PAYLOAD_ENTRIES: u64 = 4_096;
/// A peer that cannot be reached is tried again after these times.
const BACKOFF: &str = "50ms 100ms 200ms ...500ms";

impl Tuning {
    /// As openraft takes it.
    pub(crate) fn raft_config(&self) -> Result<Arc<Config>, ConfigError> {
        let config = Config {
            cluster_name: "outputguard".to_owned(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_min_ms,
            election_timeout_max: self.election_max_ms,
            enable_pre_vote: Some(true),
            // The default lets a restarted leader lead on with a stale state.
            enable_leader_restore: Some(false),
            max_payload_entries: MAX_PAYLOAD_ENTRIES,
            install_snapshot_timeout: INSTALL_SNAPSHOT_TIMEOUT_MS,
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: self.entries_kept,
            replication_lag_threshold: self.entries_kept.max(1),
            backoff: BACKOFF.to_owned(),
            ..Config::default()
        };
        config.validate().map(Arc::new)
    }
}
