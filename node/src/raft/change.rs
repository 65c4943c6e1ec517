//! What an operator may ask of the membership, as it travels from the node that was asked to the leader.
//!
//! Part of the frames in [`super::wire`]: append-only.

use raft_store::NodeInfo;
use raft_store::types::NodeId;
use serde::{Deserialize, Serialize};

/// A change, and on whose behalf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChangeRequest {
    /// What.
    pub(crate) change: MemberChange,
    /// Name of the caller's token, for the leader's log.
    pub(crate) actor: String,
    /// Answer within this time, milliseconds.
    pub(crate) timeout_ms: u64,
}

/// The changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberChange {
    /// Makes the node at an address a voter.
    Add {
        /// Its raft address, `host:port`.
        address: String,
        /// Name or id of the member that leaves in the same step.
        replaces: Option<String>,
        /// Also when the remaining voters cannot be reached.
        force: bool,
    },
    /// Takes a member out.
    Remove {
        /// Name or id.
        member: String,
        /// Also when the remaining voters cannot be reached.
        force: bool,
    },
    /// Makes another voter the leader.
    StepDown {
        /// Name or id; the one with the longest log when left out.
        to: Option<String>,
    },
}

/// What a change came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberChanged {
    /// The node is a voter.
    Added {
        /// Its id.
        id: NodeId,
        /// Its name and address.
        node: NodeInfo,
    },
    /// The node is a learner that is still being sent the state. Asking again waits on.
    CatchingUp {
        /// Its id.
        id: NodeId,
        /// Its name and address.
        node: NodeInfo,
        /// Log entries it lacks.
        behind: u64,
    },
    /// The node is no member any more.
    Removed {
        /// Its id.
        id: NodeId,
        /// Its name and address.
        node: NodeInfo,
    },
    /// This node leads.
    Leads {
        /// Its id.
        id: NodeId,
        /// Its name and address.
        node: NodeInfo,
    },
}

/// Why the membership was left as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ChangeRefusal {
    /// For programs.
    pub kind: RefusalKind,
    /// For people: what is wrong and what would be right.
    pub message: String,
}

/// Kinds of [`ChangeRefusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalKind {
    /// No member is named so.
    NoSuchMember,
    /// The node cannot be a member as it is.
    Unfit,
    /// The node to be added does not answer.
    Unreachable,
    /// The voters that are left could not form a majority.
    NoQuorumLeft,
    /// Something else is under way; ask again.
    Busy,
}

impl ChangeRefusal {
    pub(crate) fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}
