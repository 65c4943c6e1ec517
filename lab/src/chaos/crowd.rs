//! Clients on all nodes at once, each inside its node's own namespace, so that no fault of the network between nodes
//! keeps them from it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::archive::{self, Saved, Taken};
use super::caller::{Caller, Habits, Name, Reply};
use super::history::{Answer, Call, Id, Key, Moment, Record, Slots};
use super::once::insist;
use super::projection::SLOTS;
use super::tally::{Keyed, Kind, Outcome};
use super::verdict::{Violation, ViolationKind};
use crate::namespace::Namespace;

/// Clients on each node.
const CLIENTS_PER_NODE: u16 = 3;
/// How long a pool of keys is used.
pub(super) const EPOCH: Duration = Duration::from_secs(8);
/// Longest pause of a client between two calls. Keeps two cores and the histories in bounds.
const LONGEST_PAUSE: Duration = Duration::from_millis(60);
/// After a refusal a client waits this long, or it would do nothing but being refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
/// Ids remembered of a key: the newest is mostly there, the one before mostly not.
const IDS_REMEMBERED: usize = 2;
/// Shares of the calls, per cent; the rest are gets.
const ADDS: u32 = 31;
const DELETES: u32 = 20;
const LISTS: u32 = 25;
const IMPORTS: u32 = 4;
/// Of the writes, this share (one in so many) is sent under a key, and again until it is answered.
const KEYED: u32 = 2;

/// A node as its clients see it.
#[derive(Debug, Clone)]
pub(super) struct Door {
    pub(super) namespace: Arc<Namespace>,
    pub(super) address: SocketAddr,
}

/// What a client reports.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) kind: Kind,
    pub(super) outcome: Outcome,
    /// `None` when there was no effect and no observation.
    pub(super) record: Option<Record>,
    /// What was wrong with answers.
    pub(super) complaints: Vec<Violation>,
    /// What became of it under its key, if it had one.
    pub(super) keyed: Option<Keyed>,
    /// A whole backup.
    pub(super) backup: Option<Saved>,
}

/// The running clients. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Crowd {
    reports: Receiver<Report>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// What the clients of a run share.
struct Shared {
    start: Instant,
    stop: Arc<AtomicBool>,
    /// Ids some answer showed, newest last.
    seen: Mutex<HashMap<Key, Vec<Id>>>,
    /// The entry that each call made, by the call's name: each makes one at most.
    made: Mutex<HashMap<String, Id>>,
}

impl Crowd {
    /// Starts the clients of all `doors`, with times measured from `start`.
    ///
    /// # Errors
    /// When a thread or an HTTP client cannot be made.
    pub(super) fn start(
        doors: &[Door],
        token: &str,
        habits: Habits,
        seed: u64,
        start: Instant,
    ) -> Result<Self> {
        let (sender, reports) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let shared = Arc::new(Shared {
            start,
            stop: Arc::clone(&stop),
            seen: Mutex::default(),
            made: Mutex::default(),
        });
        let addresses: Vec<SocketAddr> = doors.iter().map(|door| door.address).collect();
        let mut crowd = Self { reports, stop, threads: Vec::new() };
        for (node, door) in doors.iter().enumerate() {
            let caller = Caller::new(addresses.clone(), token, habits)?;
            let (namespace, shared, sender) =
                (Arc::clone(&door.namespace), Arc::clone(&shared), sender.clone());
            let work = move || {
                if let Err(error) = serve(&namespace, node, seed, &caller, &shared, &sender) {
                    tracing::error!(node, "clients ended: {error:#}");
                }
            };
            let thread = thread::Builder::new().name(format!("clients-{}", node + 1)).spawn(work);
            crowd.threads.push(thread.context("start the clients' thread")?);
        }
        Ok(crowd)
    }

    /// What was reported since the last call.
    pub(super) fn reports(&self) -> impl Iterator<Item = Report> {
        self.reports.try_iter()
    }

    /// Lets every client finish its call, and returns what was not yet taken.
    pub(super) fn finish(mut self) -> Vec<Report> {
        self.end();
        self.reports.try_iter().collect()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.end();
    }
}

fn serve(
    namespace: &Namespace,
    node: usize,
    seed: u64,
    caller: &Caller,
    shared: &Arc<Shared>,
    sender: &Sender<Report>,
) -> Result<()> {
    namespace.enter_this_thread()?;
    // One thread, so that every socket is made inside the namespace.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("start a runtime")?;
    let dice = |number: u16| {
        let client = u16::try_from(node).unwrap_or(u16::MAX).saturating_mul(CLIENTS_PER_NODE + 1) + number;
        StdRng::seed_from_u64(seed ^ (u64::from(client) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    };
    runtime.block_on(async {
        let clients = (0..CLIENTS_PER_NODE).map(|number| {
            let client = u16::try_from(node).unwrap_or(u16::MAX).saturating_mul(CLIENTS_PER_NODE) + number;
            act(client, node, dice(number), caller, shared, sender)
        });
        let archivist = keep_archive(node, dice(CLIENTS_PER_NODE), caller, shared, sender);
        futures_util::future::join(futures_util::future::join_all(clients), archivist).await;
    });
    Ok(())
}

/// One client: calls and pauses until the end.
async fn act(
    client: u16,
    node: usize,
    mut dice: StdRng,
    caller: &Caller,
    shared: &Shared,
    sender: &Sender<Report>,
) {
    let mut calls = 0_u64;
    while !shared.stop.load(Ordering::Relaxed) {
        let call = draw(&mut dice, shared);
        calls += 1;
        let name = format!("c{client}-{calls}");
        let invoked = shared.now();
        let (mut complaints, mut keyed) = (Vec::new(), None);
        let (reply, returned, made) = if call.writes() && dice.random_ratio(1, KEYED) {
            let all = insist(caller, node, &call, &name, &mut dice).await;
            keyed = Some(Keyed { writes: 1, resent: all.resent, replayed: all.replayed });
            complaints
                .extend(all.contradiction.map(|detail| Violation { kind: ViolationKind::Twice, detail }));
            (all.reply, Moment(all.returned.duration_since(shared.start)), all.made)
        } else {
            let attempt = caller.call(node, &call, Name { text: &name, sent: None }).await;
            (attempt.reply, shared.now(), attempt.made)
        };
        complaints.extend(shared.made_twice(made));
        if let Reply::Answered(answer, _) = &reply {
            shared.remember(&call, answer);
        }
        let refused = reply == Reply::Refused;
        let record = |answer, revision| Record { client, node, invoked, returned, call, answer, revision };
        let (outcome, record) = match reply {
            Reply::Refused => (Outcome::Refused, None),
            Reply::Lost => (Outcome::Unknown, None),
            Reply::Answered(answer, revision) => {
                let outcome = if answer == Answer::Unknown { Outcome::Unknown } else { Outcome::Ok };
                (outcome, Some(record(answer, revision)))
            }
            // Nobody knows what such an answer means for the entry.
            Reply::Unexpected(complaint) => {
                let detail = format!("at {returned}, client {client} of srv{}: {complaint}", node + 1);
                complaints.push(Violation { kind: ViolationKind::Answer, detail });
                (Outcome::Failed, call.writes().then(|| record(Answer::Unknown, None)))
            }
        };
        let kind = match call {
            Call::Add(_) => Kind::Add,
            Call::Delete(..) => Kind::Delete,
            Call::Get(..) => Kind::Get,
            Call::Import(..) => Kind::Import,
            Call::List(_) => Kind::List,
        };
        if sender.send(Report { kind, outcome, record, complaints, keyed, backup: None }).is_err() {
            return;
        }
        let pause = LONGEST_PAUSE.mul_f64(dice.random::<f64>());
        tokio::time::sleep(if refused { REFUSED_PAUSE + pause } else { pause }).await;
    }
}

/// Takes backups of `node` until the end.
async fn keep_archive(
    node: usize,
    mut dice: StdRng,
    caller: &Caller,
    shared: &Shared,
    sender: &Sender<Report>,
) {
    let over = || shared.stop.load(Ordering::Relaxed);
    while !over() {
        let next = Instant::now() + archive::pause(&mut dice);
        while Instant::now() < next && !over() {
            tokio::time::sleep(LONGEST_PAUSE).await;
        }
        if over() {
            return;
        }
        let (outcome, backup, complaint) = match archive::take(caller, node, shared.start).await {
            Taken::Whole(saved) => (Outcome::Ok, Some(saved), None),
            Taken::Refused => (Outcome::Refused, None, None),
            Taken::Lost => (Outcome::Unknown, None, None),
            Taken::Wrong(reason) => {
                let detail = format!("at {}, a backup of srv{} {reason}", shared.now(), node + 1);
                (Outcome::Failed, None, Some(Violation { kind: ViolationKind::Backup, detail }))
            }
        };
        let complaints = complaint.into_iter().collect();
        let report = Report { kind: Kind::Backup, outcome, record: None, complaints, keyed: None, backup };
        if sender.send(report).is_err() {
            return;
        }
    }
}

fn draw(dice: &mut StdRng, shared: &Shared) -> Call {
    let key = Key { epoch: epoch_at(shared.now()), slot: dice.random_range(0..SLOTS) };
    let (share, newest) = (dice.random_range(0..100), dice.random_ratio(3, 4));
    // Of the imports: each slot, and at least one.
    let slots = Slots(dice.random::<u8>() | 1 << key.slot);
    let known = shared.recall(key, newest);
    let (deletes, lists, imports) = (ADDS, ADDS + DELETES, ADDS + DELETES + LISTS);
    match (share, known) {
        (share, Some(id)) if (deletes..lists).contains(&share) => Call::Delete(key, id),
        (share, _) if (lists..imports).contains(&share) => Call::List(key.epoch),
        (share, _) if (imports..imports + IMPORTS).contains(&share) => Call::Import(key.epoch, slots),
        (share, Some(id)) if share >= imports + IMPORTS => Call::Get(key, id),
        _ => Call::Add(key),
    }
}

/// The pool in use at `moment`.
pub(super) fn epoch_at(moment: Moment) -> u16 {
    u16::try_from(moment.0.as_millis() / EPOCH.as_millis()).unwrap_or(u16::MAX)
}

impl Shared {
    fn now(&self) -> Moment {
        Moment(self.start.elapsed())
    }

    fn recall(&self, key: Key, newest: bool) -> Option<Id> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let ids = seen.get(&key)?;
        if newest { ids.last().copied() } else { ids.first().copied() }
    }

    /// Calls that made more than the one entry they may have made.
    fn made_twice(&self, shown: Vec<(String, Id)>) -> Vec<Violation> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let twice = |(name, id): (String, Id)| {
            let first = *made.entry(name.clone()).or_insert(id);
            (first != id).then(|| Violation {
                kind: ViolationKind::Twice,
                detail: format!("the call {name} made {first}, and made {id}"),
            })
        };
        shown.into_iter().filter_map(twice).collect()
    }

    fn remember(&self, call: &Call, answer: &Answer) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut put = |key: Key, id: Id| {
            let ids = seen.entry(key).or_default();
            if !ids.contains(&id) {
                ids.push(id);
                if ids.len() > IDS_REMEMBERED {
                    ids.remove(0);
                }
            }
        };
        match (call, answer) {
            (Call::Add(key), Answer::Created(id) | Answer::Existed(id)) => put(*key, *id),
            (_, Answer::Listed(entries)) => entries.iter().for_each(|(key, id)| put(*key, *id)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_made_two_entries_is_noticed() {
        let shared = Shared {
            start: Instant::now(),
            stop: Arc::default(),
            seen: Mutex::default(),
            made: Mutex::default(),
        };
        let shown = |name: &str, id: u128| shared.made_twice(vec![(name.to_owned(), Id(id))]).len();
        assert_eq!([shown("c1-1", 1), shown("c1-2", 2), shown("c1-1", 1)], [0, 0, 0]);
        assert_eq!(shown("c1-1", 3), 1);
    }
}
