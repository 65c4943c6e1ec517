//! The log's sync times as a Prometheus histogram. The log counts by itself, off every lock; here its counters take the
//! shape of a metric family.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto;
use raft_store::SyncTimesSnapshot;

const NAME: &str = "outputguard_raft_fsync_seconds";
const HELP: &str = "Time the disk took to make a batch of log entries durable";

/// Shows what it was given last.
#[derive(Clone)]
pub(super) struct SyncHistogram {
    desc: Arc<Desc>,
    shown: Arc<Mutex<Option<SyncTimesSnapshot>>>,
}

impl SyncHistogram {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let desc = Desc::new(NAME.to_owned(), HELP.to_owned(), Vec::new(), std::collections::HashMap::new())?;
        Ok(Self { desc: Arc::new(desc), shown: Arc::default() })
    }

    pub(super) fn show(&self, times: SyncTimesSnapshot) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(times);
    }
}

impl Collector for SyncHistogram {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(times) = shown else { return Vec::new() };
        let mut histogram = proto::Histogram::default();
        histogram.set_sample_count(times.count);
        histogram.set_sample_sum(times.sum_s);
        let buckets = times.buckets.iter().map(|(bound, count)| {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(*count);
            bucket
        });
        histogram.set_bucket(buckets.collect());
        let mut metric = proto::Metric::default();
        metric.set_histogram(histogram);
        let mut family = proto::MetricFamily::default();
        family.set_name(NAME.to_owned());
        family.set_help(HELP.to_owned());
        family.set_field_type(proto::MetricType::HISTOGRAM);
        family.set_metric(vec![metric]);
        vec![family]
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{Encoder as _, Registry, TextEncoder};

    use super::*;

    #[test]
    fn the_counters_come_out_as_a_histogram() {
        let histogram = SyncHistogram::new().unwrap();
        let registry = Registry::new();
        registry.register(Box::new(histogram.clone())).unwrap();
        histogram.show(SyncTimesSnapshot { count: 5, sum_s: 1.5, buckets: vec![(0.001, 2), (0.5, 4)] });
        let mut text = Vec::new();
        TextEncoder::new().encode(&registry.gather(), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        for line in [
            "# TYPE outputguard_raft_fsync_seconds histogram",
            "outputguard_raft_fsync_seconds_bucket{le=\"0.001\"} 2",
            "outputguard_raft_fsync_seconds_bucket{le=\"0.5\"} 4",
            "outputguard_raft_fsync_seconds_bucket{le=\"+Inf\"} 5",
            "outputguard_raft_fsync_seconds_sum 1.5",
            "outputguard_raft_fsync_seconds_count 5",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
    }
}
