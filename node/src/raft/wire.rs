//! What peers say to each other: length, version byte, bincode. Enums are append-only and a new field means a new
//! variant, so that nodes of neighbouring versions understand each other during a rolling upgrade.
//!
//! Every request names the cluster (once it has a name) and the node it is meant for: an address that now belongs to
//! another node, or to another cluster, must not be taken for the old one.

mod frame;
mod refusal;

use std::fmt;

use allowlist::DomainName;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use raft_store::command::{BatchReply, Operation, Origin};
use raft_store::types::{Entry, LogId, NodeId, Vote};
use raft_store::{FeatureLevel, NodeInfo, TypeConfig};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use super::change::{ChangeRequest, MemberChange, MemberChanged};
use crate::cluster::NodeStatus;
use crate::feed::denied::{DeniedPage, DeniedQuery};
use crate::feed::traffic::{TrafficSums, Window};
use crate::resolver::NameLookups;

pub(crate) use frame::{WireError, decode, encode, framing};
use frame::{config, decode_whole};
pub(crate) use refusal::{ProposeFailure, Refusal};

/// First byte of every frame.
pub(crate) const WIRE_VERSION: u8 = 1;
/// Largest frame. A log entry holds at most [`super::proposer::MAX_ENTRY_BYTES`], and append frames are cut at
/// [`MAX_APPEND_BYTES`] plus one entry.
pub(crate) const MAX_FRAME_BYTES: usize = 8 * 1024 * 1024;
/// Entries are added to an append frame until it holds this much.
pub(crate) const MAX_APPEND_BYTES: usize = 1024 * 1024;
/// Sequence of an answer that answers no request.
pub(crate) const GOODBYE_SEQUENCE: u64 = u64::MAX;
/// Piece of a snapshot in one frame.
pub(crate) const SNAPSHOT_CHUNK_BYTES: usize = 512 * 1024;

/// A request and where it belongs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Envelope {
    /// Counts up on a connection; the answer carries it.
    pub(crate) sequence: u64,
    /// The sender's cluster, `None` before it has one.
    pub(crate) cluster: Option<Uuid>,
    /// The sender.
    pub(crate) from: NodeId,
    /// Whom the sender wants to talk to; `None` for whoever is at the address.
    pub(crate) to: Option<NodeId>,
    /// What.
    pub(crate) request: Request,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Of the request.
    pub(crate) sequence: u64,
    /// What.
    pub(crate) response: Response,
}

/// What a node may ask of another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Log entries or a heartbeat. Handled in the order of arrival, answered in the same order.
    Append(Append),
    /// Raft.
    Vote(VoteRequest<TypeConfig>),
    /// Raft.
    PreVote(VoteRequest<TypeConfig>),
    /// Raft.
    TransferLeader(TransferLeaderRequest<TypeConfig>),
    /// A snapshot follows on this connection. Only refusals are answered before [`Request::SnapshotEnd`], and the
    /// final answer carries the sequence of this request.
    SnapshotBegin {
        /// Of the leader.
        vote: Vote,
        /// Length of the file, bytes.
        len: u64,
    },
    /// The next bytes.
    SnapshotChunk(Blob),
    /// All bytes are sent.
    SnapshotEnd,
    /// A write for the leader.
    Propose {
        /// See [`crate::cluster::Cluster::propose`].
        operations: Vec<Operation>,
        /// Answer within this time, milliseconds.
        timeout_ms: u64,
    },
    /// Asks the leader up to where a reader must have applied to see everything acknowledged so far.
    ReadIndex {
        /// Answer within this time, milliseconds.
        timeout_ms: u64,
    },
    /// How the node stands.
    Status,
    /// Before there is a cluster: who are you, and do you belong to one?
    Probe {
        /// The asker's configured peers, sorted: nodes that are to found a cluster must agree on them.
        peers: Vec<String>,
    },
    /// Asks the leader to make a node a member.
    Join {
        /// The new node's id.
        id: NodeId,
        /// Its name and address.
        node: NodeInfo,
        /// True while its log is empty.
        pristine: bool,
    },
    /// Asks a voter whether it, too, misses the leader of this vote.
    Misses {
        /// Of the leader that is missed.
        vote: Vote,
    },
    /// Who are you, whatever your configuration says of peers?
    Identify,
    /// Asks the leader to change the membership or to hand over.
    Change(ChangeRequest),
    /// Asks the leader who the members are, confirmed with a majority.
    Members,
    /// From the leader to a node that is about to be removed: finish what is under way and take no more.
    Leaving,
    /// How far the node's log reaches, when the majority is lost.
    LogEnd,
    /// A write for the leader, on behalf of a token that must still stand when the write enters the log.
    ProposeFor {
        /// The caller's.
        token: TokenMark,
        /// See [`crate::cluster::Cluster::propose_for`].
        operations: Vec<Operation>,
        /// Answer within this time, milliseconds.
        timeout_ms: u64,
    },
    /// Asks a voter whether its disk has room for more, before it is handed the leadership.
    Room,
    /// Which process is at this address? A node's id alone does not tell it from a copy of its data directory.
    Process,
    /// Which feature level can you apply?
    Features,
    /// Asks the leader to change the membership or to hand over, and says for the audit log who wants it. Only sent once
    /// the cluster has agreed on [`FeatureLevel::MEMBER_EVENTS`].
    ChangeFor {
        /// What.
        change: MemberChange,
        /// Who.
        origin: Origin,
        /// Answer within this time, milliseconds.
        timeout_ms: u64,
    },
    /// What did the node's gateways deny?
    Denied(DeniedQuery),
    /// What did gateways with a session on you say of traffic? A node of an older release refuses it.
    Traffic {
        /// Of this time.
        window: Window,
        /// Of one gateway, or of all.
        gateway: Option<String>,
    },
    /// Asks the leader what its lookups of these names came to lately. A node of an older release refuses it.
    NameLookups(Vec<DomainName>),
}

/// Which token a write is made with. The text itself never leaves the node it was shown to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenMark {
    /// Its name.
    pub(crate) name: String,
    /// Hash of its text: a new token may have the name of one that was taken away.
    pub(crate) sha256: [u8; 32],
}

/// What a node answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Response {
    /// Not done at all.
    Refused(Refusal),
    /// To [`Request::Append`].
    Append(AppendEntriesResponse<TypeConfig>),
    /// To [`Request::Vote`] and [`Request::PreVote`].
    Vote(VoteResponse<TypeConfig>),
    /// To [`Request::TransferLeader`].
    TransferLeader(TransferLeaderResponse<TypeConfig>),
    /// To [`Request::SnapshotEnd`].
    Snapshot(SnapshotResponse<TypeConfig>),
    /// To [`Request::Propose`].
    Proposed(Result<BatchReply, ProposeFailure>),
    /// To [`Request::ReadIndex`]: a log index.
    ReadIndex(u64),
    /// To [`Request::Status`].
    Status(NodeStatus),
    /// To [`Request::Probe`].
    Probe(Probe),
    /// To [`Request::Join`]: the node is a voter.
    Joined,
    /// To [`Request::Misses`].
    Misses {
        /// True when the node hears nothing of that leader either.
        missed: bool,
        /// Where its log ends: the longest one succeeds.
        last: Option<LogId>,
    },
    /// The last frame of a node that stops, with [`GOODBYE_SEQUENCE`]: what it has not answered by now, it has not begun.
    Goodbye,
    /// To [`Request::Change`].
    Changed(MemberChanged),
    /// To [`Request::Members`]: ids of voters and learners, sorted.
    Members(Vec<NodeId>),
    /// To [`Request::Leaving`]: nothing is under way any more.
    Left,
    /// To [`Request::LogEnd`].
    LogEnd(LogEnd),
    /// To [`Request::Room`]: true when there is room.
    Room(bool),
    /// To [`Request::Process`].
    Process {
        /// The node's id.
        id: NodeId,
        /// Drawn when the process opened its data directory.
        process: u64,
    },
    /// To [`Request::Features`].
    Features(FeatureLevel),
    /// To [`Request::Denied`].
    Denied(DeniedPage),
    /// To [`Request::Traffic`].
    Traffic(TrafficSums),
    /// To [`Request::NameLookups`]: of each name, in their order; nothing from a node that does not lead.
    NameLookups(Option<Vec<NameLookups>>),
}

/// The newest entry of a log; the greater one holds more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub(crate) struct LogEnd {
    /// Term of the leader that wrote it.
    pub(crate) term: u64,
    /// Its index.
    pub(crate) index: u64,
}

/// What a node says of itself before a connection means anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Probe {
    /// Its id.
    pub(crate) id: NodeId,
    /// Its name and address.
    pub(crate) node: NodeInfo,
    /// What it belongs to.
    pub(crate) standing: Standing,
}

/// Whether a node belongs to a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Standing {
    /// Its log is empty.
    Pristine,
    /// It is or was part of a cluster.
    Member {
        /// The cluster's id, unless it is just being founded.
        cluster: Option<Uuid>,
        /// The members it knows of.
        members: Vec<NodeId>,
        /// True when it knows a leader.
        led: bool,
    },
}

/// [`AppendEntriesRequest`] with entries encoded one by one, so that a frame's size is known while it is filled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Append {
    vote: Vote,
    prev_log_id: Option<LogId>,
    leader_commit: Option<LogId>,
    entries: Vec<Blob>,
}

/// One frame of an append request and the entries it is about.
pub(crate) type AppendPart = raft_store::pipeline::AppendPart<TypeConfig, Append>;

/// Cuts a request into frames of bounded size, in order.
///
/// # Errors
/// When an entry cannot be encoded.
pub(crate) fn append_parts(request: AppendEntriesRequest<TypeConfig>) -> Result<Vec<AppendPart>, WireError> {
    let AppendEntriesRequest { vote, prev_log_id, entries, leader_commit } = request;
    let mut parts = Vec::with_capacity(1);
    let (mut prev, mut last) = (prev_log_id, prev_log_id);
    let (mut blobs, mut bytes) = (Vec::with_capacity(entries.len()), 0);
    for entry in entries {
        if bytes >= MAX_APPEND_BYTES {
            let entries = std::mem::take(&mut blobs);
            parts.push(AppendPart {
                message: Append { vote, prev_log_id: prev, leader_commit, entries },
                prev,
                last,
            });
            (prev, bytes) = (last, 0);
        }
        let blob = bincode::serde::encode_to_vec(&entry, config())?;
        bytes += blob.len();
        last = Some(entry.log_id);
        blobs.push(Blob(blob));
    }
    parts.push(AppendPart {
        message: Append { vote, prev_log_id: prev, leader_commit, entries: blobs },
        prev,
        last,
    });
    Ok(parts)
}

impl Append {
    /// Back to what raft understands.
    ///
    /// # Errors
    /// [`WireError`] when an entry is not one.
    pub(crate) fn into_request(self) -> Result<AppendEntriesRequest<TypeConfig>, WireError> {
        let entries =
            self.entries.iter().map(|blob| decode_whole::<Entry>(&blob.0)).collect::<Result<_, _>>()?;
        Ok(AppendEntriesRequest {
            vote: self.vote,
            prev_log_id: self.prev_log_id,
            leader_commit: self.leader_commit,
            entries,
        })
    }
}

/// Bytes that serde copies as a whole instead of one by one.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Blob(pub(crate) Vec<u8>);

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Blob;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(bytes.to_vec()))
            }

            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Visitor)
    }
}

#[cfg(test)]
mod tests;
