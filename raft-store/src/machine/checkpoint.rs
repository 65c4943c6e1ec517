//! The thread that brings the sled checkpoint up to what was applied. It is off the way of a write: a write is on disk
//! in the log, and the checkpoint only saves replaying it after a restart.
//!
//! It never goes beyond what is synced in this node's own log: an entry can be committed by the other two nodes before
//! this disk has it, and a checkpoint ahead of the log makes openraft refuse to start.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::database::{Database, Dirty};
use crate::fatal::FatalHook;
use crate::log::Flushed;
use crate::snapshot::Content;

/// A step is taken at the latest when so many keys have changed …
const STEP_KEYS: usize = 10_000;
/// … or when the oldest change is this old.
const STEP_INTERVAL: Duration = Duration::from_millis(200);

/// Handle on the thread. Dropping it ends the thread, after the step it is in.
#[derive(Debug)]
pub(crate) struct Checkpointer {
    shared: Arc<Shared>,
    flushed: Arc<Flushed>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    pending: Mutex<Pending>,
    changed: Condvar,
    /// The generation in use. Held while a step is written.
    database: Mutex<Database>,
    fatal: FatalHook,
}

#[derive(Debug, Default)]
struct Pending {
    /// The newest applied content, and what differs from the last step.
    next: Option<(Content, Dirty)>,
    since: Option<Instant>,
    /// Rises when another state was put in place: what was noted before must not be written over it.
    epoch: u64,
    ended: bool,
}

impl Checkpointer {
    pub(crate) fn start(
        root: &Path,
        database: Database,
        flushed: Arc<Flushed>,
        fatal: FatalHook,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            root: root.to_owned(),
            pending: Mutex::default(),
            changed: Condvar::new(),
            database: Mutex::new(database),
            fatal,
        });
        let (of_thread, until) = (Arc::clone(&shared), Arc::clone(&flushed));
        let thread =
            std::thread::Builder::new().name("checkpoint".to_owned()).spawn(move || of_thread.run(&until))?;
        Ok(Self { shared, flushed, thread: Some(thread) })
    }

    /// Takes note of newly applied content.
    pub(crate) fn note(&self, content: Content, dirty: Dirty) {
        let mut pending = self.shared.pending();
        let dirty = match pending.next.take() {
            Some((_, mut before)) => {
                before.merge(dirty);
                before
            }
            None => dirty,
        };
        pending.next = Some((content, dirty));
        pending.since.get_or_insert_with(Instant::now);
        self.shared.changed.notify_one();
    }

    /// Puts `content` in the place of everything: a new generation is written beside the old one and counts from its
    /// mark on. Blocks.
    pub(crate) fn replacement(&self) -> Replacement {
        Replacement(Arc::clone(&self.shared))
    }
}

/// The right to put another state in place, usable off the async threads.
#[derive(Debug)]
pub(crate) struct Replacement(Arc<Shared>);

impl Replacement {
    /// See [`Checkpointer::replacement`].
    pub(crate) fn replace(&self, content: &Content) -> Result<(), String> {
        let shared = &self.0;
        {
            let mut pending = shared.pending();
            pending.next = None;
            pending.since = None;
            pending.epoch += 1;
        }
        let new = Database::create(&shared.root, content)?;
        let old =
            std::mem::replace(&mut *shared.database.lock().unwrap_or_else(PoisonError::into_inner), new);
        let dir = old.dir().to_owned();
        drop(old);
        // Only garbage by now: what cannot be removed today is removed when the store is opened.
        if let Err(error) = fs::remove_dir_all(&dir) {
            tracing::warn!(%error, dir = %dir.display(), "remove the old checkpoint");
        }
        Ok(())
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.shared.pending().ended = true;
        self.shared.changed.notify_all();
        // The log may live longer, but nobody else waits on it.
        self.flushed.end();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the checkpoint thread panicked");
        }
    }
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, flushed: &Flushed) {
        while let Some((content, dirty, epoch)) = self.next_step() {
            if let Some(applied) = content.applied
                && !flushed.wait_for(applied.index)
            {
                return;
            }
            let database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
            if self.pending().epoch != epoch {
                continue;
            }
            if let Err(error) = database.step(&content, &dirty) {
                drop(database);
                return self.fatal.call(&format!("write the checkpoint: {error}"));
            }
        }
    }

    /// Blocks until a step is due; `None` when there will be none any more.
    fn next_step(&self) -> Option<(Content, Dirty, u64)> {
        let mut pending = self.pending();
        loop {
            let due = match (&pending.next, pending.since) {
                (Some((_, dirty)), Some(since)) if dirty.len() < STEP_KEYS => {
                    Some(STEP_INTERVAL.saturating_sub(since.elapsed()))
                }
                (Some(_), _) => Some(Duration::ZERO),
                (None, _) => None,
            };
            match due {
                _ if pending.ended && pending.next.is_none() => return None,
                Some(wait) if wait.is_zero() || pending.ended => {
                    pending.since = None;
                    let epoch = pending.epoch;
                    return pending.next.take().map(|(content, dirty)| (content, dirty, epoch));
                }
                Some(wait) => {
                    pending =
                        self.changed.wait_timeout(pending, wait).unwrap_or_else(PoisonError::into_inner).0;
                }
                None => pending = self.changed.wait(pending).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}
