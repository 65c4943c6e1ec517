//! Writes and linearizable reads from any node: here when it leads, else over the connection to the leader.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use openraft::{LinearizerOption, ServerState};
use raft_store::NodeInfo;
use raft_store::command::{BatchReply, Command, Operation};
use raft_store::types::NodeId;
use tokio::time::{Instant, timeout_at};

use super::{Cluster, ReadError, Term, WriteError};
use crate::raft::link::{CallError, Link, Purpose};
use crate::raft::proposer::Condition;
use crate::raft::read_rounds::ReadFailure;
use crate::raft::wire::{ProposeFailure, Refusal, Request, Response, TokenMark};
use crate::raft::{Metrics, MetricsWatch, Raft};

/// Between two attempts to find a leader, unless raft reports a change before.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// The leader is given this much less time than the caller has, so that its answer arrives; never more than a quarter.
const ANSWER_MARGIN: Duration = Duration::from_millis(50);

/// A forwarded write whose leader was replaced may still be answered for this long: a leader that hands over answers what
/// it has begun.
const LAST_ANSWERS: Duration = Duration::from_millis(250);
/// Told to clients of a node that is about to be removed.
const ABOUT_TO_LEAVE: &str = "it is about to be removed from the cluster";

const NO_MAJORITY: &str = "the leader reached no majority in time";

/// Who leads, as far as this node knows.
enum Leader {
    Here,
    At(NodeId, Link),
    Nobody,
}

/// Whether a failed attempt may be followed by another.
enum Attempt<E> {
    Again(String),
    Final(E),
}

impl Cluster {
    /// Writes `operations` as one atomic part of a log entry and returns when they are committed and applied on this
    /// node (so that a read here sees them). Any node may be asked: it forwards to the leader.
    ///
    /// # Errors
    /// [`WriteError`] within `timeout`.
    pub async fn propose(
        &self,
        operations: Vec<Operation>,
        timeout: Duration,
    ) -> Result<BatchReply, WriteError> {
        self.propose_with(operations, None, timeout).await
    }

    /// As [`Self::propose`], on behalf of the token with this name and hash: if it was removed on any node before the
    /// call, nothing is written. Costs nothing but a look into the leader's memory.
    ///
    /// # Errors
    /// [`WriteError`] within `timeout`.
    pub async fn propose_for(
        &self,
        (name, sha256): (String, [u8; 32]),
        operations: Vec<Operation>,
        timeout: Duration,
    ) -> Result<BatchReply, WriteError> {
        self.propose_with(operations, Some(TokenMark { name, sha256 }), timeout).await
    }

    async fn propose_with(
        &self,
        operations: Vec<Operation>,
        token: Option<TokenMark>,
        timeout: Duration,
    ) -> Result<BatchReply, WriteError> {
        let deadline = Instant::now() + timeout;
        if self.is_stopping() {
            return Err(WriteError::Unavailable("it is shutting down".to_owned()));
        }
        if let Some(reason) = self.fenced() {
            return Err(WriteError::Unavailable(reason));
        }
        self.check_needs(&operations, deadline).await?;
        let Some(_under_way) = self.leaving().enter().await else {
            return Err(WriteError::Unavailable(ABOUT_TO_LEAVE.to_owned()));
        };
        let reply = self.commit(operations, token, deadline).await?;
        self.wait_applied(reply.revision, deadline).await.map_err(|()| {
            WriteError::Unknown(format!(
                "it is committed at revision {}, but this node has not applied it yet",
                reply.revision
            ))
        })?;
        Ok(reply)
    }

    /// As [`Self::propose`], but only through this node itself and only while it leads in `term`: what was worked out as
    /// the leader must not become a write of a later one.
    ///
    /// # Errors
    /// [`WriteError`] within `timeout`; [`WriteError::NoQuorum`] when the term is over.
    pub async fn propose_in(
        &self,
        term: Term,
        operations: Vec<Operation>,
        timeout: Duration,
    ) -> Result<BatchReply, WriteError> {
        let deadline = Instant::now() + timeout;
        let reply = self.inner.proposer.propose(operations, Condition::Term(term), deadline).await;
        self.inner.meter.proposed(&reply);
        let reply = reply.map_err(|failure| match Attempt::from(failure) {
            Attempt::Again(_) => WriteError::NoQuorum("this node leads no more".to_owned()),
            Attempt::Final(error) => error,
        })?;
        // The leader applies before it answers, but readers may see it a moment later.
        self.wait_applied(reply.revision, deadline).await.map_err(|()| {
            WriteError::Unknown(format!("revision {} is not applied here yet", reply.revision))
        })?;
        Ok(reply)
    }

    /// Returns once this node's state is at least as new as everything acknowledged anywhere before the call.
    ///
    /// # Errors
    /// [`ReadError`] within `timeout`.
    pub async fn read_barrier(&self, timeout: Duration) -> Result<u64, ReadError> {
        let deadline = Instant::now() + timeout;
        if let Some(reason) = self.fenced() {
            return Err(ReadError(reason));
        }
        let Some(_under_way) = self.leaving().enter().await else {
            return Err(ReadError(ABOUT_TO_LEAVE.to_owned()));
        };
        let index = self.inner.reads.join(deadline).await.map_err(|failure| {
            ReadError(match failure {
                ReadFailure::Round(reason) => reason,
                ReadFailure::Timeout => "no leader confirmed it in time".to_owned(),
                ReadFailure::Unable(reason) => reason.to_owned(),
            })
        })?;
        self.wait_applied(index, deadline)
            .await
            .map_err(|()| ReadError(format!("this node has not applied revision {index} in time")))
    }

    async fn commit(
        &self,
        operations: Vec<Operation>,
        token: Option<TokenMark>,
        deadline: Instant,
    ) -> Result<BatchReply, WriteError> {
        let mut metrics = self.raft().metrics();
        // With a key it can be sent again whatever became of it: the answer is the same.
        let repeatable = operations.iter().all(|one| matches!(one.command, Command::Once(_)));
        let mut in_doubt = None;
        loop {
            let leader = self.leader(&metrics.borrow_and_update());
            let attempt = match leader {
                Leader::Here => self.commit_here(operations.clone(), token.clone(), deadline).await,
                Leader::At(id, link) => {
                    self.commit_at(id, &link, operations.clone(), token.clone(), deadline).await
                }
                Leader::Nobody => Err(Attempt::Again("no leader is known".to_owned())),
            };
            let reason = match attempt {
                Ok(reply) => return Ok(reply),
                Err(Attempt::Final(WriteError::Unknown(reason))) if repeatable => {
                    in_doubt = Some(reason.clone());
                    reason
                }
                // A later attempt that failed for certain says nothing of an earlier one.
                Err(Attempt::Final(error)) => return Err(in_doubt.map_or(error, WriteError::Unknown)),
                Err(Attempt::Again(reason)) => reason,
            };
            if pause(&mut metrics, deadline).await.is_err() {
                return Err(in_doubt.map_or(WriteError::NoQuorum(reason), WriteError::Unknown));
            }
        }
    }

    async fn commit_here(
        &self,
        operations: Vec<Operation>,
        token: Option<TokenMark>,
        deadline: Instant,
    ) -> Result<BatchReply, Attempt<WriteError>> {
        let condition = token.map_or(Condition::None, Condition::Token);
        self.propose_here(operations, condition, deadline).await.map_err(Attempt::from)
    }

    /// Until the request has left this node it may go to another leader.
    async fn commit_at(
        &self,
        id: NodeId,
        link: &Link,
        operations: Vec<Operation>,
        token: Option<TokenMark>,
        deadline: Instant,
    ) -> Result<BatchReply, Attempt<WriteError>> {
        let timeout_ms = time_for_leader(deadline);
        let request = match token {
            Some(token) => Request::ProposeFor { token, operations, timeout_ms },
            None => Request::Propose { operations, timeout_ms },
        };
        let submitted = tokio::select! {
            biased;
            submitted = timeout_at(deadline, link.submit(request)) => submitted,
            () = self.replaced(id, Duration::ZERO) => {
                return Err(Attempt::Again("the leader was replaced while this node connected to it".to_owned()));
            }
        };
        let mut pending = match submitted {
            Ok(Ok(pending)) => pending,
            Ok(Err(error)) => return Err(Attempt::from(error)),
            Err(_) => return Err(Attempt::Again(format!("no connection to {} in time", link.address()))),
        };
        let answer = tokio::select! {
            biased;
            answer = pending.answer(deadline) => answer,
            () = self.replaced(id, LAST_ANSWERS) => {
                let reason = "the leader was replaced before it answered".to_owned();
                return Err(Attempt::Final(WriteError::Unknown(reason)));
            }
        };
        match answer {
            Ok(Response::Proposed(result)) => result.map_err(Attempt::from),
            Ok(_) => Err(Attempt::Final(WriteError::Unknown("the leader's answer does not fit".to_owned()))),
            Err(error) => Err(Attempt::from(error)),
        }
    }

    /// Up to where a reader must have applied to see everything acknowledged so far.
    pub(super) async fn find_read_index(self, deadline: Instant) -> Result<u64, String> {
        let mut metrics = self.raft().metrics();
        loop {
            let leader = self.leader(&metrics.borrow_and_update());
            let attempt = match leader {
                Leader::Here => {
                    let time = deadline.saturating_duration_since(Instant::now());
                    self.read_index_here(time).await.map_err(|refusal| refusal.to_string())
                }
                Leader::At(id, link) => {
                    tokio::select! {
                        biased;
                        index = read_index_at(&link, deadline) => index,
                        () = self.replaced(id, Duration::ZERO) => continue,
                    }
                }
                Leader::Nobody => Err("no leader is known".to_owned()),
            };
            let reason = match attempt {
                Ok(index) => return Ok(index),
                Err(reason) => reason,
            };
            pause(&mut metrics, deadline).await.map_err(|()| reason)?;
        }
    }

    /// On the leader: confirms with a majority that it still leads.
    pub(crate) async fn read_index_here(&self, time: Duration) -> Result<u64, Refusal> {
        let confirmed = self.inner.confirmations.join(Instant::now() + time).await;
        confirmed.map_err(|failure| match failure {
            ReadFailure::Round(refusal) => refusal,
            ReadFailure::Timeout => Refusal::Unable(NO_MAJORITY.to_owned()),
            ReadFailure::Unable(reason) => Refusal::Unable(reason.to_owned()),
        })
    }

    /// The newest applied revision, once it is at least `revision`.
    pub(super) async fn wait_applied(&self, revision: u64, deadline: Instant) -> Result<u64, ()> {
        let mut revisions = self.reader().revisions();
        match timeout_at(deadline, revisions.wait_for(|applied| *applied >= revision)).await {
            Ok(Ok(applied)) => Ok(*applied),
            Ok(Err(_)) | Err(_) => Err(()),
        }
    }

    /// Returns `grace` after this node learned of another leader than `leader`.
    async fn replaced(&self, leader: NodeId, grace: Duration) {
        let mut metrics = self.raft().server_metrics();
        while metrics.borrow_and_update().current_leader.is_none_or(|now| now == leader) {
            if metrics.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        tokio::time::sleep(grace).await;
    }

    fn leader(&self, metrics: &Metrics) -> Leader {
        match leader_of(metrics) {
            Some((id, _)) if id == self.id() && metrics.state == ServerState::Leader => Leader::Here,
            Some((id, _)) if id == self.id() => Leader::Nobody,
            Some((id, node)) => {
                Leader::At(id, self.peers().link(&node.raft_address, Some(id), Purpose::Forward))
            }
            None => Leader::Nobody,
        }
    }
}

/// One round: the leader asks a majority whether it still leads.
pub(super) async fn confirm_read(raft: Raft, deadline: Instant) -> Result<u64, Refusal> {
    let time = deadline.saturating_duration_since(Instant::now());
    let fresh = LinearizerOption::new(Some(Duration::ZERO), true).with_wait_timeout(time);
    match tokio::time::timeout(time, raft.get_read_linearizer(fresh)).await {
        Ok(Ok(linearizer)) => Ok(linearizer.read_log_id().index()),
        Ok(Err(error)) => Err(match error.forward_to_leader() {
            Some(forward) => {
                Refusal::NotLeader { leader: forward.leader_id.zip(forward.leader_node.clone()) }
            }
            None => Refusal::Unable(error.to_string()),
        }),
        Err(_) => Err(Refusal::Unable(NO_MAJORITY.to_owned())),
    }
}

/// The leader and where it is, as far as the metrics tell.
pub(crate) fn leader_of(metrics: &Metrics) -> Option<(NodeId, NodeInfo)> {
    let id = metrics.current_leader?;
    let node = metrics.membership_config.membership().get_node(&id)?;
    Some((id, node.clone()))
}

async fn read_index_at(link: &Link, deadline: Instant) -> Result<u64, String> {
    match link.call(Request::ReadIndex { timeout_ms: time_for_leader(deadline) }, deadline).await {
        Ok(Response::ReadIndex(index)) => Ok(index),
        Ok(_) => Err("the leader's answer does not fit".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn time_for_leader(deadline: Instant) -> u64 {
    let left = deadline.saturating_duration_since(Instant::now());
    u64::try_from((left - ANSWER_MARGIN.min(left / 4)).as_millis()).unwrap_or(u64::MAX)
}

/// Waits until raft knows something new or a little while; an error when `deadline` is over.
pub(super) async fn pause(metrics: &mut MetricsWatch, deadline: Instant) -> Result<(), ()> {
    let wake = deadline.min(Instant::now() + RETRY_PAUSE);
    if let Ok(Err(_)) = timeout_at(wake, metrics.changed()).await {
        // Raft has ended; nothing will change.
        tokio::time::sleep_until(wake).await;
    }
    if Instant::now() < deadline { Ok(()) } else { Err(()) }
}

impl From<CallError> for Attempt<WriteError> {
    fn from(error: CallError) -> Self {
        match error {
            CallError::NotSent(reason) => Self::Again(format!("the leader cannot be reached: {reason}")),
            CallError::Refused { .. } => Self::Again(error.to_string()),
            CallError::Lost(_) | CallError::Timeout(_) => Self::Final(WriteError::Unknown(error.to_string())),
        }
    }
}

impl From<ProposeFailure> for Attempt<WriteError> {
    fn from(failure: ProposeFailure) -> Self {
        match failure {
            ProposeFailure::NotLeader => Self::Again("the leader is changing".to_owned()),
            ProposeFailure::NotEntered(reason) => Self::Final(WriteError::NoQuorum(reason)),
            ProposeFailure::Unknown(reason) => Self::Final(WriteError::Unknown(reason)),
            ProposeFailure::Unavailable(reason) => Self::Final(WriteError::Unavailable(reason)),
            ProposeFailure::TokenGone => Self::Final(WriteError::TokenGone),
            ProposeFailure::NoRoom(reason) => Self::Final(WriteError::NoRoom(reason)),
            ProposeFailure::FeatureNotActive(inactive) => Self::Final(WriteError::FeatureNotActive(inactive)),
        }
    }
}
