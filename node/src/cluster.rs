//! What the rest of the server sees of replication: propose, read, follow.

mod alone;
mod denied;
mod features;
mod heirs;
mod leaving;
mod lookups;
mod member_events;
mod members;
mod recovery;
mod reports;
mod room;
mod start;
mod status;
mod stop;
mod traffic;
mod write;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use allowlist::{Digest, Revision};
use raft_store::command::{BatchReply, Operation};
use raft_store::features::TooNew;
use raft_store::types::NodeId;
use raft_store::{FeatureLevel, NodeInfo, Snapshots, Space, StateReader};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::feed::denied::DeniedLog;
use crate::feed::traffic::TrafficBook;
use crate::raft::compaction::LogStanding;
use crate::raft::link::Peers;
use crate::raft::meter::Meter;
use crate::raft::proposer::{Condition, Proposer};
use crate::raft::read_rounds::ReadRounds;
use crate::raft::standing::Fence;
use crate::raft::succession::Heard;
use crate::raft::wire::{Probe, ProposeFailure, Refusal, Request};
use crate::raft::{Raft, bootstrap};
use crate::resolver::Record;

pub use crate::raft::change::{ChangeRefusal, MemberChange, MemberChanged, RefusalKind};
pub use crate::raft::settings::Tuning;
pub use denied::DeniedAnswer;
pub use features::{FeatureStanding, InactiveFeature};
pub(crate) use heirs::{Heir, heirs, staying_voters};
pub(crate) use leaving::Leaving;
pub use lookups::MAX_NAMES_ASKED;
pub(crate) use member_events::event as member_event;
pub use members::ChangeError;
pub use recovery::{Recovered, RecoveryError, RecoveryPlan, VoterStanding};
pub use start::{ClusterSettings, Join};
pub use traffic::ClusterTraffic;
pub(crate) use write::leader_of;

/// Why a write did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// No leader in reach in time; the write provably never entered the log and may be sent again.
    #[error("no quorum: {0}")]
    NoQuorum(String),
    /// The deadline passed while the write was under way: it may or may not take effect.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// This node takes no writes (shutting down, removed).
    #[error("this node takes no writes: {0}")]
    Unavailable(String),
    /// The token the write was made with was taken away; nothing was written.
    #[error("the token was removed")]
    TokenGone,
    /// There is no room on the leader's disk for what makes the state larger. Nothing was written.
    #[error("the leader takes no writes that make the state larger: {0}")]
    NoRoom(String),
    /// Not all nodes run a release that knows this. Nothing was written.
    #[error(transparent)]
    FeatureNotActive(InactiveFeature),
}

/// A linearizable read could not be confirmed in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no quorum: {0}")]
pub struct ReadError(pub String);

/// How this node stands in the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Raft node id, a random number kept on the node's disk.
    pub id: u64,
    /// The configured name.
    pub name: String,
    /// `leader`, `follower`, `candidate`, `learner` or `shutdown`.
    pub role: String,
    /// Raft term.
    pub term: u64,
    /// Newest revision applied here.
    pub applied: Revision,
    /// Newest revision known to be committed.
    pub committed: Revision,
    /// Digest of the published set here.
    pub digest: Digest,
    /// Version of the program.
    pub version: String,
    /// Gateway sessions on this node.
    pub gateways: Vec<GatewayStatus>,
}

/// How one gateway stands, as the node that holds its session knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayStatus {
    /// The gateway's name.
    pub name: String,
    /// Version of its program.
    pub version: String,
    /// Address the session came from.
    pub remote: String,
    /// The node holding the session.
    pub node: String,
    /// Session start, Unix milliseconds.
    pub connected_at_ms: u64,
    /// Newest revision its kernel holds.
    pub applied: Revision,
    /// True when its last digest was equal to the node's at that revision.
    pub in_sync: bool,
    /// Kernel time of the last change, microseconds.
    pub kernel_us: u64,
    /// Elements it refused.
    pub refused: u64,
}

/// One line of the cluster's overview.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Raft node id.
    pub id: u64,
    /// Name of the node.
    pub name: String,
    /// Its raft address, `host:port`.
    pub address: String,
    /// False for learners.
    pub voter: bool,
    /// What it said of itself just now; `None` when it did not answer.
    pub status: Option<NodeStatus>,
}

/// One time of leadership of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term(pub(crate) u64);

/// Asks the feed for this node's gateway sessions.
pub type GatewaySource = Arc<dyn Fn() -> Vec<GatewayStatus> + Send + Sync>;

/// Handle on replication, cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    id: NodeId,
    /// Drawn at each start: tells this process from one that runs on a copy of its data directory.
    process: u64,
    node: NodeInfo,
    /// As configured, sorted; empty for a cluster of one.
    configured_peers: Vec<String>,
    join: Join,
    data_dir: PathBuf,
    admin_token_file: PathBuf,
    snapshots: Snapshots,
    raft: Raft,
    reader: StateReader,
    proposer: Proposer,
    peers: Peers,
    heard: Heard,
    meter: Meter,
    /// Reads on this node, and …
    reads: ReadRounds<String>,
    /// … those this node confirms as the leader.
    confirmations: ReadRounds<Refusal>,
    log_standing: watch::Receiver<LogStanding>,
    /// The disk of the data directory.
    space: Space,
    leadership: watch::Receiver<bool>,
    complete: watch::Receiver<bool>,
    gateways: Mutex<Option<GatewaySource>>,
    denied: OnceLock<DeniedLog>,
    traffic: OnceLock<TrafficBook>,
    lookups: OnceLock<Record>,
    /// Set when the node is to lead no more.
    retiring: CancellationToken,
    /// Set when the node stops taking writes.
    draining: CancellationToken,
    /// Says goodbye to peers.
    leave: CancellationToken,
    /// The listener for peers and its connections.
    serving: TaskTracker,
    /// Ends every task of this module.
    stop: CancellationToken,
    tasks: TaskTracker,
    /// One change of the membership at a time.
    changing: tokio::sync::Mutex<()>,
    /// Closed for good when this node learns that it does not belong any more.
    fence: Fence,
    /// Closed for a while when this node is about to be removed.
    leaving: Leaving,
    /// Clusters that this one took the place of when they lost their majority.
    superseded: Vec<Uuid>,
    /// Asks whoever runs this node to stop it and to open it again.
    restart: CancellationToken,
    /// The highest feature level this node applies, and says so.
    features: FeatureLevel,
    /// Set once the leader sent what is above it.
    too_new: OnceLock<TooNew>,
}

impl Cluster {
    /// Tells where [`NodeStatus::gateways`] of this node comes from; called once by the feed's set-up.
    pub fn set_gateway_source(&self, source: GatewaySource) {
        *self.inner.gateways.lock().unwrap_or_else(PoisonError::into_inner) = Some(source);
    }

    /// Tells where this node keeps what its lookups of names come to; called once by the resolver.
    pub(crate) fn set_lookups(&self, record: Record) {
        // A second resolver on the same node: tests start one.
        let _ = self.inner.lookups.set(record);
    }

    /// Tells where this node keeps what gateways say of traffic; called once by the feed's set-up.
    pub fn set_traffic_book(&self, book: TrafficBook) {
        // A second call would be of the same feed.
        let _ = self.inner.traffic.set(book);
    }

    /// The applied state of this node and its changes.
    pub fn reader(&self) -> &StateReader {
        &self.inner.reader
    }

    /// True while this node is the leader and knows it: the resolver runs then.
    pub fn leadership(&self) -> watch::Receiver<bool> {
        self.inner.leadership.clone()
    }

    /// The term in which this node leads, for [`Self::propose_in`].
    pub fn term(&self) -> Option<Term> {
        use openraft::async_runtime::WatchReceiver as _;
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        start::leads(&metrics).then_some(Term(metrics.current_term))
    }

    /// True once this node is a voter of a cluster that has its id and its first admin token.
    pub fn complete(&self) -> watch::Receiver<bool> {
        self.inner.complete.clone()
    }

    /// This node's raft id.
    pub fn id(&self) -> NodeId {
        self.inner.id
    }

    /// A number that no other process has, not even one with the same id.
    pub(crate) fn process(&self) -> u64 {
        self.inner.process
    }

    /// This node's name.
    pub fn name(&self) -> &str {
        &self.inner.node.name
    }

    pub(crate) fn node(&self) -> &NodeInfo {
        &self.inner.node
    }

    pub(crate) fn raft(&self) -> &Raft {
        &self.inner.raft
    }

    pub(crate) fn peers(&self) -> &Peers {
        &self.inner.peers
    }

    pub(crate) fn meter(&self) -> &Meter {
        &self.inner.meter
    }

    /// As of less than a second ago.
    pub(crate) fn log_standing(&self) -> LogStanding {
        self.inner.log_standing.borrow().clone()
    }

    pub(crate) fn heard(&self) -> &Heard {
        &self.inner.heard
    }

    pub(crate) fn configured_peers(&self) -> &[String] {
        &self.inner.configured_peers
    }

    pub(crate) fn admin_token_file(&self) -> &Path {
        &self.inner.admin_token_file
    }

    pub(crate) fn snapshots(&self) -> &Snapshots {
        &self.inner.snapshots
    }

    /// True once this node is about to stop and must not lead again.
    pub(crate) fn is_retiring(&self) -> bool {
        self.inner.retiring.is_cancelled() || self.inner.fence.keeps_from_leading()
    }

    fn is_stopping(&self) -> bool {
        self.inner.draining.is_cancelled()
    }

    /// Through this node's own proposer.
    pub(crate) async fn propose_here(
        &self,
        operations: Vec<Operation>,
        condition: Condition,
        deadline: Instant,
    ) -> Result<BatchReply, ProposeFailure> {
        let result = match self.check_room_unless_answered(&operations) {
            Ok(()) => self.inner.proposer.propose(operations, condition, deadline).await,
            Err(failure) => Err(failure),
        };
        self.inner.meter.proposed(&result);
        result
    }

    /// What was carried out already is only answered again, which makes nothing larger: whoever asks again because the
    /// first answer was lost must get it, also on a low disk.
    fn check_room_unless_answered(&self, operations: &[Operation]) -> Result<(), ProposeFailure> {
        let state = self.reader().state();
        let mut growing = operations.iter().filter(|one| one.command.grows());
        if growing.all(|one| state.has_answer(one)) { Ok(()) } else { self.check_room(operations) }
    }

    /// Why this node serves nobody any more; `None` while it belongs to its cluster.
    pub fn fenced(&self) -> Option<String> {
        self.inner.fence.reason()
    }

    pub(crate) fn fence(&self) -> &Fence {
        &self.inner.fence
    }

    pub(crate) fn leaving(&self) -> &Leaving {
        &self.inner.leaving
    }

    pub(crate) fn join_mode(&self) -> Join {
        self.inner.join
    }

    pub(crate) async fn probed(&self, peers: &[String]) -> Result<Probe, Refusal> {
        bootstrap::answer_probe(self, peers).await
    }

    /// Requests for another cluster or another node are refused, and those of a node that says it is this one.
    pub(crate) fn check_target(
        &self,
        cluster: Option<Uuid>,
        from: NodeId,
        to: Option<NodeId>,
        request: &Request,
    ) -> Result<(), Refusal> {
        if let (Some(mine), Some(yours)) = (self.reader().state().cluster(), cluster)
            && mine != yours
        {
            return Err(if self.inner.superseded.contains(&yours) {
                Refusal::Superseded { mine, yours }
            } else {
                Refusal::WrongCluster { mine, yours }
            });
        }
        // A node may ask itself who it is, to find out that two addresses lead to it.
        if from == self.id()
            && !matches!(
                request,
                Request::Probe { .. }
                    | Request::Identify
                    | Request::Process
                    | Request::Status
                    | Request::Features
            )
        {
            return Err(Refusal::SameId(from));
        }
        match to {
            Some(yours) if yours != self.id() => Err(Refusal::WrongTarget { mine: self.id(), yours }),
            _ => Ok(()),
        }
    }
}
