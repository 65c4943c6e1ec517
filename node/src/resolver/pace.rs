//! How many questions a second may go out: a token bucket. Pure; the time is passed in.

use std::time::Duration;

/// How much of a second's questions may go out at once after a pause.
const BURST_S: f64 = 0.1;

/// Bounds the rate of questions. Spending may overdraw (a lookup can turn out dearer than it looked); the debt is
/// paid before anything else goes out.
#[derive(Debug)]
pub struct Pace {
    per_second: f64,
    tokens: f64,
    filled_at: Duration,
}

impl Pace {
    /// A full bucket for `per_second` questions a second, counted from `now`.
    pub fn new(per_second: u32, now: Duration) -> Self {
        let per_second = f64::from(per_second.max(1));
        Self { per_second, tokens: Self::burst(per_second), filled_at: now }
    }

    /// True when something may go out.
    pub fn is_open(&mut self, now: Duration) -> bool {
        let passed = now.saturating_sub(self.filled_at);
        self.filled_at = self.filled_at.max(now);
        let filled = self.tokens + passed.as_secs_f64() * self.per_second;
        self.tokens = filled.min(Self::burst(self.per_second));
        self.tokens >= 1.0
    }

    /// Takes account of `questions` that go out.
    pub fn spend(&mut self, questions: u32) {
        self.tokens -= f64::from(questions);
    }

    /// When something may go out again.
    pub fn opens_at(&self) -> Duration {
        // One millisecond more, so that rounding cannot wake the caller just too early, again and again.
        let missing_s = (1.0 - self.tokens).max(0.0) / self.per_second;
        self.filled_at + Duration::from_secs_f64(missing_s) + Duration::from_millis(1)
    }

    fn burst(per_second: f64) -> f64 {
        (per_second * BURST_S).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lets_through_the_rate_and_one_burst() {
        let mut pace = Pace::new(100, Duration::ZERO);
        let mut sent = 0;
        let mut now = Duration::ZERO;
        while now < Duration::from_secs(1) {
            while pace.is_open(now) {
                pace.spend(1);
                sent += 1;
            }
            now = pace.opens_at();
        }
        assert!((90..=110).contains(&sent), "{sent} questions in a second at 100 a second");
    }

    #[test]
    fn debt_is_paid_before_anything_goes_out() {
        let mut pace = Pace::new(10, Duration::ZERO);
        pace.spend(21);
        assert!(!pace.is_open(Duration::from_secs(1)));
        assert!(pace.opens_at() >= Duration::from_secs(2), "{:?}", pace.opens_at());
        assert!(pace.is_open(pace.opens_at()));
    }
}
