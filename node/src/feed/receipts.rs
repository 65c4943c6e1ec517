//! What gateways said of flows they cut: the proof that a revocation bit. Kept in memory on the node that heard it; the log
//! keeps each for longer.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use allowlist::feed::{CutReport, MAX_CUT_ELEMENTS};

/// Most receipts kept; the oldest goes first.
pub const MAX_CUT_RECEIPTS: usize = 1_000;

/// One receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutReceipt {
    /// Who cut.
    pub gateway: String,
    /// What.
    pub report: CutReport,
}

/// The receipts, oldest first. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct CutReceipts(Arc<Mutex<VecDeque<CutReceipt>>>);

impl CutReceipts {
    /// Keeps a receipt and writes it into the log.
    pub(super) fn add(&self, gateway: &str, mut report: CutReport) {
        // A gateway says no more than this; one that does is not believed.
        report.elements.truncate(MAX_CUT_ELEMENTS);
        tracing::info!(
            gateway,
            revision = report.revision,
            cause = report.cause.word(),
            flows = report.flows,
            uncounted = report.uncounted,
            bytes_out = report.bytes_out,
            bytes_in = report.bytes_in,
            took_us = report.took_us,
            "the gateway cut flows"
        );
        let mut receipts = self.lock();
        if receipts.len() >= MAX_CUT_RECEIPTS {
            receipts.pop_front();
        }
        receipts.push_back(CutReceipt { gateway: gateway.to_owned(), report });
    }

    /// Those that `wanted` says yes to, newest first, at most `limit`.
    pub fn newest(&self, limit: usize, wanted: impl Fn(&CutReceipt) -> bool) -> Vec<CutReceipt> {
        self.lock().iter().rev().filter(|receipt| wanted(receipt)).take(limit).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<CutReceipt>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
