//! The end of a node, in order: no more writes, hand over, stop raft, wait for what is left.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::Fatal;
use openraft::{LogIdOptionExt as _, ServerState};
use raft_store::Store;
use tokio::time::timeout;

use super::Cluster;
use crate::raft::Metrics;

/// A leader waits this long for its successor.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(2);
/// Raft and its tasks have this long to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks at whether the disk is closed: raft closes it without telling.
const DISK_PAUSE: Duration = Duration::from_millis(5);

impl Cluster {
    /// Stops this node. A leader hands over first, so that writes go on elsewhere within milliseconds. Afterwards
    /// nothing works on its data directory any more.
    pub async fn stop(&self) {
        self.inner.draining.cancel();
        self.hand_over().await;
        self.end().await;
    }

    /// Stops this node as a crash would: nothing is handed over, nobody is told.
    pub async fn crash(&self) {
        self.end().await;
    }

    /// Returns when raft cannot go on (a disk error), with the reason.
    pub async fn failed(&self) -> String {
        let mut metrics = self.raft().metrics();
        loop {
            let state = metrics.borrow_and_update().running_state.clone();
            match state {
                Err(Fatal::Stopped) if self.inner.stop.is_cancelled() => std::future::pending::<()>().await,
                Err(fatal) => return fatal.to_string(),
                Ok(()) => {}
            }
            if metrics.changed().await.is_err() {
                if self.inner.stop.is_cancelled() {
                    std::future::pending::<()>().await;
                }
                return "raft ended".to_owned();
            }
        }
    }

    async fn hand_over(&self) {
        let metrics = self.raft().metrics().borrow_watched().clone();
        let Some(heir) = heir(&metrics) else { return };
        tracing::info!(to = %format_args!("{heir:016x}"), "handing leadership over");
        if self.raft().trigger().transfer_leader(heir).await.is_err() {
            return;
        }
        let id = self.id();
        let handed = |metrics: &Metrics| metrics.current_leader.is_some_and(|leader| leader != id);
        if self.raft().wait(Some(HANDOVER_TIMEOUT)).metrics(handed, "hand over").await.is_err() {
            tracing::warn!("no successor took over in time; the others will elect one");
        }
    }

    async fn end(&self) {
        self.inner.stop.cancel();
        if timeout(STOP_TIMEOUT, self.raft().shutdown()).await.is_err() {
            tracing::warn!("raft did not stop in time");
        }
        self.inner.tasks.close();
        if timeout(STOP_TIMEOUT, self.inner.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.inner.tasks.len(), "tasks did not stop in time");
        }
        let disk = async {
            while Store::is_open(&self.inner.data_dir) {
                tokio::time::sleep(DISK_PAUSE).await;
            }
        };
        if timeout(STOP_TIMEOUT, disk).await.is_err() {
            tracing::warn!("the data directory was not closed in time");
        }
    }
}

/// The voter with the longest log; `None` when this node does not lead or is alone.
fn heir(metrics: &Metrics) -> Option<u64> {
    if metrics.state != ServerState::Leader {
        return None;
    }
    let replication = metrics.replication.as_ref()?;
    metrics
        .membership_config
        .membership()
        .voter_ids()
        .filter(|voter| *voter != metrics.id)
        .max_by_key(|voter| replication.get(voter).copied().flatten().index())
}
