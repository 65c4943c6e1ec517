//! Leaves an upstream that does not answer alone, but for a check now and then. Pure; who checks is told so.
//!
//! Names may be silent by themselves: their authorities are dead, and the upstream waits for them as long as we for it.
//! Hence unanswered questions only raise the suspicion, and a question that has nothing to do with the list decides.

use std::time::Duration;

/// Questions in a row without any answer, after which an upstream is checked.
pub const CHECK_AFTER: u32 = 10;
/// One that did not pass its check is checked again each time this has passed.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// What an answer or a check did to an upstream's state.
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
    /// Somebody checks, until it is passed.
    checking: bool,
    down: bool,
}

impl Breaker {
    /// True unless it counts as down: then nothing of the list is asked.
    pub fn is_up(&self) -> bool {
        !self.down
    }

    /// Something came back, if only an error.
    pub fn answered(&mut self) -> Option<Turn> {
        self.unanswered = 0;
        std::mem::take(&mut self.down).then_some(Turn::Up)
    }

    /// Nothing came back. True when the caller has to begin to check.
    #[must_use]
    pub fn unanswered(&mut self) -> bool {
        self.unanswered = self.unanswered.saturating_add(1);
        let suspicious = self.unanswered >= CHECK_AFTER && !self.checking;
        self.checking |= suspicious;
        suspicious
    }

    /// The check had an answer; it ends with that.
    pub fn passed_check(&mut self) -> Option<Turn> {
        self.checking = false;
        self.answered()
    }

    /// The check had none; there is to be another one after [`CHECK_INTERVAL`].
    pub fn failed_check(&mut self) -> Option<Turn> {
        (!std::mem::replace(&mut self.down, true)).then_some(Turn::Down)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suspicious() -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 1..CHECK_AFTER {
            assert!(!breaker.unanswered());
        }
        assert!(breaker.unanswered(), "time for a check");
        breaker
    }

    #[test]
    fn unanswered_questions_alone_take_nothing_down_and_call_for_one_check() {
        let mut breaker = suspicious();
        for _ in 0..3 * CHECK_AFTER {
            assert!(!breaker.unanswered(), "one is under way");
        }
        assert!(breaker.is_up());
        assert_eq!(breaker.passed_check(), None);
        assert!((1..CHECK_AFTER).all(|_| !breaker.unanswered()), "the count began anew");
        assert!(breaker.unanswered());
    }

    #[test]
    fn a_single_answer_and_the_count_begins_anew() {
        let mut breaker = Breaker::default();
        for _ in 0..3 * CHECK_AFTER {
            assert!(!breaker.unanswered());
            assert_eq!(breaker.answered(), None);
        }
    }

    #[test]
    fn who_fails_the_check_is_down_until_there_is_an_answer() {
        let mut breaker = suspicious();
        assert_eq!(breaker.failed_check(), Some(Turn::Down));
        assert!(!breaker.is_up());
        assert_eq!(breaker.failed_check(), None, "it goes down once");
        assert_eq!(breaker.passed_check(), Some(Turn::Up));
        assert!(breaker.is_up());
        let mut breaker = suspicious();
        assert_eq!(breaker.failed_check(), Some(Turn::Down));
        assert_eq!(breaker.answered(), Some(Turn::Up), "a late answer is one");
    }
}
