//! The smallest part of a history that still cannot be explained: what a person reads when a check fails.

use super::history::Moment;
use super::linearize::{Closed, KeyHistory, Open, Verdict};

/// Makes a violating history smaller: cuts it after the first answer that cannot be explained, then takes away every
/// answer that is not needed for the contradiction. Taking an answer away can only make a history easier to explain, so
/// what remains contradicts itself. A history that is no violation comes back as it was.
pub(super) fn witness(history: &KeyHistory) -> KeyHistory {
    if history.check() != Verdict::Violation {
        return history.clone();
    }
    let mut smaller = first_violation(history);
    // From the end: the contradiction is there.
    let mut number = smaller.closed.len();
    while number > 0 {
        number -= 1;
        let mut without = smaller.clone();
        let call = without.closed.remove(number);
        without.open.extend(opened(&call));
        if without.check() == Verdict::Violation {
            smaller = without;
        }
    }
    smaller
}

/// The history as it was known at the first answer that makes it a violation.
fn first_violation(history: &KeyHistory) -> KeyHistory {
    let mut answers: Vec<Moment> = history.closed.iter().map(|call| call.returned).collect();
    answers.sort_unstable();
    // A violation stays one whatever follows, so halving finds the first.
    let first = answers.partition_point(|moment| known_at(history, *moment).check() != Verdict::Violation);
    let mut cut = answers.get(first).map_or_else(|| history.clone(), |moment| known_at(history, *moment));
    cut.closed.sort_by_key(|call| call.invoked);
    cut
}

/// What was known of the history at `moment`.
fn known_at(history: &KeyHistory, moment: Moment) -> KeyHistory {
    let (known, later): (Vec<Closed>, Vec<Closed>) =
        history.closed.iter().partition(|call| call.returned <= moment);
    let in_flight = later.iter().filter(|call| call.invoked <= moment).filter_map(opened);
    let open = history.open.iter().filter(|call| call.invoked <= moment).copied();
    KeyHistory { closed: known, open: open.chain(in_flight).collect() }
}

/// The call without its answer.
fn opened(call: &Closed) -> Option<Open> {
    call.weaker.map(|event| Open { invoked: call.invoked, event })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::chaos::history::Id;
    use crate::chaos::linearize::{Event, OpenEvent};

    fn call(times: (u64, u64), event: Event) -> Closed {
        let weaker = match event {
            Event::Created(_) | Event::Added | Event::Made => Some(OpenEvent::Add),
            Event::Removed(id) => Some(OpenEvent::Remove(id)),
            Event::Seen(_) | Event::Missing(_) | Event::Empty | Event::There => None,
        };
        let moment = |ms| Moment(Duration::from_millis(ms));
        Closed { invoked: moment(times.0), returned: moment(times.1), event, weaker }
    }

    #[test]
    fn only_the_contradiction_remains() {
        let (one, two) = (Id(1), Id(2));
        let history = KeyHistory {
            closed: vec![
                call((0, 1), Event::Empty),
                call((2, 3), Event::Created(one)),
                call((4, 5), Event::Seen(one)),
                call((6, 7), Event::Removed(one)),
                call((8, 9), Event::Created(two)),
                call((10, 11), Event::Seen(two)),
                // The stale read, and much that follows.
                call((12, 13), Event::Empty),
                call((14, 15), Event::Seen(two)),
                call((16, 17), Event::Removed(two)),
            ],
            open: Vec::new(),
        };
        let events: Vec<Event> = witness(&history).closed.iter().map(|call| call.event).collect();
        assert_eq!(events, [Event::Created(two), Event::Empty]);
    }

    #[test]
    fn a_good_history_is_left_alone() {
        let history = KeyHistory { closed: vec![call((0, 1), Event::Empty)], open: Vec::new() };
        assert_eq!(witness(&history), history);
    }
}
