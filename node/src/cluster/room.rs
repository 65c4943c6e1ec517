//! Room on the disk. A node whose disk is low takes no writes that make the state larger, and leads only when no voter
//! with more room can. Removals are always taken: they are how room is made.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use raft_store::SpaceState;
use raft_store::command::Operation;
use raft_store::types::NodeId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Cluster, Heir, heirs};
use crate::raft::link::Purpose;
use crate::raft::wire::{ProposeFailure, Request, Response};

/// How often a leader looks whether it should hand over because of its disk.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// After an attempt to hand over nothing is tried for this long: each one stops writes for a moment.
const ATTEMPT_PAUSE: Duration = Duration::from_secs(30);
/// A voter that is asked for its room has this long to answer.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);

impl Cluster {
    /// Whether the disk of the data directory has room for writes that make the state larger; else why not, in words.
    ///
    /// # Errors
    /// The path, what is free and what would be enough, bytes.
    pub fn room(&self) -> Result<(), String> {
        match self.inner.space.state() {
            SpaceState::Ok => Ok(()),
            SpaceState::Low { free, needed } => Err(format!(
                "the disk of {} on {} has {free} bytes free and should have {needed}",
                self.inner.data_dir.display(),
                self.name()
            )),
        }
    }

    /// Refuses writes that make the state larger while this node leads and its disk is low.
    pub(super) fn check_room(&self, operations: &[Operation]) -> Result<(), ProposeFailure> {
        if self.term().is_none() || !operations.iter().any(|one| one.command.grows()) {
            return Ok(());
        }
        self.room().map_err(ProposeFailure::NoRoom)
    }

    /// The answer to [`Request::Room`].
    pub(crate) fn has_room_to_spare(&self) -> bool {
        self.inner.space.has_room_to_spare()
    }

    /// A voter that can lead at once and says that its disk has room to spare.
    async fn roomy_voter(&self) -> Option<NodeId> {
        let metrics = self.raft().metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        for heir in heirs(&metrics).into_iter().filter(Heir::is_ready) {
            let Some(node) = membership.get_node(&heir.id) else { continue };
            let link = self.peers().link(&node.raft_address, Some(heir.id), Purpose::Forward);
            let answer = link.call(Request::Room, Instant::now() + ASK_TIMEOUT).await;
            if matches!(answer, Ok(Response::Room(true))) {
                return Some(heir.id);
            }
        }
        None
    }
}

/// Hands leadership over while this node leads with a low disk and a voter has more room; until `stop`.
pub(super) async fn run(cluster: Cluster, stop: CancellationToken) {
    stop.run_until_cancelled(watch(&cluster)).await;
}

async fn watch(cluster: &Cluster) {
    let mut ticks = tokio::time::interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut not_before = Instant::now();
    loop {
        ticks.tick().await;
        let Err(reason) = cluster.room() else { continue };
        if cluster.term().is_none() || Instant::now() < not_before {
            continue;
        }
        if let Some(heir) = cluster.roomy_voter().await {
            tracing::warn!(reason, "handing leadership to a voter with more room");
            cluster.hand_over_to(heir).await;
            not_before = Instant::now() + ATTEMPT_PAUSE;
        }
    }
}
