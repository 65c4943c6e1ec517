//! What clients asked and what they were told.

use std::fmt;
use std::time::Duration;

/// A moment of a run, measured by one monotonic clock since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub Duration);

/// Id of an entry: the bits of its UUID.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u128);

/// What clients fight over: an address from the pool of an epoch. Pools change, so that the history of one key stays
/// short enough to be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Number of the pool.
    pub epoch: u16,
    /// Number in the pool.
    pub slot: u8,
}

/// What a client asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Add an entry for the key.
    Add(Key),
    /// Delete the entry with an id that some answer showed for the key.
    Delete(Key, Id),
    /// Get the entry with such an id.
    Get(Key, Id),
    /// Add entries for these keys of an epoch with one import.
    Import(u16, Slots),
    /// List all entries of an epoch.
    List(u16),
}

/// Some of the slots of a pool, a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slots(pub u8);

/// What it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The add made a new entry.
    Created(Id),
    /// The add found an entry that was there.
    Existed(Id),
    /// The add took effect, but somebody removed the entry before it could be shown.
    AddedAndGone,
    /// The import made so many entries and found so many that were there.
    Imported {
        /// New ones.
        created: u8,
        /// Others.
        existing: u8,
    },
    /// The delete removed the entry.
    Removed,
    /// The get found the entry.
    Found,
    /// There is no entry with this id.
    Missing,
    /// All entries of the epoch at one instant.
    Listed(Vec<(Key, Id)>),
    /// The write may or may not take effect, now or later.
    Unknown,
}

/// One call that had, or may have had, an effect, or that saw something. Refused calls are not recorded: they promise
/// that nothing happened, and the checks hold them to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Which client.
    pub client: u16,
    /// Number of the node it asked, from 0.
    pub node: usize,
    /// When it asked.
    pub invoked: Moment,
    /// When it was told.
    pub returned: Moment,
    /// What it asked.
    pub call: Call,
    /// What it was told.
    pub answer: Answer,
    /// The revision the answer carried.
    pub revision: Option<u64>,
}

/// First two parts of the pool's addresses; public, and nobody is contacted there.
const POOL_NETWORK: (u8, u8) = (93, 64);

impl Key {
    /// The target to add.
    pub fn target(self) -> String {
        format!("{}{}", Self::prefix(self.epoch), self.slot + 1)
    }

    /// What all targets of an epoch, and no others, begin with.
    pub fn prefix(epoch: u16) -> String {
        let [high, low] = epoch.to_be_bytes();
        format!("{}.{}.{low}.", POOL_NETWORK.0, POOL_NETWORK.1 + high)
    }

    /// The key of a target, if it is one of a pool.
    pub fn of_target(target: &str) -> Option<Self> {
        let mut parts = target.split('.').map(|part| part.parse::<u8>().ok());
        let mut next = || parts.next().flatten();
        let (first, second, low, last) = (next()?, next()?, next()?, next()?);
        let high = second.checked_sub(POOL_NETWORK.1)?;
        (first == POOL_NETWORK.0)
            .then_some(Self { epoch: u16::from_be_bytes([high, low]), slot: last.checked_sub(1)? })
    }
}

impl Slots {
    /// How many there can be.
    pub const MAX: u8 = 8;

    /// Their numbers, ascending.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..Self::MAX).filter(move |slot| self.0 & (1 << slot) != 0)
    }

    /// How many.
    pub const fn len(self) -> u8 {
        // At most eight.
        self.0.count_ones() as u8
    }

    /// Whether there are none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl Call {
    /// Whether it may change something.
    pub const fn writes(&self) -> bool {
        matches!(self, Self::Add(_) | Self::Delete(..) | Self::Import(..))
    }

    /// The pool it is about.
    pub const fn epoch(&self) -> u16 {
        match self {
            Self::Add(key) | Self::Delete(key, _) | Self::Get(key, _) => key.epoch,
            Self::Import(epoch, _) | Self::List(epoch) => *epoch,
        }
    }
}

impl Record {
    /// Whether it says something of `key`.
    pub fn concerns(&self, key: Key) -> bool {
        match self.call {
            Call::Add(of) | Call::Delete(of, _) | Call::Get(of, _) => of == key,
            Call::Import(epoch, slots) => epoch == key.epoch && slots.iter().any(|slot| slot == key.slot),
            Call::List(epoch) => epoch == key.epoch,
        }
    }
}

impl Record {
    /// In one line; of a list, only what it says of `key`.
    pub fn line(&self, key: Option<Key>) -> String {
        let call = match self.call {
            Call::Add(key) => format!("add {key}"),
            Call::Delete(key, id) => format!("delete {key} {id}"),
            Call::Get(key, id) => format!("get {key} {id}"),
            Call::Import(epoch, slots) => {
                let slots: Vec<_> = slots.iter().map(|slot| (slot + 1).to_string()).collect();
                format!("import {}{{{}}}", Key::prefix(epoch), slots.join(","))
            }
            Call::List(epoch) => format!("list {}*", Key::prefix(epoch)),
        };
        let answer = match (&self.answer, key) {
            (Answer::Created(id), _) => format!("created {id}"),
            (Answer::Existed(id), _) => format!("there was {id}"),
            (Answer::AddedAndGone, _) => "added, and gone at once".to_owned(),
            (Answer::Imported { created, existing }, _) => {
                format!("made {created}, {existing} were there")
            }
            (Answer::Removed, _) => "removed".to_owned(),
            (Answer::Found, _) => "found".to_owned(),
            (Answer::Missing, _) => "no such entry".to_owned(),
            (Answer::Listed(entries), Some(key)) => {
                let found = entries.iter().find(|(listed, _)| *listed == key);
                found.map_or_else(|| format!("no {key}"), |(_, id)| format!("{key} {id}"))
            }
            (Answer::Listed(entries), None) => format!("{} entries", entries.len()),
            (Answer::Unknown, _) => "unknown".to_owned(),
        };
        let revision = self.revision.map_or_else(String::new, |revision| format!(" at revision {revision}"));
        format!(
            "{} … {}  client {} on srv{}: {call} → {answer}{revision}",
            self.invoked,
            self.returned,
            self.client,
            self.node + 1
        )
    }
}

impl Id {
    /// The id with this UUID.
    pub fn parse(uuid: &str) -> Option<Self> {
        u128::from_str_radix(&uuid.replace('-', ""), 16).ok().map(Self)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = format!("{:032x}", self.0);
        write!(f, "{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} s", self.0.as_secs_f64())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.target())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_ids_are_read_back_as_they_were_written() {
        for key in [Key { epoch: 0, slot: 0 }, Key { epoch: 700, slot: 7 }] {
            assert_eq!(Key::of_target(&key.target()), Some(key));
            assert!(key.target().starts_with(&Key::prefix(key.epoch)));
        }
        assert_eq!(Key { epoch: 700, slot: 7 }.target(), "93.66.188.8");
        assert_eq!(Key::of_target("1.2.3.4"), None);
        let text = "0192f0c4-7a6b-7c3d-8e4f-5a6b7c8d9e0f";
        assert_eq!(Id::parse(text).unwrap().to_string(), text);
    }
}
