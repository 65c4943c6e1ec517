//! When the log is cut.

use super::ConfigError;
use crate::cluster::Tuning;

/// Fewer entries between two snapshots would make a node write its whole state again and again.
const MIN_BETWEEN_SNAPSHOTS: u64 = 100;

pub(super) fn tuning(after_entries: Option<u64>, kept: Option<u64>) -> Result<Tuning, ConfigError> {
    let defaults = Tuning::default();
    let after_entries = after_entries.unwrap_or(defaults.snapshot_after_entries);
    if after_entries < MIN_BETWEEN_SNAPSHOTS {
        return Err(ConfigError::Value {
            key: "cluster.snapshot_after_entries",
            problem: format!("{after_entries} is too few"),
            remedy: "use 100 or more; 200000 is the default",
        });
    }
    let entries_kept = kept.unwrap_or(defaults.entries_kept);
    Ok(Tuning { snapshot_after_entries: after_entries, entries_kept, ..defaults })
}
