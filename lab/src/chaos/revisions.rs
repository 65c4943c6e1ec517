//! Revisions against the clock and against each other: a second, cheap check that spans keys. Nobody who asked after an
//! answer may be shown an older revision, and a list holds exactly what its revision says.

use std::collections::{HashMap, HashSet};

use super::history::{Answer, Call, Id, Key, Record};

/// Pairs of records whose revisions run against real time: the second was asked after the first was answered, and
/// carries an older revision. The first such pair is enough.
pub(super) fn backwards(records: &[Record]) -> Option<(&Record, &Record)> {
    let mut by_answer: Vec<&Record> = records.iter().filter(|record| record.revision.is_some()).collect();
    let mut by_invocation = by_answer.clone();
    by_answer.sort_by_key(|record| record.returned);
    by_invocation.sort_by_key(|record| record.invoked);
    let mut answers = by_answer.into_iter().peekable();
    let mut newest: Option<&Record> = None;
    for record in by_invocation {
        while let Some(answered) = answers.next_if(|answered| answered.returned < record.invoked) {
            if newest.is_none_or(|newest| newest.revision < answered.revision) {
                newest = Some(answered);
            }
        }
        if let Some(newest) = newest.filter(|newest| newest.revision > record.revision) {
            return Some((newest, record));
        }
    }
    None
}

/// A list that does not hold what its revision says, with the reason.
pub(super) fn wrong_list(records: &[Record]) -> Option<(&Record, String)> {
    let mut created: HashMap<Id, (Key, u64)> = HashMap::new();
    let mut removed: HashMap<Id, u64> = HashMap::new();
    let mut perhaps_removed: HashSet<Id> = HashSet::new();
    for record in records {
        match (&record.call, &record.answer, record.revision) {
            (Call::Add(key), Answer::Created(id), Some(revision)) => {
                created.insert(*id, (*key, revision));
            }
            (Call::Delete(_, id), Answer::Removed, Some(revision)) => {
                removed.insert(*id, revision);
            }
            (Call::Delete(_, id), Answer::Unknown, _) => {
                perhaps_removed.insert(*id);
            }
            _ => {}
        }
    }
    let by_epoch = |epoch: u16| {
        let of_epoch = move |key: &Key| key.epoch == epoch;
        created.iter().filter(move |(_, (key, _))| of_epoch(key))
    };
    records.iter().find_map(|record| {
        let (Call::List(epoch), Answer::Listed(entries), Some(at)) =
            (&record.call, &record.answer, record.revision)
        else {
            return None;
        };
        let listed: HashSet<Id> = entries.iter().map(|(_, id)| *id).collect();
        let wrong = by_epoch(*epoch).find_map(|(id, (key, made))| {
            let gone = removed.get(id).copied();
            let expected = *made <= at && gone.is_none_or(|gone| gone > at);
            match (listed.contains(id), expected) {
                (true, false) => Some(format!(
                    "the list at revision {at} holds {id} ({key}), made at {made} and removed at {gone:?}"
                )),
                (false, true) if !perhaps_removed.contains(id) => Some(format!(
                    "the list at revision {at} lacks {id} ({key}), made at {made} and removed at {gone:?}"
                )),
                _ => None,
            }
        });
        wrong.map(|reason| (record, reason))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::history::Moment;
    use super::*;

    const KEY: Key = Key { epoch: 3, slot: 1 };
    const ID: Id = Id(9);

    fn record(times: (u64, u64), call: Call, answer: Answer, revision: u64) -> Record {
        let moment = |ms| Moment(Duration::from_millis(ms));
        let (invoked, returned) = (moment(times.0), moment(times.1));
        Record { client: 0, node: 0, invoked, returned, call, answer, revision: Some(revision) }
    }

    fn list(times: (u64, u64), entries: &[(Key, Id)], revision: u64) -> Record {
        record(times, Call::List(KEY.epoch), Answer::Listed(entries.to_vec()), revision)
    }

    #[test]
    fn an_older_revision_after_a_newer_one_is_found_unless_the_calls_overlap() {
        let newer = record((0, 10), Call::Add(KEY), Answer::Created(ID), 7);
        assert!(backwards(&[newer.clone(), list((11, 12), &[], 6)]).is_some());
        assert!(backwards(&[newer.clone(), list((10, 12), &[], 6)]).is_none());
        assert!(backwards(&[newer, list((11, 12), &[], 7)]).is_none());
    }

    #[test]
    fn a_list_is_held_to_its_revision_whatever_the_clock_says() {
        let created = record((0, 10), Call::Add(KEY), Answer::Created(ID), 7);
        let removed = record((11, 12), Call::Delete(KEY, ID), Answer::Removed, 9);
        let wrong = |entries: &[(Key, Id)], revision| {
            wrong_list(&[created.clone(), removed.clone(), list((0, 99), entries, revision)]).is_some()
        };
        let there = [(KEY, ID)];
        assert_eq!([6, 7, 8, 9].map(|revision| wrong(&there, revision)), [true, false, false, true]);
        assert_eq!([6, 7, 8, 9].map(|revision| wrong(&[], revision)), [false, true, true, false]);
        let unknown = record((11, 12), Call::Delete(KEY, ID), Answer::Unknown, 0);
        assert!(wrong_list(&[created, unknown, list((0, 99), &[], 8)]).is_none());
    }
}
