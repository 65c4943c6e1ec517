//! The end of entries whose time is over: the leader names them, and the cluster removes those that are over by the clock
//! of the log entry, on every node alike.

use std::time::Duration;

use prometheus::{IntCounter, IntGaugeVec, Opts, Registry};
use raft_store::command::{Command, Operation, Origin, Reply};
use raft_store::state::State;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::raft::clock::wall_clock_ms;

/// The actor in the audit log behind what ended by itself.
pub const ACTOR: &str = "expiry";
/// How often the leader looks: an entry ends within a second of its time.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Most entries that one log entry ends: each may have published thousands of elements.
const MAX_ENDED_AT_ONCE: usize = 50;
/// How long a proposal may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Times to their ends by which entries are counted, with the words for them.
const WITHIN: [(&str, Duration); 3] = [
    ("1h", Duration::from_secs(3_600)),
    ("1d", Duration::from_secs(24 * 3_600)),
    ("7d", Duration::from_secs(7 * 24 * 3_600)),
];
/// How often they are counted, in looks.
const COUNT_EVERY: u32 = 20;

/// Metric families of ends.
#[derive(Debug, Clone)]
pub struct Metrics {
    expiring: IntGaugeVec,
    expired: IntCounter,
}

impl Metrics {
    /// Makes them and adds them to a page of metrics.
    ///
    /// # Errors
    /// When one of the names is taken there.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let expiring = IntGaugeVec::new(
            Opts::new(
                "outputguard_entries_expiring",
                "Entries that end by themselves within an hour, a day or a week, as this node knows the list.",
            ),
            &["within"],
        )?;
        let expired = IntCounter::new(
            "outputguard_expiry_writes_total",
            "Log entries by which this node, as the leader, ended entries whose time was over.",
        )?;
        registry.register(Box::new(expiring.clone()))?;
        registry.register(Box::new(expired.clone()))?;
        Ok(Self { expiring, expired })
    }

    fn count(&self, state: &State, now_ms: u64) {
        for (word, within) in WITHIN {
            let until = now_ms.saturating_add(u64::try_from(within.as_millis()).unwrap_or(u64::MAX));
            let count = state.expiring().iter().take_while(|(ends, _)| *ends <= until).count();
            self.expiring.with_label_values(&[word]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}

/// Ends entries whenever this node leads, until `shutdown`.
pub async fn run(cluster: Cluster, metrics: Metrics, shutdown: CancellationToken) {
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looks = 0_u32;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = look.tick() => {}
        }
        if looks.is_multiple_of(COUNT_EVERY) {
            metrics.count(&cluster.reader().state(), wall_clock_ms());
        }
        looks = looks.wrapping_add(1);
        end_those_that_are_over(&cluster, &metrics).await;
    }
}

async fn end_those_that_are_over(cluster: &Cluster, metrics: &Metrics) {
    let Some(term) = cluster.term() else { return };
    let ids: Vec<_> = over(&cluster.reader().state(), wall_clock_ms());
    if ids.is_empty() {
        return;
    }
    let count = ids.len();
    let origin = Origin { actor: ACTOR.to_owned(), ..Origin::default() };
    let operation = Operation { origin, command: Command::Expire { ids } };
    match cluster.propose_in(term, vec![operation], WRITE_TIMEOUT).await {
        Ok(reply) if reply.replies.contains(&Reply::Done) => {
            metrics.expired.inc();
            tracing::info!(count, revision = reply.revision, "entries ended because their time was over");
        }
        // The clock of the log is behind this one: the next look comes to it.
        Ok(_) => tracing::debug!(count, "entries are not over yet by the clock of the log"),
        Err(error) => tracing::warn!(%error, count, "entries whose time is over could not be ended yet"),
    }
}

fn over(state: &State, now_ms: u64) -> Vec<allowlist::EntryId> {
    let ended = state.expiring().iter().take_while(|(ends, _)| *ends <= now_ms).map(|(_, id)| *id);
    // A protected one does not end, whatever a backup says of it.
    let may_end = ended.filter(|id| state.entry(*id).is_some_and(|entry| !entry.protected));
    may_end.take(MAX_ENDED_AT_ONCE).collect()
}
