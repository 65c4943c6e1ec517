//! What gateways said of traffic, on this node and on the others.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Cluster;
use crate::feed::traffic::{TrafficSums, Window};
use crate::raft::link::Purpose;
use crate::raft::wire::{Request, Response};

/// What the whole cluster knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterTraffic {
    /// From every node that answered; a gateway that moved between nodes has lines from each.
    pub sums: TrafficSums,
    /// Names of nodes that did not answer, sorted: what gateways told them is missing.
    pub silent: Vec<String>,
}

impl Cluster {
    /// Asks every node, each at most for `timeout`.
    pub async fn traffic(&self, window: Window, gateway: Option<&str>, timeout: Duration) -> ClusterTraffic {
        let deadline = Instant::now() + timeout;
        let metrics = self.raft().metrics().borrow_watched().clone();
        let mut asked = JoinSet::new();
        for (id, node) in metrics.membership_config.membership().nodes().filter(|(id, _)| **id != self.id()) {
            // A line that carries nothing else of weight: a node of an older release may hang up on what it does not know.
            let link = self.peers().link(&node.raft_address, Some(*id), Purpose::Denied);
            let (name, request) =
                (node.name.clone(), Request::Traffic { window, gateway: gateway.map(str::to_owned) });
            asked.spawn(async move {
                match link.call(request, deadline).await {
                    Ok(Response::Traffic(sums)) => Ok(sums),
                    Ok(_) | Err(_) => Err(name),
                }
            });
        }
        let mut all = ClusterTraffic { sums: self.traffic_here(window, gateway), silent: Vec::new() };
        for answer in asked.join_all().await {
            match answer {
                Ok(sums) => {
                    all.sums.sources.extend(sums.sources);
                    all.sums.elements.extend(sums.elements);
                }
                Err(name) => all.silent.push(name),
            }
        }
        all.silent.sort();
        all
    }

    /// What this node knows, short enough for a frame between nodes.
    pub(crate) fn traffic_here(&self, window: Window, gateway: Option<&str>) -> TrafficSums {
        self.inner.traffic.get().map(|book| book.sums(window, gateway).shortened()).unwrap_or_default()
    }
}
