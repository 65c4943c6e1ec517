//! The types openraft is instantiated with: what a log entry carries, how nodes are named.

use std::fmt;

use openraft::type_config::alias::{
    EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf,
};
use serde::{Deserialize, Serialize};

use crate::command::{Batch, BatchReply};
use crate::snapshot::SnapshotFile;

openraft::declare_raft_types!(
    /// OutputGuard's instance of openraft. The leader id is (term, node id), openraft's default: two candidates of
    /// one term do not block each other.
    pub TypeConfig:
        D = Batch,
        R = BatchReply,
        NodeId = NodeId,
        Node = NodeInfo,
        Term = u64,
);

/// A random number drawn once and kept on the node's disk. An id never comes back with an empty disk.
pub type NodeId = u64;
/// (term, node) and index of a log entry.
pub type LogId = LogIdOf<TypeConfig>;
/// One log entry.
pub type Entry = EntryOf<TypeConfig>;
/// A vote as it stands on disk.
pub type Vote = VoteOf<TypeConfig>;
/// The membership and the entry that brought it.
pub type StoredMembership = StoredMembershipOf<TypeConfig>;
/// What a snapshot covers.
pub type SnapshotMeta = SnapshotMetaOf<TypeConfig>;
/// A snapshot as it travels between nodes.
pub type Snapshot = SnapshotOf<TypeConfig, SnapshotFile>;

/// What the membership says of a node. Part of membership entries on disk: a new field means a new version of
/// [`crate::codec`]'s records.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The configured, stable name.
    pub name: String,
    /// Where its peers reach it, `host:port`.
    pub raft_address: String,
}

impl fmt::Display for NodeInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.raft_address)
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch of {} operations", self.operations.len())
    }
}

impl fmt::Display for BatchReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} replies at revision {}", self.replies.len(), self.revision)
    }
}
