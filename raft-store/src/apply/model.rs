//! `apply` against a model so naive that it can be believed: entries and resolutions in plain maps, the published set
//! computed from scratch after every batch.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use allowlist::class::check_address;
use allowlist::{Digest, DomainName, Element, Entry, EntryId, Ports, Target};
use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use uuid::Uuid;

use crate::command::*;
use crate::driving::{DOMAINS, PORTS, TARGETS, new_entry};
use crate::features::FeatureLevel;
use crate::state::{EventKind, State};

const ADDRESSES: [&str; 6] = ["1.1.1.1", "8.8.8.8", "9.9.9.9", "2606:4700::1111", "10.0.0.1", "::1"];

fn id(number: u128) -> EntryId {
    EntryId(Uuid::from_u128(number))
}

fn domain(index: usize) -> DomainName {
    TARGETS[index].parse().unwrap()
}

fn address(index: usize) -> IpAddr {
    ADDRESSES[index].parse().unwrap()
}

fn ports(index: usize) -> Ports {
    Ports::new(PORTS[index].iter().map(|range| range.parse().unwrap()).collect()).unwrap()
}

fn plain_command() -> impl Strategy<Value = Command> {
    let ends = || proptest::option::of(1..12_u64);
    let add = (1..12_u128, 0..TARGETS.len(), 0..PORTS.len(), any::<bool>(), "[a-c]{0,2}", ends()).prop_map(
        |(number, t, p, protected, comment, expires_at_ms)| {
            Command::AddEntry(NewEntry {
                ports: ports(p),
                expires_at_ms,
                // Rarely, or soon nothing can be removed any more.
                protected: protected && number == 1,
                comment: comment.into(),
                ..new_entry(number, TARGETS[t])
            })
        },
    );
    let update = (1..12_u128, any::<Option<bool>>(), proptest::option::of("[a-c]{0,2}")).prop_map(
        |(number, protected, comment)| Command::UpdateEntry {
            id: id(number),
            update: EntryUpdate {
                protected: protected.filter(|_| number < 3),
                comment: comment.map(Into::into),
                ..EntryUpdate::default()
            },
        },
    );
    let change =
        (1..12_u128, any::<Option<bool>>(), ends()).prop_map(|(number, protected, expires_at_ms)| {
            let protected = protected.filter(|_| number < 3);
            let update = EntryUpdate { protected, ..EntryUpdate::default() };
            Command::ChangeEntry { id: id(number), update, expires_at_ms }
        });
    let seen = (0..ADDRESSES.len(), 1..4_u32).prop_map(|(index, ttl_s)| {
        let upstreams = BTreeSet::from(["9.9.9.9:53".to_owned()]);
        (address(index), SeenAddress { first_seen_ms: u64::from(ttl_s), ttl_s, upstreams })
    });
    let resolution = (0..DOMAINS, vec(seen, 0..4), vec(0..ADDRESSES.len(), 0..3), any::<bool>()).prop_map(
        |(name, seen, retire, ok)| {
            let resolution = ResolutionUpdate {
                seen: seen.into_iter().collect(),
                retire: retire.into_iter().map(address).collect(),
                chain: Vec::new(),
                status: if ok {
                    NameStatus::Ok
                } else {
                    NameStatus::Stale { since_ms: 5, error: "timeout".to_owned() }
                },
            };
            Command::SetResolution { domain: domain(name), resolution }
        },
    );
    let role = prop_oneof![Just(Role::Gateway), Just(Role::Editor), Just(Role::Admin)];
    let token = ("[x-z]", role, 7..9_u8).prop_map(|(name, role, secret)| {
        Command::AddToken(Token { name, role, sha256: [secret; 32], created_at_ms: 3 })
    });
    prop_oneof![
        6 => add,
        4 => (1..12_u128).prop_map(|number| Command::RemoveEntry { id: id(number) }),
        2 => update,
        2 => change,
        2 => vec(1..12_u128, 0..6).prop_map(|ids| Command::Expire { ids: ids.into_iter().map(id).collect() }),
        1 => Just(Command::RaiseFeatures(FeatureLevel::NEWEST)),
        6 => resolution,
        1 => token,
        1 => "[x-z]".prop_map(|name| Command::RemoveToken { name }),
        1 => (1..3_u128).prop_map(|number| Command::InitCluster { cluster: Uuid::from_u128(number) }),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    let once = ("[k-n]", 0..2_u8, vec(plain_command(), 0..3)).prop_map(|(key, fingerprint, commands)| {
        Command::Once(OnceCommand { key, fingerprint: [fingerprint; 32], commands })
    });
    let many = vec(plain_command(), 0..5).prop_map(|commands| {
        let entries = commands.into_iter().filter_map(|command| match command {
            Command::AddEntry(entry) => Some(entry),
            _ => None,
        });
        Command::AddEntries(entries.collect())
    });
    prop_oneof![8 => plain_command(), 2 => once, 1 => many]
}

/// Histories over a small world, so that things meet.
pub(crate) fn batches() -> impl Strategy<Value = Vec<Batch>> {
    let operation = command().prop_map(|command| Operation {
        origin: Origin { actor: "ops".to_owned(), ..Origin::default() },
        command,
    });
    let batch = (1..9_u64, vec(operation, 0..6)).prop_map(|(at_ms, operations)| Batch { at_ms, operations });
    vec(batch, 1..20)
}

#[derive(Default)]
struct Model {
    entries: BTreeMap<EntryId, Entry>,
    addresses: BTreeMap<DomainName, BTreeMap<IpAddr, u32>>,
    tokens: BTreeMap<String, Token>,
    cluster: Option<Uuid>,
    keys: BTreeSet<String>,
}

impl Model {
    fn apply(&mut self, batch: &Batch) {
        for operation in &batch.operations {
            self.run(&operation.origin.actor, batch.at_ms, operation.command.clone());
        }
    }

    fn run(&mut self, actor: &str, at_ms: u64, command: Command) {
        match command {
            Command::AddEntry(new) => {
                let same =
                    self.entries.values_mut().find(|one| one.target == new.target && one.ports == new.ports);
                if let Some(entry) = same {
                    entry.protected |= new.protected;
                    let longer =
                        entry.expires_at_ms.zip(new.expires_at_ms).map(|(one, other)| one.max(other));
                    entry.expires_at_ms = longer.filter(|_| !entry.protected);
                } else if !self.entries.contains_key(&new.id) {
                    let id = new.id;
                    let entry = new.made_by(actor, at_ms);
                    self.entries.insert(id, entry);
                }
            }
            Command::RemoveEntry { id } => {
                if self.entries.get(&id).is_some_and(|entry| !entry.protected) {
                    self.entries.remove(&id);
                }
            }
            Command::UpdateEntry { id, update } => {
                if let Some(entry) = self.entries.get_mut(&id)
                    && !(entry.protected && update.protected == Some(false))
                {
                    entry.protected = update.protected.unwrap_or(entry.protected);
                    entry.comment = update.comment.unwrap_or(entry.comment.clone());
                    entry.expires_at_ms = entry.expires_at_ms.filter(|_| !entry.protected);
                }
            }
            Command::ChangeEntry { id, update, expires_at_ms } => {
                if let Some(entry) = self.entries.get_mut(&id)
                    && !(entry.protected && (update.protected == Some(false) || expires_at_ms.is_some()))
                {
                    entry.protected = update.protected.unwrap_or(entry.protected);
                    entry.expires_at_ms = expires_at_ms.filter(|_| !entry.protected);
                }
            }
            Command::Expire { ids } => self.entries.retain(|id, entry| {
                entry.protected || !ids.contains(id) || entry.expires_at_ms.is_none_or(|ends| ends > at_ms)
            }),
            Command::SetResolution { domain, resolution } => {
                if self.names(&domain) {
                    let known = self.addresses.entry(domain).or_default();
                    for address in &resolution.retire {
                        if !resolution.seen.contains_key(address) {
                            known.remove(address);
                        }
                    }
                    let public =
                        resolution.seen.into_iter().filter(|(address, _)| check_address(*address).is_ok());
                    known.extend(public.map(|(address, seen)| (address, seen.ttl_s)));
                }
            }
            Command::InitCluster { cluster } => drop(self.cluster.get_or_insert(cluster)),
            Command::AddToken(token) => {
                self.tokens.entry(token.name.clone()).or_insert(token);
            }
            Command::RemoveToken { name } => {
                let mut after = self.tokens.clone();
                after.remove(&name);
                self.set_tokens(after);
            }
            // No history is long enough for a key to be forgotten.
            Command::Once(once) => {
                if !self.keys.contains(&once.key) {
                    self.keys.insert(once.key);
                    once.commands.into_iter().for_each(|command| self.run(actor, at_ms, command));
                }
            }
            Command::AddEntries(entries) => {
                entries.into_iter().for_each(|entry| self.run(actor, at_ms, Command::AddEntry(entry)));
            }
            Command::RaiseFeatures(_) => {}
            Command::Restore(_) | Command::RecordMember(_) => {
                unreachable!("not part of histories")
            }
        }
        let named: BTreeSet<_> = self.addresses.keys().filter(|domain| self.names(domain)).cloned().collect();
        self.addresses.retain(|domain, _| named.contains(domain));
    }

    fn set_tokens(&mut self, after: BTreeMap<String, Token>) {
        let admins =
            |tokens: &BTreeMap<String, Token>| tokens.values().filter(|one| one.role == Role::Admin).count();
        if admins(&after) > 0 || admins(&self.tokens) == 0 {
            self.tokens = after;
        }
    }

    fn names(&self, domain: &DomainName) -> bool {
        self.entries.values().any(|entry| entry.target == Target::Domain(domain.clone()))
    }

    fn published(&self) -> BTreeMap<Element, BTreeSet<EntryId>> {
        let mut published: BTreeMap<Element, BTreeSet<EntryId>> = BTreeMap::new();
        for entry in self.entries.values() {
            let prefixes: Vec<IpNet> = match &entry.target {
                Target::Domain(domain) => self
                    .addresses
                    .get(domain)
                    .into_iter()
                    .flatten()
                    .map(|(address, _)| IpNet::from(*address))
                    .collect(),
                Target::Address(address) => vec![IpNet::from(*address)],
                Target::Network(network) => vec![*network],
                Target::Wildcard { .. } => vec![],
            };
            for prefix in prefixes {
                let ranges: Vec<_> = match entry.ports.is_all() {
                    true => vec![None],
                    false => entry.ports.ranges().iter().copied().map(Some).collect(),
                };
                for range in ranges {
                    published.entry(Element::new(prefix, range)).or_default().insert(entry.id);
                }
            }
        }
        published
    }
}

fn set<'a>(elements: impl IntoIterator<Item = &'a Element>) -> BTreeSet<Element> {
    elements.into_iter().copied().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn state_is_what_a_naive_model_says(history in batches()) {
        let mut state = State::default();
        let mut model = Model::default();
        let mut lost = BTreeSet::new();
        for (batch, revision) in history.iter().zip(1..) {
            let before = set(state.published().elements());
            let (applied, reply) = state.apply(revision, batch);
            model.apply(batch);

            prop_assert_eq!(reply.replies.len(), batch.operations.len());
            let entries: BTreeMap<_, _> = state.entries().values().map(|entry| (entry.id, Entry::clone(entry))).collect();
            prop_assert_eq!(&entries, &model.entries);
            for entry in entries.values() {
                prop_assert_eq!(state.entry_by_key(&entry.target, &entry.ports).map(|found| found.id), Some(entry.id));
            }
            let tokens: BTreeMap<_, _> = state.tokens().clone().into_iter().collect();
            prop_assert_eq!(&tokens, &model.tokens);
            prop_assert_eq!(state.cluster(), model.cluster);
            for (domain, known) in state.resolutions() {
                prop_assert!(model.names(domain));
                let known: BTreeMap<_, _> = known.addresses.iter().map(|(address, seen)| (*address, seen.ttl_s)).collect();
                prop_assert_eq!(known, model.addresses.get(domain).cloned().unwrap_or_default());
            }

            let published = model.published();
            let after = set(state.published().elements());
            prop_assert_eq!(&after, &published.keys().copied().collect::<BTreeSet<_>>());
            for (element, owners) in &published {
                prop_assert_eq!(&state.published().owners(element).collect::<BTreeSet<_>>(), owners);
            }
            prop_assert_eq!(state.published().digest(), Digest::of(&after));

            let change = &applied.change;
            prop_assert_eq!(change.revision, revision);
            prop_assert_eq!(set(&change.added), &after - &before);
            let gone = &set(&change.revoked) | &set(&change.retired);
            prop_assert_eq!(&gone & &before, &before - &after);
            // What a removed entry had lost to DNS before is named as well, and nothing twice.
            prop_assert!(gone.is_disjoint(&after));
            prop_assert!((&gone - &before).is_subset(&lost));
            prop_assert_eq!(change.len(), change.added.len() + gone.len());
            lost.extend(&before - &after);
            let expiring = entries.values().filter_map(|entry| Some((entry.expires_at_ms?, entry.id)));
            prop_assert_eq!(state.expiring().iter().copied().collect::<BTreeSet<_>>(), expiring.collect());
            prop_assert!(state.histories().keys().all(|domain| state.resolutions().contains_key(domain)));
            for list in [&change.added, &change.revoked, &change.retired] {
                prop_assert!(list.is_sorted());
            }
        }
    }

    #[test]
    fn the_same_operation_twice_in_a_row_changes_nothing(history in batches()) {
        each_operation_twice(history)?;
    }
}

/// Promise 8, and every change but that of kept answers has an event.
fn each_operation_twice(history: Vec<Batch>) -> Result<(), TestCaseError> {
    let mut state = State::default();
    for (operation, revision) in history.into_iter().flat_map(|batch| batch.operations).zip(1..) {
        let batch = Batch { at_ms: revision, operations: vec![operation] };
        let before = state.clone();
        let (first, reply) = state.apply(revision, &batch);
        let news = first.events.iter().any(|event| !matches!(event.kind, EventKind::ProtectedRefused(_)));
        let changed = State { revision, kept: state.kept.clone(), ..before } != state;
        // Several commands can undo each other.
        prop_assert!(news || !changed);
        prop_assert!(changed || !news || matches!(batch.operations[0].command, Command::Once(_)));
        // Of several entries, one that was refused because its id is taken finds its key the next time when a later one
        // brought it. It may then strengthen that entry, and no more.
        if matches!(reply.replies[0], Reply::AddedMany { refused: 1.., .. }) {
            let once = state.clone();
            let (second, _) = state.apply(revision, &batch);
            let mut stronger = once;
            for event in &second.events {
                let EventKind::EntryUpdated(entry) = &event.kind else {
                    return Err(TestCaseError::fail(format!("{event:?}")));
                };
                let old = Entry::clone(stronger.entries.get(&entry.id).unwrap());
                stronger.put(entry.clone());
                let weaker = Entry {
                    protected: old.protected,
                    expires_at_ms: old.expires_at_ms,
                    ..Entry::clone(entry)
                };
                prop_assert_eq!(&old, &weaker);
                let longer = entry.expires_at_ms.is_none_or(|ends| old.expires_at_ms < Some(ends));
                prop_assert!(entry.protected || longer);
            }
            prop_assert_eq!(&state, &stronger);
            prop_assert!(second.change.is_empty());
        }
        let once = state.clone();
        let (second, reply) = state.apply(revision, &batch);
        prop_assert_eq!(&state, &once);
        prop_assert!(second.events.iter().all(|event| matches!(event.kind, EventKind::ProtectedRefused(_))));
        prop_assert!(second.change.is_empty());
        let news = matches!(reply.replies[0], Reply::Done | Reply::Added { created: true, .. });
        prop_assert!(!news);
    }
    Ok(())
}

/// What version 0.1.0 does, so it stays. Ids are random: only a client that makes them badly meets this.
#[test]
fn an_entry_refused_for_its_id_strengthens_the_one_with_its_key_when_all_are_asked_for_again() {
    let operation = |command| Operation { origin: Origin::default(), command };
    let entry =
        |number, protected| NewEntry { ports: ports(1), protected, ..new_entry(number, "2606:4700::1111") };
    let taken = operation(Command::AddEntry(new_entry(1, "a.example.com")));
    let both = operation(Command::AddEntries(vec![entry(1, true), entry(2, false)]));
    let batch = |operations| Batch { at_ms: 1, operations };
    each_operation_twice(vec![batch(vec![taken.clone()]), batch(vec![both.clone()])]).unwrap();

    let mut state = State::default();
    state.apply(1, &batch(vec![taken]));
    let again = batch(vec![both]);
    let mut apply = |revision| {
        let (_, reply) = state.apply(revision, &again);
        (reply.replies, state.entry(id(2)).unwrap().protected)
    };
    assert_eq!(apply(2), (vec![Reply::AddedMany { created: 1, existing: 0, refused: 1 }], false));
    assert_eq!(apply(3), (vec![Reply::AddedMany { created: 0, existing: 2, refused: 0 }], true));
    assert_eq!(apply(4), (vec![Reply::AddedMany { created: 0, existing: 2, refused: 0 }], true));
}
