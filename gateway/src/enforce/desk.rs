//! Where word is left for the owner thread.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use allowlist::feed::FeedState;
use allowlist::{Change, Element, Revision};
use tokio::sync::oneshot;

use super::pending::Pending;
use super::{MAX_COUNTER_REQUESTS, Origin};
use crate::firewall::ElementCounters;
use crate::held::Held;

/// Where counters are sent to.
pub(super) type Answer = oneshot::Sender<Result<Arc<Vec<ElementCounters>>, String>>;

/// The desk. Critical sections only move or clone sets.
#[derive(Debug)]
pub(super) struct Desk {
    sheet: Mutex<Sheet>,
    bell: Condvar,
}

#[derive(Debug)]
struct Sheet {
    held: Held,
    todo: Todo,
    pending: Pending,
    /// Arrival of the oldest frame that waits.
    since: Option<Instant>,
    questions: Vec<Answer>,
    stopping: bool,
}

/// What waits, in rising order of effort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Todo {
    Nothing,
    /// The merged changes, perhaps none but with a newer revision.
    Changes,
    /// The kernel may hold anything: give it the whole set, which is stored already.
    Enforce,
    /// A new set came from a server.
    Replace,
}

/// What the owner takes from the desk.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) job: Option<Job>,
    pub(super) questions: Vec<Answer>,
    pub(super) stopping: bool,
}

/// One step for the kernel and the state file.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) step: KernelStep,
    /// What to write to the state file before the kernel is asked.
    pub(super) record: Record,
    /// The point reached with it; `None` when no server confirmed the set.
    pub(super) point: Option<FeedState>,
    pub(super) since: Instant,
    /// How many elements are held with it.
    pub(super) elements: usize,
    /// The whole set at this point, when the state file wants to be written anew.
    pub(super) checkpoint: Option<Held>,
}

/// What the kernel is asked.
#[derive(Debug)]
pub(super) enum KernelStep {
    Apply(Change),
    /// The whole set, and what is known of the way there.
    Replace(BTreeSet<Element>, Change),
}

impl KernelStep {
    pub(super) const fn change(&self) -> &Change {
        match self {
            Self::Apply(change) | Self::Replace(_, change) => change,
        }
    }
}

/// What the state file has to learn.
#[derive(Debug)]
pub(super) enum Record {
    /// Nothing new.
    None,
    /// A step from the last record.
    Change(Change),
    /// A new set; it is the one in [`KernelStep::Replace`].
    Whole,
}

/// What the owner can take at this moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ready {
    /// False while it waits to try the kernel again.
    pub(super) for_jobs: bool,
    /// True when the state file wants the whole set.
    pub(super) for_checkpoint: bool,
}

impl Desk {
    pub(super) fn new(held: Held, origin: Origin) -> Self {
        let todo = match origin {
            Origin::Stored => Todo::Enforce,
            Origin::Kernel => Todo::Nothing,
        };
        let sheet = Sheet {
            held,
            todo,
            pending: Pending::default(),
            since: None,
            questions: Vec::new(),
            stopping: false,
        };
        Self { sheet: Mutex::new(sheet), bell: Condvar::new() }
    }

    pub(super) fn with_held<T>(&self, look: impl FnOnce(&Held) -> T) -> T {
        look(&self.lock().held)
    }

    pub(super) fn apply(&self, change: &Change, arrived: Instant) {
        self.leave(Todo::Changes, arrived, |sheet| {
            sheet.held.apply(change);
            sheet.pending.merge(change);
        });
    }

    pub(super) fn replace(&self, held: Held, arrived: Instant) {
        self.leave(Todo::Replace, arrived, |sheet| {
            sheet.held = held;
            let Sheet { held, pending, .. } = sheet;
            pending.keep_gone(|element| held.elements().contains(element));
        });
    }

    pub(super) fn advance(&self, revision: Revision, arrived: Instant) {
        if self.with_held(Held::revision) < revision {
            self.leave(Todo::Changes, arrived, |sheet| sheet.held.advance(revision));
        }
    }

    /// The last attempt failed: the kernel may hold anything, and what became of whom is still to be seen to.
    pub(super) fn put_back(&self, failed: &Change, since: Instant) {
        let mut sheet = self.lock();
        sheet.pending.put_back(failed);
        sheet.todo = sheet.todo.max(Todo::Enforce);
        sheet.since = Some(since);
    }

    /// The whole set, when nothing waits that the state file has not seen.
    pub(super) fn settled(&self) -> Option<Held> {
        let sheet = self.lock();
        (sheet.todo == Todo::Nothing && sheet.held.cluster().is_some()).then(|| sheet.held.clone())
    }

    pub(super) fn ask_counters(&self, answer: Answer) -> Result<(), String> {
        let mut sheet = self.lock();
        if sheet.stopping {
            return Err("read counters: the gateway is stopping".to_owned());
        }
        if sheet.questions.len() >= MAX_COUNTER_REQUESTS {
            return Err(format!("read counters: {MAX_COUNTER_REQUESTS} requests wait already"));
        }
        sheet.questions.push(answer);
        self.bell.notify_one();
        Ok(())
    }

    pub(super) fn stop(&self) {
        self.lock().stopping = true;
        self.bell.notify_one();
    }

    /// Waits for work, at most until `deadline`.
    pub(super) fn take(&self, ready: Ready, deadline: Instant) -> Work {
        let mut sheet = self.lock();
        loop {
            let has_job = ready.for_jobs && sheet.todo > Todo::Nothing;
            let now = Instant::now();
            if has_job || !sheet.questions.is_empty() || sheet.stopping || now >= deadline {
                let job = if has_job { Some(sheet.take_job(ready.for_checkpoint, now)) } else { None };
                let questions = std::mem::take(&mut sheet.questions);
                return Work { job, questions, stopping: sheet.stopping };
            }
            (sheet, _) =
                self.bell.wait_timeout(sheet, deadline - now).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn leave(&self, todo: Todo, arrived: Instant, write: impl FnOnce(&mut Sheet)) {
        let mut sheet = self.lock();
        write(&mut sheet);
        sheet.todo = sheet.todo.max(todo);
        sheet.since.get_or_insert(arrived);
        self.bell.notify_one();
    }

    /// A panic elsewhere cannot leave a sheet half written: every write is a move or an idempotent step.
    fn lock(&self) -> MutexGuard<'_, Sheet> {
        self.sheet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sheet {
    fn take_job(&mut self, checkpoint: bool, now: Instant) -> Job {
        let change = self.pending.take(self.held.revision());
        let (step, record) = match std::mem::replace(&mut self.todo, Todo::Nothing) {
            Todo::Nothing | Todo::Changes => (KernelStep::Apply(change.clone()), Record::Change(change)),
            Todo::Enforce => {
                (KernelStep::Replace(self.held.elements().clone(), change.clone()), Record::Change(change))
            }
            Todo::Replace => (KernelStep::Replace(self.held.elements().clone(), change), Record::Whole),
        };
        let record = if self.held.cluster().is_none() { Record::None } else { record };
        Job {
            step,
            record,
            point: self.held.point(),
            since: self.since.take().unwrap_or(now),
            elements: self.held.elements().len(),
            checkpoint: checkpoint.then(|| self.held.clone()),
        }
    }
}
