//! What gateways said of flows they cut: the proof that a revocation bit. Kept in memory on the node that heard it; the log
//! keeps each for longer.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use allowlist::feed::{CutReport, MAX_CUT_ELEMENTS};

/// Most receipts kept; the oldest goes first.
pub const MAX_CUT_RECEIPTS: usize = 1_000;

/// Elements in one page of receipts, at most (one receipt has its own bound), so that an answer has a few megabytes.
pub const MAX_PAGE_ELEMENTS: usize = 20_000;

/// One receipt. Clones share what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutReceipt {
    /// Counts up from 1 on this node since it started.
    pub number: u64,
    /// Who cut.
    pub gateway: Arc<str>,
    /// What.
    pub report: Arc<CutReport>,
}

/// A part of the receipts, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutPage {
    /// What is wanted.
    pub receipts: Vec<CutReceipt>,
    /// Where the next page begins, when there is more.
    pub next_before: Option<u64>,
}

/// The receipts, oldest first. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct CutReceipts(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    receipts: VecDeque<CutReceipt>,
    /// Of the newest.
    number: u64,
}

impl CutReceipts {
    /// Keeps a receipt and writes it into the log.
    pub(super) fn add(&self, gateway: &str, mut report: CutReport) {
        // A gateway says no more than this; one that does is not believed.
        report.elements.truncate(MAX_CUT_ELEMENTS);
        // What came in a large frame must not be held as large for long.
        report.elements.shrink_to_fit();
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
        let (gateway, report) = (gateway.into(), Arc::new(report));
        let mut kept = self.lock();
        if kept.receipts.len() >= MAX_CUT_RECEIPTS {
            kept.receipts.pop_front();
        }
        kept.number += 1;
        let number = kept.number;
        kept.receipts.push_back(CutReceipt { number, gateway, report });
    }

    /// Those before `before` that `wanted` says yes to, newest first: at most `limit`, which is at least 1, and no more
    /// than have [`MAX_PAGE_ELEMENTS`] together.
    pub fn page(&self, before: Option<u64>, limit: usize, wanted: impl Fn(&CutReceipt) -> bool) -> CutPage {
        let kept = self.lock();
        let older = |receipt: &&CutReceipt| before.is_none_or(|before| receipt.number < before);
        let found = kept.receipts.iter().rev().filter(older).filter(|receipt| wanted(receipt));
        let mut page = CutPage { receipts: Vec::new(), next_before: None };
        let mut elements = 0;
        for receipt in found {
            elements += receipt.report.elements.len();
            if page.receipts.len() >= limit || (elements > MAX_PAGE_ELEMENTS && !page.receipts.is_empty()) {
                page.next_before = page.receipts.last().map(|last| last.number);
                break;
            }
            page.receipts.push(receipt.clone());
        }
        page
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use allowlist::Element;
    use allowlist::feed::{CutCause, CutElement};

    use super::*;

    fn report(revision: u64, elements: usize) -> CutReport {
        let element = Element::new("9.9.9.9/32".parse().unwrap(), None);
        let part = CutElement { element, flows: 1, bytes_out: 1, bytes_in: 1 };
        CutReport {
            revision,
            cause: CutCause::Revoked,
            flows: 1,
            uncounted: 0,
            bytes_out: 1,
            bytes_in: 1,
            at_ms: 1,
            took_us: 1,
            elements: vec![part; elements],
        }
    }

    fn revisions(page: &CutPage) -> Vec<u64> {
        page.receipts.iter().map(|receipt| receipt.report.revision).collect()
    }

    #[test]
    fn a_report_that_is_too_long_is_cut_and_holds_no_more_memory_than_is_left() {
        let receipts = CutReceipts::default();
        receipts.add("gw-1", report(1, MAX_CUT_ELEMENTS * 20));
        let page = receipts.page(None, 1, |_| true);
        assert_eq!(page.receipts[0].report.elements.len(), MAX_CUT_ELEMENTS);
        assert!(page.receipts[0].report.elements.capacity() < MAX_CUT_ELEMENTS * 2);
        // Readers share it.
        assert!(Arc::ptr_eq(&page.receipts[0].report, &receipts.page(None, 1, |_| true).receipts[0].report));
    }

    #[test]
    fn pages_follow_each_other_though_receipts_come_meanwhile_and_the_oldest_go() {
        let receipts = CutReceipts::default();
        for revision in 1..=MAX_CUT_RECEIPTS as u64 {
            receipts.add("gw-1", report(revision, 0));
        }
        let first = receipts.page(None, 2, |_| true);
        assert_eq!((revisions(&first), first.next_before), (vec![1_000, 999], Some(999)));
        receipts.add("gw-1", report(1_001, 0));
        let second = receipts.page(first.next_before, 2, |_| true);
        assert_eq!(revisions(&second), [998, 997]);
        let last = receipts.page(Some(4), 5, |_| true);
        assert_eq!((revisions(&last), last.next_before), (vec![3, 2], None), "the first had to go");
        assert_eq!(
            revisions(&receipts.page(None, 5, |receipt| receipt.report.revision % 500 == 0)),
            [1_000, 500]
        );
    }

    #[test]
    fn a_page_has_no_more_elements_than_its_bound_and_goes_on_behind() {
        let receipts = CutReceipts::default();
        let full = MAX_PAGE_ELEMENTS / MAX_CUT_ELEMENTS;
        for revision in 1..=full as u64 + 1 {
            receipts.add("gw-1", report(revision, MAX_CUT_ELEMENTS));
        }
        let page = receipts.page(None, 200, |_| true);
        assert_eq!((page.receipts.len(), page.next_before), (full, Some(2)));
        assert_eq!(revisions(&receipts.page(page.next_before, 200, |_| true)), [1]);
    }
}
