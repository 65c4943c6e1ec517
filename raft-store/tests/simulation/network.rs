//! openraft's network over [`crate::wire`], pipelined by the same lines as the server's (`node/src/raft/network.rs`).

use std::future::Future;
use std::time::Duration;

use futures_util::Stream;
use openraft::async_runtime::{AsyncRuntime as _, Select2};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use openraft::{OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use raft_store::NodeInfo;
use raft_store::pipeline::{APPEND_ANSWER_TIMEOUT, AppendLane, AppendPart, AppendResult, pipelined};
use raft_store::types::{NodeId, Vote};

use crate::machine::Content;
use crate::nodes::Running;
use crate::process::NodeRuntime;
use crate::types::{SimTypes, now};
use crate::wire::{Answer, CallError, Kind, Lane, send};
use crate::world::World;

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
type Part = AppendPart<SimTypes, AppendEntriesRequest<SimTypes>>;

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
    ) -> BoxFuture<'s, RpcResult<BoxStream<'s, AppendResult<SimTypes>>>>
    where
        S: Stream<Item = AppendEntriesRequest<SimTypes>> + OptionalSend + Unpin + 'static,
    {
        let results = pipelined(PeerLane { peer: self, lane: Lane::default() }, input);
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

/// The connection for appends to one peer.
struct PeerLane<'s> {
    peer: &'s Peer,
    lane: Lane,
}

impl<'s> AppendLane<SimTypes> for PeerLane<'s> {
    type Message = AppendEntriesRequest<SimTypes>;
    type Answer = BoxFuture<'s, RpcResult<AppendEntriesResponse<SimTypes>>>;

    fn cut(&mut self, rpc: AppendEntriesRequest<SimTypes>) -> Option<Vec<Part>> {
        let prev = rpc.prev_log_id;
        let last = rpc.entries.last().map(|entry| entry.log_id).or(prev);
        Some(vec![Part { message: rpc, prev, last }])
    }

    async fn send(&mut self, rpc: AppendEntriesRequest<SimTypes>) -> RpcResult<Self::Answer> {
        let peer = self.peer;
        peer.leads(&rpc.vote);
        let answer = peer.send(Kind::InOrder(&mut self.lane), "append", move |node| {
            let rpc = rpc.clone();
            async move { node.raft.append_entries(rpc).await.map_err(|error| error.to_string()) }
        });
        let deadline = now() + APPEND_ANSWER_TIMEOUT;
        Ok(Box::pin(async move {
            let left = deadline - now().min(deadline);
            peer.answer(RPCTypes::AppendEntries, left, answer).await
        }))
    }
}
