//! Answers that are kept, so that a write which is sent again is answered again and not carried out again.
//!
//! The client names its write with a key; key and answer go through the log like everything else, so every node can
//! answer, also after the one that was asked first is gone. Kept for [`KEPT_FOR_MS`] by the leaders' clocks, and for
//! [`KEPT_FOR_REVISIONS`] in any case: a leader whose clock jumps ahead must not make the answers of the last minutes
//! vanish, for a client that asks again then would have its write carried out twice. At most [`MAX_KEPT_REPLIES`] are
//! kept: then the oldest go.

use std::sync::Arc;

use allowlist::Revision;
use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::command::{Command, Operation, Reply};
use crate::state::State;

/// How long an answer is kept, milliseconds: a day. Whoever retries later has to look first.
pub const KEPT_FOR_MS: u64 = 24 * 60 * 60 * 1_000;
/// How many log entries an answer outlives whatever the clocks say: many minutes of a cluster that is written to as fast
/// as it can.
pub const KEPT_FOR_REVISIONS: u64 = 10_000;
/// Most replies kept, counted over all answers: with one reply each that many answers, some 40 MB.
pub const MAX_KEPT_REPLIES: usize = 100_000;
/// Most answers forgotten in one batch because of their age, so that no batch takes long. Nobody sees the others:
/// an answer that is too old is not found.
const MAX_FORGOTTEN_PER_BATCH: usize = 1_000;

/// Whose key it is and the key, apart by a character that neither can have.
pub(crate) type KeptName = Arc<str>;

/// An answer to a write with a key. A record of checkpoints and snapshots: its shape is frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptAnswer {
    pub(crate) name: KeptName,
    /// Of the request: the same key with another request is a mistake of the client.
    pub(crate) fingerprint: [u8; 32],
    /// When it was carried out, Unix milliseconds.
    pub(crate) at_ms: u64,
    /// The log entry …
    pub(crate) revision: Revision,
    /// … and the place in it.
    pub(crate) position: u32,
    /// One for each command.
    pub(crate) replies: Vec<Reply>,
}

/// All kept answers, by name and by age. Clones share structure.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Kept {
    by_name: OrdMap<KeptName, Arc<KeptAnswer>>,
    by_age: OrdMap<(Revision, u32), Arc<KeptAnswer>>,
    replies: usize,
}

/// By what the age of an answer is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// The leader's clock, Unix milliseconds.
    pub(crate) at_ms: u64,
    /// The log entry that is being applied.
    pub(crate) revision: Revision,
}

/// The name of `key` of the token `actor`.
pub(crate) fn name_of(actor: &str, key: &str) -> KeptName {
    format!("{actor}\0{key}").into()
}

impl KeptAnswer {
    fn weight(&self) -> usize {
        self.replies.len().max(1)
    }

    fn is_over(&self, now: Now) -> bool {
        self.at_ms.saturating_add(KEPT_FOR_MS) <= now.at_ms
            && self.revision.saturating_add(KEPT_FOR_REVISIONS) <= now.revision
    }
}

impl State {
    /// True when `operation` has a key whose answer is kept here: applying it changes nothing. (Not looked at is whether
    /// its time is over meanwhile.)
    pub fn has_answer(&self, operation: &Operation) -> bool {
        match &operation.command {
            Command::Once(once) => self.kept.get(&name_of(&operation.origin.actor, &once.key)).is_some(),
            _ => false,
        }
    }
}

impl Kept {
    pub(crate) fn from_answers(answers: impl IntoIterator<Item = KeptAnswer>) -> Self {
        let mut kept = Self::default();
        for answer in answers {
            kept.insert(Arc::new(answer));
        }
        kept
    }

    /// The answer with this name, unless its time is over.
    pub(crate) fn find(&self, name: &str, now: Now) -> Option<&Arc<KeptAnswer>> {
        self.get(name).filter(|answer| !answer.is_over(now))
    }

    /// The answer with this name, whatever its age.
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<KeptAnswer>> {
        self.by_name.get(name)
    }

    /// All, oldest first.
    pub(crate) fn answers(&self) -> impl Iterator<Item = &KeptAnswer> {
        self.by_age.values().map(|answer| &**answer)
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Keeps `answer` and lets go of the oldest beyond `max_replies`; the new one always stays. Names in `changed` are
    /// those whose record is another one now, or gone.
    pub(crate) fn keep(&mut self, answer: KeptAnswer, max_replies: usize, changed: &mut Vec<KeptName>) {
        changed.push(Arc::clone(&answer.name));
        self.insert(Arc::new(answer));
        while self.replies > max_replies && self.by_name.len() > 1 {
            let Some((_, oldest)) = self.by_age.get_min().cloned() else { return };
            changed.push(Arc::clone(&oldest.name));
            self.remove(&oldest);
        }
    }

    /// Lets go of answers whose time is over, some at a time.
    pub(crate) fn forget_old(&mut self, now: Now, changed: &mut Vec<KeptName>) {
        for _ in 0..MAX_FORGOTTEN_PER_BATCH {
            let Some((_, oldest)) = self.by_age.get_min() else { return };
            if !oldest.is_over(now) {
                return;
            }
            let oldest = Arc::clone(oldest);
            changed.push(Arc::clone(&oldest.name));
            self.remove(&oldest);
        }
    }

    fn insert(&mut self, answer: Arc<KeptAnswer>) {
        if let Some(before) = self.by_name.get(&answer.name).cloned() {
            self.remove(&before);
        }
        self.replies += answer.weight();
        self.by_age.insert((answer.revision, answer.position), Arc::clone(&answer));
        self.by_name.insert(Arc::clone(&answer.name), answer);
    }

    fn remove(&mut self, answer: &KeptAnswer) {
        self.replies -= answer.weight();
        self.by_age.remove(&(answer.revision, answer.position));
        self.by_name.remove(&answer.name);
    }
}

#[cfg(test)]
mod tests;
