//! The entries, found by id and by natural key. Both orders hold nothing but pointers to them: with a million entries each
//! key beside its pointer would cost as much as the entry.

use std::cmp::Ordering;
use std::ops::RangeBounds;
use std::sync::Arc;

use allowlist::{Entry, EntryId, Ports, Target};
use equivalent::{Comparable, Equivalent};
use imbl::OrdSet;

/// All entries. Clones share structure.
#[derive(Debug, Clone, Default)]
pub struct Entries {
    by_id: OrdSet<ById>,
    by_key: OrdSet<ByKey>,
}

/// An entry in the order of ids, which is that of creation.
#[derive(Debug, Clone)]
struct ById(Arc<Entry>);

/// An entry in the order of natural keys. Ordered by target first, so the entries of one domain stand together.
#[derive(Debug, Clone)]
struct ByKey(Arc<Entry>);

/// A natural key.
type Key<'a> = (&'a Target, &'a Ports);

/// A place in the order of natural keys.
struct AtKey<'a>(Key<'a>);

impl Entries {
    /// The entry with this id.
    pub fn get(&self, id: &EntryId) -> Option<&Arc<Entry>> {
        self.by_id.get(id).map(|ById(entry)| entry)
    }

    /// True when there is an entry with this id.
    pub fn contains_key(&self, id: &EntryId) -> bool {
        self.by_id.contains(id)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// All, by id.
    pub fn values(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.by_id.iter().map(|ById(entry)| entry)
    }

    /// All ids, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &EntryId> {
        self.values().map(|entry| &entry.id)
    }

    /// Those whose ids are within `ids`, by id.
    pub fn range(&self, ids: impl RangeBounds<EntryId>) -> impl Iterator<Item = &Arc<Entry>> {
        self.by_id.range(ids).map(|ById(entry)| entry)
    }

    /// The entry with this natural key.
    pub(super) fn get_by_key(&self, target: &Target, ports: &Ports) -> Option<&Arc<Entry>> {
        self.by_key.get(&AtKey((target, ports))).map(|ByKey(entry)| entry)
    }

    /// The entries with this target, one for each set of ports.
    pub(super) fn of_target(&self, target: Target) -> impl Iterator<Item = &Arc<Entry>> {
        // No port restriction sorts first.
        let from_there = self.by_key.range(AtKey((&target, &ANY_PORT))..);
        from_there.map(|ByKey(entry)| entry).take_while(move |entry| entry.target == target)
    }

    /// Puts `entry` in the place of the one with its id, which has the same natural key, or among the others. Answers
    /// with the one that was there.
    pub(crate) fn insert(&mut self, entry: Arc<Entry>) -> Option<Arc<Entry>> {
        self.by_key.insert(ByKey(Arc::clone(&entry)));
        self.by_id.insert(ById(entry)).map(|ById(before)| before)
    }

    /// Takes the entry out.
    pub(crate) fn remove(&mut self, entry: &Entry) {
        self.by_id.remove(&entry.id);
        self.by_key.remove(&AtKey(key(entry)));
    }
}

static ANY_PORT: Ports = Ports::all();

fn key(entry: &Entry) -> Key<'_> {
    (&entry.target, &entry.ports)
}

impl PartialEq for Entries {
    /// The whole entries count, not their names alone.
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.values().eq(other.values())
    }
}

impl Eq for Entries {}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}

impl PartialOrd for ById {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ById {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.id.cmp(&other.0.id)
    }
}

impl std::borrow::Borrow<EntryId> for ById {
    fn borrow(&self) -> &EntryId {
        &self.0.id
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        key(&self.0) == key(&other.0)
    }
}

impl Eq for ByKey {}

impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByKey {
    fn cmp(&self, other: &Self) -> Ordering {
        key(&self.0).cmp(&key(&other.0))
    }
}

impl Equivalent<ByKey> for AtKey<'_> {
    fn equivalent(&self, entry: &ByKey) -> bool {
        self.0 == key(&entry.0)
    }
}

impl Comparable<ByKey> for AtKey<'_> {
    fn compare(&self, entry: &ByKey) -> Ordering {
        self.0.cmp(&key(&entry.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driving::new_entry;

    fn entry(id: u128, target: &str, ports: &[&str]) -> Arc<Entry> {
        let ports = Ports::new(ports.iter().map(|range| range.parse().unwrap()).collect()).unwrap();
        let new = crate::command::NewEntry { ports, ..new_entry(id, target) };
        Arc::new(new.made_by("ops", 1))
    }

    #[test]
    fn entries_are_found_by_id_and_by_target_and_ports() {
        let all = [
            entry(4, "a.example.com", &["tcp/443"]),
            entry(3, "a.example.com", &[]),
            entry(2, "b.example.com", &[]),
            entry(1, "8.8.8.8", &[]),
        ];
        let mut entries = Entries::default();
        all.iter().for_each(|entry| assert!(entries.insert(Arc::clone(entry)).is_none()));
        assert!(all.iter().all(|entry| entries.get_by_key(&entry.target, &entry.ports) == Some(entry)));
        assert!(all.iter().all(|entry| entries.get(&entry.id) == Some(entry)));
        let ids: Vec<_> =
            entries.of_target(all[0].target.clone()).map(|entry| entry.id.0.as_u128()).collect();
        assert_eq!(ids, [3, 4]);
        assert_eq!(entries.of_target(all[3].target.clone()).count(), 1);

        let other = Arc::new(Entry { comment: "new".into(), ..Entry::clone(&all[0]) });
        let before = entries.clone();
        assert_eq!(entries.insert(Arc::clone(&other)).as_ref(), Some(&all[0]));
        assert_eq!(entries.get_by_key(&other.target, &other.ports), Some(&other));
        assert_ne!(entries, before, "texts count");
        entries.remove(&other);
        assert_eq!((entries.len(), entries.get_by_key(&other.target, &other.ports)), (3, None));
    }
}
