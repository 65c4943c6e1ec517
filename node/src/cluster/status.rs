//! How this node and the others stand.

use std::sync::PoisonError;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver as _;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Cluster, MemberStatus, NodeStatus};
use crate::raft::link::Purpose;
use crate::raft::wire::{Request, Response};

/// A node that lags further behind what is committed is not ready, log entries.
const MAX_BEHIND: u64 = 1_000;

impl Cluster {
    /// This node, with the gateway sessions it holds; `None` while it is part of no cluster.
    pub fn node_status(&self) -> Option<NodeStatus> {
        let metrics = self.raft().metrics().borrow_watched().clone();
        metrics.last_log_index?;
        let state = self.reader().state();
        let gateways = self.inner.gateways.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let committed =
            metrics.cluster_committed.max(metrics.local_committed).map_or(0, |log_id| log_id.index);
        let role = match metrics.state {
            ServerState::Leader => "leader",
            ServerState::Follower => "follower",
            ServerState::Candidate => "candidate",
            ServerState::Learner => "learner",
            ServerState::Shutdown => "shutdown",
        };
        Some(NodeStatus {
            id: self.id(),
            name: self.name().to_owned(),
            role: role.to_owned(),
            term: metrics.current_term,
            applied: state.revision(),
            committed: committed.max(state.revision()),
            digest: state.published().digest(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            gateways: gateways.map(|source| source()).unwrap_or_default(),
        })
    }

    /// What keeps this node from being a good place to send requests to, in words; nobody else is asked.
    pub fn troubles(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        let metrics = self.raft().metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        if metrics.last_log_index.is_some() && !membership.voter_ids().any(|voter| voter == self.id()) {
            troubles.push("this node is not a voter of the cluster".to_owned());
        } else if !*self.inner.complete.borrow() {
            troubles.push(
                "this node has not found a cluster with a leader, an id and an admin token since it started"
                    .to_owned(),
            );
        }
        troubles.extend(self.fence().away());
        troubles.extend(self.too_new().map(|refusal| format!("the leader's log cannot be taken: {refusal}")));
        let committed =
            metrics.cluster_committed.max(metrics.local_committed).map_or(0, |log_id| log_id.index);
        let behind = committed.saturating_sub(self.reader().state().revision());
        if behind > MAX_BEHIND {
            troubles.push(format!("{behind} committed log entries are not applied here yet"));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (certificate, ca) = self.peers().tls().expiry_s();
        for (what, expiry) in [("certificate", certificate), ("CA in ca.pem", ca)] {
            if expiry.is_some_and(|at| u64::try_from(at).unwrap_or(0) < now) {
                troubles.push(format!("the node's {what} has expired; peers refuse it"));
            }
        }
        troubles
    }

    /// Index of the oldest log entry this node still has; a node that lacks older ones needs a snapshot.
    pub fn first_log_index(&self) -> u64 {
        self.raft().metrics().borrow_watched().purged.map_or(0, |purged| purged.index + 1)
    }

    /// All members, each asked over the peer network, in the order of their names.
    pub async fn members(&self, timeout: Duration) -> Vec<MemberStatus> {
        let deadline = Instant::now() + timeout;
        let metrics = self.raft().metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let voters: Vec<_> = membership.voter_ids().collect();
        let mut asked = JoinSet::new();
        for (id, node) in membership.nodes() {
            let member = MemberStatus {
                id: *id,
                name: node.name.clone(),
                address: node.raft_address.clone(),
                voter: voters.contains(id),
                status: None,
            };
            if *id == self.id() {
                let status = self.node_status();
                asked.spawn(async move { MemberStatus { status, ..member } });
                continue;
            }
            let link = self.peers().link(&node.raft_address, Some(*id), Purpose::Forward);
            asked.spawn(async move {
                let status = match link.call(Request::Status, deadline).await {
                    Ok(Response::Status(status)) => Some(status),
                    Ok(_) | Err(_) => None,
                };
                MemberStatus { status, ..member }
            });
        }
        let mut members = asked.join_all().await;
        members.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        members
    }
}
