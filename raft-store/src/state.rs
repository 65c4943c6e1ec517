//! The replicated state in memory, and what is told of its changes. The only door into it is [`State::apply`].

mod entries;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use allowlist::{Change, Digest, DomainName, Entry, EntryId, Ports, Published, Revision, Target};
use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::command::{MemberEvent, NameStatus, Origin, SeenAddress, Token};
use crate::features::FeatureLevel;
use crate::history::History;
use crate::kept::{Kept, KeptName};

pub use entries::Entries;

/// What is known of a domain's addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resolution {
    /// Published addresses of the name.
    pub addresses: BTreeMap<IpAddr, SeenAddress>,
    /// CNAME chain, the name itself first; empty when there is none.
    pub chain: Vec<DomainName>,
    /// How the name stands.
    pub status: NameStatus,
    /// When the status or the addresses last changed, Unix milliseconds.
    pub changed_at_ms: u64,
}

/// Everything the cluster agrees on. The maps are persistent ones that share structure between versions, so `clone`
/// costs the same for ten entries and for a million: readers, checkpoints and snapshots each hold a version of their
/// own, and nobody waits for anybody.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    pub(crate) cluster: Option<Uuid>,
    pub(crate) features: FeatureLevel,
    pub(crate) revision: Revision,
    pub(crate) entries: Entries,
    pub(crate) resolutions: OrdMap<DomainName, Arc<Resolution>>,
    pub(crate) published: Published,
    pub(crate) tokens: OrdMap<String, Token>,
    pub(crate) kept: Kept,
    /// Of names whose addresses changed since the cluster has agreed to remember that.
    pub(crate) histories: OrdMap<DomainName, Arc<History>>,
    /// Changes in all of them together. Follows from them.
    pub(crate) remembered: usize,
    /// Entries that end by themselves, by time. Follows from the entries.
    pub(crate) expiring: OrdSet<(u64, EntryId)>,
}

/// One applied log entry, as feed, audit log and live UI see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedBatch {
    /// The log index.
    pub revision: Revision,
    /// The leader's clock, Unix milliseconds.
    pub at_ms: u64,
    /// What happened, in order.
    pub events: Vec<Event>,
    /// What it did to the published set, net; what left it before and may drain is revoked with its entry.
    pub change: Change,
    /// Digest of the published set afterwards.
    #[serde(skip)]
    pub published: Digest,
    /// Kept answers that came or went: nobody's business but the checkpoint's.
    #[serde(skip)]
    pub(crate) kept: Vec<KeptName>,
}

/// One thing that happened. Every change of the state, kept answers aside, has an event that names what changed: the
/// checkpoint relies on it to know which keys to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Who caused it; the events of one operation share it.
    pub origin: Arc<Origin>,
    /// What.
    pub kind: EventKind,
}

/// Kinds of events. Append-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// An entry was added.
    EntryAdded(Arc<Entry>),
    /// An entry was removed.
    EntryRemoved(Arc<Entry>),
    /// An entry's texts or protection changed; this is the new entry.
    EntryUpdated(Arc<Entry>),
    /// A removal or weakening of a protected entry was refused.
    ProtectedRefused(EntryId),
    /// A domain's addresses or status changed.
    Resolved(Box<Resolved>),
    /// A token was made or replaced.
    TokenAdded(String),
    /// A token was removed.
    TokenRemoved(String),
    /// The cluster got its identity.
    ClusterInitialised(Uuid),
    /// The cluster agreed on a feature level.
    FeaturesRaised(FeatureLevel),
    /// A change of the membership.
    Member(Box<MemberEvent>),
}

/// What became of a domain. Apart from the others, so that a million entries that were added do not each take its room in
/// the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// The name.
    pub domain: DomainName,
    /// Addresses that joined.
    pub added: Vec<IpAddr>,
    /// Addresses that left.
    pub retired: Vec<IpAddr>,
    /// How it stands now.
    pub status: NameStatus,
}

impl State {
    /// The cluster's id, once it has one.
    pub fn cluster(&self) -> Option<Uuid> {
        self.cluster
    }

    /// What the cluster has agreed to use.
    pub fn features(&self) -> FeatureLevel {
        self.features
    }

    /// Index of the last applied log entry.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// All entries by id (which is by creation time).
    pub fn entries(&self) -> &Entries {
        &self.entries
    }

    /// The entry with this id.
    pub fn entry(&self, id: EntryId) -> Option<&Arc<Entry>> {
        self.entries.get(&id)
    }

    /// The entry with this natural key.
    pub fn entry_by_key(&self, target: &Target, ports: &Ports) -> Option<&Arc<Entry>> {
        self.entries.get_by_key(target, ports)
    }

    /// The entries that name `domain`, one for each set of ports.
    pub fn entries_of(&self, domain: &DomainName) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.of_target(Target::Domain(domain.clone()))
    }

    /// What DNS said of the domains in the list. A name is here exactly while an entry names it.
    pub fn resolutions(&self) -> &OrdMap<DomainName, Arc<Resolution>> {
        &self.resolutions
    }

    /// How the addresses of the names in the list changed.
    pub fn histories(&self) -> &OrdMap<DomainName, Arc<History>> {
        &self.histories
    }

    /// Puts the histories of a checkpoint or snapshot in place.
    pub(crate) fn remember(&mut self, histories: Vec<(DomainName, History)>) {
        self.remembered = histories.iter().map(|(_, history)| history.changes().len()).sum();
        self.histories = histories.into_iter().map(|(name, history)| (name, Arc::new(history))).collect();
    }

    /// Entries that end by themselves, with their times (Unix milliseconds), soonest first.
    pub fn expiring(&self) -> &OrdSet<(u64, EntryId)> {
        &self.expiring
    }

    /// The published set.
    pub fn published(&self) -> &Published {
        &self.published
    }

    /// API tokens by name.
    pub fn tokens(&self) -> &OrdMap<String, Token> {
        &self.tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The history holds up to half a million of them ([`crate::reader::HISTORY_CHANGES`]).
    #[test]
    fn an_event_is_a_few_pointers() {
        assert!(size_of::<Event>() <= 40, "{} bytes", size_of::<Event>());
    }
}
