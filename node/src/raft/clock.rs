//! The leader's clock: what batches carry as their time. It never goes back, whatever the wall clock does.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use allowlist::Revision;
use raft_store::{State, StateReader};
use tokio::time::Instant;

/// A wall clock that moves this much against the machine's own running time was set, not drifting.
const STEP: Duration = Duration::from_secs(2);

/// Unix milliseconds.
pub(crate) fn wall_clock_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// The wall clock, never going back: neither behind what this node proposed, nor behind what another leader, whose clock
/// may be ahead, or this node in an earlier life proposed before.
pub(crate) struct Clock {
    reader: StateReader,
    last_ms: u64,
    /// What the wall clock said, and when.
    seen: Option<(u64, Instant)>,
    /// The newest time in a state that came without history, and where that history begins.
    inherited: Option<(Revision, u64)>,
}

impl Clock {
    pub(crate) fn new(reader: StateReader) -> Self {
        Self { reader, last_ms: 0, seen: None, inherited: None }
    }

    /// The time of the next batch, Unix milliseconds.
    pub(crate) fn now_ms(&mut self) -> u64 {
        self.at(wall_clock_ms(), Instant::now())
    }

    fn at(&mut self, wall_ms: u64, now: Instant) -> u64 {
        if let Some((seen_ms, seen_at)) = self.seen.replace((wall_ms, now)) {
            let expected_ms = seen_ms.saturating_add(millis(now.saturating_duration_since(seen_at)));
            let (step, way) = match wall_ms.checked_sub(expected_ms) {
                Some(forward) => (forward, "forward; what is written from now on has that time"),
                None => {
                    (expected_ms - wall_ms, "back; the time of writes stands still until it has caught up")
                }
            };
            if step > millis(STEP) {
                tracing::warn!(milliseconds = step, "the clock of this machine was set {way}");
            }
        }
        let applied = self.applied_ms();
        self.last_ms = self.last_ms.max(wall_ms).max(applied);
        self.last_ms
    }

    fn applied_ms(&mut self) -> u64 {
        if let Some(batch) = self.reader.newest() {
            return batch.at_ms;
        }
        // After a start or an installed snapshot, until something happens: batches without events change no time. A
        // state may hold a million entries, so each is looked through once.
        let begin = self.reader.history_after();
        match self.inherited {
            Some((at, newest)) if at == begin => newest,
            _ => {
                let newest = newest_ms(&self.reader.state());
                self.inherited = Some((begin, newest));
                newest
            }
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The newest time anything in the state carries.
fn newest_ms(state: &State) -> u64 {
    let entries = state.entries().values().map(|entry| entry.created_at_ms);
    let names = state.resolutions().values().map(|resolution| resolution.changed_at_ms);
    let tokens = state.tokens().values().map(|token| token.created_at_ms);
    entries.chain(names).chain(tokens).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use raft_store::command::{Batch, Command, Operation, Origin, Role, Token};

    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    fn batch(at_ms: u64) -> Batch {
        let token =
            Token { name: format!("t{at_ms}"), role: Role::Admin, sha256: [1; 32], created_at_ms: at_ms };
        Batch {
            at_ms,
            operations: vec![Operation { origin: Origin::default(), command: Command::AddToken(token) }],
        }
    }

    #[test]
    fn time_stands_still_when_the_wall_clock_is_set_back_and_goes_on_when_it_has_caught_up() {
        let (_publisher, reader) = raft_store::reader::channel(State::default());
        let (mut clock, start) = (Clock::new(reader), Instant::now());
        assert_eq!(clock.at(10 * HOUR_MS, start), 10 * HOUR_MS);
        assert_eq!(clock.at(7 * HOUR_MS, start + Duration::from_secs(1)), 10 * HOUR_MS);
        assert_eq!(clock.at(10 * HOUR_MS + 5, start + Duration::from_secs(2)), 10 * HOUR_MS + 5);
    }

    #[test]
    fn a_step_forward_is_followed() {
        let (_publisher, reader) = raft_store::reader::channel(State::default());
        let (mut clock, start) = (Clock::new(reader), Instant::now());
        clock.at(HOUR_MS, start);
        assert_eq!(clock.at(9 * HOUR_MS, start + Duration::from_secs(1)), 9 * HOUR_MS);
    }

    #[test]
    fn it_is_not_behind_what_another_leader_wrote() {
        let (publisher, reader) = raft_store::reader::channel(State::default());
        let mut clock = Clock::new(reader);
        clock.now_ms();
        let ahead = u64::MAX / 2;
        let mut state = State::default();
        let (applied, _) = state.apply(1, &batch(ahead));
        publisher.publish(state, vec![applied]);
        assert_eq!(clock.now_ms(), ahead);
    }

    #[test]
    fn a_state_is_looked_through_once_however_many_batches_without_events_follow() {
        let mut state = State::default();
        state.apply(1, &batch(9));
        let (publisher, reader) = raft_store::reader::channel(state.clone());
        let mut clock = Clock::new(reader);
        clock.now_ms();
        for revision in 2..5 {
            let (applied, _) = state.apply(revision, &Batch { at_ms: 9, operations: Vec::new() });
            publisher.publish(state.clone(), vec![applied]);
            clock.now_ms();
            assert_eq!(clock.inherited, Some((1, 9)));
        }
    }

    #[test]
    fn after_a_start_it_is_not_behind_what_the_state_tells() {
        let ahead = u64::MAX / 2;
        let mut state = State::default();
        state.apply(1, &batch(ahead));
        // A recovered state has no history.
        let (_publisher, reader) = raft_store::reader::channel(state.clone());
        assert_eq!(Clock::new(reader).now_ms(), ahead);
        // Nor has one that came as a snapshot.
        let (installed, reader) = raft_store::reader::channel(State::default());
        let mut clock = Clock::new(reader);
        assert!(clock.now_ms() < ahead);
        installed.replace(state);
        assert_eq!(clock.now_ms(), ahead);
    }
}
