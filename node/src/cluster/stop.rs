//! The end of a node, in order: no more writes, hand over, stop raft, wait for what is left.

use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver as _;
use raft_store::Store;
use raft_store::types::NodeId;
use tokio::time::timeout;

use super::{Cluster, heirs};
use crate::raft::Metrics;

/// Log entries on their way have this long to be confirmed before leadership is handed over.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Each successor that is tried has this long to take over …
const HANDOVER_TIMEOUT: Duration = Duration::from_millis(500);
/// … and this many are tried.
const MAX_HEIRS: usize = 4;
/// Peers have this long to take the last answers.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);
/// Raft and its tasks have this long to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks at whether the disk is closed: raft closes it without telling.
const DISK_PAUSE: Duration = Duration::from_millis(5);

impl Cluster {
    /// Stops this node. A leader hands over first, so that writes go on elsewhere within milliseconds. Afterwards
    /// nothing works on its data directory any more.
    pub async fn stop(&self) {
        self.hand_over().await;
        self.inner.draining.cancel();
        self.inner.leave.cancel();
        self.inner.serving.close();
        if timeout(FAREWELL_TIMEOUT, self.inner.serving.wait()).await.is_err() {
            tracing::warn!("peers did not take the last answers in time");
        }
        self.end().await;
    }

    /// Makes the most caught-up voter the leader when this node leads, and keeps this node from leading again. Writes
    /// go on: those under way are confirmed first, those that come meanwhile wait and go to the successor.
    pub async fn hand_over(&self) {
        self.inner.retiring.cancel();
        self.raft().runtime_config().elect(false);
        self.transfer().await;
    }

    async fn transfer(&self) {
        let Ok(_paused) = timeout(PAUSE_TIMEOUT, self.inner.proposer.pause()).await else {
            tracing::warn!("writes under way are not confirmed in time; the others will elect a leader");
            return;
        };
        let metrics = self.raft().metrics().borrow_watched().clone();
        for heir in heirs(&metrics).into_iter().take(MAX_HEIRS) {
            if self.transfer_to(heir.id).await {
                return;
            }
        }
    }

    /// Makes a certain voter the leader when this node leads. Writes go on, as in [`Self::hand_over`].
    pub(crate) async fn hand_over_to(&self, heir: NodeId) {
        let Ok(_paused) = timeout(PAUSE_TIMEOUT, self.inner.proposer.pause()).await else {
            tracing::warn!("writes under way are not confirmed in time; leadership stays here");
            return;
        };
        self.transfer_to(heir).await;
    }

    /// True when somebody else leads, or nothing more can be done.
    async fn transfer_to(&self, heir: NodeId) -> bool {
        tracing::info!(to = %format_args!("{heir:016x}"), "handing leadership over");
        if self.raft().trigger().transfer_leader(heir).await.is_err() {
            return true;
        }
        let id = self.id();
        let handed = |metrics: &Metrics| {
            metrics.state != ServerState::Leader && metrics.current_leader.is_some_and(|leader| leader != id)
        };
        if self.raft().wait(Some(HANDOVER_TIMEOUT)).metrics(handed, "hand over").await.is_ok() {
            return true;
        }
        tracing::warn!(to = %format_args!("{heir:016x}"), "the successor did not take over in time");
        false
    }

    /// Stops this node as a crash would: nothing is handed over, nobody is told.
    pub async fn crash(&self) {
        self.end().await;
    }

    /// Returns when raft cannot go on (a disk error), with the reason.
    pub async fn failed(&self) -> String {
        // These change seldom, and end with raft; all together they change with every message.
        let mut changes = self.raft().server_metrics();
        while changes.changed().await.is_ok() {}
        if self.inner.stop.is_cancelled() {
            std::future::pending::<()>().await;
        }
        match &self.raft().metrics().borrow_watched().running_state {
            Err(fatal) => fatal.to_string(),
            Ok(()) => "raft ended".to_owned(),
        }
    }

    async fn end(&self) {
        self.inner.stop.cancel();
        if timeout(STOP_TIMEOUT, self.raft().shutdown()).await.is_err() {
            tracing::warn!("raft did not stop in time");
        }
        self.inner.tasks.close();
        self.inner.serving.close();
        if timeout(STOP_TIMEOUT, self.inner.serving.wait()).await.is_err() {
            tracing::warn!(left = self.inner.serving.len(), "peer connections did not end in time");
        }
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
