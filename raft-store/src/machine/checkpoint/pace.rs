//! When the checkpoint follows, and who waits for it.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::Shared;

/// A snapshot waits so long for the checkpoint to reach what it holds: one that is ahead would be read in its place after
/// a crash, and the whole checkpoint written anew. Where the disk has no room it is made all the same.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(5);
/// When the store is closed, what is left is written only up to so many keys: a larger step takes seconds, and the log has it.
pub(super) const MAX_LAST_STEP_KEYS: usize = 10_000;

/// When a step is taken.
#[derive(Debug, Clone, Copy)]
pub struct CheckpointPace {
    /// At the latest when so many keys have changed …
    pub keys: usize,
    /// … or when the oldest change is this old.
    pub interval: Duration,
}

impl Default for CheckpointPace {
    /// Each step costs syncs that the log's own wait behind, and writes whole pages for single records; what a start has
    /// to replay instead takes less time than it took to write.
    fn default() -> Self {
        Self { keys: 50_000, interval: Duration::from_secs(5) }
    }
}

/// Waits for the checkpoint, usable off the async threads.
#[derive(Debug, Clone)]
pub(crate) struct CatchUp(pub(super) Arc<Shared>);

impl CatchUp {
    /// Blocks until what was noted is written, for which it does not wait for the interval, or [`CATCH_UP_PATIENCE`] is
    /// over.
    pub(crate) fn wait(&self) {
        let until = Instant::now() + CATCH_UP_PATIENCE;
        let mut pending = self.0.pending();
        let wanted = pending.noted;
        while pending.written < wanted && !pending.ended {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            pending.hurry = true;
            self.0.changed.notify_all();
            pending = self.0.changed.wait_timeout(pending, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
