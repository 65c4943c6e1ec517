//! Asking the other nodes what their gateways told them: each gateway has a session with one node only.

use openraft::async_runtime::WatchReceiver as _;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Cluster;
use crate::raft::link::Purpose;
use crate::raft::wire::{Request, Response};

impl Cluster {
    /// Asks every other node, over a line that carries nothing else: a release that does not know the question closes the
    /// connection. Gives the names of the nodes, sorted, with the answers of those that gave one in time.
    pub(super) async fn ask_reports(
        &self,
        request: Request,
        deadline: Instant,
    ) -> Vec<(String, Option<Response>)> {
        let metrics = self.raft().metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let mut asked = JoinSet::new();
        for (id, node) in membership.nodes().filter(|(id, _)| **id != self.id()) {
            let name = node.name.clone();
            let link = self.peers().link(&node.raft_address, Some(*id), Purpose::Reports);
            let request = request.clone();
            asked.spawn(async move { (name, link.call(request, deadline).await.ok()) });
        }
        let mut answers = asked.join_all().await;
        answers.sort_by(|(a, _), (b, _)| a.cmp(b));
        answers
    }
}
