//! Whether this node still belongs to its cluster.
//!
//! A node that was removed is told by nobody: the leader just stops sending to it. So a node that hears nothing asks the
//! leader, who answers after a majority confirmed that it leads. A node that does not belong closes its [`Fence`]:
//! it stands for no election, and serves neither reads nor writes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use openraft::ServerState;
use raft_store::types::NodeId;
use rand::Rng as _;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::Metrics;
use super::link::{CallError, Purpose};
use super::membership::{metrics, settle};
use super::wire::{Refusal, Request, Response};
use crate::cluster::{Cluster, leader_of};

/// How often a node looks at its standing.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// A leader shows itself many times in this time.
const SILENCE: Duration = Duration::from_secs(1);
/// A peer has this long to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// What to do with a node that does not belong.
const REMEDY: &str = "to join again, stop it and empty its data directory (keep tls/)";

/// Closed, with a reason, once this node is known not to belong any more; it does not open again. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Fence {
    inner: Arc<FenceInner>,
}

#[derive(Default)]
struct FenceInner {
    reason: OnceLock<String>,
    closed: CancellationToken,
    /// Why this node stands for no election: the cluster knows another address of it, and that does not lead here.
    away: Mutex<Option<String>>,
    /// True once that address led to this process.
    at_home: AtomicBool,
    /// True after `away` was logged, until it is over.
    warned: AtomicBool,
}

impl Fence {
    /// Why it is closed.
    pub(crate) fn reason(&self) -> Option<String> {
        self.inner.reason.get().cloned()
    }

    /// Returns once it is closed.
    pub(crate) async fn closed(&self) {
        self.inner.closed.cancelled().await;
    }

    /// An answer that says that this node does not belong closes the fence.
    pub(crate) fn judge(&self, peer: &str, refusal: &Refusal) {
        if let Refusal::Superseded { .. } = refusal {
            self.close(format!("the node at {peer} says: {refusal}"));
        }
    }

    pub(crate) fn close(&self, reason: String) {
        if self.inner.reason.set(reason).is_ok() {
            tracing::error!(
                reason = self.reason(),
                "this node does not belong to the cluster and serves nobody"
            );
            self.inner.closed.cancel();
        }
    }

    /// True for a node that must not lead: it does not belong, or the cluster knows it at another address.
    pub(crate) fn keeps_from_leading(&self) -> bool {
        self.inner.reason.get().is_some() || self.away_reason().is_some()
    }

    /// Why this node stands for no election although it may belong.
    pub(crate) fn away(&self) -> Option<String> {
        self.away_reason().clone()
    }

    /// True when this is another answer than before to whether this node may lead.
    fn set_away(&self, reason: Option<String>) -> bool {
        let mut away = self.away_reason();
        let turned = away.is_some() != reason.is_some();
        *away = reason;
        turned
    }

    fn away_reason(&self) -> MutexGuard<'_, Option<String>> {
        self.inner.away.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at this node's standing until `stop`, or until it does not belong any more.
pub(crate) async fn watch(cluster: Cluster, stop: CancellationToken) {
    let watching = async {
        loop {
            check(&cluster).await;
            let pause = CHECK_INTERVAL.mul_f64(rand::rng().random_range(0.8..1.2));
            if timeout(pause, cluster.fence().closed()).await.is_ok() {
                break;
            }
        }
        // Nobody may be won over by a node that does not belong, and nobody may take it for the leader.
        cluster.raft().runtime_config().elect(false);
        cluster.raft().runtime_config().heartbeat(false);
    };
    stop.run_until_cancelled(watching).await;
}

async fn check(cluster: &Cluster) {
    // Raft has ended when this fails; whoever watches it says why.
    if !cluster.raft().is_initialized().await.unwrap_or(false) {
        return;
    }
    let metrics = metrics(cluster);
    if metrics.state == ServerState::Leader {
        // Unless somebody is at it just now.
        if let Some(_one) = cluster.try_changing()
            && let Err(error) = settle(cluster).await
        {
            tracing::debug!(%error, "finish a change of the membership");
        }
        return;
    }
    if let Some(other) = elsewhere(cluster, &metrics).await {
        cluster.fence().close(format!(
            "a node with the same id ({:016x}) runs at {other}: one of the two data directories is a copy; {REMEDY}",
            cluster.id()
        ));
        return;
    }
    if cluster.heard().newest().is_some_and(|at| at.elapsed() < SILENCE) {
        return;
    }
    if let Some(members) = members(cluster, &metrics).await
        && !members.contains(&cluster.id())
    {
        cluster
            .fence()
            .close(format!("this node ({:016x}) was removed from the cluster; {REMEDY}", cluster.id()));
    }
}

/// The address at which another process runs under this node's id. Until it is certain that the address the cluster
/// knows leads to this process, it stands for no election: a copy of a data directory could vote a second time.
pub(super) async fn elsewhere(cluster: &Cluster, metrics: &Metrics) -> Option<String> {
    let membership = metrics.membership_config.membership();
    let known = &membership.get_node(&cluster.id())?.raft_address;
    if *known == cluster.node().raft_address {
        stand_for_election(cluster, None);
        return None;
    }
    let alone = membership.voter_ids().eq([cluster.id()]);
    let away = |why: &str| {
        let mine = &cluster.node().raft_address;
        let reason = format!(
            "the cluster knows this node at {known}, its cluster.advertise is {mine}, and {why}: it stands for no \
             election; set cluster.advertise to {known}, or remove the node from the cluster, stop it, empty its data \
             directory (keep tls/) and add it again"
        );
        (!alone).then_some(reason)
    };
    let fence = &cluster.fence().inner;
    if !fence.at_home.load(Ordering::Relaxed) && cluster.fence().away().is_none() {
        stand_for_election(cluster, away("it is not known yet whether that leads here"));
    }
    let link = cluster.peers().link(known, None, Purpose::Forward);
    let why = match link.call(Request::Process, Instant::now() + ASK_TIMEOUT).await {
        Ok(Response::Process { id, process }) if id == cluster.id() => {
            if process != cluster.process() {
                return Some(known.clone());
            }
            fence.at_home.store(true, Ordering::Relaxed);
            fence.warned.store(false, Ordering::Relaxed);
            stand_for_election(cluster, None);
            return None;
        }
        Ok(Response::Process { id, .. }) => format!("node {id:016x} is there"),
        Ok(_) => "the answer from there does not fit".to_owned(),
        Err(error) => error.to_string(),
    };
    let reason = away(&why);
    if let Some(reason) = &reason
        && !fence.warned.swap(true, Ordering::Relaxed)
    {
        tracing::warn!("{reason}");
    }
    stand_for_election(cluster, reason);
    None
}

fn stand_for_election(cluster: &Cluster, away: Option<String>) {
    let elect = away.is_none();
    if cluster.fence().set_away(away) {
        cluster.raft().runtime_config().elect(elect && !cluster.is_retiring());
    }
}

/// Who the members are, as the leader says, if it can be found.
async fn members(cluster: &Cluster, metrics: &Metrics) -> Option<Vec<NodeId>> {
    let leader = leader_of(metrics).map(|(_, node)| node.raft_address);
    let known = metrics.membership_config.membership().nodes().map(|(_, node)| node.raft_address.clone());
    let mut addresses: Vec<String> = leader.into_iter().chain(known).collect();
    addresses.extend(cluster.configured_peers().iter().cloned());
    let mut asked = Vec::new();
    let mut next = 0;
    while let Some(address) = addresses.get(next).cloned() {
        next += 1;
        if address == cluster.node().raft_address || asked.contains(&address) {
            continue;
        }
        let link = cluster.peers().link(&address, None, Purpose::Forward);
        match link.call(Request::Members, Instant::now() + ASK_TIMEOUT).await {
            Ok(Response::Members(members)) => return Some(members),
            Err(CallError::Refused { refusal: Refusal::NotLeader { leader: Some((_, node)) }, .. }) => {
                addresses.insert(next, node.raft_address);
            }
            _ => {}
        }
        asked.push(address);
    }
    None
}
