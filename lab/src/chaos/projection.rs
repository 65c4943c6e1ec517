//! From records of all keys to the history of each.

use std::collections::BTreeMap;

use super::history::{Answer, Call, Key, Record, Slots};
use super::linearize::{Closed, Event, KeyHistory, Open, OpenEvent};

/// Slots of a pool, keys an epoch.
pub(super) const SLOTS: u8 = Slots::MAX;

/// The history of each key of `epoch` in `records`. A list is an observation of every key of its epoch.
pub(super) fn histories(records: &[Record], epoch: u16) -> BTreeMap<Key, KeyHistory> {
    let mut histories: BTreeMap<Key, KeyHistory> =
        (0..SLOTS).map(|slot| (Key { epoch, slot }, KeyHistory::default())).collect();
    let mut put = |key: Key, record: &Record, event: Event, weaker: Option<OpenEvent>| {
        if let Some(history) = histories.get_mut(&key) {
            let (invoked, returned) = (record.invoked, record.returned);
            history.closed.push(Closed { invoked, returned, event, weaker });
        }
    };
    let mut opened: Vec<(Key, Open)> = Vec::new();
    for record in records {
        let invoked = record.invoked;
        match (&record.call, &record.answer) {
            (Call::Add(key), Answer::Created(id)) => {
                put(*key, record, Event::Created(*id), Some(OpenEvent::Add));
            }
            (Call::Add(key), Answer::Existed(id)) => {
                put(*key, record, Event::Seen(*id), Some(OpenEvent::Add))
            }
            (Call::Add(key), Answer::AddedAndGone) => put(*key, record, Event::Added, Some(OpenEvent::Add)),
            (Call::Add(key), Answer::Unknown) => {
                opened.push((*key, Open { invoked, event: OpenEvent::Add }));
            }
            (Call::Import(of, slots), answer) if *of == epoch => {
                let event = match answer {
                    Answer::Imported { existing: 0, .. } => Some(Event::Made),
                    Answer::Imported { created: 0, .. } => Some(Event::There),
                    // Which of them were there is not told.
                    Answer::Imported { .. } => Some(Event::Added),
                    _ => None,
                };
                for key in slots.iter().map(|slot| Key { epoch, slot }) {
                    match event {
                        Some(event) => put(key, record, event, Some(OpenEvent::Add)),
                        None => opened.push((key, Open { invoked, event: OpenEvent::Add })),
                    }
                }
            }
            (Call::Delete(key, id), Answer::Removed) => {
                put(*key, record, Event::Removed(*id), Some(OpenEvent::Remove(*id)));
            }
            (Call::Delete(key, id), Answer::Missing) => {
                put(*key, record, Event::Missing(*id), Some(OpenEvent::Remove(*id)));
            }
            (Call::Delete(key, id), Answer::Unknown) => {
                opened.push((*key, Open { invoked, event: OpenEvent::Remove(*id) }));
            }
            (Call::Get(key, id), Answer::Found) => put(*key, record, Event::Seen(*id), None),
            (Call::Get(key, id), Answer::Missing) => put(*key, record, Event::Missing(*id), None),
            (Call::List(listed), Answer::Listed(entries)) if *listed == epoch => {
                let found: BTreeMap<_, _> = entries.iter().copied().collect();
                for key in (0..SLOTS).map(|slot| Key { epoch, slot }) {
                    let event = found.get(&key).map_or(Event::Empty, |id| Event::Seen(*id));
                    put(key, record, event, None);
                }
            }
            // Reads without an answer say nothing; other pairs are never made.
            _ => {}
        }
    }
    for (key, open) in opened {
        if let Some(history) = histories.get_mut(&key) {
            history.open.push(open);
        }
    }
    histories
}
