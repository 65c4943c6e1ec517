//! Log entries on their way: how many there are, and when the next one may set out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Entries on their way at once: while the disks sync one, the next is made. More would only be smaller ones.
const MAX_UNDER_WAY: usize = 2;
/// An entry sets out beside another one only with at least this part of as many writes: every entry costs each node a
/// sync, so a large one that leaves a moment later is worth more than a small one now.
const LEAST_PART: usize = 2;

#[derive(Default)]
pub(super) struct UnderWay {
    shared: Arc<Shared>,
    youngest: Load,
}

/// What an entry carries, as far as it matters to the next one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Load {
    pub(super) writes: usize,
    /// It decides what later ones may carry, so they wait until it is applied.
    pub(super) decides: bool,
}

#[derive(Default)]
struct Shared {
    count: AtomicUsize,
    arrived: Notify,
}

/// Held as long as an entry is on its way.
pub(super) struct Place(Arc<Shared>);

impl UnderWay {
    /// Whether an entry with so many writes may set out now.
    pub(super) fn lets_go(&self, writes: usize) -> bool {
        match self.shared.count.load(Ordering::Acquire) {
            0 => true,
            count => {
                count < MAX_UNDER_WAY
                    && !self.youngest.decides
                    && writes >= self.youngest.writes.div_ceil(LEAST_PART)
            }
        }
    }

    /// Returns when an entry has arrived since the last call.
    pub(super) async fn arrival(&self) {
        self.shared.arrived.notified().await;
    }

    pub(super) fn set_out(&mut self, load: Load) -> Place {
        self.youngest = load;
        self.shared.count.fetch_add(1, Ordering::AcqRel);
        Place(Arc::clone(&self.shared))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::AcqRel);
        self.0.arrived.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn load(writes: usize) -> Load {
        Load { writes, decides: false }
    }

    #[test]
    fn a_second_entry_sets_out_when_it_is_worth_a_sync_and_a_third_waits() {
        let mut under_way = UnderWay::default();
        assert!(under_way.lets_go(1));
        let first = under_way.set_out(load(7));
        assert!(!under_way.lets_go(3) && under_way.lets_go(4));
        let second = under_way.set_out(load(4));
        assert!(!under_way.lets_go(1_000));
        drop(first);
        assert!(!under_way.lets_go(1) && under_way.lets_go(2));
        drop(second);
        assert!(under_way.lets_go(1));
    }

    #[test]
    fn nothing_sets_out_beside_an_entry_that_decides_what_may() {
        let mut under_way = UnderWay::default();
        let first = under_way.set_out(load(1));
        let deciding = under_way.set_out(Load { writes: 1, decides: true });
        drop(first);
        assert!(!under_way.lets_go(9));
        drop(deciding);
        assert!(under_way.lets_go(1));
    }

    #[test]
    fn an_arrival_before_the_call_is_not_missed() {
        let mut under_way = UnderWay::default();
        assert!(under_way.arrival().now_or_never().is_none());
        drop(under_way.set_out(load(1)));
        assert!(under_way.arrival().now_or_never().is_some());
    }
}
