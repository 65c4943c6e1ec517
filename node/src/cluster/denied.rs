//! The denied packets that gateways told of, put together from all nodes: each gateway has a session with one of them.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Cluster;
use crate::feed::denied::{DeniedLog, DeniedPage, DeniedQuery, MAX_DENIED_PREFIXES};
use crate::raft::link::Purpose;
use crate::raft::wire::{Refusal, Request, Response};

/// Rows of all nodes that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeniedAnswer {
    /// Newest first.
    pub page: DeniedPage,
    /// Every member by name, and whether its rows are among them; sorted.
    pub asked: Vec<(String, bool)>,
}

impl Cluster {
    /// Tells where this node keeps what gateways said; called once by the feed's set-up.
    pub fn set_denied_log(&self, log: DeniedLog) {
        // A second one would be of the same feed.
        let _ = self.inner.denied.set(log);
    }

    /// Denied packets as all members know them that answer in time.
    pub async fn denied(&self, query: &DeniedQuery, timeout: Duration) -> DeniedAnswer {
        let deadline = Instant::now() + timeout;
        let metrics = self.raft().metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let mut asked = JoinSet::new();
        for (id, node) in membership.nodes().filter(|(id, _)| **id != self.id()) {
            let name = node.name.clone();
            // A release that does not know the question closes the connection, so it is one that nobody else uses.
            let link = self.peers().link(&node.raft_address, Some(*id), Purpose::Denied);
            let request = Request::Denied(query.clone());
            asked.spawn(async move {
                match link.call(request, deadline).await {
                    Ok(Response::Denied(page)) => (name, Some(page)),
                    Ok(_) | Err(_) => (name, None),
                }
            });
        }
        let mut answers = asked.join_all().await;
        answers.push((self.name().to_owned(), self.denied_here(query).ok()));
        answers.sort_by(|(a, _), (b, _)| a.cmp(b));
        let asked = answers.iter().map(|(name, page)| (name.clone(), page.is_some())).collect();
        let pages = answers.into_iter().filter_map(|(_, page)| page);
        DeniedAnswer { page: DeniedPage::joined(pages, query.limit), asked }
    }

    /// Those that this node's gateways told of.
    pub(crate) fn denied_here(&self, query: &DeniedQuery) -> Result<DeniedPage, Refusal> {
        if query.destinations.as_ref().is_some_and(|prefixes| prefixes.len() > MAX_DENIED_PREFIXES) {
            return Err(Refusal::Unable(format!("a question names at most {MAX_DENIED_PREFIXES} prefixes")));
        }
        let log = self.inner.denied.get().ok_or_else(|| Refusal::Unable("it is starting".to_owned()))?;
        Ok(log.page(query))
    }
}
