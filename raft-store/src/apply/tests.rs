use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::command::{EntryUpdate, NameStatus, NewEntry, Operation, RestorePart, SeenAddress};
use crate::driving::new_entry;

mod lifetimes;

fn id(number: u128) -> EntryId {
    EntryId(Uuid::from_u128(number))
}

fn add(number: u128, target: &str, ports: &[&str]) -> Command {
    let ports = Ports::new(ports.iter().map(|range| range.parse().unwrap()).collect()).unwrap();
    Command::AddEntry(NewEntry { ports, ..new_entry(number, target) })
}

fn add_protected(number: u128, target: &str) -> Command {
    let Command::AddEntry(new) = add(number, target, &[]) else { unreachable!() };
    Command::AddEntry(NewEntry { protected: true, ..new })
}

fn remove(number: u128) -> Command {
    Command::RemoveEntry { id: id(number) }
}

fn resolve(domain: &str, seen: &[&str], retire: &[&str]) -> Command {
    let stored = SeenAddress { first_seen_ms: 1, ttl_s: 60, upstreams: BTreeSet::new() };
    Command::SetResolution {
        domain: domain.parse().unwrap(),
        resolution: ResolutionUpdate {
            seen: seen.iter().map(|address| (address.parse().unwrap(), stored.clone())).collect(),
            retire: retire.iter().map(|address| address.parse().unwrap()).collect(),
            chain: Vec::new(),
            status: NameStatus::Ok,
        },
    }
}

fn token(name: &str, role: Role) -> Command {
    Command::AddToken(Token { name: name.to_owned(), role, sha256: [1; 32], created_at_ms: 0 })
}

fn apply(state: &mut State, commands: impl IntoIterator<Item = Command>) -> (AppliedBatch, Vec<Reply>) {
    let operations =
        commands.into_iter().map(|command| Operation { origin: Origin::default(), command }).collect();
    let (applied, reply) = state.apply(state.revision() + 1, &Batch { at_ms: 1_000, operations });
    (applied, reply.replies)
}

fn texts(elements: &[Element]) -> Vec<String> {
    elements.iter().map(ToString::to_string).collect()
}

#[test]
fn an_address_is_published_at_once_with_one_element_for_each_range_of_ports() {
    let mut state = State::default();
    let (applied, replies) =
        apply(&mut state, [add(1, "1.1.1.1", &["udp/53", "tcp/443"]), add(2, "9.9.9.0/24", &[])]);
    assert_eq!(
        replies,
        [Reply::Added { id: id(1), created: true }, Reply::Added { id: id(2), created: true }]
    );
    assert_eq!(texts(&applied.change.added), ["1.1.1.1/32 tcp/443", "1.1.1.1/32 udp/53", "9.9.9.0/24"]);
}

#[test]
fn the_same_target_and_ports_answer_with_the_entry_that_is_there() {
    let mut state = State::default();
    apply(&mut state, [add(1, "1.1.1.1", &["tcp/443"])]);
    let (applied, replies) =
        apply(&mut state, [add(2, "1.1.1.1", &["tcp/443"]), add(3, "1.1.1.1", &["tcp/80"])]);
    assert_eq!(
        replies,
        [Reply::Added { id: id(1), created: false }, Reply::Added { id: id(3), created: true }]
    );
    assert_eq!(applied.events.len(), 1);
}

#[test]
fn an_id_that_is_taken_is_refused() {
    let mut state = State::default();
    let (_, replies) = apply(&mut state, [add(1, "1.1.1.1", &[]), add(1, "8.8.8.8", &[])]);
    assert_eq!(replies[1], Reply::Refused(CommandRefusal::IdTaken(id(1))));
    assert_eq!(state.published().len(), 1);
}

#[test]
fn an_address_two_domains_share_stays_until_the_last_leaves() {
    let mut state = State::default();
    apply(&mut state, [add(1, "a.example.com", &[]), add(2, "b.example.com", &[])]);
    let (applied, _) = apply(
        &mut state,
        [resolve("a.example.com", &["1.1.1.1"], &[]), resolve("b.example.com", &["1.1.1.1"], &[])],
    );
    assert_eq!(texts(&applied.change.added), ["1.1.1.1/32"]);
    assert!(apply(&mut state, [remove(1)]).0.change.is_empty());
    let (applied, _) = apply(&mut state, [resolve("b.example.com", &[], &["1.1.1.1"])]);
    assert_eq!(texts(&applied.change.retired), ["1.1.1.1/32"]);
    assert!(state.published().is_empty());
}

#[test]
fn entries_of_one_domain_share_its_resolution_and_claim_their_own_ports() {
    let mut state = State::default();
    apply(&mut state, [add(1, "a.example.com", &["tcp/443"]), resolve("a.example.com", &["1.1.1.1"], &[])]);
    let (applied, _) = apply(&mut state, [add(2, "a.example.com", &["tcp/80"])]);
    assert_eq!(texts(&applied.change.added), ["1.1.1.1/32 tcp/80"]);
    let (applied, _) = apply(&mut state, [remove(1)]);
    assert_eq!(texts(&applied.change.revoked), ["1.1.1.1/32 tcp/443"]);
    assert_eq!(state.resolutions().len(), 1);
    apply(&mut state, [remove(2)]);
    assert!(state.resolutions().is_empty());
    // A resolution that was under way when the entry went.
    let (applied, replies) = apply(&mut state, [resolve("a.example.com", &["1.1.1.1"], &[])]);
    assert_eq!((replies, applied.events.len()), (vec![Reply::Unchanged], 0));
}

#[test]
fn dns_cannot_publish_an_address_that_is_not_public() {
    let mut state = State::default();
    let resolved = resolve("a.example.com", &["10.0.0.1", "127.0.0.1", "::ffff:192.168.0.1", "1.1.1.1"], &[]);
    let (applied, _) = apply(&mut state, [add(1, "a.example.com", &[]), resolved]);
    assert_eq!(texts(&applied.change.added), ["1.1.1.1/32"]);
    assert_eq!(state.resolutions().values().next().unwrap().addresses.len(), 1);
}

#[test]
fn a_wildcard_is_kept_and_publishes_nothing() {
    let mut state = State::default();
    let (applied, _) = apply(&mut state, [add(1, "*.example.com", &[])]);
    assert!(applied.change.is_empty() && state.entries().len() == 1);
}

#[test]
fn what_comes_and_goes_in_one_batch_is_in_no_list_and_the_last_cause_wins() {
    let mut state = State::default();
    let (applied, _) = apply(&mut state, [add(1, "1.1.1.1", &[]), remove(1)]);
    assert!(applied.change.is_empty() && applied.events.len() == 2);

    apply(&mut state, [add(1, "1.1.1.1", &[])]);
    let (applied, _) = apply(&mut state, [remove(1), add(2, "1.1.1.1", &[])]);
    assert!(applied.change.is_empty());

    let (applied, _) = apply(
        &mut state,
        [
            remove(2),
            add(3, "a.example.com", &[]),
            resolve("a.example.com", &["1.1.1.1"], &[]),
            resolve("a.example.com", &[], &["1.1.1.1"]),
        ],
    );
    assert_eq!((texts(&applied.change.retired), applied.change.len()), (vec!["1.1.1.1/32".to_owned()], 1));
}

#[test]
fn a_protected_entry_is_neither_removed_nor_weakened_and_the_attempt_is_told() {
    let mut state = State::default();
    apply(&mut state, [add_protected(1, "1.1.1.1")]);
    let weaken =
        EntryUpdate { protected: Some(false), comment: Some("new".into()), ..EntryUpdate::default() };
    let (applied, replies) =
        apply(&mut state, [remove(1), Command::UpdateEntry { id: id(1), update: weaken }]);
    assert_eq!(replies, vec![Reply::Refused(CommandRefusal::Protected(id(1))); 2]);
    let kinds: Vec<_> = applied.events.into_iter().map(|event| event.kind).collect();
    assert_eq!(kinds, vec![EventKind::ProtectedRefused(id(1)); 2]);
    let entry = state.entry(id(1)).unwrap();
    assert!(entry.protected && entry.comment.is_empty());
}

#[test]
fn adding_again_with_protection_strengthens_the_entry() {
    let mut state = State::default();
    apply(&mut state, [add(1, "1.1.1.1", &[])]);
    let (applied, replies) = apply(&mut state, [add_protected(2, "1.1.1.1")]);
    assert_eq!(replies, [Reply::Added { id: id(1), created: false }]);
    assert!(matches!(&applied.events[0].kind, EventKind::EntryUpdated(entry) if entry.protected));
    assert!(apply(&mut state, [add(3, "1.1.1.1", &[])]).0.events.is_empty());
    assert!(state.entry(id(1)).unwrap().protected);
}

#[test]
fn a_new_sighting_keeps_the_first_time_an_address_was_seen() {
    let mut state = State::default();
    apply(&mut state, [add(1, "a.example.com", &[]), resolve("a.example.com", &["1.1.1.1"], &[])]);
    let seen = SeenAddress { first_seen_ms: 99, ttl_s: 5, upstreams: BTreeSet::new() };
    let resolution = ResolutionUpdate {
        seen: BTreeMap::from([("1.1.1.1".parse().unwrap(), seen)]),
        retire: BTreeSet::from(["1.1.1.1".parse().unwrap()]),
        status: NameStatus::Ok,
        ..ResolutionUpdate::default()
    };
    let domain: DomainName = "a.example.com".parse().unwrap();
    apply(&mut state, [Command::SetResolution { domain: domain.clone(), resolution }]);
    let stored = &state.resolutions()[&domain].addresses[&"1.1.1.1".parse().unwrap()];
    assert_eq!((stored.first_seen_ms, stored.ttl_s), (1, 5));
}

#[test]
fn of_two_tokens_with_one_name_the_first_stays_and_the_second_is_refused() {
    let mut state = State::default();
    let made = |secret: u8, role, created_at_ms| {
        Command::AddToken(Token { name: "ci".to_owned(), role, sha256: [secret; 32], created_at_ms })
    };
    let first = made(1, Role::Viewer, 5);
    let again = made(1, Role::Viewer, 6);
    let (applied, replies) = apply(&mut state, [first, again, made(2, Role::Admin, 7)]);
    let refused = Reply::Refused(CommandRefusal::TokenExists("ci".to_owned()));
    assert_eq!(replies, [Reply::Done, Reply::Unchanged, refused]);
    let kept = &state.tokens()["ci"];
    assert_eq!((kept.sha256, kept.role, kept.created_at_ms), ([1; 32], Role::Viewer, 5));
    assert_eq!(applied.events.len(), 1);
}

#[test]
fn the_last_admin_token_can_be_neither_removed_nor_demoted() {
    let mut state = State::default();
    let (_, replies) = apply(
        &mut state,
        [
            token("root", Role::Admin),
            token("root", Role::Viewer),
            Command::RemoveToken { name: "root".to_owned() },
            token("second", Role::Admin),
            Command::RemoveToken { name: "root".to_owned() },
            Command::RemoveToken { name: "root".to_owned() },
        ],
    );
    let last = || Reply::Refused(CommandRefusal::LastAdmin("root".to_owned()));
    let gone = Reply::Refused(CommandRefusal::NoSuchToken("root".to_owned()));
    assert_eq!(replies, [Reply::Done, Reply::Unchanged, last(), Reply::Done, Reply::Done, gone]);
    assert!(state.tokens().values().all(|token| token.role == Role::Admin));
}

#[test]
fn the_first_cluster_identity_wins() {
    let mut state = State::default();
    let init = |number| Command::InitCluster { cluster: Uuid::from_u128(number) };
    let (_, replies) = apply(&mut state, [init(1), init(2)]);
    assert_eq!(replies, [Reply::Done, Reply::Unchanged]);
    assert_eq!(state.cluster(), Some(Uuid::from_u128(1)));
}

#[test]
fn parts_that_do_not_fit_together_do_not_make_a_state() {
    let mut state = State::default();
    apply(&mut state, [add(1, "a.example.com", &[])]);
    let entry = Entry::clone(state.entry(id(1)).unwrap());
    let known: (DomainName, Resolution) = ("a.example.com".parse().unwrap(), Resolution::default());
    State::restore(None, 1, vec![known.clone()], vec![], vec![entry.clone()]).unwrap();
    State::restore(None, 1, vec![], vec![], vec![entry.clone()]).unwrap_err();
    State::restore(None, 1, vec![known.clone()], vec![], vec![]).unwrap_err();
    State::restore(None, 1, vec![known], vec![], vec![entry.clone(), entry]).unwrap_err();
}

#[test]
fn many_entries_are_added_like_one_after_the_other_and_counted() {
    let mut state = State::default();
    apply(&mut state, [add(1, "1.1.1.1", &[])]);
    let new = |number, target| match add(number, target, &[]) {
        Command::AddEntry(new) => new,
        other => panic!("{other:?}"),
    };
    let entries = vec![new(2, "1.1.1.1"), new(3, "8.8.8.8"), new(3, "9.9.9.9"), new(4, "8.8.8.8")];
    let (applied, replies) = apply(&mut state, [Command::AddEntries(entries)]);
    assert_eq!(replies, [Reply::AddedMany { created: 1, existing: 2, refused: 1 }]);
    assert_eq!((applied.events.len(), texts(&applied.change.added)), (1, vec!["8.8.8.8/32".to_owned()]));
}

#[test]
fn a_restored_part_is_as_it_was_and_may_come_twice() {
    let mut old = State::default();
    apply(&mut old, [add(1, "a.example.com", &[]), resolve("a.example.com", &["1.1.1.1"], &[])]);
    let entry = Entry::clone(old.entry(id(1)).unwrap());
    let resolution = old.resolutions().values().next().map(|known| Resolution::clone(known));
    let admin = Token { name: "admin".to_owned(), role: Role::Admin, sha256: [9; 32], created_at_ms: 1 };
    let parts = vec![
        RestorePart::Entry { entry: entry.clone(), resolution },
        RestorePart::Token(Token { sha256: [8; 32], ..admin.clone() }),
        RestorePart::Token(Token { name: "ci".to_owned(), ..admin }),
    ];
    let mut new = State::default();
    apply(&mut new, [Command::AddToken(admin)]);
    for events in [2, 0] {
        let (applied, replies) = apply(&mut new, [Command::Restore(parts.clone())]);
        let skipped_tokens = vec!["admin".to_owned()];
        assert_eq!(
            replies,
            [Reply::Restored { entries: 1, tokens: 1, skipped_tokens, refused: vec![] }],
            "{events}"
        );
        assert_eq!(applied.events.len(), events);
    }
    assert_eq!(**new.entry(id(1)).unwrap(), entry);
    assert_eq!(new.published().digest(), old.published().digest());
    assert_eq!(new.tokens()["admin"].sha256, [9; 32]);

    // What is here goes before what was there.
    let other = Entry { id: id(2), ..entry };
    let part = RestorePart::Entry { entry: other, resolution: None };
    let (applied, replies) = apply(&mut new, [Command::Restore(vec![part])]);
    assert!(matches!(&replies[0], Reply::Restored { entries: 0, refused, .. } if *refused == [id(2)]));
    assert!(applied.events.is_empty() && new.entries().len() == 1);
}

#[test]
fn a_backup_cannot_publish_a_private_address_for_a_domain() {
    let mut old = State::default();
    apply(&mut old, [add(1, "a.example.com", &[]), resolve("a.example.com", &["1.1.1.1"], &[])]);
    let mut known = Resolution::clone(old.resolutions().values().next().unwrap());
    let seen = known.addresses.values().next().unwrap().clone();
    known.addresses.insert("10.0.0.1".parse().unwrap(), seen);
    let entry = Entry::clone(old.entry(id(1)).unwrap());
    let mut new = State::default();
    let part = RestorePart::Entry { entry, resolution: Some(known) };
    let (applied, _) = apply(&mut new, [Command::Restore(vec![part])]);
    assert_eq!(texts(&applied.change.added), ["1.1.1.1/32"]);
}
