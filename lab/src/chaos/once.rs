//! Writes under an idempotency key: sent again, also to other nodes, until there is an answer; and now and then once more,
//! to see whether the answer is still the same.

use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;

use super::caller::{Caller, Name, Reply};
use super::history::{Answer, Call, Id};

/// How often a write is sent until its outcome stays unknown. With the time a call may take, few enough that a client is
/// done with a pool of keys before that is checked.
const ATTEMPTS: u32 = 3;
/// Longest pause before a write is sent again.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// What came of a write and all its repetitions.
#[derive(Debug)]
pub(super) struct Insisted {
    /// Refused only when no attempt can have had an effect.
    pub(super) reply: Reply,
    /// When it was answered.
    pub(super) returned: Instant,
    /// How often it was sent again.
    pub(super) resent: u64,
    /// How many answers said that they were given before.
    pub(super) replayed: u64,
    /// Entries that the answers showed.
    pub(super) made: Vec<(String, Id)>,
    /// How the last repetition contradicts the answer before.
    pub(super) contradiction: Option<String>,
}

/// Sends `call` to node `home` first, then to any.
pub(super) async fn insist(
    caller: &Caller,
    home: usize,
    call: &Call,
    name: &str,
    dice: &mut StdRng,
) -> Insisted {
    let mut all = Insisted {
        reply: Reply::Refused,
        returned: Instant::now(),
        resent: 0,
        replayed: 0,
        made: Vec::new(),
        contradiction: None,
    };
    let mut node = home;
    for sent in 0..ATTEMPTS {
        let attempt = caller.call(node, call, Name { text: name, sent: Some(sent) }).await;
        all.returned = Instant::now();
        all.resent += u64::from(sent > 0);
        all.replayed += u64::from(attempt.replayed);
        all.made.extend(attempt.made);
        match attempt.reply {
            // This one had no effect; an earlier one may have.
            Reply::Refused if sent == 0 => return all,
            Reply::Refused | Reply::Lost | Reply::Answered(Answer::Unknown, _) => {
                all.reply = Reply::Answered(Answer::Unknown, None);
            }
            reply => {
                all.reply = reply;
                break;
            }
        }
        node = elsewhere(caller, dice).await;
    }
    let Reply::Answered(first, _) = &all.reply else { return all };
    if *first == Answer::Unknown || !dice.random_ratio(1, 4) {
        return all;
    }
    node = elsewhere(caller, dice).await;
    let again = caller.call(node, call, Name { text: name, sent: Some(ATTEMPTS) }).await;
    all.resent += 1;
    all.replayed += u64::from(again.replayed);
    all.made.extend(again.made);
    if let Reply::Answered(second, _) = &again.reply
        && *second != Answer::Unknown
        && !(again.replayed && same(first, second))
    {
        let marked = if again.replayed { "" } else { ", not marked as given before" };
        all.contradiction =
            Some(format!("{call:?} ({name}) was answered {first:?}, and sent again {second:?}{marked}"));
    }
    all
}

async fn elsewhere(caller: &Caller, dice: &mut StdRng) -> usize {
    let (pause, node) = (LONGEST_PAUSE.mul_f64(dice.random::<f64>()), dice.random_range(0..caller.nodes()));
    tokio::time::sleep(pause).await;
    node
}

/// Whether a write that took effect once can be answered so both times.
fn same(first: &Answer, second: &Answer) -> bool {
    match (first, second) {
        // The answer shows the entry, which may have gone.
        (Answer::Existed(_), Answer::AddedAndGone) => true,
        // It had gone; the repetition may show what was made.
        (Answer::AddedAndGone, Answer::Created(_) | Answer::Existed(_)) => true,
        _ => first == second,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_of_one_effect_are_the_same() {
        let (one, two) = (Id(1), Id(2));
        assert!(same(&Answer::Created(one), &Answer::Created(one)));
        assert!(same(&Answer::Existed(one), &Answer::AddedAndGone));
        for (first, second) in [
            (Answer::Created(one), Answer::Created(two)),
            (Answer::Created(one), Answer::Existed(one)),
            (Answer::Created(one), Answer::AddedAndGone),
            (Answer::Removed, Answer::Missing),
            (Answer::Imported { created: 2, existing: 0 }, Answer::Imported { created: 0, existing: 2 }),
        ] {
            assert!(!same(&first, &second), "{first:?} {second:?}");
        }
    }
}
