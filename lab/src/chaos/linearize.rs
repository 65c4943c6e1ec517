//! Whether the history of one key can be explained by one entry that comes and goes, each call taking effect at one
//! instant between its invocation and its answer.
//!
//! This is Wing and Gong's search with Lowe's memory of configurations already seen, as in porcupine: a configuration is
//! the set of calls that have taken effect and the state they led to. Two things make it fit here. Ids are drawn by the
//! server, so the id of an add without an answer is learned only when somebody sees the entry. And calls without an
//! answer stay open for ever, which is what makes such searches explode: n of them are 2^n sets. But all open adds of a
//! key are alike but for their beginning, and so are all open removals of one id, and none of them need take effect
//! before a call with an answer requires it. So they are not in the set at all: of open adds the *number* used is kept,
//! and of open removals nothing, since an id that is gone never comes back. (stateright's tester, the other choice, knows
//! neither, and searches in-flight calls one by one.)

use std::collections::{HashMap, HashSet};

use super::history::{Id, Moment};

/// Configurations after which a search gives up. Real histories need a few thousand.
const MAX_CONFIGURATIONS: usize = 2_000_000;

/// What a call with an answer proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// There was no entry, and the call made this one.
    Created(Id),
    /// The entry was there.
    Seen(Id),
    /// There was an entry after the call, or the call made one; which is not known.
    Added,
    /// There was no entry, and the call made one; its id was not told.
    Made,
    /// There was an entry; its id was not told.
    There,
    /// The entry was there, and the call removed it.
    Removed(Id),
    /// The entry was not there; another one may have been.
    Missing(Id),
    /// There was no entry.
    Empty,
}

/// What a call without an answer may do, once, at any time after its invocation, or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OpenEvent {
    /// Make an entry, if there is none.
    Add,
    /// Remove this entry, if it is there.
    Remove(Id),
}

/// A call with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// When it was made.
    pub invoked: Moment,
    /// When it was answered.
    pub returned: Moment,
    /// What the answer proves.
    pub event: Event,
    /// What would be left of it without the answer; `None` for reads.
    pub weaker: Option<OpenEvent>,
}

/// A call without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    /// When it was made.
    pub invoked: Moment,
    /// What it may do.
    pub event: OpenEvent,
}

/// All calls that concern one key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyHistory {
    /// Those with an answer.
    pub closed: Vec<Closed>,
    /// Those without.
    pub open: Vec<Open>,
}

/// What a search found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains every answer.
    Linearizable,
    /// There is none.
    Violation,
    /// The search was given up.
    Undecided,
}

impl KeyHistory {
    /// Searches for an order of the calls that explains every answer.
    pub fn check(&self) -> Verdict {
        Search::new(self).run()
    }
}

/// The entry of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Value {
    Absent,
    /// There, made by a call whose answer nobody has, or does not tell its id; nobody has seen that yet.
    Unnamed,
    Present(Id),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    value: Value,
    /// How many open adds made an entry.
    adds_used: usize,
}

/// A set of calls by number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct CallSet(Box<[u64]>);

impl CallSet {
    fn empty(calls: usize) -> Self {
        Self(vec![0; calls.div_ceil(64)].into())
    }

    fn contains(&self, call: usize) -> bool {
        self.0[call / 64] >> (call % 64) & 1 == 1
    }

    fn with(&self, call: usize) -> Self {
        let mut set = self.clone();
        set.0[call / 64] |= 1 << (call % 64);
        set
    }

    /// The first call that is not in it.
    fn first_missing(&self) -> usize {
        let full = self.0.iter().take_while(|word| **word == u64::MAX).count();
        full * 64 + self.0.get(full).map_or(0, |word| word.trailing_ones() as usize)
    }
}

/// The history, sorted for searching.
struct Search {
    /// By invocation.
    calls: Vec<Closed>,
    /// Invocations of open adds, sorted.
    open_adds: Vec<Moment>,
    /// Of each id, the first open removal.
    open_removals: HashMap<Id, Moment>,
    /// Ids that no answered add made, with the calls that prove that the entry was there.
    nameless: HashMap<Id, Vec<usize>>,
}

impl Search {
    fn new(history: &KeyHistory) -> Self {
        let mut calls = history.closed.clone();
        calls.sort_by_key(|call| (call.invoked, call.returned));
        let mut open_adds = Vec::new();
        let mut open_removals = HashMap::new();
        for open in &history.open {
            match open.event {
                OpenEvent::Add => open_adds.push(open.invoked),
                OpenEvent::Remove(id) => {
                    let first = open_removals.entry(id).or_insert(open.invoked);
                    *first = open.invoked.min(*first);
                }
            }
        }
        open_adds.sort_unstable();
        let made: HashSet<Id> = calls
            .iter()
            .filter_map(|call| match call.event {
                Event::Created(id) => Some(id),
                _ => None,
            })
            .collect();
        let mut nameless: HashMap<Id, Vec<usize>> = HashMap::new();
        for (number, call) in calls.iter().enumerate() {
            if let Event::Seen(id) | Event::Removed(id) = call.event
                && !made.contains(&id)
            {
                nameless.entry(id).or_default().push(number);
            }
        }
        // An id that only a removal without an answer speaks of.
        for id in open_removals.keys().filter(|id| !made.contains(id)) {
            nameless.entry(*id).or_default();
        }
        Self { calls, open_adds, open_removals, nameless }
    }

    fn run(&self) -> Verdict {
        let start = (CallSet::empty(self.calls.len()), State { value: Value::Absent, adds_used: 0 });
        let mut known = HashSet::from([start.clone()]);
        let mut stack = vec![start];
        let mut next = Vec::new();
        while let Some((done, state)) = stack.pop() {
            let first = done.first_missing();
            if first >= self.calls.len() {
                return Verdict::Linearizable;
            }
            let (candidates, horizon) = self.candidates(&done, first);
            // Backwards, so that the earliest call is tried first.
            for call in candidates.into_iter().rev() {
                next.clear();
                self.step(&done, state, self.calls[call].event, horizon, &mut next);
                for state in &next {
                    let configuration = (done.with(call), *state);
                    if known.insert(configuration.clone()) {
                        stack.push(configuration);
                    }
                }
            }
            if known.len() > MAX_CONFIGURATIONS {
                return Verdict::Undecided;
            }
        }
        Verdict::Violation
    }

    /// The calls that may take effect next, and the moment before which the next effect is: the first answer among
    /// calls that have not taken effect. Nothing invoked after it may come first.
    fn candidates(&self, done: &CallSet, first: usize) -> (Vec<usize>, Moment) {
        let mut horizon = self.calls[first].returned;
        let mut candidates = Vec::new();
        for call in first..self.calls.len() {
            if self.calls[call].invoked > horizon {
                break;
            }
            if !done.contains(call) {
                horizon = horizon.min(self.calls[call].returned);
                candidates.push(call);
            }
        }
        candidates.retain(|call| self.calls[*call].invoked <= horizon);
        (candidates, horizon)
    }

    /// The states in which `event` leaves the key, open calls helping where they must.
    fn step(&self, done: &CallSet, state: State, event: Event, horizon: Moment, next: &mut Vec<State>) {
        let becomes = |state: State, value| State { value, ..state };
        match event {
            Event::Created(id) => {
                next.extend(
                    self.absent(done, state, horizon).map(|state| becomes(state, Value::Present(id))),
                );
            }
            Event::Empty => next.extend(self.absent(done, state, horizon)),
            Event::Seen(id) => next.extend(self.present(done, state, id, horizon)),
            Event::Removed(id) => {
                next.extend(
                    self.present(done, state, id, horizon).map(|state| becomes(state, Value::Absent)),
                );
            }
            Event::Missing(id) if state.value == Value::Present(id) => {
                next.extend(self.absent(done, state, horizon));
            }
            Event::Missing(_) => next.push(state),
            Event::Added => {
                if state.value != Value::Absent {
                    next.push(state);
                }
                next.extend(self.absent(done, state, horizon).map(|state| becomes(state, Value::Unnamed)));
            }
            Event::Made => {
                next.extend(self.absent(done, state, horizon).map(|state| becomes(state, Value::Unnamed)));
            }
            Event::There if state.value != Value::Absent => next.push(state),
            Event::There => next.extend(self.by_open_add(state, horizon, Value::Unnamed)),
        }
    }

    /// `state` without an entry, by an open removal if need be.
    fn absent(&self, done: &CallSet, state: State, horizon: Moment) -> Option<State> {
        let may_go = |id: &Id| self.open_removals.get(id).is_some_and(|invoked| *invoked <= horizon);
        let gone = match state.value {
            Value::Absent => true,
            Value::Present(id) => may_go(&id),
            Value::Unnamed => self.nameless.keys().any(|id| may_go(id) && !self.was_seen(done, *id)),
        };
        gone.then_some(State { value: Value::Absent, ..state })
    }

    /// `state` with the entry `id`, by open calls if need be.
    fn present(&self, done: &CallSet, state: State, id: Id, horizon: Moment) -> Option<State> {
        if state.value == Value::Present(id) {
            return Some(state);
        }
        // It must be the entry of an add that has no answer, and seen for the first time.
        if !self.nameless.contains_key(&id) || self.was_seen(done, id) {
            return None;
        }
        if state.value == Value::Unnamed {
            return Some(State { value: Value::Present(id), ..state });
        }
        let state = self.absent(done, state, horizon)?;
        self.by_open_add(state, horizon, Value::Present(id))
    }

    /// `state`, which has no entry, with the one that an open add makes.
    fn by_open_add(&self, state: State, horizon: Moment, value: Value) -> Option<State> {
        let invoked = self.open_adds.get(state.adds_used)?;
        (*invoked <= horizon).then_some(State { value, adds_used: state.adds_used + 1 })
    }

    /// Whether a call that has taken effect proves that the entry `id`, which no answered add made, was there.
    fn was_seen(&self, done: &CallSet, id: Id) -> bool {
        self.nameless.get(&id).is_some_and(|calls| calls.iter().any(|call| done.contains(*call)))
    }
}

#[cfg(test)]
mod tests;
