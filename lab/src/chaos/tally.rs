//! How many calls came out how.

use std::collections::BTreeMap;
use std::fmt;

/// Which call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Add an entry.
    Add,
    /// Delete one.
    Delete,
    /// Get one.
    Get,
    /// List an epoch's.
    List,
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

/// Counts by call and outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<(Kind, Outcome), u64>);

impl Tally {
    /// Counts one.
    pub fn count(&mut self, kind: Kind, outcome: Outcome) {
        *self.0.entry((kind, outcome)).or_default() += 1;
    }

    /// All calls with this outcome.
    pub fn with(&self, outcome: Outcome) -> u64 {
        self.0.iter().filter(|((_, of), _)| *of == outcome).map(|(_, count)| count).sum()
    }

    fn of(&self, kind: Kind, outcome: Outcome) -> u64 {
        self.0.get(&(kind, outcome)).copied().unwrap_or_default()
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
        for kind in [Kind::Add, Kind::Delete, Kind::Get, Kind::List] {
            row(f, &format!("{kind:?}").to_lowercase(), outcomes.map(|outcome| self.of(kind, outcome)))?;
        }
        row(f, "all", outcomes.map(|outcome| self.with(outcome)))
    }
}
