//! What may change the replicated state. Commands are intentions, validated before they are proposed, so that
//! [`crate::state::State::apply`] cannot fail on input. Clock, random numbers and DNS answers stand in the command:
//! the leader put them there, and every node applies the same.
//!
//! The enums are append-only and a new field means a new variant, because bincode has no optional trailing fields.

mod kinds;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use allowlist::{DomainName, Entry, EntryId, Labels, Ports, SharedText, Target};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::features::FeatureLevel;
use crate::state::Resolution;
use crate::types::{NodeId, NodeInfo};

/// Most operations in one log entry; a command that holds others counts as many ([`Operation::weight`]).
pub const MAX_OPERATIONS_PER_BATCH: usize = 1_000;

/// One raft log entry: operations of several writers, in order, each with its own reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The leader's wall clock when it proposed, Unix milliseconds.
    pub at_ms: u64,
    /// At most [`MAX_OPERATIONS_PER_BATCH`].
    pub operations: Vec<Operation>,
}

/// One command and who is behind it: the row of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Who, from where, as part of which request.
    pub origin: Origin,
    /// What.
    pub command: Command,
}

/// Who caused a change.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Origin {
    /// Name of the token, or `resolver`, `bootstrap`.
    pub actor: String,
    /// Address the request came from, empty for the server itself.
    pub remote: String,
    /// The request's id, empty for the server itself.
    pub request_id: String,
}

/// The intentions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Adds an entry, or answers with the one that has the same target and ports.
    AddEntry(NewEntry),
    /// Removes an entry. Refused for protected ones.
    RemoveEntry {
        /// Which.
        id: EntryId,
    },
    /// Replaces the texts and the protection of an entry. Protection can be given, not taken away.
    UpdateEntry {
        /// Which.
        id: EntryId,
        /// The new values.
        update: EntryUpdate,
    },
    /// What the leader's resolver found out about a domain: only sent when something differs.
    SetResolution {
        /// The name.
        domain: DomainName,
        /// Difference to what is stored.
        resolution: ResolutionUpdate,
    },
    /// Creates the cluster's identity. The first one wins.
    InitCluster {
        /// Drawn by the node that bootstraps.
        cluster: Uuid,
    },
    /// Adds an API token. Refused when another one has its name; the same secret again changes nothing.
    AddToken(Token),
    /// Removes an API token.
    RemoveToken {
        /// Its name.
        name: String,
    },
    /// Carries commands out unless the same actor did so under the same key before: then the first answer is given
    /// again.
    Once(OnceCommand),
    /// Adds many entries, each as [`Command::AddEntry`] would, and only counts what became of them.
    AddEntries(Vec<NewEntry>),
    /// Puts parts of a backup in place, with the ids and times they had.
    Restore(Vec<RestorePart>),
    /// Agrees on a feature level: what follows may need it. A lower one changes nothing.
    RaiseFeatures(FeatureLevel),
    /// Puts a change of the membership into the audit log. The membership itself is in raft's own log entries, which say
    /// nothing of who asked for them.
    RecordMember(MemberEvent),
    /// As [`Command::UpdateEntry`], and says when the entry ends by itself, or that it does not. Refused where it would
    /// weaken a protected one.
    ChangeEntry {
        /// Which.
        id: EntryId,
        /// The new values.
        update: EntryUpdate,
        /// When it ends, Unix milliseconds; `None` for never.
        expires_at_ms: Option<u64>,
    },
    /// Removes those of these entries whose time is over by the batch's clock.
    Expire {
        /// Which, at most [`MAX_OPERATIONS_PER_BATCH`].
        ids: Vec<EntryId>,
    },
}

/// What became of a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberEvent {
    /// What.
    pub action: MemberAction,
    /// Whose id.
    pub id: NodeId,
    /// Whose name and address.
    pub node: NodeInfo,
}

/// Kinds of [`MemberEvent`]. Append-only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberAction {
    /// It is about to be made a member. Written before anything is done, so that whoever asked is known whatever happens.
    Adding,
    /// It is a voter.
    Added,
    /// It is about to be taken out.
    Removing,
    /// It is no member any more, and its id never comes back.
    Removed,
    /// It is to be made the leader.
    Leads,
}

/// Commands that take effect once for a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnceCommand {
    /// The client's name for its request; keys of different actors have nothing to do with each other.
    pub key: String,
    /// SHA-256 over what was asked: the same key with something else is refused.
    pub fingerprint: [u8; 32],
    /// What to do. A key within a key does nothing.
    pub commands: Vec<Command>,
}

/// One thing of a backup. Append-only.
#[allow(clippy::large_enum_variant, reason = "nearly all parts are entries")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestorePart {
    /// An entry, and what was known of its domain: gateways get its addresses before anybody asks DNS.
    Entry {
        /// As it was.
        entry: Entry,
        /// Used when no other entry names the domain yet.
        resolution: Option<Resolution>,
    },
    /// A token. One that is here already with this name stays instead.
    Token(Token),
}

/// An entry before it has a creation time (that is the batch's) and a creator (the operation's actor).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewEntry {
    /// Drawn by the proposing node; used only when the natural key is new.
    pub id: EntryId,
    /// See [`allowlist::Entry`].
    pub target: Target,
    /// See [`allowlist::Entry`].
    pub ports: Ports,
    /// See [`allowlist::Entry`].
    pub protected: bool,
    /// See [`allowlist::Entry`].
    pub comment: Box<str>,
    /// See [`allowlist::Entry`].
    pub owner: SharedText,
    /// See [`allowlist::Entry`].
    pub ticket: SharedText,
    /// See [`allowlist::Entry`].
    pub labels: Labels,
    /// See [`allowlist::Entry`].
    pub expires_at_ms: Option<u64>,
}

impl NewEntry {
    /// The entry it becomes. A protected one does not end by itself.
    pub fn made_by(self, created_by: &str, created_at_ms: u64) -> Entry {
        let Self { id, target, ports, protected, comment, owner, ticket, labels, expires_at_ms } = self;
        let expires_at_ms = expires_at_ms.filter(|_| !protected);
        let created_by = created_by.into();
        Entry {
            id,
            target,
            ports,
            protected,
            comment,
            owner,
            ticket,
            labels,
            created_by,
            created_at_ms,
            expires_at_ms,
        }
    }
}

/// New values for the parts of an entry that may change; `None` leaves a part as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EntryUpdate {
    /// `Some(true)` protects; `Some(false)` on a protected entry is refused.
    pub protected: Option<bool>,
    /// New comment.
    pub comment: Option<Box<str>>,
    /// New owner.
    pub owner: Option<SharedText>,
    /// New ticket.
    pub ticket: Option<SharedText>,
    /// New labels, all of them.
    pub labels: Option<Labels>,
}

/// The difference a lookup made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ResolutionUpdate {
    /// Addresses seen for the first time (or again after they were retired), globally reachable unicast only.
    pub seen: BTreeMap<IpAddr, SeenAddress>,
    /// Addresses whose linger time is over.
    pub retire: BTreeSet<IpAddr>,
    /// The CNAME chain as it is now, the entry's own name first; empty when there is none.
    pub chain: Vec<DomainName>,
    /// How the name stands.
    pub status: NameStatus,
}

/// What is stored of a resolved address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenAddress {
    /// When it was first seen, Unix milliseconds.
    pub first_seen_ms: u64,
    /// TTL of the answer that brought it, seconds.
    pub ttl_s: u32,
    /// The upstreams that gave it.
    pub upstreams: BTreeSet<String>,
}

/// How a name stands with DNS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum NameStatus {
    /// Nobody has answered yet.
    #[default]
    Pending,
    /// The last lookup succeeded.
    Ok,
    /// Lookups have failed since this time (Unix milliseconds); addresses are kept.
    Stale {
        /// First failure.
        since_ms: u64,
        /// The last error, in words.
        error: String,
    },
    /// DNS says the name has no addresses, believed.
    NoSuchName,
    /// Answers were refused: non-public addresses or too many.
    Refused {
        /// In words.
        reason: String,
    },
    /// Some answers were refused because they are not public; those that are public are used.
    Mixed {
        /// Which upstream gave what, in words.
        reason: String,
    },
}

/// What a token may do; each role includes the ones before it, except `Gateway`, which may only open a feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Opens a gateway feed, nothing else.
    Gateway,
    /// Reads.
    Viewer,
    /// Adds and removes entries.
    Editor,
    /// Everything.
    Admin,
}

/// An API token as it is stored: never the secret itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its name, the actor in the audit log.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// SHA-256 of the token's text. A token has 256 random bits, so no salt or slow hash is needed.
    pub sha256: [u8; 32],
    /// When it was made, Unix milliseconds.
    pub created_at_ms: u64,
}

/// The answer to one operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The state changed.
    Done,
    /// The entry is in the list; `created` is false when it was there before.
    Added {
        /// The entry that is now there.
        id: EntryId,
        /// True when this operation made it.
        created: bool,
    },
    /// Nothing to do: it was so already.
    Unchanged,
    /// Not done.
    Refused(CommandRefusal),
    /// To [`Command::Once`].
    Once {
        /// True when the commands had been carried out before and this is the answer from then.
        replayed: bool,
        /// When they were carried out, Unix milliseconds.
        at_ms: u64,
        /// At which revision.
        revision: u64,
        /// One for each command.
        replies: Vec<Reply>,
    },
    /// To [`Command::AddEntries`].
    AddedMany {
        /// How many entries it made.
        created: u64,
        /// How many were there before.
        existing: u64,
        /// How many were refused because their id was taken.
        refused: u64,
    },
    /// To [`Command::Restore`].
    Restored {
        /// Entries that are now in place.
        entries: u64,
        /// Tokens that are now in place.
        tokens: u64,
        /// Names of tokens that were skipped, because others have them.
        skipped_tokens: Vec<String>,
        /// Entries that do not fit to what is here.
        refused: Vec<EntryId>,
    },
}

/// Why a valid command could not be carried out in the state it met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum CommandRefusal {
    /// No entry has this id.
    #[error("there is no entry {0}")]
    NoSuchEntry(EntryId),
    /// The entry is protected.
    #[error("entry {0} is protected: it cannot be removed or weakened")]
    Protected(EntryId),
    /// No token has this name.
    #[error("there is no token named {0}")]
    NoSuchToken(String),
    /// The last admin token must stay.
    #[error("{0} is the last admin token; make another one first")]
    LastAdmin(String),
    /// Another entry has this id. Ids are random, so this is a proposer that drew one twice.
    #[error("the id {0} belongs to another entry")]
    IdTaken(EntryId),
    /// Another token has this name.
    #[error("a token named {0} exists; remove it first, or take another name")]
    TokenExists(String),
    /// The key belongs to another request.
    #[error("the key `{0}` was used for another request before; a new request needs a new key")]
    KeyReused(String),
}

/// The answers to a batch, in its order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BatchReply {
    /// The log index the batch was applied at: the revision.
    pub revision: u64,
    /// One for each operation. Empty for raft's own entries (blank, membership).
    pub replies: Vec<Reply>,
}

#[cfg(test)]
mod tests;
