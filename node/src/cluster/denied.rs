//! The denied packets that gateways told of, put together from all nodes: each gateway has a session with one of them.

use std::time::Duration;

use tokio::time::Instant;

use super::Cluster;
use crate::feed::denied::{DeniedLog, DeniedPage, DeniedQuery, MAX_DENIED_PREFIXES};
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
        let told = self.ask_reports(Request::Denied(query.clone()), deadline).await.into_iter();
        let mut answers: Vec<(String, Option<DeniedPage>)> = told
            .map(|(name, answer)| match answer {
                Some(Response::Denied(page)) => (name, Some(page)),
                Some(_) | None => (name, None),
            })
            .collect();
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
