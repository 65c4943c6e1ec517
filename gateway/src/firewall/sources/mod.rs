//! Which host moves how much, and to which element, from what conntrack counts for each flow.
//!
//! [`watch`] reads the kernel's flows from time to time and hears of those that end, so that short ones are not missed;
//! [`seen`] makes differences of their counters, [`book`] sums them up.

mod book;
mod seen;
mod watch;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use allowlist::Element;
use allowlist::feed::SourceDelta;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use self::book::Book;
pub use self::book::{SourceSum, SourceSums};
use self::seen::Moved;
pub(super) use self::watch::SourceWatch;
use super::Place;
use super::ipset::Counters;

/// Says which element covers a place, when a flow to it is seen first.
pub type Covering = Arc<dyn Fn(Place) -> Option<Element> + Send + Sync>;

/// What was counted. Clones share it.
#[derive(Debug, Clone)]
pub struct SourceMeter {
    book: Arc<Mutex<Book>>,
    counts: Counts,
}

/// What is counted of the counting itself.
#[derive(Debug, Clone)]
struct Counts {
    readings: IntCounter,
    overflows: IntCounter,
    failures: IntCounter,
    flows: IntGauge,
}

impl SourceMeter {
    /// A meter with series of their own for `top` sources.
    ///
    /// # Errors
    /// Never in practice: the metric names are fixed.
    pub(super) fn new(top: usize) -> Result<Self, prometheus::Error> {
        let counts = Counts {
            readings: IntCounter::new(
                "outputguard_source_readings_total",
                "Times the kernel's flows were read to count what source hosts move.",
            )?,
            overflows: IntCounter::new(
                "outputguard_source_events_lost_total",
                "Times the kernel could not tell of flows that ended because too many waited; their last bytes are \
                 missing in the sums of source hosts.",
            )?,
            failures: IntCounter::new(
                "outputguard_source_failures_total",
                "Readings of the kernel's flows that failed and are tried again.",
            )?,
            flows: IntGauge::new(
                "outputguard_source_flows",
                "Flows whose counters are remembered to count what source hosts move.",
            )?,
        };
        Ok(Self { book: Arc::new(Mutex::new(Book::new(top))), counts })
    }

    /// Makes the families part of a registry.
    ///
    /// # Errors
    /// They are in it already.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.counts.readings.clone()))?;
        registry.register(Box::new(self.counts.overflows.clone()))?;
        registry.register(Box::new(self.counts.failures.clone()))?;
        registry.register(Box::new(self.counts.flows.clone()))?;
        registry
            .register(Box::new(Families { meter: self.clone(), empty: families(&SourceSums::default())? }))
    }

    /// What is counted so far.
    pub fn sums(&self) -> SourceSums {
        self.lock().sums().clone()
    }

    /// How often the kernel's flows were read; what moved before the first time is not counted.
    pub fn readings(&self) -> u64 {
        self.counts.readings.get()
    }

    /// What moved since it was taken last, at most [`allowlist::feed::MAX_SOURCES_PER_FRAME`] lines.
    pub fn take_due(&self) -> Vec<SourceDelta> {
        self.lock().take_due()
    }

    /// Adds what a source moved.
    pub(super) fn count(&self, source: IpAddr, element: Option<Element>, sum: SourceSum) {
        let out = Counters { packets: sum.packets_out, bytes: sum.bytes_out };
        let back = Counters { packets: sum.packets_in, bytes: sum.bytes_in };
        self.lock().add(&Moved { source, element, out, back });
    }

    /// Nobody was told: due again.
    pub fn put_back(&self, report: &[SourceDelta]) {
        self.lock().put_back(report);
    }

    /// Sums are added to one by one, hence a panic elsewhere leaves none half written.
    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The families as they are at a scrape: series come and go.
struct Families {
    meter: SourceMeter,
    empty: [IntCounterVec; 2],
}

impl Collector for Families {
    fn desc(&self) -> Vec<&Desc> {
        self.empty.iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        match families(&self.meter.sums()) {
            Ok(families) => families.iter().flat_map(Collector::collect).collect(),
            Err(error) => {
                tracing::error!(%error, "metrics of source hosts could not be made");
                Vec::new()
            }
        }
    }
}

fn families(sums: &SourceSums) -> Result<[IntCounterVec; 2], prometheus::Error> {
    let bytes = IntCounterVec::new(
        Opts::new(
            "outputguard_source_bytes_total",
            "Bytes (IP length) that conntrack counted for flows that source hosts began, for the busiest hosts and \
             `other`. A packet that is denied inside a flow counts here and not in iptables_bytes_count.",
        ),
        &["source", "direction"],
    )?;
    let ended = IntCounterVec::new(
        Opts::new(
            "outputguard_source_ended_bytes_total",
            "Bytes in series of outputguard_source_bytes_total that ended because busier hosts took their place.",
        ),
        &["direction"],
    )?;
    let show = |source: &str, sum: &SourceSum| {
        bytes.with_label_values(&[source, "out"]).inc_by(sum.bytes_out);
        bytes.with_label_values(&[source, "in"]).inc_by(sum.bytes_in);
    };
    for (source, sum) in &sums.named {
        show(&source.to_string(), sum);
    }
    show("other", &sums.other);
    ended.with_label_values(&["out"]).inc_by(sums.ended.bytes_out);
    ended.with_label_values(&["in"]).inc_by(sums.ended.bytes_in);
    Ok([bytes, ended])
}
