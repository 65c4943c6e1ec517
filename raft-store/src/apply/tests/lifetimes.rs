//! Entries that end, what drains, and what a removal would do.

use super::*;

fn apply_at(state: &mut State, at_ms: u64, command: Command) -> (AppliedBatch, Reply) {
    let operations = vec![Operation { origin: Origin::default(), command }];
    let (applied, mut reply) = state.apply(state.revision() + 1, &Batch { at_ms, operations });
    (applied, reply.replies.remove(0))
}

/// A cluster that has agreed on what is tested here.
fn agreed() -> State {
    let mut state = State::default();
    apply(&mut state, [Command::RaiseFeatures(FeatureLevel::LIFETIMES)]);
    state
}

fn ends(number: u128, target: &str, expires_at_ms: u64) -> Command {
    let Command::AddEntry(new) = add(number, target, &[]) else { unreachable!() };
    Command::AddEntry(NewEntry { expires_at_ms: Some(expires_at_ms), ..new })
}

#[test]
fn an_entry_ends_when_the_leader_says_so_and_its_time_is_over_and_not_before() {
    let mut state = State::default();
    apply(&mut state, [ends(1, "1.1.1.1", 5_000), ends(2, "8.8.8.8", 9_000), add(3, "9.9.9.9", &[])]);
    assert_eq!(state.expiring().get_min(), Some(&(5_000, id(1))));
    let all = || Command::Expire { ids: vec![id(1), id(2), id(3), id(4)] };
    assert_eq!(apply_at(&mut state, 4_999, all()).1, Reply::Unchanged);
    let (applied, reply) = apply_at(&mut state, 5_000, all());
    assert_eq!((reply, texts(&applied.change.revoked)), (Reply::Done, vec!["1.1.1.1/32".to_owned()]));
    assert!(matches!(&applied.events[0].kind, EventKind::EntryRemoved(entry) if entry.id == id(1)));
    // Its time can be changed, and taken away.
    let change =
        |expires_at_ms| Command::ChangeEntry { id: id(2), update: EntryUpdate::default(), expires_at_ms };
    assert_eq!(apply_at(&mut state, 6_000, change(Some(20_000))).1, Reply::Done);
    assert_eq!(apply_at(&mut state, 10_000, all()).1, Reply::Unchanged);
    assert_eq!(apply_at(&mut state, 10_000, change(None)).1, Reply::Done);
    assert!(state.expiring().is_empty());
    assert_eq!(apply_at(&mut state, u64::MAX, all()).1, Reply::Unchanged);
}

#[test]
fn a_protected_entry_never_ends_by_itself() {
    let mut state = State::default();
    apply(&mut state, [ends(1, "1.1.1.1", 5_000), add_protected(2, "8.8.8.8")]);
    let update = EntryUpdate { protected: Some(true), ..EntryUpdate::default() };
    apply(&mut state, [Command::UpdateEntry { id: id(1), update: update.clone() }]);
    assert_eq!(state.entry(id(1)).unwrap().expires_at_ms, None);
    let change = Command::ChangeEntry { id: id(2), update, expires_at_ms: Some(1) };
    let (applied, reply) = apply_at(&mut state, 1_000, change);
    assert_eq!(reply, Reply::Refused(CommandRefusal::Protected(id(2))));
    assert_eq!(applied.events[0].kind, EventKind::ProtectedRefused(id(2)));
    assert_eq!(
        apply_at(&mut state, u64::MAX, Command::Expire { ids: vec![id(1), id(2)] }).1,
        Reply::Unchanged
    );
    assert_eq!(state.entries().len(), 2);
}

#[test]
fn a_removed_domain_takes_what_left_it_before_and_may_drain_along() {
    let mut state = agreed();
    apply(&mut state, [add(1, "a.example.com", &["tcp/443"])]);
    apply(&mut state, [add(2, "9.9.9.9", &["tcp/443"])]);
    apply(&mut state, [resolve("a.example.com", &["1.1.1.1", "9.9.9.9", "8.8.8.8"], &[])]);
    let (applied, _) = apply(&mut state, [resolve("a.example.com", &[], &["1.1.1.1", "9.9.9.9"])]);
    assert_eq!(texts(&applied.change.retired), ["1.1.1.1/32 tcp/443"]);
    let changes = state.histories()[&"a.example.com".parse::<DomainName>().unwrap()].changes().to_vec();
    assert_eq!(
        changes.iter().map(|change| (change.added.len(), change.retired.len())).collect::<Vec<_>>(),
        [(3, 0), (0, 2)]
    );
    let (applied, _) = apply(&mut state, [remove(1)]);
    // 9.9.9.9 has an owner of its own.
    assert_eq!(texts(&applied.change.revoked), ["1.1.1.1/32 tcp/443", "8.8.8.8/32 tcp/443"]);
    assert!(state.histories().is_empty());
}

#[test]
fn a_cluster_that_has_not_agreed_on_it_remembers_no_history() {
    let mut state = State::default();
    apply(&mut state, [add(1, "a.example.com", &[]), resolve("a.example.com", &["1.1.1.1"], &[])]);
    apply(&mut state, [resolve("a.example.com", &["8.8.8.8"], &["1.1.1.1"])]);
    assert!(state.histories().is_empty());
    assert_eq!(texts(&apply(&mut state, [remove(1)]).0.change.revoked), ["8.8.8.8/32"]);
}

#[test]
fn the_impact_of_a_removal_says_what_goes_what_stays_and_because_of_whom() {
    let mut state = agreed();
    apply(&mut state, [add(1, "a.example.com", &["tcp/443"])]);
    apply(
        &mut state,
        [add(2, "9.9.9.9", &["tcp/443"]), add(3, "8.8.0.0/16", &[]), add(4, "4.4.4.4", &["udp/53"])],
    );
    let seen = ["1.1.1.1", "9.9.9.9", "8.8.8.8", "4.4.4.4"];
    apply(
        &mut state,
        [resolve("a.example.com", &seen, &[]), resolve("a.example.com", &["1.0.0.1"], &["1.1.1.1"])],
    );
    let impact = state.impact(state.entry(id(1)).unwrap(), 2_000);
    assert_eq!(texts(&impact.removed), ["1.0.0.1/32 tcp/443", "4.4.4.4/32 tcp/443"]);
    let kept: Vec<_> =
        impact.kept.iter().map(|(element, owners)| (element.to_string(), owners.clone())).collect();
    assert_eq!(
        kept,
        [("8.8.8.8/32 tcp/443".to_owned(), vec![id(3)]), ("9.9.9.9/32 tcp/443".to_owned(), vec![id(2)])]
    );
    assert_eq!(texts(&impact.drained), ["1.1.1.1/32 tcp/443"]);
    let before = state.clone();
    let (applied, _) = apply(&mut state, [remove(1)]);
    // What a network around it keeps open is no longer published by itself, and gateways leave its flows alone.
    let revoked: BTreeSet<String> = texts(&applied.change.revoked).into_iter().collect();
    assert!(texts(&impact.removed).iter().chain(&texts(&impact.drained)).all(|text| revoked.contains(text)));
    assert_ne!(before, state);
}

#[test]
fn what_drains_for_another_entry_of_the_name_goes_on() {
    let mut state = agreed();
    apply(&mut state, [add_protected_domain(1, &["tcp/443"])]);
    apply(&mut state, [add(2, "a.example.com", &["tcp/443", "tcp/8443"])]);
    apply(&mut state, [resolve("a.example.com", &["1.1.1.1", "8.8.8.8"], &[])]);
    apply(&mut state, [resolve("a.example.com", &[], &["1.1.1.1"])]);
    assert_eq!(texts(&state.impact(state.entry(id(2)).unwrap(), 1_000).drained), ["1.1.1.1/32 tcp/8443"]);
    let (applied, _) = apply(&mut state, [remove(2)]);
    assert_eq!(texts(&applied.change.revoked), ["1.1.1.1/32 tcp/8443", "8.8.8.8/32 tcp/8443"]);
    assert_eq!(applied.published, state.published().digest());
}

#[test]
fn an_entry_takes_nothing_along_that_left_before_it_came() {
    let mut state = agreed();
    apply(&mut state, [add(1, "a.example.com", &["tcp/443"])]);
    apply(
        &mut state,
        [resolve("a.example.com", &["1.1.1.1", "8.8.8.8"], &[]), resolve("a.example.com", &[], &["1.1.1.1"])],
    );
    apply_at(&mut state, 5_000, add(2, "a.example.com", &[]));
    let (applied, _) = apply_at(&mut state, 6_000, remove(2));
    assert_eq!(texts(&applied.change.revoked), ["8.8.8.8/32"]);
}

#[test]
fn asking_again_for_longer_gives_it_and_for_less_takes_nothing() {
    let mut state = State::default();
    apply(&mut state, [ends(1, "1.1.1.1", 5_000)]);
    let ends_at = |state: &State| state.entry(id(1)).unwrap().expires_at_ms;
    apply(&mut state, [ends(2, "1.1.1.1", 4_000)]);
    assert_eq!(ends_at(&state), Some(5_000));
    apply(&mut state, [ends(2, "1.1.1.1", 7_000)]);
    assert_eq!(ends_at(&state), Some(7_000));
    apply(&mut state, [add(2, "1.1.1.1", &[])]);
    assert_eq!(ends_at(&state), None);
    assert!(state.expiring().is_empty());
}

fn add_protected_domain(number: u128, ports: &[&str]) -> Command {
    let Command::AddEntry(new) = add(number, "a.example.com", ports) else { unreachable!() };
    Command::AddEntry(NewEntry { protected: true, ..new })
}
