//! A node cut off from its cluster goes on sending heartbeats that agree with themselves, so its gateways cannot
//! notice. After a while without a quorum it sends them to look for a better node: each once, so that a cluster that
//! has lost its quorum altogether does not pass its gateways around for ever. Packets do not notice either way.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use super::Sessions;
use crate::cluster::Cluster;

/// How often a quorum is asked for while gateways are connected.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long one question may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long without an answer until gateways are sent away: longer than an election.
const PATIENCE: Duration = Duration::from_secs(3);

/// Runs until dropped.
pub async fn watch_quorum(cluster: Cluster, sessions: Sessions) {
    let mut tick = tokio::time::interval(CHECK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_quorum = Instant::now();
    loop {
        tick.tick().await;
        if sessions.snapshot().is_empty() {
            last_quorum = Instant::now();
            continue;
        }
        if cluster.read_barrier(CHECK_TIMEOUT).await.is_ok() {
            last_quorum = Instant::now();
            sessions.quorum_is_back();
        } else if last_quorum.elapsed() > PATIENCE {
            sessions.send_away_lagging();
        }
    }
}
