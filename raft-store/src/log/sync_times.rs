//! How long the syncs of the log took, counted for metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets, in seconds: from a good NVMe disk to one that costs the leadership.
pub const SYNC_BUCKETS_S: [f64; 15] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Counters that the log's writer raises after each sync.
#[derive(Debug, Default)]
pub struct SyncTimes {
    count: AtomicU64,
    sum_ns: AtomicU64,
    buckets: [AtomicU64; SYNC_BUCKETS_S.len()],
}

/// [`SyncTimes`] at one moment, in the shape of a Prometheus histogram.
#[derive(Debug, Clone, PartialEq)]
pub struct SyncTimesSnapshot {
    /// Syncs.
    pub count: u64,
    /// Seconds they took together.
    pub sum_s: f64,
    /// Upper bound in seconds, and how many took at most so long: cumulative. Without the infinite one, which is
    /// `count`.
    pub buckets: Vec<(f64, u64)>,
}

impl SyncTimes {
    pub(super) fn note(&self, took: Duration) {
        let bucket = SYNC_BUCKETS_S.iter().position(|bound| took.as_secs_f64() <= *bound);
        if let Some(bucket) = bucket {
            self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.sum_ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// The counters as of now.
    pub fn snapshot(&self) -> SyncTimesSnapshot {
        // Before the buckets, which are raised first: no bucket may ever hold less than what the count implies.
        let count = self.count.load(Ordering::Relaxed);
        let mut below = 0;
        let buckets = SYNC_BUCKETS_S.iter().zip(&self.buckets).map(|(bound, bucket)| {
            below += bucket.load(Ordering::Relaxed);
            (*bound, below)
        });
        let buckets: Vec<_> = buckets.collect();
        let sum_s = self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9;
        SyncTimesSnapshot { count: count.max(below), sum_s, buckets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_long_syncs_are_in_the_count_alone() {
        let times = SyncTimes::default();
        for ms in [1, 1, 7, 60_000] {
            times.note(Duration::from_millis(ms));
        }
        let seen = times.snapshot();
        assert_eq!(seen.count, 4);
        assert!((seen.sum_s - 60.009).abs() < 1e-9);
        let at = |bound: f64| seen.buckets.iter().find(|(b, _)| *b == bound).unwrap().1;
        assert_eq!((at(0.0005), at(0.001), at(0.005), at(0.01), at(10.0)), (0, 2, 2, 3, 3));
    }
}
