//! How many calls came out how.

use std::collections::BTreeMap;
use std::fmt;

/// Which call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Add an entry.
    Add,
    /// Add several at once.
    Import,
    /// Delete one.
    Delete,
    /// Get one.
    Get,
    /// List an epoch's.
    List,
    /// Save everything.
    Backup,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Add, Self::Import, Self::Delete, Self::Get, Self::List, Self::Backup];
}

/// How it came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Answered.
    Ok,
    /// Not answered, and certainly without effect.
    Refused,
    /// Nobody knows whether it took effect.
    Unknown,
    /// Answered as no client should ever be answered.
    Failed,
}

/// Writes under an idempotency key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keyed {
    /// How many there were.
    pub writes: u64,
    /// How often one was sent again.
    pub resent: u64,
    /// How often one was answered as before, and marked so.
    pub replayed: u64,
}

/// Counts by call and outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    calls: BTreeMap<(Kind, Outcome), u64>,
    keyed: Keyed,
}

impl Tally {
    /// Counts one.
    pub fn count(&mut self, kind: Kind, outcome: Outcome) {
        *self.calls.entry((kind, outcome)).or_default() += 1;
    }

    /// Counts a write under a key, or several.
    pub fn count_keyed(&mut self, keyed: Keyed) {
        self.keyed.writes += keyed.writes;
        self.keyed.resent += keyed.resent;
        self.keyed.replayed += keyed.replayed;
    }

    /// Writes under a key.
    pub const fn keyed(&self) -> Keyed {
        self.keyed
    }

    /// All calls with this outcome.
    pub fn with(&self, outcome: Outcome) -> u64 {
        self.calls.iter().filter(|((_, of), _)| *of == outcome).map(|(_, count)| count).sum()
    }

    /// Calls of this kind with this outcome.
    pub fn of(&self, kind: Kind, outcome: Outcome) -> u64 {
        self.calls.get(&(kind, outcome)).copied().unwrap_or_default()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, name: &str, counts: [u64; 4]| {
            let [ok, refused, unknown, failed] = counts;
            writeln!(f, "  {name:<8} {ok:>9} {refused:>9} {unknown:>9} {failed:>9}")
        };
        writeln!(f, "  {:<8} {:>9} {:>9} {:>9} {:>9}", "call", "ok", "refused", "unknown", "failed")?;
        let outcomes = [Outcome::Ok, Outcome::Refused, Outcome::Unknown, Outcome::Failed];
        for kind in Kind::ALL {
            row(f, &format!("{kind:?}").to_lowercase(), outcomes.map(|outcome| self.of(kind, outcome)))?;
        }
        row(f, "all", outcomes.map(|outcome| self.with(outcome)))?;
        let Keyed { writes, resent, replayed } = self.keyed;
        writeln!(
            f,
            "  writes with a key: {writes}, sent again {resent} times, answered as before {replayed} times"
        )
    }
}
