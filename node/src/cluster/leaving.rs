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
        if self.is_announced() {
            return None;
        }
        let under_way = self.under_way.read().await;
        // It may have been announced, and all others finished, while this one waited.
        (!self.is_announced()).then_some(under_way)
    }

    fn is_announced(&self) -> bool {
        let announced = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        announced.is_some_and(|until| Instant::now() < until)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_that_waited_at_the_door_while_the_others_finished_is_not_let_in() {
        let leaving = Leaving::default();
        // `finish` between the last request and this one.
        let nobody_in = leaving.under_way.write().await;
        let mut entering = std::pin::pin!(leaving.enter());
        assert!(futures_util::poll!(entering.as_mut()).is_pending());
        *leaving.until.lock().unwrap() = Some(Instant::now() + ANNOUNCED_FOR);
        drop(nobody_in);
        assert!(entering.await.is_none());
    }

    #[tokio::test]
    async fn nobody_is_let_in_after_the_announcement() {
        let leaving = Leaving::default();
        assert!(leaving.enter().await.is_some());
        leaving.finish().await;
        assert!(leaving.enter().await.is_none());
    }
}
