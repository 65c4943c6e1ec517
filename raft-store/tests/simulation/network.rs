//! openraft's network over [`crate::wire`], pipelined like the server's (`node/src/raft/network.rs`).

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use openraft::async_runtime::{AsyncRuntime as _, Select2};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use openraft::{OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft_rt_sim::SimInstant;
use raft_store::NodeInfo;
use raft_store::types::{LogId, NodeId, Vote};

use crate::machine::Content;
use crate::nodes::Running;
use crate::process::NodeRuntime;
use crate::types::{SimTypes, now};
use crate::wire::{Answer, CallError, Kind, Lane, send};
use crate::world::World;

/// As the server's.
const APPEND_WINDOW: usize = 16;
const APPEND_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes the ways to the peers for one life of a node.
pub(crate) struct Network {
    pub(crate) world: World,
    pub(crate) id: NodeId,
    pub(crate) life: u64,
}

/// The way to one peer.
pub(crate) struct Peer {
    world: World,
    id: NodeId,
    life: u64,
    target: NodeId,
}

impl RaftNetworkFactory<SimTypes> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: NodeId, _node: &NodeInfo) -> Peer {
        Peer { world: self.world.clone(), id: self.id, life: self.life, target }
    }
}

type RpcResult<T> = Result<T, RPCError<SimTypes>>;
type AppendResult = RpcResult<StreamAppendResult<SimTypes>>;

impl Peer {
    fn send<T, H, F>(&self, kind: Kind<'_>, name: &'static str, handle: H) -> Answer<Result<T, String>>
    where
        T: Send + 'static,
        H: Fn(Running) -> F + Send + Sync + 'static,
        F: Future<Output = Result<T, String>> + Send + 'static,
    {
        send(&self.world, self.id, self.target, kind, name, handle)
    }

    async fn answer<T>(
        &self,
        action: RPCTypes,
        timeout: Duration,
        answer: Answer<Result<T, String>>,
    ) -> RpcResult<T>
    where
        T: Send,
    {
        match NodeRuntime::timeout(timeout, answer).await {
            Ok(Ok(Ok(Ok(answer)))) => Ok(answer),
            Ok(Ok(Ok(Err(refusal)))) => Err(RPCError::Unreachable(Unreachable::from_string(refusal))),
            Ok(Ok(Err(CallError::Refused))) => {
                Err(RPCError::Unreachable(Unreachable::from_string("connection refused")))
            }
            Ok(Ok(Err(CallError::Lost)) | Err(_)) => {
                Err(RPCError::Network(NetworkError::from_string("connection lost")))
            }
            Err(_) => Err(RPCError::Timeout(Timeout { action, id: self.id, target: self.target, timeout })),
        }
    }

    fn leads(&self, vote: &Vote) {
        if vote.committed {
            self.world.leads(self.id, self.life, vote);
        }
    }
}

impl RaftNetworkV2<SimTypes> for Peer {
    type SnapshotData = Content;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<SimTypes>,
        option: RPCOption,
    ) -> RpcResult<AppendEntriesResponse<SimTypes>> {
        self.leads(&rpc.vote);
        let answer = self.send(Kind::Alone, "append", move |node| {
            let rpc = rpc.clone();
            async move { node.raft.append_entries(rpc).await.map_err(|error| error.to_string()) }
        });
        self.answer(RPCTypes::AppendEntries, option.hard_ttl(), answer).await
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, RpcResult<BoxStream<'s, AppendResult>>>
    where
        S: Stream<Item = AppendEntriesRequest<SimTypes>> + OptionalSend + Unpin + 'static,
    {
        let pipeline =
            Pipeline { peer: self, input, lane: Lane::default(), sent: VecDeque::new(), end: End::Open };
        let results = futures_util::stream::unfold(pipeline, |mut pipeline| async {
            let result = pipeline.next().await?;
            Some((result, pipeline))
        });
        let results: BoxStream<'s, _> = Box::pin(results);
        Box::pin(async move { Ok(results) })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<SimTypes>,
        option: RPCOption,
    ) -> RpcResult<VoteResponse<SimTypes>> {
        let answer = self.send(Kind::Alone, "vote", move |node| {
            let rpc = rpc.clone();
            async move { node.raft.vote(rpc).await.map_err(|error| error.to_string()) }
        });
        self.answer(RPCTypes::Vote, option.hard_ttl(), answer).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<SimTypes>,
        option: RPCOption,
    ) -> RpcResult<VoteResponse<SimTypes>> {
        let answer = self.send(Kind::Alone, "pre-vote", move |node| {
            let rpc = rpc.clone();
            async move { node.raft.pre_vote(rpc).await.map_err(|error| error.to_string()) }
        });
        self.answer(RPCTypes::Vote, option.hard_ttl(), answer).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<SimTypes, Content>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<SimTypes>, StreamingError<SimTypes>> {
        self.leads(&vote);
        let answer =
            self.send(Kind::Alone, "snapshot", move |node| {
                let snapshot = snapshot.clone();
                async move {
                    node.raft.install_full_snapshot(vote, snapshot).await.map_err(|error| error.to_string())
                }
            });
        let answer = self.answer(RPCTypes::InstallSnapshot, option.hard_ttl(), answer);
        match NodeRuntime::select2(cancel, answer).await {
            Select2::First(closed) => Err(StreamingError::Closed(closed)),
            Select2::Second(result) => Ok(result?),
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<SimTypes>,
        option: RPCOption,
    ) -> RpcResult<TransferLeaderResponse<SimTypes>> {
        let answer = self.send(Kind::Alone, "hand-over", move |node| {
            let rpc = rpc.clone();
            async move { node.raft.handle_transfer_leader(rpc).await.map_err(|error| error.to_string()) }
        });
        self.answer(RPCTypes::TransferLeader, option.hard_ttl(), answer).await
    }
}

/// Appends on their way to one peer.
struct Pipeline<'s, S> {
    peer: &'s Peer,
    input: S,
    lane: Lane,
    sent: VecDeque<Sent>,
    end: End,
}

struct Sent {
    answer: Answer<Result<AppendEntriesResponse<SimTypes>, String>>,
    deadline: SimInstant,
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

impl<S> Pipeline<'_, S>
where
    S: Stream<Item = AppendEntriesRequest<SimTypes>> + Unpin + Send,
{
    async fn next(&mut self) -> Option<AppendResult> {
        loop {
            if self.end == End::All {
                return None;
            }
            let more = self.end == End::Open && self.sent.len() < APPEND_WINDOW;
            let Some(first) = self.sent.front_mut() else {
                if !more {
                    return None;
                }
                let request = self.input.next().await;
                self.submit(request);
                continue;
            };
            let deadline = first.deadline;
            let waited = if more {
                NodeRuntime::timeout_at(deadline, NodeRuntime::select2(&mut first.answer, self.input.next()))
                    .await
            } else {
                let answer = NodeRuntime::timeout_at(deadline, &mut first.answer).await;
                answer.map(Select2::First)
            };
            match waited {
                Ok(Select2::Second(request)) => self.submit(request),
                Ok(Select2::First(answer)) => {
                    return Some(self.result(Some(answer.unwrap_or(Err(CallError::Lost)))));
                }
                Err(_) => return Some(self.result(None)),
            }
        }
    }

    fn submit(&mut self, request: Option<AppendEntriesRequest<SimTypes>>) {
        let Some(rpc) = request else {
            self.end = End::Input;
            return;
        };
        self.peer.leads(&rpc.vote);
        let prev = rpc.prev_log_id;
        let last = rpc.entries.last().map(|entry| entry.log_id).or(prev);
        let answer = self.peer.send(Kind::InOrder(&mut self.lane), "append", move |node| {
            let rpc = rpc.clone();
            async move { node.raft.append_entries(rpc).await.map_err(|error| error.to_string()) }
        });
        self.sent.push_back(Sent { answer, deadline: now() + APPEND_ANSWER_TIMEOUT, prev, last });
    }

    fn result(
        &mut self,
        answered: Option<Result<Result<AppendEntriesResponse<SimTypes>, String>, CallError>>,
    ) -> AppendResult {
        let sent = self.sent.pop_front();
        let (prev, last) = sent.map_or((None, None), |sent| (sent.prev, sent.last));
        let timeout = APPEND_ANSWER_TIMEOUT;
        match answered {
            Some(Ok(Ok(AppendEntriesResponse::Success))) => return Ok(Ok(last)),
            Some(Ok(Ok(AppendEntriesResponse::Conflict))) if prev.is_none() => {}
            Some(Ok(Ok(response))) => {
                let done =
                    matches!(&response, AppendEntriesResponse::PartialSuccess(log_id) if *log_id == last);
                if !done {
                    // What was sent after this request builds on what the peer does not have.
                    self.end = End::All;
                }
                return Ok(response.into_stream_result(prev, last));
            }
            Some(Ok(Err(refusal))) => {
                self.end = End::All;
                return Err(RPCError::Unreachable(Unreachable::from_string(refusal)));
            }
            Some(Err(CallError::Refused)) => {
                self.end = End::All;
                return Err(RPCError::Unreachable(Unreachable::from_string("connection refused")));
            }
            Some(Err(CallError::Lost)) => {}
            None => {
                self.end = End::All;
                let (id, target) = (self.peer.id, self.peer.target);
                return Err(RPCError::Timeout(Timeout {
                    action: RPCTypes::AppendEntries,
                    id,
                    target,
                    timeout,
                }));
            }
        }
        self.end = End::All;
        Err(RPCError::Network(NetworkError::from_string("connection lost")))
    }
}
