//! Frames between server and gateway (WebSocket `/ws`, subprotocol [`SUBPROTOCOL`]).
//!
//! A session: the gateway says [`Hello`], the server answers [`Welcome`] and either resumes (only the changes the
//! gateway missed) or sends a whole snapshot; then each change as it is applied, and a [`ToGateway::Heartbeat`] each
//! second.
//! Enums here are append-only and a new field means a new variant: the bytes are frozen by tests (see [`crate::codec`]).

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::change::{Change, Revision};
use crate::digest::Digest;
use crate::element::Element;

/// The WebSocket subprotocol both sides must name.
pub const SUBPROTOCOL: &str = "outputguard.v1";
/// How often a server sends [`ToGateway::Heartbeat`], milliseconds.
pub const HEARTBEAT_INTERVAL_MS: u64 = 1_000;
/// After how many heartbeat intervals without any frame a gateway moves to another node.
pub const MISSED_HEARTBEATS_BEFORE_MOVE: u32 = 3;
/// Most elements in one frame. An element takes at most 40 bytes, so a full frame stays well below
/// [`crate::codec::MAX_FRAME_BYTES`].
pub const MAX_ELEMENTS_PER_FRAME: usize = 10_000;
/// Most lines of one [`ToServer::Sources`]. A line takes at most 100 bytes.
pub const MAX_SOURCES_PER_FRAME: usize = 2_000;
/// Header of a server's answer to the upgrade: the frames it reads beyond those of the first release, separated by
/// commas. A gateway sends no others, so that it may be newer than its server.
pub const ACCEPTS_HEADER: &str = "outputguard-accepts";
/// Names [`ToServer::Sources`] in [`ACCEPTS_HEADER`].
pub const ACCEPTS_SOURCES: &str = "sources";

/// What a gateway sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToServer {
    /// First frame of a session.
    Hello(Hello),
    /// The kernel now holds `revision`.
    Applied(Applied),
    /// Counted traffic since the last report.
    Traffic(Vec<TrafficDelta>),
    /// Denied traffic since the last report.
    Denied(Vec<DeniedFlow>),
    /// The gateway's digest disagrees or its state is unusable: send a snapshot.
    ResyncRequest {
        /// Why, for the server's log.
        reason: String,
    },
    /// Flows were cut: the proof that a revocation bit.
    Cut(CutReport),
    /// What source hosts moved since the last report, at most [`MAX_SOURCES_PER_FRAME`] lines. Only to a server that says
    /// [`ACCEPTS_SOURCES`].
    Sources(Vec<SourceDelta>),
}

/// What a server sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGateway {
    /// Answer to [`Hello`].
    Welcome(Welcome),
    /// Some elements of a snapshot. Parts are sorted and disjoint; the first part of a snapshot empties the
    /// receiver's buffer.
    SnapshotPart {
        /// 0 for the first part, counting up.
        part: u32,
        /// At most [`MAX_ELEMENTS_PER_FRAME`].
        elements: Vec<Element>,
    },
    /// The snapshot is complete: it is the published set at `revision`.
    SnapshotEnd {
        /// Revision of the snapshot.
        revision: Revision,
        /// Digest of the snapshot.
        digest: Digest,
    },
    /// One change, in revision order. A change with more than [`MAX_ELEMENTS_PER_FRAME`] elements comes in several
    /// frames with the same revision, all but the last with `more`; it is applied as one.
    Change {
        /// The change or a part of it.
        change: Change,
        /// True when the next frame goes on with the same revision.
        more: bool,
    },
    /// The node's newest revision and its digest. It stands in order with the changes, so that after it the
    /// gateway must have the same digest.
    Heartbeat {
        /// Newest applied revision of this node.
        revision: Revision,
        /// Digest at that revision.
        digest: Digest,
    },
    /// The session ends; come back (elsewhere) after a while.
    Goaway {
        /// Why.
        reason: GoawayReason,
        /// Wait this long before coming back to this node, milliseconds.
        retry_after_ms: u64,
    },
}

/// Who the gateway is and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The gateway's name, unique among gateways (its host name by default).
    pub name: String,
    /// Version of its program, for people.
    pub version: String,
    /// What it holds; `None` when it holds nothing it can trust.
    pub state: Option<FeedState>,
}

/// A point in the feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedState {
    /// Which cluster it came from. Revisions of different clusters cannot be compared.
    pub cluster: Uuid,
    /// The revision.
    pub revision: Revision,
    /// The digest at that revision.
    pub digest: Digest,
}

/// The server's side of the handshake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The cluster's id.
    pub cluster: Uuid,
    /// The node's name.
    pub node: String,
    /// The node's newest applied revision.
    pub revision: Revision,
    /// What follows.
    pub start: SessionStart,
}

/// How a session begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionStart {
    /// Only the changes after the gateway's revision.
    Resume,
    /// [`ToGateway::SnapshotPart`]s up to a [`ToGateway::SnapshotEnd`].
    Snapshot,
}

/// Why a server ends a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GoawayReason {
    /// The node is being shut down or drained.
    Draining,
    /// The gateway did not read fast enough for its queue.
    TooSlow,
    /// The node lost its leader and cannot say that it is current.
    Lagging,
    /// Another session with the same gateway name took over.
    Replaced,
    /// A frame broke the protocol.
    Protocol,
}

/// Proof that a revision reached a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The revision the kernel holds.
    pub revision: Revision,
    /// The digest of what was to be held.
    pub digest: Digest,
    /// Time from the frame's arrival to the kernel's answer, microseconds.
    pub kernel_us: u64,
    /// Elements the kernel or the gateway refused, with reasons.
    pub refused: Vec<RefusedElement>,
}

/// An element a gateway could not enforce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedElement {
    /// Which.
    pub element: Element,
    /// Why, in words for people.
    pub reason: String,
}

/// Traffic of one element since the last report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficDelta {
    /// Which element.
    pub element: Element,
    /// Packets towards the internet.
    pub packets_out: u64,
    /// Bytes towards the internet.
    pub bytes_out: u64,
    /// Packets from the internet.
    pub packets_in: u64,
    /// Bytes from the internet.
    pub bytes_in: u64,
}

/// What one source host moved to one element since the last report, as the kernel counted its flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceDelta {
    /// Who began the flows; `None` for all that are not named.
    pub source: Option<std::net::IpAddr>,
    /// The element that covered them when they were seen first; `None` when none did, or for several.
    pub element: Option<Element>,
    /// Packets towards the internet.
    pub packets_out: u64,
    /// Bytes towards the internet.
    pub bytes_out: u64,
    /// Packets from the internet.
    pub packets_in: u64,
    /// Bytes from the internet.
    pub bytes_in: u64,
}

/// Denied packets of one source and destination since the last report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeniedFlow {
    /// Who asked.
    pub source: std::net::IpAddr,
    /// What for.
    pub destination: std::net::IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, 0 where the protocol has none.
    pub port: u16,
    /// How many packets were seen.
    pub packets: u64,
    /// First seen, Unix milliseconds.
    pub first_ms: u64,
    /// Last seen, Unix milliseconds.
    pub last_ms: u64,
}

/// Flows that a gateway took out of its kernel's table, for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutReport {
    /// The newest revision whose consequences it shows; what several revisions close at once is reported once.
    pub revision: Revision,
    /// Why.
    pub cause: CutCause,
    /// How many flows.
    pub flows: u64,
    /// How many of them the kernel had not counted: begun before accounting was on.
    pub uncounted: u64,
    /// Bytes (IP length) the counted ones had moved towards the internet since they began, what was sent after the
    /// revocation and dropped included.
    pub bytes_out: u64,
    /// Bytes from the internet.
    pub bytes_in: u64,
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// Time from the change of the kernel's sets to the end of the last flow, microseconds.
    pub took_us: u64,
    /// Elements with most flows first, at most [`MAX_CUT_ELEMENTS`]; the sums above cover all.
    pub elements: Vec<CutElement>,
}

/// Most elements named in one [`CutReport`].
pub const MAX_CUT_ELEMENTS: usize = 1_000;

/// Why flows were cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum CutCause {
    /// A person removed the element.
    Revoked,
    /// The element left DNS, and the flow was idle or the time to drain was over.
    Drained,
    /// No element lets it pass: left over from before this gateway, or from a process that died.
    Stale,
    /// It left with its private source, begun while somebody had removed our NAT rules.
    SourceShown,
}

/// The part of one element in a [`CutReport`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutElement {
    /// Which.
    pub element: Element,
    /// How many flows.
    pub flows: u64,
    /// Bytes towards the internet.
    pub bytes_out: u64,
    /// Bytes from the internet.
    pub bytes_in: u64,
}

impl CutCause {
    /// One word, for metrics and logs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::Drained => "drained",
            Self::Stale => "stale",
            Self::SourceShown => "source_shown",
        }
    }
}
