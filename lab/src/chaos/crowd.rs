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

use super::caller::{Caller, Reads, Reply};
use super::history::{Answer, Call, Id, Key, Moment, Record};
use super::projection::SLOTS;
use super::tally::{Kind, Outcome};
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
const ADDS: u32 = 35;
const DELETES: u32 = 20;
const LISTS: u32 = 25;

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
    /// What was wrong with an answer.
    pub(super) complaint: Option<String>,
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
}

impl Crowd {
    /// Starts the clients of all `doors`, with times measured from `start`.
    ///
    /// # Errors
    /// When a thread or an HTTP client cannot be made.
    pub(super) fn start(
        doors: &[Door],
        token: &str,
        reads: Reads,
        seed: u64,
        start: Instant,
    ) -> Result<Self> {
        let (sender, reports) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let shared = Arc::new(Shared { start, stop: Arc::clone(&stop), seen: Mutex::default() });
        let mut crowd = Self { reports, stop, threads: Vec::new() };
        for (node, door) in doors.iter().enumerate() {
            let caller = Caller::new(door.address, token, reads)?;
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
    runtime.block_on(async {
        let clients = (0..CLIENTS_PER_NODE).map(|number| {
            let client = u16::try_from(node).unwrap_or(u16::MAX).saturating_mul(CLIENTS_PER_NODE) + number;
            let dice =
                StdRng::seed_from_u64(seed ^ (u64::from(client) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            act(client, node, dice, caller, shared, sender)
        });
        futures_util::future::join_all(clients).await;
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
    while !shared.stop.load(Ordering::Relaxed) {
        let call = draw(&mut dice, shared);
        let invoked = shared.now();
        let reply = caller.call(&call).await;
        let returned = shared.now();
        if let Reply::Answered(answer, _) = &reply {
            shared.remember(&call, answer);
        }
        let refused = reply == Reply::Refused;
        let writes = matches!(call, Call::Add(_) | Call::Delete(..));
        let (outcome, record, complaint) = match reply {
            Reply::Refused => (Outcome::Refused, None, None),
            Reply::Lost => (Outcome::Unknown, None, None),
            Reply::Answered(answer, revision) => {
                let unknown = answer == Answer::Unknown;
                let outcome = if unknown { Outcome::Unknown } else { Outcome::Ok };
                (outcome, Some(Record { client, node, invoked, returned, call, answer, revision }), None)
            }
            // Nobody knows what such an answer means for the entry.
            Reply::Unexpected(complaint) => {
                let answer = Answer::Unknown;
                let record = writes.then_some(Record {
                    client,
                    node,
                    invoked,
                    returned,
                    call,
                    answer,
                    revision: None,
                });
                let complaint = format!("at {returned}, client {client} of srv{}: {complaint}", node + 1);
                (Outcome::Failed, record, Some(complaint))
            }
        };
        let kind = match call {
            Call::Add(_) => Kind::Add,
            Call::Delete(..) => Kind::Delete,
            Call::Get(..) => Kind::Get,
            Call::List(_) => Kind::List,
        };
        if sender.send(Report { kind, outcome, record, complaint }).is_err() {
            return;
        }
        let pause = LONGEST_PAUSE.mul_f64(dice.random::<f64>());
        tokio::time::sleep(if refused { REFUSED_PAUSE + pause } else { pause }).await;
    }
}

fn draw(dice: &mut StdRng, shared: &Shared) -> Call {
    let key = Key { epoch: epoch_at(shared.now()), slot: dice.random_range(0..SLOTS) };
    let (share, newest) = (dice.random_range(0..100), dice.random_ratio(3, 4));
    let known = shared.recall(key, newest);
    match known {
        Some(id) if (ADDS..ADDS + DELETES).contains(&share) => Call::Delete(key, id),
        Some(id) if share >= ADDS + DELETES + LISTS => Call::Get(key, id),
        _ if (ADDS + DELETES..ADDS + DELETES + LISTS).contains(&share) => Call::List(key.epoch),
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
