//! Decides when this node makes a snapshot, after which raft drops old log entries: after a number of entries, or when
//! the log has grown large.

use std::time::{Duration, Instant};

use openraft::LogIdOptionExt as _;
use openraft::async_runtime::WatchReceiver as _;
use raft_store::log::SyncTimesSnapshot;
use raft_store::{LogSize, LogStore, Snapshots};
use rand::Rng as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::settings::Tuning;
use super::{Metrics, Raft};

/// Of the bytes a log may have, the share of the entries since the last snapshot (as many may be kept behind it, whatever
/// their number); the rest is for the ends of files, and for what is written while a snapshot is made.
const SHARE: u64 = 3;
/// How often the log is looked at.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// A snapshot that was asked for and is not there after this time is asked for again: its making failed, or raft passed
/// over it because another one was being made.
const PATIENCE: Duration = Duration::from_secs(60);

/// The log's numbers as of the last look, for metrics. Nobody else holds the log: it keeps the data directory open.
#[derive(Debug, Clone)]
pub(crate) struct LogStanding {
    pub(crate) size: LogSize,
    pub(crate) syncs: SyncTimesSnapshot,
}

impl LogStanding {
    pub(crate) fn of(log: &LogStore) -> Self {
        Self { size: log.size(), syncs: log.sync_times().snapshot() }
    }
}

/// The snapshot that was asked for and is still to come. Raft makes one at a time and silently passes over what is asked
/// meanwhile, so nothing may be taken for done that is only asked for.
#[derive(Debug, Default)]
struct Asked {
    open: Option<Ask>,
}

#[derive(Debug)]
struct Ask {
    /// Where the newest snapshot ended.
    before: u64,
    at: Instant,
}

impl Asked {
    /// One was asked for while the newest reached to `done`.
    fn ask(&mut self, done: u64, now: Instant) {
        self.open = Some(Ask { before: done, at: now });
    }

    /// Whether it is still to come, when the newest one reaches to `done`. Any newer one settles it: what was asked for
    /// while that one was made was passed over.
    fn is_open(&mut self, done: u64, now: Instant) -> bool {
        let Some(ask) = &self.open else { return false };
        if done == ask.before && now.saturating_duration_since(ask.at) < PATIENCE {
            return true;
        }
        if done == ask.before {
            tracing::warn!(done, "the snapshot that was asked for did not come; it is asked for again");
        }
        self.open = None;
        false
    }
}

/// Runs until `stop`, or until raft ends.
pub(crate) async fn run(
    raft: Raft,
    log: LogStore,
    snapshots: Snapshots,
    tuning: Tuning,
    standing: watch::Sender<LogStanding>,
    stop: CancellationToken,
) {
    let metrics = raft.metrics();
    let mut asked = Asked::default();
    let mut threshold = jittered(tuning.snapshot_after_entries);
    let share_bytes = tuning.max_log_bytes / SHARE;
    let mut put_off = false;
    let mut ticks = tokio::time::interval(CHECK_INTERVAL);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let (applied, done) = {
            let metrics = metrics.borrow_watched();
            (metrics.last_applied.index().unwrap_or(0), snapshot_index(&metrics))
        };
        standing.send_replace(LogStanding::of(&log));
        // Entries that are kept behind a snapshot are counted by openraft; their bytes are counted here.
        if let Some(upto) = log.surplus(done, share_bytes)
            && raft.trigger().purge_log(upto).await.is_err()
        {
            return;
        }
        // One that came from the leader counts too.
        if asked.is_open(done, Instant::now()) {
            continue;
        }
        let behind = applied.saturating_sub(done);
        let large = behind > 0 && log.bytes_after(done) > share_bytes;
        if behind < threshold && !large {
            continue;
        }
        let size = log.size();
        if let Err(error) = snapshots.room_to_build() {
            if !std::mem::replace(&mut put_off, true) {
                tracing::warn!(%error, "the log cannot be cut; trying again when there is room");
            }
            continue;
        }
        put_off = false;
        tracing::info!(applied, entries = size.entries, bytes = size.bytes, "making a snapshot");
        if raft.trigger().snapshot().await.is_err() {
            return;
        }
        asked.ask(done, Instant::now());
        threshold = jittered(tuning.snapshot_after_entries);
    }
}

fn snapshot_index(metrics: &Metrics) -> u64 {
    metrics.snapshot.map_or(0, |log_id| log_id.index)
}

/// Within a tenth of `entries`, so that nodes do not all write at once.
fn jittered(entries: u64) -> u64 {
    let tenth = entries / 10;
    rand::rng().random_range(entries - tenth..=entries + tenth).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_asked_for_once_until_a_newer_one_is_there_and_again_when_none_comes() {
        let mut asked = Asked::default();
        let start = Instant::now();
        assert!(!asked.is_open(0, start));
        asked.ask(0, start);
        assert!(asked.is_open(0, start) && asked.is_open(0, start + PATIENCE / 2));
        // Another one, that was under way when this one was asked for, counts: what it lacks has to be asked for again.
        assert!(!asked.is_open(40, start + PATIENCE / 2));
        assert!(!asked.is_open(40, start + PATIENCE / 2));

        // Its making failed.
        asked.ask(40, start);
        assert!(!asked.is_open(40, start + PATIENCE));
        asked.ask(40, start + PATIENCE);
        assert!(asked.is_open(40, start + PATIENCE));
    }
}
