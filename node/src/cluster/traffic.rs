//! What gateways said of traffic, on this node and on the others.

use std::time::Duration;

use tokio::time::Instant;

use super::Cluster;
use crate::feed::traffic::{TrafficSums, Window};
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
        let request = Request::Traffic { window, gateway: gateway.map(str::to_owned) };
        let told = self.ask_reports(request, deadline).await;
        let mut all = ClusterTraffic { sums: self.traffic_here(window, gateway), silent: Vec::new() };
        for (name, answer) in told {
            match answer {
                Some(Response::Traffic(sums)) => {
                    all.sums.sources.extend(sums.sources);
                    all.sums.elements.extend(sums.elements);
                }
                Some(_) | None => all.silent.push(name),
            }
        }
        all
    }

    /// What this node knows, short enough for a frame between nodes.
    pub(crate) fn traffic_here(&self, window: Window, gateway: Option<&str>) -> TrafficSums {
        self.inner.traffic.get().map(|book| book.sums(window, gateway).shortened()).unwrap_or_default()
    }
}
