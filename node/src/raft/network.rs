//! openraft's network on top of [`super::link`].

use std::future::Future;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{
    ErrorSource as _, NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2, RaftTypeConfig};
use raft_store::pipeline::{APPEND_ANSWER_TIMEOUT, AppendLane, pipelined};
use raft_store::types::{NodeId, Snapshot, Vote};
use raft_store::{NodeInfo, SnapshotFile, TypeConfig};
use tokio::time::Instant;

use super::link::{CallError, Link, Peers, Purpose};
use super::snapshot;
use super::wire::{Append, AppendPart, Request, Response, append_parts};

/// Makes a [`PeerNetwork`] for each peer.
pub(crate) struct NetworkFactory {
    pub(crate) id: NodeId,
    pub(crate) peers: Peers,
}

/// The way to one peer.
pub(crate) struct PeerNetwork {
    id: NodeId,
    target: NodeId,
    append: Link,
    vote: Link,
}

impl NetworkFactory {
    fn network(&self, target: NodeId, node: &NodeInfo, append: Purpose) -> PeerNetwork {
        let link = |purpose| self.peers.link(&node.raft_address, Some(target), purpose);
        PeerNetwork { id: self.id, target, append: link(append), vote: link(Purpose::Vote) }
    }
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = PeerNetwork;

    async fn new_client(&mut self, target: NodeId, node: &NodeInfo) -> PeerNetwork {
        self.network(target, node, Purpose::Append)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &NodeInfo) -> PeerNetwork {
        self.network(target, node, Purpose::Heartbeat)
    }
}

impl PeerNetwork {
    async fn call(
        &self,
        action: RPCTypes,
        request: Request,
        option: &RPCOption,
    ) -> Result<Response, RPCError<TypeConfig>> {
        let deadline = Instant::now() + option.hard_ttl();
        self.vote
            .call(request, deadline)
            .await
            .map_err(|error| self.rpc_error(action, option.hard_ttl(), &error))
    }

    fn rpc_error(&self, action: RPCTypes, timeout: Duration, error: &CallError) -> RPCError<TypeConfig> {
        match error {
            CallError::NotSent(_) | CallError::Refused { .. } => {
                tracing::debug!(target_node = %format_args!("{:016x}", self.target), %error, ?action, "peer");
                RPCError::Unreachable(Unreachable::from_string(error))
            }
            CallError::Lost(_) => RPCError::Network(NetworkError::from_string(error)),
            CallError::Timeout(_) => {
                RPCError::Timeout(Timeout { action, id: self.id, target: self.target, timeout })
            }
        }
    }

    fn unexpected(&self, response: &Response) -> RPCError<TypeConfig> {
        let peer = self.append.address();
        RPCError::Network(NetworkError::from_string(format!(
            "{peer} gave an answer that does not fit: {response:?}"
        )))
    }
}

impl RaftNetworkV2<TypeConfig> for PeerNetwork {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let last = rpc.entries.last().map(|entry| entry.log_id).or(rpc.prev_log_id);
        let mut results = self.stream_append(futures_util::stream::iter([rpc]), option).await?;
        let mut reached = None;
        while let Some(result) = results.next().await {
            match result? {
                Ok(log_id) => reached = Some(log_id),
                Err(openraft::raft::StreamAppendError::Conflict(_)) => {
                    return Ok(AppendEntriesResponse::Conflict);
                }
                Err(openraft::raft::StreamAppendError::HigherVote(vote)) => {
                    return Ok(AppendEntriesResponse::HigherVote(vote));
                }
            }
        }
        match reached {
            Some(log_id) if log_id == last => Ok(AppendEntriesResponse::Success),
            Some(log_id) => Ok(AppendEntriesResponse::PartialSuccess(log_id)),
            None => Err(RPCError::Network(NetworkError::from_string("no answer to an append"))),
        }
    }

    /// The peer handles and answers the requests of one connection in order.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>,
            RPCError<TypeConfig>,
        >,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let results = pipelined(Lane(self), input);
        Box::pin(async move { Ok(results) })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(RPCTypes::Vote, Request::Vote(rpc), &option).await? {
            Response::Vote(response) => Ok(response),
            other => Err(self.unexpected(&other)),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(RPCTypes::Vote, Request::PreVote(rpc), &option).await? {
            Response::Vote(response) => Ok(response),
            other => Err(self.unexpected(&other)),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let timeout = option.hard_ttl();
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = snapshot::send(&self.append, vote, snapshot, timeout) => match sent {
                Ok(response) => Ok(response),
                Err(snapshot::SendError::Read(error)) => {
                    let error = openraft::StorageError::read_snapshot(None, <TypeConfig as RaftTypeConfig>::ErrorSource::from_error(&error));
                    Err(StreamingError::StorageError(error))
                }
                Err(snapshot::SendError::Call(error)) => {
                    tracing::warn!(peer = self.append.address(), %error, "snapshot was not sent; trying again");
                    Err(self.rpc_error(RPCTypes::InstallSnapshot, timeout, &error).into())
                }
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(RPCTypes::TransferLeader, Request::TransferLeader(req), &option).await? {
            Response::TransferLeader(response) => Ok(response),
            other => Err(self.unexpected(&other)),
        }
    }
}

/// The connection for appends to one peer.
struct Lane<'s>(&'s PeerNetwork);

impl<'s> AppendLane<TypeConfig> for Lane<'s> {
    type Message = Append;
    type Answer = BoxFuture<'s, Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>>>;

    fn cut(&mut self, request: AppendEntriesRequest<TypeConfig>) -> Option<Vec<AppendPart>> {
        // An entry that cannot be encoded would have been refused when it was proposed.
        let parts = append_parts(request);
        parts.inspect_err(|error| tracing::error!(%error, "a log entry cannot be sent")).ok()
    }

    async fn send(&mut self, append: Append) -> Result<Self::Answer, RPCError<TypeConfig>> {
        let (network, deadline) = (self.0, Instant::now() + APPEND_ANSWER_TIMEOUT);
        let failed = |error| network.rpc_error(RPCTypes::AppendEntries, APPEND_ANSWER_TIMEOUT, &error);
        let mut pending = network.append.submit(Request::Append(append)).await.map_err(failed)?;
        Ok(Box::pin(async move {
            match pending.answer(deadline).await.map_err(failed)? {
                Response::Append(response) => Ok(response),
                other => Err(network.unexpected(&other)),
            }
        }))
    }
}
