//! openraft's network on top of [`super::link`].

use std::collections::VecDeque;
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
use raft_store::types::{LogId, NodeId, Snapshot, Vote};
use raft_store::{NodeInfo, SnapshotFile, TypeConfig};
use tokio::time::Instant;

use super::link::{CallError, Link, Peers, Pending, Purpose};
use super::snapshot;
use super::wire::{AppendPart, Request, Response, append_parts};

/// Append frames on their way to one peer before the first is answered. With
/// [`super::wire::MAX_APPEND_BYTES`] a frame, this bounds the memory too.
const APPEND_WINDOW: usize = 16;
/// A peer whose disk stalls answers late; after this time the stream is set up anew.
const APPEND_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

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

    /// Sends requests without waiting for the answers to those before, up to [`APPEND_WINDOW`]. The peer handles and
    /// answers the requests of one connection in order.
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
        let pipeline =
            Pipeline { network: self, input, ready: VecDeque::new(), sent: VecDeque::new(), end: End::Open };
        let results = futures_util::stream::unfold(pipeline, |mut pipeline| async {
            let result = pipeline.next().await?;
            Some((result, pipeline))
        });
        let results: BoxStream<'s, _> = Box::pin(results);
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

/// Requests on their way to one peer.
struct Pipeline<'s, S> {
    network: &'s PeerNetwork,
    input: S,
    /// Cut, not yet sent.
    ready: VecDeque<AppendPart>,
    sent: VecDeque<Sent>,
    end: End,
}

struct Sent {
    pending: Pending,
    deadline: Instant,
    prev: Option<LogId>,
    last: Option<LogId>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// No more requests come; answers do.
    Input,
    /// Nothing more to say.
    All,
}

type AppendResult = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

impl<S> Pipeline<'_, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    async fn next(&mut self) -> Option<AppendResult> {
        loop {
            if self.end == End::All {
                return None;
            }
            while self.sent.len() < APPEND_WINDOW
                && let Some(part) = self.ready.pop_front()
            {
                if let Err(error) = self.send(part).await {
                    return Some(self.failed(&error));
                }
            }
            let more = self.end == End::Open && self.ready.is_empty() && self.sent.len() < APPEND_WINDOW;
            match self.sent.front_mut() {
                None if !more => return None,
                None => match self.input.next().await {
                    Some(request) => self.cut(request)?,
                    None => self.end = End::Input,
                },
                Some(sent) => {
                    tokio::select! {
                        biased;
                        answer = sent.pending.answer(sent.deadline) => {
                            let (prev, last) = (sent.prev, sent.last);
                            self.sent.pop_front();
                            return Some(self.result(answer, prev, last));
                        }
                        request = self.input.next(), if more => match request {
                            Some(request) => self.cut(request)?,
                            None => self.end = End::Input,
                        },
                    }
                }
            }
        }
    }

    /// `None` ends the stream: an entry that cannot be encoded would have been refused when it was proposed.
    fn cut(&mut self, request: AppendEntriesRequest<TypeConfig>) -> Option<()> {
        match append_parts(request) {
            Ok(parts) => {
                self.ready.extend(parts);
                Some(())
            }
            Err(error) => {
                tracing::error!(%error, "a log entry cannot be sent");
                self.end = End::All;
                None
            }
        }
    }

    async fn send(&mut self, part: AppendPart) -> Result<(), CallError> {
        let AppendPart { append, prev, last } = part;
        let pending = self.network.append.submit(Request::Append(append)).await?;
        self.sent.push_back(Sent { pending, deadline: Instant::now() + APPEND_ANSWER_TIMEOUT, prev, last });
        Ok(())
    }

    fn failed(&mut self, error: &CallError) -> AppendResult {
        self.end = End::All;
        Err(self.network.rpc_error(RPCTypes::AppendEntries, APPEND_ANSWER_TIMEOUT, error))
    }

    fn result(
        &mut self,
        answer: Result<Response, CallError>,
        prev: Option<LogId>,
        last: Option<LogId>,
    ) -> AppendResult {
        match answer {
            Ok(Response::Append(AppendEntriesResponse::Success)) => Ok(Ok(last)),
            Ok(Response::Append(AppendEntriesResponse::Conflict)) if prev.is_none() => {
                self.end = End::All;
                Err(RPCError::Network(NetworkError::from_string("a conflict before the first entry")))
            }
            Ok(Response::Append(response)) => {
                let done =
                    matches!(&response, AppendEntriesResponse::PartialSuccess(log_id) if *log_id == last);
                if !done {
                    // What was sent after this request builds on what the peer does not have.
                    self.end = End::All;
                }
                Ok(response.into_stream_result(prev, last))
            }
            Ok(other) => {
                self.end = End::All;
                Err(self.network.unexpected(&other))
            }
            Err(error) => self.failed(&error),
        }
    }
}
