//! One term of leadership: everything the resolver remembers begins and ends with it.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use allowlist::{DomainName, Revision, Target, linger};
use futures_util::future::{BoxFuture, FutureExt as _, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use raft_store::FeatureLevel;
use raft_store::command::{
    BatchReply, Command, NameStatus, Operation, Origin, ResolutionUpdate, SeenAddress,
};
use raft_store::reader::StateReader;
use raft_store::state::{EventKind, Resolution, State};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::answer::Family;
use super::judge::{Memory, Moment, Round, Rules, judge};
use super::lookup::{Lookup, Upstream};
use super::schedule::{AskAgain, Intervals, Schedule, Turn};
use super::{ACTOR, Resolver};
use crate::cluster::{self, Cluster, WriteError};

/// Updates that share one proposal. Each may carry many addresses, so this stays far below what a log entry holds.
const MAX_UPDATES_PER_WRITE: usize = 100;
/// Nor may they take more than this, half of what a proposal holds ([`crate::raft::proposer::MAX_ENTRY_BYTES`]).
const MAX_BYTES_PER_WRITE: usize = 512 * 1024;
/// An address with its times, at most.
const ADDRESS_BYTES: usize = 40;
/// How long a proposal may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Before leadership is looked at again.
const TERM_PAUSE: Duration = Duration::from_millis(20);
/// Batches of changes read at a time while following the state.
const FOLLOW_BATCHES: usize = 1_000;
/// Names that become due are taken up together, as often as this: one wake-up for many is most of what makes a name cheap.
const BATCH_INTERVAL: Duration = Duration::from_millis(50);
/// Where names are asked so often that this would be felt, it is this part of their shortest interval.
const BATCHES_PER_INTERVAL: u32 = 10;
/// How often the names are counted by state.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);

/// Resolves until the future is dropped, which ends every lookup under way.
pub(super) async fn serve(resolver: &Resolver, cluster: &Cluster) {
    let Some(led) = cluster.term() else {
        // Either the loss of leadership is about to be told, or the next term is about to begin.
        return tokio::time::sleep(TERM_PAUSE).await;
    };
    let mut term = Term::begin(resolver, cluster, led);
    let mut revisions = term.reader.revisions();
    let mut count = tokio::time::interval(COUNT_INTERVAL);
    loop {
        let wake_at = term.start_lookups();
        term.start_write();
        tokio::select! {
            changed = revisions.changed() => {
                if changed.is_err() {
                    return;
                }
                term.follow();
            }
            Some(looked) = term.lookups.next() => term.weigh(looked),
            Some(written) = term.writes.join_next() => match written {
                Ok((found, result)) => {
                    term.written(found, &result);
                    if result.is_err() && cluster.term() != Some(led) {
                        return;
                    }
                }
                Err(error) => tracing::error!(%error, "a write of the resolver ended unexpectedly"),
            },
            _ = count.tick() => term.count_names(),
            () = sleep_until(wake_at) => {}
        }
    }
}

struct Term<'a> {
    resolver: &'a Resolver,
    cluster: &'a Cluster,
    /// What is found in this term is written in this term or not at all.
    led: cluster::Term,
    reader: StateReader,
    started: Instant,
    schedule: Schedule,
    memories: HashMap<DomainName, Memory>,
    /// Every change up to this revision is in the schedule.
    followed: Revision,
    counted: Option<Revision>,
    /// Before that no name is taken up but new ones.
    next_batch: Duration,
    /// All within the task of the term: what they wait for comes by the hundred, and each task of its own would be woken
    /// and moved between processors for it.
    lookups: FuturesUnordered<BoxFuture<'static, Looked>>,
    /// Waiting for the write under way to end.
    found: Vec<Found>,
    /// At most one at a time: what is found meanwhile shares the next one.
    writes: JoinSet<(Vec<Found>, Result<BatchReply, WriteError>)>,
}

struct Looked {
    turn: Turn,
    round: Round,
}

struct Found {
    turn: Turn,
    again: AskAgain,
    /// Addresses that are new in the update; it may also say more of known ones.
    added: usize,
    update: ResolutionUpdate,
}

impl<'a> Term<'a> {
    fn begin(resolver: &'a Resolver, cluster: &'a Cluster, led: cluster::Term) -> Self {
        let settings = &resolver.settings;
        let mut term = Self {
            resolver,
            cluster,
            led,
            reader: cluster.reader().clone(),
            started: Instant::now(),
            schedule: Schedule::new(Intervals { min: settings.min_interval, max: settings.max_interval }),
            memories: HashMap::new(),
            followed: 0,
            counted: None,
            next_batch: Duration::ZERO,
            lookups: FuturesUnordered::new(),
            found: Vec::new(),
            writes: JoinSet::new(),
        };
        term.take_all();
        term
    }

    /// Brings the schedule in line with the whole state.
    fn take_all(&mut self) {
        let state = self.reader.state();
        let now = self.started.elapsed();
        self.schedule.retain(|name| state.resolutions().contains_key(name));
        self.memories.retain(|name, _| state.resolutions().contains_key(name));
        self.resolver.record.retain(|name| state.resolutions().contains_key(name));
        for (name, resolution) in state.resolutions() {
            if resolution.status == NameStatus::Pending {
                self.schedule.add(name);
            } else {
                self.schedule.resume(name, shortest_ttl(resolution), now, rand::random());
            }
        }
        self.followed = state.revision();
    }

    /// Brings the schedule in line with what changed since it was.
    fn follow(&mut self) {
        loop {
            let Ok(batches) = self.reader.after(self.followed, FOLLOW_BATCHES) else {
                return self.take_all();
            };
            // Taken after the batches, so that it holds at least what they tell.
            let state = self.reader.state();
            for batch in &batches {
                for event in &batch.events {
                    if let EventKind::EntryAdded(entry) | EventKind::EntryRemoved(entry) = &event.kind
                        && let Target::Domain(name) = &entry.target
                    {
                        if matches!(event.kind, EventKind::EntryRemoved(_)) && is_pending(&state, name) {
                            // It went and came back: what is known of it is of its former life.
                            self.forget(name);
                        }
                        self.take(&state, name);
                    }
                }
                self.followed = batch.revision;
            }
            if batches.len() < FOLLOW_BATCHES {
                return;
            }
        }
    }

    fn take(&mut self, state: &State, name: &DomainName) {
        if state.resolutions().contains_key(name) {
            self.schedule.add(name);
        } else {
            self.forget(name);
        }
    }

    fn forget(&mut self, name: &DomainName) {
        self.schedule.remove(name);
        self.memories.remove(name);
        self.resolver.record.remove(name);
    }

    /// Starts what is due and allowed; returns when to look again if nothing else happens.
    fn start_lookups(&mut self) -> Option<Instant> {
        let now = self.started.elapsed();
        if now < self.next_batch && !self.schedule.has_new() {
            return self.schedule.next_due().map(|due| self.started + due.max(self.next_batch));
        }
        let shortest = self.resolver.settings.min_interval / BATCHES_PER_INTERVAL;
        self.next_batch = now + BATCH_INTERVAL.min(shortest);
        while self.lookups.len() < self.resolver.settings.max_lookups {
            let now = self.started.elapsed();
            let Some(turn) = self.schedule.take(now) else {
                return self.schedule.next_due().map(|due| self.started + due.max(self.next_batch));
            };
            let started = self.started;
            let upstreams = self.resolver.upstreams.of(&turn.name).upstreams.clone();
            let metrics = self.resolver.metrics.clone();
            let lookup = async move {
                let (v4, v6) = tokio::join!(
                    ask_all(&upstreams, &turn.name, Family::V4),
                    ask_all(&upstreams, &turn.name, Family::V6),
                );
                for (upstream, lookup) in upstreams.iter().zip(&v4).chain(upstreams.iter().zip(&v6)) {
                    metrics.count_answer(upstream.name(), &lookup.answer, lookup.took);
                }
                let answers =
                    |lookups: Vec<Lookup>| lookups.into_iter().map(|lookup| lookup.answer).collect();
                let round = Round { at: moment(started), v4: answers(v4), v6: answers(v6) };
                Looked { turn, round }
            };
            self.lookups.push(lookup.boxed());
        }
        None
    }

    fn weigh(&mut self, Looked { turn, round }: Looked) {
        let state = self.reader.state();
        let Some(stored) = state.resolutions().get(&turn.name).filter(|_| self.schedule.holds(&turn)) else {
            return;
        };
        let group = self.resolver.upstreams.of(&turn.name);
        self.resolver.record.heard(&turn.name, &round, &group.rules.upstreams);
        let memory = self.memories.entry(turn.name.clone()).or_default();
        let rules = Rules {
            linger: longest_linger(&state, &turn.name, group.rules.linger),
            tells_mixed: state.features() >= FeatureLevel::MIXED_NAMES,
            ..group.rules.clone()
        };
        let verdict = judge(&round, stored, memory, &rules);
        let metrics = &self.resolver.metrics;
        metrics.count_round(verdict.update.is_some());
        metrics.refused_addresses.inc_by(verdict.refused.try_into().unwrap_or(u64::MAX));
        metrics.held_back.inc_by(verdict.waiting.try_into().unwrap_or(u64::MAX));
        if let Some(refusal) = &verdict.newly_refused {
            tracing::warn!(name = %turn.name, refused = verdict.refused, %refusal, "DNS answered with an address that is not public; it stays closed");
        }
        match verdict.update {
            Some(update) => {
                let added = update.seen.keys().filter(|seen| !stored.addresses.contains_key(*seen)).count();
                self.found.push(Found { turn, again: verdict.again, added, update });
            }
            None => self.done(turn, verdict.again),
        }
    }

    fn start_write(&mut self) {
        if self.found.is_empty() || !self.writes.is_empty() {
            return;
        }
        let mut bytes = 0;
        let fit = self.found.iter().take(MAX_UPDATES_PER_WRITE).take_while(|found| {
            bytes += rough_bytes(&found.update);
            bytes <= MAX_BYTES_PER_WRITE
        });
        // One alone always goes: it is as small as it can be.
        let fit = fit.count().max(1);
        let rest = self.found.split_off(fit);
        let found = std::mem::replace(&mut self.found, rest);
        let origin = Origin { actor: ACTOR.to_owned(), ..Origin::default() };
        let operations = found.iter().map(|found| Operation {
            origin: origin.clone(),
            command: Command::SetResolution {
                domain: found.turn.name.clone(),
                resolution: found.update.clone(),
            },
        });
        let (cluster, led, operations) = (self.cluster.clone(), self.led, operations.collect());
        self.writes.spawn(async move { (found, cluster.propose_in(led, operations, WRITE_TIMEOUT).await) });
    }

    fn written(&mut self, found: Vec<Found>, result: &Result<BatchReply, WriteError>) {
        if let Err(error) = result {
            self.resolver.metrics.failed_writes.inc();
            tracing::warn!(%error, names = found.len(), "write what DNS changed; the names are looked up again");
        }
        for Found { turn, again, added, update } in found {
            match result {
                Ok(reply) => {
                    tell(&turn.name, added, &update, reply.revision);
                    self.done(turn, again);
                }
                // Nothing is lost: the next round is judged against the state as it is then.
                Err(_) => self.done(turn, AskAgain { failures: again.failures.max(1), ..again }),
            }
        }
    }

    fn done(&mut self, turn: Turn, again: AskAgain) {
        let name = turn.name.clone();
        if let Some(interval) = self.schedule.finished(turn, again, self.started.elapsed(), rand::random()) {
            let due_ms = moment(self.started).unix_ms.saturating_add(millis(interval));
            self.resolver.record.due(&name, due_ms);
        }
    }

    fn count_names(&mut self) {
        self.resolver.metrics.show_upstreams(self.resolver.upstreams.all());
        let state = self.reader.state();
        if self.counted.replace(state.revision()) != Some(state.revision()) {
            self.resolver.metrics.show_names(&state, |name| self.resolver.upstreams.of(name).upstreams.len());
        }
    }
}

fn is_pending(state: &State, name: &DomainName) -> bool {
    state.resolutions().get(name).is_some_and(|found| found.status == NameStatus::Pending)
}

/// The longest that an entry which names it asks for; one that asks for nothing means the `default`, and a protected one
/// never less.
fn longest_linger(state: &State, name: &DomainName, default: Duration) -> Duration {
    let lingers = state.entries_of(name).map(|entry| {
        let wish = linger::of_labels(&entry.labels).ok().flatten().unwrap_or(default);
        if entry.protected { wish.max(default) } else { wish }
    });
    lingers.max().unwrap_or(default)
}

/// About what an update takes in a log entry.
fn rough_bytes(update: &ResolutionUpdate) -> usize {
    let upstreams = |seen: &SeenAddress| seen.upstreams.iter().map(|name| name.len() + 1).sum::<usize>();
    let seen: usize = update.seen.values().map(|seen| ADDRESS_BYTES + upstreams(seen)).sum();
    seen + update.retire.len() * ADDRESS_BYTES
        + update.chain.iter().map(|name| name.as_str().len()).sum::<usize>()
}

fn shortest_ttl(resolution: &Resolution) -> Option<Duration> {
    let seconds = resolution.addresses.values().map(|seen| seen.ttl_s).min()?;
    Some(Duration::from_secs(seconds.into()))
}

/// What each said, and how long it took.
async fn ask_all(upstreams: &[Upstream], name: &DomainName, family: Family) -> Vec<Lookup> {
    join_all(upstreams.iter().map(|upstream| upstream.lookup(name, family))).await
}

fn tell(name: &DomainName, added: usize, update: &ResolutionUpdate, revision: Revision) {
    let retired = update.retire.len();
    match &update.status {
        NameStatus::Stale { error, .. } => {
            tracing::warn!(%name, revision, error, "DNS fails for this name; its addresses are kept");
        }
        NameStatus::Refused { reason } => {
            tracing::warn!(%name, revision, reason, "DNS answers for this name are refused");
        }
        NameStatus::Mixed { reason } => {
            tracing::warn!(%name, revision, added, retired, reason, "DNS gives this name public addresses and others; only the public ones are open");
        }
        NameStatus::NoSuchName => {
            tracing::warn!(%name, revision, retired, "DNS says there is no such name");
        }
        NameStatus::Pending | NameStatus::Ok if added + retired == 0 => {
            tracing::debug!(%name, revision, "what is known of the addresses changed");
        }
        NameStatus::Pending | NameStatus::Ok => {
            tracing::info!(%name, revision, added, retired, "addresses changed");
        }
    }
}

fn moment(started: Instant) -> Moment {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Moment { elapsed: started.elapsed(), unix_ms: millis(since_epoch) }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

async fn sleep_until(wake_at: Option<Instant>) {
    match wake_at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
