//! Reports of cut flows on their way to a server.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use allowlist::feed::{Applied, CutReport};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use tokio::sync::{Notify, watch};

use crate::firewall::CutSink;

/// Most reports that wait for a server. When more come, the oldest goes: it stays in the log and the metrics.
pub const MAX_CUT_REPORTS: usize = 256;

/// The reports. Clones share them.
#[derive(Debug, Clone)]
pub struct CutReports {
    waiting: Arc<Mutex<VecDeque<CutReport>>>,
    bell: Arc<Notify>,
    flows: IntCounterVec,
    bytes: IntCounterVec,
    lost: IntCounter,
}

impl CutReports {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let flows = IntCounterVec::new(
            Opts::new("outputguard_cut_flows_total", "Flows taken out of the kernel's table, by cause."),
            &["cause"],
        )?;
        let bytes = IntCounterVec::new(
            Opts::new(
                "outputguard_cut_flow_bytes_total",
                "Bytes that cut flows had moved since they began, by cause and direction.",
            ),
            &["cause", "direction"],
        )?;
        let lost = IntCounter::new(
            "outputguard_cut_reports_lost_total",
            "Reports of cut flows that no server was told, because too many waited.",
        )?;
        registry.register(Box::new(flows.clone()))?;
        registry.register(Box::new(bytes.clone()))?;
        registry.register(Box::new(lost.clone()))?;
        Ok(Self { waiting: Arc::default(), bell: Arc::default(), flows, bytes, lost })
    }

    /// Counts reports and puts them in line. One that knows no revision is about the newest that was applied.
    pub(super) fn sink(&self, applied: watch::Receiver<Option<Applied>>) -> CutSink {
        let reports = self.clone();
        Arc::new(move |mut report: CutReport| {
            if report.revision == 0 {
                report.revision = applied.borrow().as_ref().map_or(0, |applied| applied.revision);
            }
            reports.push(report);
        })
    }

    /// Waits until there is a report, and gives the oldest. It stays in line until [`Self::told`]; one that was written
    /// to a link which then broke may be lost, and is in the log and the metrics only.
    pub async fn oldest(&self) -> CutReport {
        loop {
            let rung = self.bell.notified();
            if let Some(report) = self.lock().front() {
                return report.clone();
            }
            rung.await;
        }
    }

    /// A server was told the report.
    pub fn told(&self, report: &CutReport) {
        let mut waiting = self.lock();
        if waiting.front() == Some(report) {
            waiting.pop_front();
        }
    }

    fn push(&self, report: CutReport) {
        let cause = report.cause.word();
        self.flows.with_label_values(&[cause]).inc_by(report.flows);
        self.bytes.with_label_values(&[cause, "out"]).inc_by(report.bytes_out);
        self.bytes.with_label_values(&[cause, "in"]).inc_by(report.bytes_in);
        let mut waiting = self.lock();
        if waiting.len() >= MAX_CUT_REPORTS {
            waiting.pop_front();
            self.lost.inc();
        }
        waiting.push_back(report);
        self.bell.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<CutReport>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
