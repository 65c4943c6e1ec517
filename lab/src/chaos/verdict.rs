//! What is wrong with a run, in words.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Write as _};

use super::history::{Answer, Call, Id, Key, Record};
use super::linearize::{KeyHistory, Verdict};
use super::projection::histories;
use super::revisions::{backwards, wrong_list};
use super::witness::witness;

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub kind: ViolationKind,
    /// What is known of it.
    pub detail: String,
}

/// Which promise was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ViolationKind {
    /// The answers about one key cannot be explained.
    NotLinearizable,
    /// The search for an explanation was given up.
    Undecided,
    /// An older revision after a newer one, or a list that is not what its revision says.
    Revision,
    /// An entry whose add was acknowledged is gone, and nobody asked for that.
    LostWrite,
    /// A write that was sent once, or again under its key, took effect twice.
    Twice,
    /// A server answered as it must not.
    Answer,
    /// A backup that is not whole, or cannot be put back.
    Backup,
    /// A server ended by itself, or the cluster did not recover.
    Recovery,
    /// The servers hold different things.
    Disagreement,
}

impl fmt::Display for ViolationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotLinearizable => "not linearizable",
            Self::Undecided => "linearizability not decided",
            Self::Revision => "revisions do not fit",
            Self::LostWrite => "acknowledged write lost",
            Self::Twice => "written twice",
            Self::Answer => "an answer that must not be",
            Self::Backup => "backup of no use",
            Self::Recovery => "no recovery",
            Self::Disagreement => "servers disagree",
        })
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.detail)
    }
}

/// What the records of one epoch break.
pub(super) fn violations(records: &[Record], epoch: u16) -> Vec<Violation> {
    let mut found: Vec<Violation> = histories(records, epoch)
        .iter()
        .filter_map(|(key, history)| {
            let kind = match history.check() {
                Verdict::Linearizable => return None,
                Verdict::Violation => ViolationKind::NotLinearizable,
                Verdict::Undecided => ViolationKind::Undecided,
            };
            Some(Violation { kind, detail: window(*key, history, records) })
        })
        .collect();
    let revision = |detail| Violation { kind: ViolationKind::Revision, detail };
    found.extend(backwards(records).map(|(first, second)| {
        revision(format!("an older one after a newer one:\n  {}\n  {}", first.line(None), second.line(None)))
    }));
    found.extend(
        wrong_list(records).map(|(record, reason)| revision(format!("{reason}:\n  {}", record.line(None)))),
    );
    found
}

/// Entries whose add was acknowledged, which nobody tried to delete, and which are not among `found` at the end.
pub(super) fn lost(records: &[Record], found: &BTreeMap<Key, Id>) -> Vec<Violation> {
    let touched: HashSet<Id> = records
        .iter()
        .filter_map(|record| match record.call {
            Call::Delete(_, id) => Some(id),
            _ => None,
        })
        .collect();
    let touched_keys: HashSet<Key> = records
        .iter()
        .filter_map(|record| match record.call {
            Call::Delete(key, _) => Some(key),
            _ => None,
        })
        .collect();
    let missing = |key: Key, record: &Record| {
        let now = found.get(&key).map_or_else(|| "nothing".to_owned(), |id| id.to_string());
        let detail = format!("at the end {key} has {now}, but was added by\n  {}", record.line(None));
        Violation { kind: ViolationKind::LostWrite, detail }
    };
    let mut lost = Vec::new();
    for record in records {
        match (&record.call, &record.answer) {
            (Call::Add(key), Answer::Created(id)) if !touched.contains(id) && found.get(key) != Some(id) => {
                lost.push(missing(*key, record));
            }
            // Which entries it made was not told.
            (Call::Import(epoch, slots), Answer::Imported { .. }) => {
                let keys = slots.iter().map(|slot| Key { epoch: *epoch, slot });
                let gone = keys.filter(|key| !touched_keys.contains(key) && !found.contains_key(key));
                lost.extend(gone.map(|key| missing(key, record)));
            }
            _ => {}
        }
    }
    lost
}

/// The calls that contradict each other, in the order in which they were made.
fn window(key: Key, history: &KeyHistory, records: &[Record]) -> String {
    let witness = witness(history);
    let mut text = format!(
        "{key}: {} answered calls, of which these contradict each other ({} more may have taken effect)",
        history.closed.len(),
        witness.open.len()
    );
    for call in &witness.closed {
        let made = records.iter().find(|record| {
            record.invoked == call.invoked && record.returned == call.returned && record.concerns(key)
        });
        let shown = made.map_or_else(|| format!("{call:?}"), |record| record.line(Some(key)));
        _ = write!(text, "\n  {shown}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::history::{Moment, Slots};
    use super::*;

    const KEY: Key = Key { epoch: 0, slot: 2 };

    fn record(at_ms: u64, call: Call, answer: Answer) -> Record {
        let moment = |ms| Moment(Duration::from_millis(ms));
        Record {
            client: 1,
            node: 2,
            invoked: moment(at_ms),
            returned: moment(at_ms + 1),
            call,
            answer,
            revision: None,
        }
    }

    #[test]
    fn a_violation_is_told_with_its_key_and_the_calls_that_matter() {
        let records = [
            record(0, Call::List(0), Answer::Listed(Vec::new())),
            record(10, Call::Add(KEY), Answer::Created(Id(7))),
            record(20, Call::Add(Key { slot: 3, ..KEY }), Answer::Created(Id(8))),
            record(30, Call::Get(KEY, Id(7)), Answer::Missing),
        ];
        let found = violations(&records, 0);
        assert_eq!(found.len(), 1);
        let text = found[0].to_string();
        assert!(text.starts_with("not linearizable: 93.64.0.3: 3 answered calls"), "{text}");
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("client 1 on srv3: get ") && text.contains("→ created "), "{text}");
    }

    #[test]
    fn an_imported_entry_is_lost_when_its_key_is_empty_and_nobody_deleted_there() {
        let imported =
            record(0, Call::Import(0, Slots(1 << KEY.slot)), Answer::Imported { created: 0, existing: 1 });
        let there = BTreeMap::from([(KEY, Id(7))]);
        assert_eq!(lost(std::slice::from_ref(&imported), &there), []);
        assert_eq!(lost(std::slice::from_ref(&imported), &BTreeMap::new()).len(), 1);
        let deleted = record(9, Call::Delete(KEY, Id(3)), Answer::Unknown);
        assert_eq!(lost(&[imported, deleted], &BTreeMap::new()), []);
    }

    #[test]
    fn an_entry_is_lost_only_when_nobody_tried_to_delete_it() {
        let added = record(0, Call::Add(KEY), Answer::Created(Id(7)));
        let deleted = record(9, Call::Delete(KEY, Id(7)), Answer::Unknown);
        let there = BTreeMap::from([(KEY, Id(7))]);
        assert_eq!(lost(std::slice::from_ref(&added), &there), []);
        assert_eq!(lost(std::slice::from_ref(&added), &BTreeMap::new())[0].kind, ViolationKind::LostWrite);
        assert_eq!(lost(&[added, deleted], &BTreeMap::new()), []);
    }
}
