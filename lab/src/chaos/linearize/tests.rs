use std::time::Duration;

use proptest::prelude::*;

use super::*;

const A: Id = Id(1);
const B: Id = Id(2);

fn moment(ms: u64) -> Moment {
    Moment(Duration::from_millis(ms))
}

fn call(invoked: u64, returned: u64, event: Event) -> Closed {
    Closed { invoked: moment(invoked), returned: moment(returned), event, weaker: None }
}

fn open(invoked: u64, event: OpenEvent) -> Open {
    Open { invoked: moment(invoked), event }
}

fn check(closed: &[Closed], open: &[Open]) -> Verdict {
    KeyHistory { closed: closed.to_vec(), open: open.to_vec() }.check()
}

#[test]
fn a_life_in_order_is_explained() {
    let life = [
        call(0, 1, Event::Empty),
        call(2, 3, Event::Created(A)),
        call(4, 5, Event::Seen(A)),
        call(6, 7, Event::Removed(A)),
        call(8, 9, Event::Missing(A)),
        call(10, 11, Event::Created(B)),
        call(12, 13, Event::Missing(A)),
        call(14, 15, Event::Seen(B)),
    ];
    assert_eq!(check(&life, &[]), Verdict::Linearizable);
}

#[test]
fn a_read_of_what_was_before_an_acknowledged_write_is_a_violation() {
    let created = call(0, 1, Event::Created(A));
    assert_eq!(check(&[created, call(2, 3, Event::Empty)], &[]), Verdict::Violation);
    assert_eq!(check(&[created, call(2, 3, Event::Missing(A))], &[]), Verdict::Violation);
    let removed = call(2, 3, Event::Removed(A));
    assert_eq!(check(&[created, removed, call(4, 5, Event::Seen(A))], &[]), Verdict::Violation);
    // While the write is under way, both are right; but once somebody saw the new state, nobody may see the old one.
    let slow = call(0, 10, Event::Created(A));
    assert_eq!(
        check(&[slow, call(1, 2, Event::Empty), call(3, 4, Event::Seen(A))], &[]),
        Verdict::Linearizable
    );
    assert_eq!(check(&[slow, call(1, 2, Event::Seen(A)), call(3, 4, Event::Empty)], &[]), Verdict::Violation);
}

#[test]
fn two_adds_cannot_both_have_made_the_entry() {
    let both = [call(0, 5, Event::Created(A)), call(1, 6, Event::Created(B))];
    assert_eq!(check(&both, &[]), Verdict::Violation);
    // Unless somebody may have removed the first in between.
    assert_eq!(check(&both, &[open(2, OpenEvent::Remove(A))]), Verdict::Linearizable);
    assert_eq!(check(&both, &[open(7, OpenEvent::Remove(A))]), Verdict::Violation, "too late");
}

#[test]
fn a_write_without_an_answer_may_take_effect_late_or_never_but_not_twice_and_not_early() {
    let add = open(0, OpenEvent::Add);
    let (empty, seen) = (call(1, 2, Event::Empty), call(3, 4, Event::Seen(A)));
    assert_eq!(check(&[empty], &[add]), Verdict::Linearizable);
    assert_eq!(check(&[empty, seen], &[add]), Verdict::Linearizable);
    assert_eq!(
        check(&[empty, seen], &[open(5, OpenEvent::Add)]),
        Verdict::Violation,
        "seen before it was asked"
    );
    let again = [empty, seen, call(5, 6, Event::Removed(A)), call(7, 8, Event::Seen(B))];
    assert_eq!(check(&again, &[add]), Verdict::Violation, "one add, two entries");
    assert_eq!(check(&again, &[add, add]), Verdict::Linearizable);
}

#[test]
fn a_write_that_was_sent_again_under_its_key_is_one_write() {
    // Sent at 0, again at 6 and answered then; meanwhile the first took effect, and somebody saw and removed that entry.
    let meanwhile = [call(2, 3, Event::Seen(A)), call(4, 5, Event::Removed(A))];
    let same_answer = [call(0, 9, Event::Created(A)), meanwhile[0], meanwhile[1]];
    assert_eq!(check(&same_answer, &[]), Verdict::Linearizable);
    let made_again = [call(0, 9, Event::Created(B)), meanwhile[0], meanwhile[1]];
    assert_eq!(check(&made_again, &[]), Verdict::Violation, "it took effect twice");
}

#[test]
fn an_import_says_what_it_found_without_naming_it() {
    let (made, there) = (call(2, 3, Event::Made), call(2, 3, Event::There));
    let (empty, seen) = (call(0, 1, Event::Empty), call(4, 5, Event::Seen(A)));
    assert_eq!(check(&[empty, made, seen], &[]), Verdict::Linearizable);
    assert_eq!(check(&[empty, made, call(4, 5, Event::Empty)], &[]), Verdict::Violation, "lost");
    assert_eq!(check(&[call(0, 1, Event::Created(A)), made], &[]), Verdict::Violation, "it was there");
    assert_eq!(check(&[empty, there], &[]), Verdict::Violation, "nobody had made it");
    assert_eq!(check(&[empty, there, seen], &[open(0, OpenEvent::Add)]), Verdict::Linearizable);
}

#[test]
fn an_entry_that_was_removed_never_comes_back_under_its_id() {
    let back = [call(0, 1, Event::Seen(A)), call(2, 3, Event::Removed(A)), call(4, 5, Event::Seen(A))];
    let adds = [open(0, OpenEvent::Add), open(0, OpenEvent::Add)];
    assert_eq!(check(&back[..2], &adds), Verdict::Linearizable);
    assert_eq!(check(&back, &adds), Verdict::Violation);
}

#[test]
fn hundreds_of_calls_with_many_open_ones_are_decided() {
    let mut closed = Vec::new();
    let mut open_calls = Vec::new();
    for round in 0..100_u64 {
        let (start, id) = (round * 100, Id(u128::from(round) + 10));
        // Nine clients at once, as in a run; the entry comes from an add without an answer.
        open_calls.extend([open(start, OpenEvent::Add), open(start, OpenEvent::Add)]);
        closed.push(call(start + 1, start + 60, Event::Empty));
        closed.extend((0..7).map(|client| call(start + 2 + client, start + 62 + client, Event::Seen(id))));
        closed.push(call(start + 70, start + 90, Event::Removed(id)));
        open_calls.push(open(start + 65, OpenEvent::Remove(id)));
    }
    assert_eq!(check(&closed, &open_calls), Verdict::Linearizable);
    closed.push(call(9_995, 9_996, Event::Seen(Id(10))));
    assert_eq!(check(&closed, &open_calls), Verdict::Violation);
}

/// Tries every order of every choice of open calls, without any of the search's shortcuts.
mod brute_force {
    use super::*;

    #[derive(Clone, Copy)]
    enum Item {
        Closed(Closed),
        Open(Open),
    }

    /// The entry: its id, if anybody knows.
    type Entry = Option<Option<Id>>;

    pub(super) fn explains(history: &KeyHistory) -> bool {
        let items: Vec<Item> = history
            .closed
            .iter()
            .map(|call| Item::Closed(*call))
            .chain(history.open.iter().map(|call| Item::Open(*call)))
            .collect();
        let made: Vec<Id> = history
            .closed
            .iter()
            .filter_map(|call| match call.event {
                Event::Created(id) => Some(id),
                _ => None,
            })
            .collect();
        go(&items, &made, None, &[])
    }

    fn go(rest: &[Item], made: &[Id], entry: Entry, named: &[Id]) -> bool {
        if rest.iter().all(|item| matches!(item, Item::Open(_))) {
            return true;
        }
        (0..rest.len()).any(|number| {
            let (invoked, mut others) = (invoked(rest[number]), rest.to_vec());
            others.remove(number);
            let may_be_next = others.iter().all(|other| match other {
                Item::Closed(other) => other.returned >= invoked,
                Item::Open(_) => true,
            });
            may_be_next
                && effects(rest[number], made, entry, named)
                    .into_iter()
                    .any(|(entry, named)| go(&others, made, entry, &named))
        })
    }

    fn invoked(item: Item) -> Moment {
        match item {
            Item::Closed(call) => call.invoked,
            Item::Open(call) => call.invoked,
        }
    }

    fn effects(item: Item, made: &[Id], entry: Entry, named: &[Id]) -> Vec<(Entry, Vec<Id>)> {
        let same = |entry: Entry| vec![(entry, named.to_vec())];
        // The ways to call the entry that is there `id`.
        let naming = |id: Id| match entry {
            Some(Some(known)) if known == id => Some(named.to_vec()),
            Some(None) if !made.contains(&id) && !named.contains(&id) => {
                Some(named.iter().copied().chain([id]).collect())
            }
            _ => None,
        };
        let after = |id: Id, entry: Entry| naming(id).map(|named| (entry, named)).into_iter().collect();
        match item {
            Item::Closed(Closed { event: Event::Created(id), .. }) if entry.is_none() => same(Some(Some(id))),
            Item::Closed(Closed { event: Event::Created(_), .. }) => Vec::new(),
            Item::Closed(Closed { event: Event::Seen(id), .. }) => after(id, Some(Some(id))),
            Item::Closed(Closed { event: Event::Removed(id), .. }) => after(id, None),
            Item::Closed(Closed { event: Event::Added, .. }) => same(entry.or(Some(None))),
            Item::Closed(Closed { event: Event::Made, .. }) if entry.is_none() => same(Some(None)),
            Item::Closed(Closed { event: Event::There, .. }) if entry.is_some() => same(entry),
            Item::Closed(Closed { event: Event::Made | Event::There, .. }) => Vec::new(),
            Item::Closed(Closed { event: Event::Missing(id), .. }) if entry == Some(Some(id)) => Vec::new(),
            Item::Closed(Closed { event: Event::Missing(_), .. }) => same(entry),
            Item::Closed(Closed { event: Event::Empty, .. }) if entry.is_none() => same(None),
            Item::Closed(Closed { event: Event::Empty, .. }) => Vec::new(),
            Item::Open(Open { event: OpenEvent::Add, .. }) => same(entry.or(Some(None))),
            Item::Open(Open { event: OpenEvent::Remove(id), .. }) => {
                let mut ways: Vec<(Entry, Vec<Id>)> = after(id, None);
                ways.push((entry, named.to_vec()));
                ways
            }
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    let id = prop_oneof![Just(A), Just(B), Just(Id(3))];
    prop_oneof![
        id.clone().prop_map(Event::Created),
        id.clone().prop_map(Event::Seen),
        id.clone().prop_map(Event::Seen),
        Just(Event::Added),
        Just(Event::Made),
        Just(Event::There),
        id.clone().prop_map(Event::Removed),
        id.prop_map(Event::Missing),
        Just(Event::Empty),
    ]
}

fn closed_call() -> impl Strategy<Value = Closed> {
    (0..30_u64, 0..12_u64, event())
        .prop_map(|(invoked, length, event)| call(invoked, invoked + length, event))
}

fn open_call() -> impl Strategy<Value = Open> {
    let id = prop_oneof![Just(A), Just(B), Just(Id(3))];
    let event = prop_oneof![Just(OpenEvent::Add), id.prop_map(OpenEvent::Remove)];
    (0..30_u64, event).prop_map(|(invoked, event)| open(invoked, event))
}

/// Each id is made by one add only, as the server promises; and nobody removes what was never shown to anybody.
fn possible(history: &KeyHistory) -> bool {
    let made: Vec<Event> = history
        .closed
        .iter()
        .map(|call| call.event)
        .filter(|event| matches!(event, Event::Created(_)))
        .collect();
    let once = made.iter().enumerate().all(|(number, event)| !made[..number].contains(event));
    let shown_before = |id: Id, invoked: Moment| {
        history.closed.iter().any(|call| {
            matches!(call.event, Event::Created(shown) | Event::Seen(shown) if shown == id)
                && call.returned < invoked
        })
    };
    let removals = history.open.iter().filter_map(|call| match call.event {
        OpenEvent::Remove(id) => Some((id, call.invoked)),
        OpenEvent::Add => None,
    });
    once && removals.into_iter().all(|(id, invoked)| shown_before(id, invoked))
}

proptest! {
    #![proptest_config(ProptestConfig { max_global_rejects: 1_000_000, cases: 3_000, ..ProptestConfig::default() })]

    #[test]
    fn the_search_agrees_with_trying_every_order(
        closed in prop::collection::vec(closed_call(), 1..6),
        open in prop::collection::vec(open_call(), 0..3),
    ) {
        let history = KeyHistory { closed, open };
        prop_assume!(possible(&history));
        let expected =
            if brute_force::explains(&history) { Verdict::Linearizable } else { Verdict::Violation };
        prop_assert_eq!(history.check(), expected);
    }

    /// A real entry under real clients, whose answers are kept, or lost, at random: always explained.
    #[test]
    fn what_a_right_server_does_is_explained(
        calls in prop::collection::vec((0..3_u8, 0..8_u64, 0..8_u64, any::<bool>()), 1..60),
    ) {
        let mut history = KeyHistory::default();
        let (mut entry, mut ids) = (None, 0);
        for (number, (kind, before, after, answered)) in calls.into_iter().enumerate() {
            let instant = number as u64 * 4 + 10;
            let invoked = moment(instant - before);
            let (event, weaker) = match (kind, entry) {
                (0, None) => {
                    ids += 1;
                    entry = Some(Id(ids));
                    (Event::Created(Id(ids)), Some(OpenEvent::Add))
                }
                (0, Some(id)) => (Event::Seen(id), Some(OpenEvent::Add)),
                (1, Some(id)) => {
                    entry = None;
                    (Event::Removed(id), Some(OpenEvent::Remove(id)))
                }
                (_, Some(id)) => (Event::Seen(id), None),
                (_, None) => (Event::Empty, None),
            };
            if answered {
                history.closed.push(Closed { invoked, returned: moment(instant + after), event, weaker });
            } else if let Some(event) = weaker {
                history.open.push(Open { invoked, event });
            }
        }
        prop_assert_eq!(history.check(), Verdict::Linearizable);
    }
}
