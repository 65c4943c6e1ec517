//! From what we should hold to what the kernel holds: one owner thread makes the blocking calls, everyone else leaves
//! word on its desk.
//!
//! The desk holds the wanted set itself and what changed since the owner last looked, merged. So nothing can pile up:
//! however slow the kernel, what waits is never more than one merged change or one whole set, and the feed session
//! never waits for the kernel.

mod cuts;
mod denials;
mod denied;
mod desk;
mod flows;
mod owner;
mod pending;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use allowlist::feed::{Applied, FeedState};
use allowlist::{Change, Revision};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntGauge, Registry, exponential_buckets,
};
use tokio::sync::{oneshot, watch};

pub use self::cuts::{CutReports, MAX_CUT_REPORTS};
pub use self::denials::{DENIAL_INTERVAL, DenialLogHealth, Denials, MAX_DENIED_FLOWS, MAX_FOLDED_SOURCES};
use self::denied::DeniedMetrics;
use self::desk::Desk;
use self::flows::FlowMetrics;
use self::owner::Owner;
use crate::firewall::{Covering, ElementCounters, Firewall, SourceMeter, most_specific};
use crate::held::Held;
use crate::metrics::registered;
use crate::state::StateStore;

/// How often chains and sets are compared with what they should be.
pub const REPAIR_INTERVAL: Duration = Duration::from_secs(2);
/// First wait after the kernel refused; it doubles up to [`KERNEL_RETRY_MAX`].
pub const KERNEL_RETRY_BASE: Duration = Duration::from_millis(100);
/// Longest wait between two attempts after the kernel refused.
pub const KERNEL_RETRY_MAX: Duration = Duration::from_secs(10);
/// Most requests for counters that wait for one read; beyond it they are turned away.
pub const MAX_COUNTER_REQUESTS: usize = 64;
/// Most refused elements named in one report to the server.
pub const MAX_REFUSED_IN_REPORT: usize = 1_000;

/// Whether the kernel holds what it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelHealth {
    /// Nothing was tried yet.
    Starting,
    /// It does.
    InSync,
    /// It does not; the last error. Attempts go on.
    Failing(String),
}

/// Where the held set came from at start, which decides what the owner does first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// From the state file: the kernel is made to hold it at once.
    Stored,
    /// From the kernel itself: it is left as it is until a server says otherwise.
    Kernel,
}

/// The way to the owner thread. Clones share it.
#[derive(Debug, Clone)]
pub struct Enforcer {
    desk: Arc<Desk>,
    applied: watch::Receiver<Option<Applied>>,
    health: watch::Receiver<KernelHealth>,
    cuts: CutReports,
    denials: Denials,
    sources: Option<SourceMeter>,
}

impl Enforcer {
    /// Starts the owner thread over an installed firewall. Without a store it is a dry run: nothing is stored, and
    /// nothing is reported as applied.
    ///
    /// # Errors
    /// When the thread cannot be started or the metric families are already registered.
    pub fn start(
        mut firewall: Box<dyn Firewall>,
        held: Held,
        origin: Origin,
        store: Option<StateStore>,
        registry: &Registry,
    ) -> anyhow::Result<(Self, OwnerThread)> {
        let metrics = EnforceMetrics::register(registry)?;
        let cuts = CutReports::register(registry)?;
        let (applied_tx, applied) = watch::channel(None);
        let (health_tx, health) = watch::channel(KernelHealth::Starting);
        firewall.report_cuts(cuts.sink(applied.clone()));
        let denials = Denials::register(registry)?;
        firewall.report_denials(denials.sink());
        let desk = Arc::new(Desk::new(held, origin));
        let sources = firewall.watch_sources(covering(&desk)).unwrap_or_else(|error| {
            tracing::warn!(%error, "it is not counted what source hosts move");
            None
        });
        if let Some(sources) = &sources {
            sources.register(registry)?;
        }
        let owner = Owner::new(Arc::clone(&desk), firewall, store, metrics, applied_tx, health_tx);
        let thread = std::thread::Builder::new().name("firewall".to_owned()).spawn(move || owner.run())?;
        let enforcer = Self { desk: Arc::clone(&desk), applied, health, cuts, denials, sources };
        Ok((enforcer, OwnerThread { desk, thread }))
    }

    /// Looks at the held set.
    pub fn with_held<T>(&self, look: impl FnOnce(&Held) -> T) -> T {
        self.desk.with_held(look)
    }

    /// Makes a change that arrived at `arrived`.
    pub fn apply(&self, change: &Change, arrived: Instant) {
        self.desk.apply(change, arrived);
    }

    /// Holds exactly `held` from now on.
    pub fn replace(&self, held: Held, arrived: Instant) {
        self.desk.replace(held, arrived);
    }

    /// Nothing changed up to `revision`.
    pub fn advance(&self, revision: Revision, arrived: Instant) {
        self.desk.advance(revision, arrived);
    }

    /// Counters of all elements, read when the owner comes to it. Requests that wait together share one read.
    ///
    /// # Errors
    /// In words, when the kernel refuses, too many wait, or the owner has stopped.
    pub async fn counters(&self) -> Result<Arc<Vec<ElementCounters>>, String> {
        let (answer, asked) = oneshot::channel();
        self.desk.ask_counters(answer)?;
        asked.await.map_err(|_| "read counters: the gateway is stopping".to_owned())?
    }

    /// The newest report; changes when the kernel took a revision.
    pub fn applied(&self) -> watch::Receiver<Option<Applied>> {
        self.applied.clone()
    }

    /// Reports of cut flows that no server has been told yet.
    pub fn cuts(&self) -> &CutReports {
        &self.cuts
    }

    /// Who was denied what, as far as no server has been told.
    pub fn denials(&self) -> &Denials {
        &self.denials
    }

    /// What source hosts move, when that is counted.
    pub fn sources(&self) -> Option<&SourceMeter> {
        self.sources.as_ref()
    }

    /// Whether the kernel holds what it should.
    pub fn health(&self) -> KernelHealth {
        self.health.borrow().clone()
    }

    /// The point in the feed that the held set stands for.
    pub fn point(&self) -> Option<FeedState> {
        self.with_held(Held::point)
    }
}

/// Looks places up in the held set.
fn covering(desk: &Arc<Desk>) -> Covering {
    let desk = Arc::clone(desk);
    Arc::new(move |place| desk.with_held(|held| most_specific(held.elements(), place)))
}

/// The owner thread, to be stopped.
#[derive(Debug)]
pub struct OwnerThread {
    desk: Arc<Desk>,
    thread: JoinHandle<()>,
}

impl OwnerThread {
    /// Lets the owner finish what lies on its desk, stores the state, and waits for its end. Blocks; the kernel keeps
    /// what it holds.
    pub fn stop(self) {
        self.desk.stop();
        if self.thread.join().is_err() {
            tracing::error!("the firewall thread ended with a panic");
        }
    }
}

/// What the owner counts.
#[derive(Debug)]
struct EnforceMetrics {
    apply_change: Histogram,
    apply_whole: Histogram,
    elements: IntGauge,
    refused: IntGauge,
    revision: IntGauge,
    repairs: IntCounter,
    kernel_errors: IntCounter,
    denied: DeniedMetrics,
    flows: FlowMetrics,
}

impl EnforceMetrics {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let apply = HistogramVec::new(
            HistogramOpts::new(
                "outputguard_apply_duration_seconds",
                "Time from a frame's arrival to the kernel's answer, for single changes and for whole sets.",
            )
            .buckets(exponential_buckets(0.000_1, 2.5, 14)?),
            &["kind"],
        )?;
        registry.register(Box::new(apply.clone()))?;
        let gauge = |name: &str, help: &str| registered(registry, IntGauge::new(name, help));
        let counter = |name: &str, help: &str| registered(registry, IntCounter::new(name, help));
        Ok(Self {
            apply_change: apply.with_label_values(&["change"]),
            apply_whole: apply.with_label_values(&["whole"]),
            elements: gauge("outputguard_elements", "Elements this gateway is to let through.")?,
            refused: gauge(
                "outputguard_refused_elements",
                "Published elements this gateway could not enforce; they do not pass.",
            )?,
            revision: gauge("outputguard_applied_revision", "Revision the kernel holds.")?,
            repairs: counter(
                "outputguard_drift_repairs_total",
                "Differences somebody made in our chains and sets, repaired.",
            )?,
            kernel_errors: counter(
                "outputguard_kernel_errors_total",
                "Calls to the firewall that failed and are tried again.",
            )?,
            denied: DeniedMetrics::register(registry)?,
            flows: FlowMetrics::register(registry)?,
        })
    }
}
