//! Reading the applied state and following it: what the API, the feed, the resolver and the UI see.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use allowlist::Revision;
use tokio::sync::watch;

use crate::state::{AppliedBatch, State};

/// How many applied batches with events a node keeps for feeds that resume, at most …
pub const HISTORY_BATCHES: usize = 100_000;
/// … and how many events and element changes in them: a batch of a thousand operations is not a small thing.
pub const HISTORY_CHANGES: usize = 1_000_000;

/// A cheap handle on the applied state of this node. Clones see the same state.
#[derive(Debug, Clone)]
pub struct StateReader {
    shared: Arc<Shared>,
    revision: watch::Receiver<Revision>,
}

/// The writing side, held by the state machine alone.
#[derive(Debug)]
pub struct StatePublisher {
    shared: Arc<Shared>,
    revision: watch::Sender<Revision>,
}

struct Shared {
    current: RwLock<Current>,
}

struct Current {
    state: Arc<State>,
    /// Batches with at least one event, oldest first.
    history: VecDeque<Arc<AppliedBatch>>,
    /// Events and element changes in `history`.
    changes: usize,
    /// Every batch after this revision is in `history`.
    history_after: Revision,
}

impl fmt::Debug for Shared {
    /// Short: a state can hold a million entries.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let revision = self.current.read().unwrap_or_else(PoisonError::into_inner).state.revision();
        f.debug_struct("Shared").field("revision", &revision).finish_non_exhaustive()
    }
}

/// The asked-for revision is older than the history this node keeps (or newer than its state): take a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("revision {asked} is outside the history of this node, {oldest} to {newest}")]
pub struct Gap {
    /// What was asked for.
    pub asked: Revision,
    /// Oldest revision one can go on from.
    pub oldest: Revision,
    /// The node's newest revision.
    pub newest: Revision,
}

/// A publisher and its reader, starting at `state`.
pub fn channel(state: State) -> (StatePublisher, StateReader) {
    let (sender, receiver) = watch::channel(state.revision());
    let history_after = state.revision();
    let current = Current { state: Arc::new(state), history: VecDeque::new(), changes: 0, history_after };
    let shared = Arc::new(Shared { current: RwLock::new(current) });
    (
        StatePublisher { shared: Arc::clone(&shared), revision: sender },
        StateReader { shared, revision: receiver },
    )
}

impl StatePublisher {
    /// Makes `state` visible together with the batches that led to it.
    pub fn publish(&self, state: State, applied: Vec<AppliedBatch>) {
        let revision = state.revision();
        {
            let mut current = self.shared.current.write().unwrap_or_else(PoisonError::into_inner);
            current.state = Arc::new(state);
            for batch in applied.into_iter().filter(|batch| !batch.events.is_empty()) {
                current.changes += weight(&batch);
                current.history.push_back(Arc::new(batch));
                while current.history.len() > HISTORY_BATCHES || current.changes > HISTORY_CHANGES {
                    let Some(oldest) = current.history.pop_front() else { break };
                    current.changes -= weight(&oldest);
                    current.history_after = oldest.revision;
                }
            }
        }
        self.revision.send_replace(revision);
    }

    /// Replaces the state by one that came from elsewhere (an installed snapshot); the history starts anew.
    pub fn replace(&self, state: State) {
        let revision = state.revision();
        {
            let mut current = self.shared.current.write().unwrap_or_else(PoisonError::into_inner);
            current.history.clear();
            current.changes = 0;
            current.history_after = revision;
            current.state = Arc::new(state);
        }
        self.revision.send_replace(revision);
    }
}

fn weight(batch: &AppliedBatch) -> usize {
    batch.events.len() + batch.change.len()
}

impl StateReader {
    /// The state as of now. It does not change under the reader.
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.shared.current.read().unwrap_or_else(PoisonError::into_inner).state)
    }

    /// A watch on the newest applied revision. Follow the state by waiting on it and then calling [`Self::after`].
    pub fn revisions(&self) -> watch::Receiver<Revision> {
        self.revision.clone()
    }

    /// Where the history begins: the revision of the state this node started with or was sent, unless older batches
    /// had to go since.
    pub fn history_after(&self) -> Revision {
        self.shared.current.read().unwrap_or_else(PoisonError::into_inner).history_after
    }

    /// The newest batch with events, as far as this node keeps any.
    pub fn newest(&self) -> Option<Arc<AppliedBatch>> {
        self.shared.current.read().unwrap_or_else(PoisonError::into_inner).history.back().cloned()
    }

    /// Up to `limit` batches with events before `revision`, newest first.
    pub fn before(&self, revision: Revision, limit: usize) -> Vec<Arc<AppliedBatch>> {
        let current = self.shared.current.read().unwrap_or_else(PoisonError::into_inner);
        let end = current.history.partition_point(|batch| batch.revision < revision);
        current.history.range(..end).rev().take(limit).cloned().collect()
    }

    /// Up to `limit` batches with events after `revision`, oldest first, and the state's newest revision when the
    /// list is complete (that is, when fewer than `limit` were found).
    ///
    /// # Errors
    /// [`Gap`] when batches after `revision` are no longer kept, or `revision` is ahead of this node.
    pub fn after(&self, revision: Revision, limit: usize) -> Result<Vec<Arc<AppliedBatch>>, Gap> {
        let current = self.shared.current.read().unwrap_or_else(PoisonError::into_inner);
        let newest = current.state.revision();
        if revision < current.history_after || revision > newest {
            return Err(Gap { asked: revision, oldest: current.history_after, newest });
        }
        let start = current.history.partition_point(|batch| batch.revision <= revision);
        Ok(current.history.iter().skip(start).take(limit).cloned().collect())
    }
}
