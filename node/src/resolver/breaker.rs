//! Leaves an upstream that does not answer alone, but for a probe now and then. Pure; the time is passed in.

use std::time::Duration;

/// Questions in a row without any answer, after which an upstream counts as down.
pub const DOWN_AFTER: u32 = 10;
/// While it is down, it is asked one question each time this has passed.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// What an upstream may be asked now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Everything.
    Ask,
    /// This one question, to see whether it answers again; nobody should wait for it.
    Probe,
    /// Nothing.
    Skip,
}

/// What a question's end did to an upstream's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It counts as down from now on.
    Down,
    /// It answers again.
    Up,
}

/// Counts what goes unanswered.
#[derive(Debug, Default)]
pub struct Breaker {
    unanswered: u32,
    /// When the next probe may go out; `None` while it is up.
    probe_at: Option<Duration>,
}

impl Breaker {
    /// True unless it counts as down.
    pub fn is_up(&self) -> bool {
        self.probe_at.is_none()
    }

    /// What may be asked at `now`. Who is told to probe must do so: the next one is a [`PROBE_INTERVAL`] away.
    pub fn admit(&mut self, now: Duration) -> Admission {
        match &mut self.probe_at {
            None => Admission::Ask,
            Some(at) if *at <= now => {
                *at = now + PROBE_INTERVAL;
                Admission::Probe
            }
            Some(_) => Admission::Skip,
        }
    }

    /// Something came back, if only an error.
    pub fn answered(&mut self) -> Option<Turn> {
        self.unanswered = 0;
        self.probe_at.take().map(|_| Turn::Up)
    }

    /// Nothing came back.
    pub fn unanswered(&mut self, now: Duration) -> Option<Turn> {
        self.unanswered = self.unanswered.saturating_add(1);
        if self.probe_at.is_some() || self.unanswered < DOWN_AFTER {
            return None;
        }
        self.probe_at = Some(now + PROBE_INTERVAL);
        Some(Turn::Down)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down_at(now: Duration) -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 1..DOWN_AFTER {
            assert_eq!(breaker.unanswered(now), None);
        }
        assert!(breaker.is_up());
        assert_eq!(breaker.unanswered(now), Some(Turn::Down));
        breaker
    }

    #[test]
    fn an_upstream_is_down_after_so_many_questions_in_a_row_without_an_answer() {
        let mut breaker = down_at(Duration::ZERO);
        assert!(!breaker.is_up());
        assert_eq!(breaker.unanswered(Duration::ZERO), None, "it goes down once");

        let mut breaker_with_answers = Breaker::default();
        for _ in 0..3 * DOWN_AFTER {
            assert_eq!(breaker_with_answers.unanswered(Duration::ZERO), None);
            assert_eq!(breaker_with_answers.answered(), None, "a single answer and the count begins anew");
        }
        assert_eq!(breaker.answered(), Some(Turn::Up));
        assert_eq!(breaker.admit(Duration::ZERO), Admission::Ask);
    }

    #[test]
    fn while_it_is_down_one_probe_goes_out_in_each_interval() {
        let start = Duration::from_secs(100);
        let mut breaker = down_at(start);
        let mut probes = 0;
        for ms in 0..60_000 {
            match breaker.admit(start + Duration::from_millis(ms)) {
                Admission::Probe => probes += 1,
                Admission::Skip => {}
                Admission::Ask => panic!("a question goes out at {ms} ms"),
            }
        }
        assert_eq!(probes, 60 / PROBE_INTERVAL.as_secs() - 1);
    }
}
