//! What a node answers when it does not do what it was asked for.

use raft_store::NodeInfo;
use raft_store::types::NodeId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::cluster::InactiveFeature;
use crate::raft::change::ChangeRefusal;

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum Refusal {
    /// The nodes belong to different clusters.
    #[error("it belongs to cluster {mine}, not to {yours}")]
    WrongCluster {
        /// Of the node that refuses.
        mine: Uuid,
        /// Of the one that asked.
        yours: Uuid,
    },
    /// Another node is at this address now.
    #[error("node {yours:016x} is not there, but node {mine:016x}")]
    WrongTarget {
        /// The node that refuses.
        mine: NodeId,
        /// The one that was meant.
        yours: NodeId,
    },
    /// Ask the leader.
    #[error("it is not the leader")]
    NotLeader {
        /// Who is, as far as it knows.
        leader: Option<(NodeId, NodeInfo)>,
    },
    /// Founding nodes must have the same `cluster.peers`.
    #[error("its cluster.peers are [{}], which is not what this node has", .0.join(", "))]
    PeersDiffer(Vec<String>),
    /// The frame could not be understood.
    #[error("it does not understand the request: {0}")]
    Malformed(String),
    /// It cannot at the moment.
    #[error("{0}")]
    Unable(String),
    /// The membership stays as it is.
    #[error(transparent)]
    Change(ChangeRefusal),
    /// The sender's cluster lost its majority, and this node went on without it under another identity.
    #[error(
        "cluster {yours} lost its majority and goes on as cluster {mine}; to join that, stop this node and empty its \
         data directory (keep tls/)"
    )]
    Superseded {
        /// Of the node that refuses.
        mine: Uuid,
        /// Of the one that asked.
        yours: Uuid,
    },
    /// Two nodes have the same id.
    #[error(
        "it has the same node id, {0:016x}: one of the two data directories is a copy; stop the node that has the copy \
         and empty its data directory (keep tls/)"
    )]
    SameId(NodeId),
    /// A change of the membership began, and may or may not take effect.
    #[error("{0}")]
    Unknown(String),
}

/// Why a forwarded write did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ProposeFailure {
    /// It never entered the log because this is not the leader.
    NotLeader,
    /// It never entered the log within the time it was given.
    NotEntered(String),
    /// It may or may not take effect.
    Unknown(String),
    /// The leader takes no writes.
    Unavailable(String),
    /// It never entered the log because its token was taken away.
    TokenGone,
    /// The leader's disk has no room for writes that make the state larger.
    NoRoom(String),
    /// Not all nodes run a release that knows this.
    FeatureNotActive(InactiveFeature),
}
