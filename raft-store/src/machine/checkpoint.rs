//! The thread that brings the sled checkpoint up to what was applied. It is off the way of a write: a write is on disk
//! in the log, and the checkpoint only saves replaying it after a restart.
//!
//! It never goes beyond what is synced in this node's own log: an entry can be committed by the other two nodes before
//! this disk has it, and a checkpoint ahead of the log makes openraft refuse to start.

mod pace;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::database::{self, Database, Dirty, LoadError};
use super::recover;
use crate::fatal::FatalHook;
use crate::features::FeatureLevel;
use crate::log::Flushed;
use crate::snapshot::Content;
use crate::space::{Space, SpaceState};

pub(crate) use pace::CatchUp;
pub use pace::CheckpointPace;
use pace::MAX_LAST_STEP_KEYS;

/// A step that met a full disk is tried again after this time.
const ROOM_INTERVAL: Duration = Duration::from_secs(1);
/// … which doubles each time, up to this.
const MAX_ROOM_INTERVAL: Duration = Duration::from_secs(30);
/// A checkpoint that was closed because the disk was full is read again only when so much is free.
const REOPEN_BYTES: u64 = 8 * 1024 * 1024;
/// A checkpoint that has grown is written anew only when so many times the bytes of what is in it are free …
const REWRITE_TIMES: u64 = 2;
/// … and so many more.
const REWRITE_MARGIN_BYTES: u64 = 64 * 1024 * 1024;
/// Where there is no room for that, or it fails, it is tried again after this time.
const REWRITE_INTERVAL: Duration = Duration::from_secs(60);
/// Failures in a row, for another reason than a full disk, after which the disk counts as failed.
const PATIENCE_STEPS: u32 = 30;

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
    /// Held while a step or a whole generation is written.
    database: Mutex<Generation>,
    pace: CheckpointPace,
    limit: GrowthLimit,
    space: Space,
    fatal: FatalHook,
}

/// The generation in use.
#[derive(Debug)]
pub(crate) enum Generation {
    Open(Database),
    /// Closed because the disk was full.
    Closed(PathBuf),
    /// Of the time before the state it should hold, if there is any: that is written when there is room.
    Superseded(Option<PathBuf>),
}

impl Generation {
    /// Lets go of it.
    pub(crate) fn close(&mut self) {
        if let Self::Open(database) = self {
            let dir = database.dir().to_owned();
            self.put(Self::Closed(dir));
        }
    }

    fn supersede(&mut self) {
        let dir = self.dir().map(Path::to_owned);
        self.put(Self::Superseded(dir));
    }

    fn put(&mut self, next: Self) {
        if let Self::Open(database) = std::mem::replace(self, next) {
            database.close();
        }
    }

    pub(super) fn dir(&self) -> Option<&Path> {
        match self {
            Self::Open(database) => Some(database.dir()),
            Self::Closed(dir) => Some(dir),
            Self::Superseded(dir) => dir.as_deref(),
        }
    }
}

/// How large a generation may become before it is written anew: sled gives little of its room back (1 M keys written
/// three times took 4.1 times their size, and more with every round).
#[derive(Debug, Clone, Copy)]
pub(crate) struct GrowthLimit {
    /// Times the bytes of what is in it …
    pub(crate) times: u64,
    /// … and so many more.
    pub(crate) slack_bytes: u64,
}

impl Default for GrowthLimit {
    fn default() -> Self {
        Self { times: 6, slack_bytes: 64 * 1024 * 1024 }
    }
}

#[derive(Debug, Default)]
struct Pending {
    /// The newest applied content, and what differs from the last step.
    next: Option<(Content, Dirty)>,
    since: Option<Instant>,
    /// Somebody waits for the next step.
    hurry: bool,
    /// How often something was noted, and …
    noted: u64,
    /// … how much of that is written.
    written: u64,
    /// Rises when another state was put in place: what was noted before must not be written over it.
    epoch: u64,
    ended: bool,
}

impl Pending {
    fn keys(&self) -> usize {
        self.next.as_ref().map_or(0, |(_, dirty)| dirty.len())
    }
}

/// What is to be written next.
struct NextStep {
    content: Content,
    dirty: Dirty,
    epoch: u64,
    noted: u64,
}

impl Checkpointer {
    /// Begins with a generation that holds `content`, or writes one.
    pub(crate) fn start(
        root: &Path,
        (generation, content): (Generation, &Content),
        flushed: Arc<Flushed>,
        pace: CheckpointPace,
        limit: GrowthLimit,
        space: Space,
        fatal: FatalHook,
    ) -> std::io::Result<Self> {
        let mut pending = Pending::default();
        if let Generation::Superseded(_) = generation {
            pending.next = Some((content.clone(), Dirty::default()));
            pending.since = Some(Instant::now());
            pending.noted = 1;
        }
        let shared = Arc::new(Shared {
            root: root.to_owned(),
            pending: Mutex::new(pending),
            changed: Condvar::new(),
            database: Mutex::new(generation),
            pace,
            limit,
            space,
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
        pending.noted += 1;
        self.shared.changed.notify_all();
    }

    /// For those who need the checkpoint as far as the state is.
    pub(crate) fn catching_up(&self) -> CatchUp {
        CatchUp(Arc::clone(&self.shared))
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
            pending.written = pending.noted;
            pending.epoch += 1;
        }
        let mut generation = shared.generation();
        match recover::create(&shared.root, content, &shared.space) {
            Ok(new) => switch(&mut generation, new),
            // The snapshot's file holds it too, and what is opened before this is written begins with that.
            Err(reason) if recover::is_no_space(&reason, &shared.space) => {
                tracing::warn!(reason, "the checkpoint of a snapshot is written when there is room");
                generation.supersede();
                let mut pending = shared.pending();
                pending.next = Some((content.clone(), Dirty::default()));
                pending.since = Some(Instant::now());
                pending.noted += 1;
                shared.changed.notify_all();
            }
            Err(reason) => return Err(reason),
        }
        Ok(())
    }
}

/// Puts a complete generation in the place of another one, which goes.
fn switch(generation: &mut Generation, new: Database) {
    let dir = generation.dir().map(Path::to_owned);
    drop(std::mem::replace(generation, Generation::Open(new)));
    let Some(dir) = dir else { return };
    // Only garbage by now: what cannot be removed today is removed when the store is opened.
    if let Err(error) = fs::remove_dir_all(&dir) {
        tracing::warn!(%error, dir = %dir.display(), "remove the old checkpoint");
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
        let (mut failures, mut full) = (0, 0);
        let mut rewrite_at = Instant::now();
        while let Some(NextStep { content, dirty, epoch, noted }) = self.next_step() {
            if let Some(applied) = content.applied
                && !flushed.wait_for(applied.index)
            {
                return;
            }
            let mut generation = self.generation();
            if self.pending().epoch != epoch {
                continue;
            }
            match self.step(&mut generation, &content, &dirty, &mut rewrite_at) {
                Ok(()) => {
                    (failures, full) = (0, 0);
                    drop(generation);
                    let mut pending = self.pending();
                    pending.written = pending.written.max(noted);
                    self.changed.notify_all();
                }
                // The log holds everything, so this can wait until there is room. sled cannot be used any more, and
                // does not always say why.
                Err(reason) if recover::is_no_space(&reason, &self.space) || failures < PATIENCE_STEPS => {
                    let mut wait = ROOM_INTERVAL;
                    if recover::is_no_space(&reason, &self.space) {
                        wait = MAX_ROOM_INTERVAL.min(ROOM_INTERVAL * 2_u32.saturating_pow(full));
                        full += 1;
                    } else {
                        failures += 1;
                    }
                    generation.close();
                    drop(generation);
                    tracing::warn!(reason, "the checkpoint could not be written, it is tried again");
                    if !self.wait_for_room(content, dirty, epoch, wait) {
                        return;
                    }
                }
                Err(reason) => {
                    drop(generation);
                    return self.fatal.call(&format!("write the checkpoint: {reason}"));
                }
            }
        }
    }

    fn generation(&self) -> MutexGuard<'_, Generation> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `rewrite_at` is when the whole may be written anew at the earliest.
    fn step(
        &self,
        generation: &mut Generation,
        content: &Content,
        dirty: &Dirty,
        rewrite_at: &mut Instant,
    ) -> Result<(), String> {
        if !matches!(generation, Generation::Open(_)) {
            // All of it is read: not for nothing, again and again.
            self.space.room_for("the checkpoint", REOPEN_BYTES).map_err(recover::no_space)?;
        }
        if let Generation::Superseded(_) = generation {
            return recover::create(&self.root, content, &self.space).map(|new| switch(generation, new));
        }
        if let Generation::Closed(dir) = generation {
            // It holds the last step that succeeded, or, if it cannot be read, is written anew.
            match Database::load(dir, FeatureLevel::NEWEST) {
                Ok((database, _)) => *generation = Generation::Open(database),
                Err(LoadError::Damaged(reason)) if !database::is_no_space(&reason) => {
                    tracing::warn!(reason, "the checkpoint is written anew");
                    return recover::create(&self.root, content, &self.space)
                        .map(|new| switch(generation, new));
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        let Generation::Open(database) = &*generation else { return Ok(()) };
        database.step(content, dirty)?;
        let (live, on_disk) = (database.live_bytes(content), database.bytes_on_disk()?);
        if on_disk <= self.limit.times * live + self.limit.slack_bytes {
            return Ok(());
        }
        if Instant::now() < *rewrite_at {
            return Ok(());
        }
        tracing::info!(live, on_disk, "the checkpoint has grown, it is written anew");
        match self.rewrite(live, content) {
            Ok(new) => switch(generation, new),
            // The old one is as good, only larger.
            Err(reason) => {
                *rewrite_at = Instant::now() + REWRITE_INTERVAL;
                tracing::warn!(reason, "write the checkpoint anew");
            }
        }
        Ok(())
    }

    fn rewrite(&self, live: u64, content: &Content) -> Result<Database, String> {
        if let SpaceState::Low { free, needed } = self.space.check() {
            return Err(format!("the disk is low: {free} bytes are free, {needed} should be"));
        }
        let needed = REWRITE_TIMES * live + REWRITE_MARGIN_BYTES;
        self.space.room_for("a new checkpoint", needed).map_err(|error| error.to_string())?;
        Database::create_unless(&self.root, content, &|| self.pending().ended)
    }

    /// Puts back what could not be written, and waits a while. False when there is no later.
    fn wait_for_room(&self, content: Content, dirty: Dirty, epoch: u64, wait: Duration) -> bool {
        let mut pending = self.pending();
        if pending.ended {
            return false;
        }
        if pending.epoch == epoch {
            pending.next = match pending.next.take() {
                Some((newer, mut since)) => {
                    since.merge(dirty);
                    Some((newer, since))
                }
                None => Some((content, dirty)),
            };
            pending.since.get_or_insert_with(Instant::now);
        }
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || pending.ended {
                return !pending.ended;
            }
            pending = self.changed.wait_timeout(pending, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Blocks until a step is due; `None` when there will be none any more.
    fn next_step(&self) -> Option<NextStep> {
        let mut pending = self.pending();
        loop {
            let due = match (&pending.next, pending.since) {
                (Some((_, dirty)), Some(since)) if dirty.len() < self.pace.keys && !pending.hurry => {
                    Some(self.pace.interval.saturating_sub(since.elapsed()))
                }
                (Some(_), _) => Some(Duration::ZERO),
                (None, _) => None,
            };
            match due {
                _ if pending.ended && pending.next.is_none() => return None,
                _ if pending.ended && pending.keys() > MAX_LAST_STEP_KEYS => return None,
                Some(wait) if wait.is_zero() || pending.ended => {
                    pending.since = None;
                    pending.hurry = false;
                    let (epoch, noted) = (pending.epoch, pending.noted);
                    let next = pending.next.take();
                    return next.map(|(content, dirty)| NextStep { content, dirty, epoch, noted });
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

#[cfg(test)]
mod tests;
