//! [`State::apply`], the only door into the state. It reads no clock, draws no random number and touches no disk or
//! network; the same batches in the same order give the same state on every node, for ever: a rule here may only be
//! changed together with a new command variant, because old log entries are replayed through it.

mod entries;
mod impact;
mod restore;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use allowlist::class::check_address;
use allowlist::{Change, DomainName, Element, Entry, EntryId, Ports, Published, Revision, Target};
use ipnet::IpNet;
use uuid::Uuid;

use crate::command::{
    Batch, BatchReply, Command, CommandRefusal, OnceCommand, Origin, Reply, ResolutionUpdate, Role, Token,
};
use crate::features::FeatureLevel;
use crate::history::{AddressChange, History, MAX_CHANGES_OF_ALL};
use crate::kept::{KeptAnswer, KeptName, MAX_KEPT_REPLIES, Now, name_of};
use crate::state::{AppliedBatch, Event, EventKind, Resolution, Resolved, State};

pub use impact::Impact;

/// Most elements that left DNS before and are revoked with the entries removed by one log entry.
const MAX_DRAINED_PER_BATCH: usize = 50_000;

impl State {
    /// Applies one log entry at `revision`. Cannot fail: a command that does not fit the state is answered with a
    /// refusal.
    pub fn apply(&mut self, revision: Revision, batch: &Batch) -> (AppliedBatch, BatchReply) {
        self.revision = revision;
        let mut kept = Vec::new();
        self.kept.forget_old(Now { at_ms: batch.at_ms, revision }, &mut kept);
        let mut step = Step {
            state: self,
            at_ms: batch.at_ms,
            position: 0,
            events: Vec::new(),
            touched: BTreeMap::new(),
            drained: BTreeSet::new(),
            kept,
        };
        let mut replies = Vec::with_capacity(batch.operations.len());
        for (operation, position) in batch.operations.iter().zip(0..) {
            step.position = position;
            let origin = Arc::new(operation.origin.clone());
            replies.push(match &operation.command {
                Command::Once(once) => step.once(&origin, once),
                command => step.run(&origin, command),
            });
        }
        let Step { events, touched, kept, drained, .. } = step;
        let change = net_change(revision, &touched, drained, &self.published);
        (
            AppliedBatch {
                revision,
                at_ms: batch.at_ms,
                events,
                change,
                published: self.published.digest(),
                kept,
            },
            BatchReply { revision, replies },
        )
    }

    /// Builds a state from its parts, as a checkpoint or snapshot holds them.
    ///
    /// # Errors
    /// A sentence when the parts do not fit together.
    pub(crate) fn restore(
        cluster: Option<Uuid>,
        revision: Revision,
        resolutions: Vec<(DomainName, Resolution)>,
        tokens: Vec<Token>,
        entries: Vec<Entry>,
    ) -> Result<Self, String> {
        let mut state = Self { cluster, revision, ..Self::default() };
        state.resolutions = resolutions.into_iter().map(|(name, known)| (name, Arc::new(known))).collect();
        state.tokens = tokens.into_iter().map(|token| (token.name.clone(), token)).collect();
        for entry in entries {
            if state.entries.contains_key(&entry.id)
                || state.entry_by_key(&entry.target, &entry.ports).is_some()
            {
                return Err(format!("entry {} ({}) is there twice", entry.id, entry.target));
            }
            if let Target::Domain(domain) = &entry.target
                && !state.resolutions.contains_key(domain)
            {
                return Err(format!("entry {} names {domain}, which has no resolution", entry.id));
            }
            state.link(Arc::new(entry), |_| {});
        }
        match state.resolutions.keys().find(|domain| state.entries_of(domain).next().is_none()) {
            Some(domain) => Err(format!("no entry names {domain}, which has a resolution")),
            None => Ok(state),
        }
    }

    /// Takes note of a log entry without operations (raft's own: blank, membership).
    pub(crate) fn pass(&mut self, revision: Revision) {
        self.revision = revision;
    }

    /// Puts `entry` in place and publishes its elements. Also how a state is built from a checkpoint or snapshot,
    /// after the resolutions.
    pub(crate) fn link(&mut self, entry: Arc<Entry>, mut published: impl FnMut(Element)) {
        let id = entry.id;
        for element in elements(&entry, self.resolved(&entry)) {
            if self.published.claim(element, id) {
                published(element);
            }
        }
        self.put(entry);
    }

    /// Puts `entry` in the place of the one with its id, if there is one.
    pub(crate) fn put(&mut self, entry: Arc<Entry>) {
        let (id, ends) = (entry.id, entry.expires_at_ms);
        let before = self.entries.insert(entry).and_then(|before| before.expires_at_ms);
        if before != ends {
            before.map(|at_ms| self.expiring.remove(&(at_ms, id)));
            ends.map(|at_ms| self.expiring.insert((at_ms, id)));
        }
    }

    /// The addresses known of the domain `entry` names; none for other targets.
    fn resolved(&self, entry: &Entry) -> Vec<IpAddr> {
        let Target::Domain(domain) = &entry.target else { return Vec::new() };
        self.resolutions
            .get(domain)
            .map(|known| known.addresses.keys().copied().collect())
            .unwrap_or_default()
    }
}

/// The elements `entry` owns, given what its domain resolves to. One for each range of ports and prefix.
fn elements(entry: &Entry, resolved: Vec<IpAddr>) -> Vec<Element> {
    let prefixes: Vec<IpNet> = match &entry.target {
        Target::Domain(_) => resolved.into_iter().map(IpNet::from).collect(),
        Target::Address(address) => vec![IpNet::from(*address)],
        Target::Network(network) => vec![*network],
        Target::Wildcard { .. } => Vec::new(),
    };
    prefixes.into_iter().flat_map(|prefix| with_ports(prefix, &entry.ports)).collect()
}

fn with_ports(prefix: IpNet, ports: &Ports) -> Vec<Element> {
    if ports.is_all() {
        return vec![Element::new(prefix, None)];
    }
    ports.ranges().iter().map(|range| Element::new(prefix, Some(*range))).collect()
}

/// Why an element left the published set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Revoked,
    Retired,
}

/// An element a batch added or removed at least once.
#[derive(Debug)]
struct Touched {
    was_published: bool,
    last_loss: Option<Loss>,
}

/// One batch under way.
struct Step<'a> {
    state: &'a mut State,
    at_ms: u64,
    /// Of the operation in the batch.
    position: u32,
    events: Vec<Event>,
    touched: BTreeMap<Element, Touched>,
    /// Elements that a removed entry had lost before, and that may still drain.
    drained: BTreeSet<Element>,
    /// Names of kept answers that came or went.
    kept: Vec<KeptName>,
}

impl Step<'_> {
    fn run(&mut self, origin: &Arc<Origin>, command: &Command) -> Reply {
        match command {
            Command::AddEntry(new) => self.add_entry(origin, new),
            Command::RemoveEntry { id } => self.remove_entry(origin, *id),
            Command::UpdateEntry { id, update } => self.update_entry(origin, *id, update, None),
            Command::ChangeEntry { id, update, expires_at_ms } => {
                self.update_entry(origin, *id, update, Some(*expires_at_ms))
            }
            Command::Expire { ids } => self.expire(origin, ids),
            Command::SetResolution { domain, resolution } => self.set_resolution(origin, domain, resolution),
            Command::InitCluster { cluster } => {
                if self.state.cluster.is_some() {
                    return Reply::Unchanged;
                }
                self.state.cluster = Some(*cluster);
                self.tell(origin, EventKind::ClusterInitialised(*cluster));
                Reply::Done
            }
            Command::AddToken(token) => self.add_token(origin, token),
            Command::RemoveToken { name } => self.remove_token(origin, name),
            // A key within a key: nobody proposes that.
            Command::Once(_) => Reply::Unchanged,
            Command::AddEntries(entries) => self.add_entries(origin, entries),
            Command::Restore(parts) => self.restore(origin, parts),
            Command::RaiseFeatures(level) => {
                if *level <= self.state.features {
                    return Reply::Unchanged;
                }
                self.state.features = *level;
                self.tell(origin, EventKind::FeaturesRaised(*level));
                Reply::Done
            }
            Command::RecordMember(event) => {
                self.tell(origin, EventKind::Member(Box::new(event.clone())));
                Reply::Done
            }
        }
    }

    fn once(&mut self, origin: &Arc<Origin>, once: &OnceCommand) -> Reply {
        let name = name_of(&origin.actor, &once.key);
        let now = Now { at_ms: self.at_ms, revision: self.state.revision };
        if let Some(known) = self.state.kept.find(&name, now) {
            if known.fingerprint != once.fingerprint {
                return Reply::Refused(CommandRefusal::KeyReused(once.key.clone()));
            }
            let KeptAnswer { at_ms, revision, replies, .. } = KeptAnswer::clone(known);
            return Reply::Once { replayed: true, at_ms, revision, replies };
        }
        let replies: Vec<_> = once.commands.iter().map(|command| self.run(origin, command)).collect();
        let (at_ms, revision) = (self.at_ms, self.state.revision);
        let answer = KeptAnswer {
            name,
            fingerprint: once.fingerprint,
            at_ms,
            revision,
            position: self.position,
            replies: replies.clone(),
        };
        self.state.kept.keep(answer, MAX_KEPT_REPLIES, &mut self.kept);
        Reply::Once { replayed: false, at_ms, revision, replies }
    }

    fn set_resolution(
        &mut self,
        origin: &Arc<Origin>,
        domain: &DomainName,
        update: &ResolutionUpdate,
    ) -> Reply {
        // A name is here exactly while an entry names it.
        let Some(known) = self.state.resolutions.get(domain).cloned() else { return Reply::Unchanged };
        let mut next = Resolution::clone(&known);
        let mut added = Vec::new();
        for (address, seen) in &update.seen {
            // The resolver refused these already; DNS must not publish them by any path.
            if check_address(*address).is_err() {
                continue;
            }
            match next.addresses.get_mut(address) {
                Some(stored) => {
                    stored.ttl_s = seen.ttl_s;
                    stored.upstreams.clone_from(&seen.upstreams);
                }
                None => {
                    next.addresses.insert(*address, seen.clone());
                    added.push(*address);
                }
            }
        }
        let mut retired = Vec::new();
        for address in &update.retire {
            // Seen and retired at once is a contradiction; the sighting is the newer knowledge.
            if !update.seen.contains_key(address) && next.addresses.remove(address).is_some() {
                retired.push(*address);
            }
        }
        next.chain.clone_from(&update.chain);
        next.status.clone_from(&update.status);
        if next == *known {
            return Reply::Unchanged;
        }
        if !added.is_empty() || !retired.is_empty() || next.status != known.status {
            next.changed_at_ms = self.at_ms;
        }
        if !(added.is_empty() && retired.is_empty()) && self.state.features >= FeatureLevel::LIFETIMES {
            let mut history =
                self.state.histories.get(domain).map(|known| History::clone(known)).unwrap_or_default();
            let (revision, at_ms) = (self.state.revision, self.at_ms);
            let before = history.changes().len();
            let change = AddressChange { revision, at_ms, added: added.clone(), retired: retired.clone() };
            history.push(change, self.state.remembered < MAX_CHANGES_OF_ALL);
            self.state.remembered = self.state.remembered + history.changes().len() - before;
            self.state.histories.insert(domain.clone(), Arc::new(history));
        }
        let owners: Vec<Arc<Entry>> = self.state.entries_of(domain).cloned().collect();
        let status = next.status.clone();
        self.state.resolutions.insert(domain.clone(), Arc::new(next));
        for owner in &owners {
            for element in elements(owner, added.clone()) {
                self.claim(element, owner.id);
            }
            for element in elements(owner, retired.clone()) {
                self.release(element, owner.id, Loss::Retired);
            }
        }
        let resolved = Resolved { domain: domain.clone(), added, retired, status };
        self.tell(origin, EventKind::Resolved(Box::new(resolved)));
        Reply::Done
    }

    fn add_token(&mut self, origin: &Arc<Origin>, token: &Token) -> Reply {
        // Decided here and not before the write: of two writers with the same name, one must be told.
        if let Some(there) = self.state.tokens.get(&token.name) {
            if there.sha256 == token.sha256 {
                return Reply::Unchanged;
            }
            return Reply::Refused(CommandRefusal::TokenExists(token.name.clone()));
        }
        self.state.tokens.insert(token.name.clone(), token.clone());
        self.tell(origin, EventKind::TokenAdded(token.name.clone()));
        Reply::Done
    }

    fn remove_token(&mut self, origin: &Arc<Origin>, name: &str) -> Reply {
        if !self.state.tokens.contains_key(name) {
            return Reply::Refused(CommandRefusal::NoSuchToken(name.to_owned()));
        }
        if self.is_last_admin(name) {
            return Reply::Refused(CommandRefusal::LastAdmin(name.to_owned()));
        }
        self.state.tokens.remove(name);
        self.tell(origin, EventKind::TokenRemoved(name.to_owned()));
        Reply::Done
    }

    /// True when `name` is an admin token and there is no other.
    fn is_last_admin(&self, name: &str) -> bool {
        self.state.tokens.get(name).is_some_and(|token| token.role == Role::Admin)
            && self.state.tokens.values().filter(|token| token.role == Role::Admin).count() == 1
    }

    fn claim(&mut self, element: Element, owner: EntryId) {
        if self.state.published.claim(element, owner) {
            gained(&mut self.touched, element);
        }
    }

    fn release(&mut self, element: Element, owner: EntryId, loss: Loss) {
        if self.state.published.release(element, owner) {
            let touched =
                self.touched.entry(element).or_insert(Touched { was_published: true, last_loss: None });
            touched.last_loss = Some(loss);
        }
    }

    fn tell(&mut self, origin: &Arc<Origin>, kind: EventKind) {
        self.events.push(Event { origin: Arc::clone(origin), kind });
    }
}

fn gained(touched: &mut BTreeMap<Element, Touched>, element: Element) {
    touched.entry(element).or_insert(Touched { was_published: false, last_loss: None });
}

/// What the whole batch did: an element that came and went (or went and came back) is in no list, and the last cause
/// of a loss is the one that counts.
fn net_change(
    revision: Revision,
    touched: &BTreeMap<Element, Touched>,
    mut drained: BTreeSet<Element>,
    published: &Published,
) -> Change {
    let mut change = Change { revision, ..Change::default() };
    for (element, history) in touched {
        match (history.was_published, published.contains(element), history.last_loss) {
            (false, true, _) => change.added.push(*element),
            (true, false, Some(Loss::Revoked)) => change.revoked.push(*element),
            (true, false, Some(Loss::Retired) | None) => change.retired.push(*element),
            _ => {}
        }
    }
    drained.retain(|element| !published.contains(element));
    if !drained.is_empty() {
        // One list, sorted; what drains and was revoked in the same moment stands in it once.
        drained.extend(change.revoked.drain(..));
        change.retired.retain(|element| !drained.contains(element));
        change.revoked = drained.into_iter().collect();
    }
    change
}

#[cfg(test)]
pub(crate) mod model;
#[cfg(test)]
mod tests;
