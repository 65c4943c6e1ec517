//! What the leader's lookups of names came to lately, from any node.

use std::time::Duration;

use allowlist::DomainName;
use openraft::async_runtime::WatchReceiver as _;
use tokio::time::Instant;

use super::Cluster;
use crate::raft::link::Purpose;
use crate::raft::wire::{Request, Response};
use crate::resolver::{NameLookups, Record};

/// Most names asked for at once, so that question and answer fit into a frame.
pub const MAX_NAMES_ASKED: usize = 1_000;

impl Cluster {
    /// Of each of `names` (at most [`MAX_NAMES_ASKED`]), in their order. `None` when nobody leads, or the leader does not
    /// answer within `timeout`, or is of an older release.
    pub async fn name_lookups(&self, names: &[DomainName], timeout: Duration) -> Option<Vec<NameLookups>> {
        let deadline = Instant::now() + timeout;
        let metrics = self.raft().metrics().borrow_watched().clone();
        let leader = metrics.current_leader?;
        if leader == self.id() {
            return self.name_lookups_here(names);
        }
        let membership = metrics.membership_config.membership();
        let address = &membership.get_node(&leader)?.raft_address;
        let names: Vec<_> = names.iter().take(MAX_NAMES_ASKED).cloned().collect();
        let asked = names.len();
        // A line that carries nothing else: a release that does not know the question closes it.
        let link = self.peers().link(address, Some(leader), Purpose::Names);
        match link.call(Request::NameLookups(names), deadline).await {
            Ok(Response::NameLookups(Some(found))) if found.len() == asked => Some(found),
            Ok(_) | Err(_) => None,
        }
    }

    /// `None` when this node does not lead.
    pub(crate) fn name_lookups_here(&self, names: &[DomainName]) -> Option<Vec<NameLookups>> {
        if !*self.leadership().borrow() {
            return None;
        }
        self.inner.lookups.get().map(|record: &Record| record.of(names))
    }
}
