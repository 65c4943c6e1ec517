//! A node that is about to be removed finishes what is under way on it: after the removal it could not tell its clients
//! any more how their requests ended.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{RwLock, RwLockReadGuard};
use tokio::time::{Instant, timeout};

use crate::raft::departure::LEAVING_TIME;

/// A removal that was announced and did not come is forgotten after this time.
const ANNOUNCED_FOR: Duration = Duration::from_secs(10);

/// The door that requests of clients go through.
#[derive(Default)]
pub(crate) struct Leaving {
    until: Mutex<Option<Instant>>,
    under_way: RwLock<()>,
}

impl Leaving {
    /// Held by a request while it is under way; `None` while this node is about to be removed.
    pub(crate) async fn enter(&self) -> Option<RwLockReadGuard<'_, ()>> {
        let announced = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        if announced.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        Some(self.under_way.read().await)
    }

    /// Lets nobody in for a while, and returns when nobody is in any more (or the time for that is over).
    pub(crate) async fn finish(&self) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + ANNOUNCED_FOR);
        tracing::info!("this node is about to be removed from the cluster: it takes no more requests");
        if timeout(LEAVING_TIME, self.under_way.write()).await.is_err() {
            tracing::warn!("requests are still under way on this node");
        }
    }
}
