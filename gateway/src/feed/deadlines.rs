//! When a session has waited long enough for its node. The clock is passed in.

use tokio::time::Instant;

use super::Timings;
use super::pump::SessionEnd;

/// What a node must do by when.
#[derive(Debug)]
pub(super) struct Deadlines {
    timings: Timings,
    /// Send any frame.
    frame: Instant,
    /// Send the next part of what it began.
    part: Option<Instant>,
    /// Be through with it.
    whole: Option<Instant>,
}

impl Deadlines {
    /// Those of a session that begins at `now`.
    pub(super) fn begin(timings: Timings, now: Instant) -> Self {
        Self { timings, frame: now + timings.silence, part: None, whole: None }
    }

    /// A frame was taken, after which more must come or not. Only a part puts off the next part: a node that merely
    /// lives would hold us without a list.
    pub(super) fn put_off(&mut self, now: Instant, is_part: bool, awaits_more: bool) {
        self.frame = now + self.timings.silence;
        if !awaits_more {
            (self.part, self.whole) = (None, None);
            return;
        }
        if is_part || self.part.is_none() {
            self.part = Some(now + self.timings.snapshot);
        }
        self.whole.get_or_insert(now + self.timings.whole);
    }

    /// The earliest.
    pub(super) fn next(&self) -> Instant {
        [self.part, self.whole].into_iter().flatten().fold(self.frame, Instant::min)
    }

    /// # Errors
    /// The end of the session, when the node missed one.
    pub(super) fn check(&self, now: Instant) -> Result<(), SessionEnd> {
        let missed = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        if missed(self.whole) {
            Err(SessionEnd::NeverWhole(self.timings.whole.as_millis()))
        } else if missed(self.part) {
            Err(SessionEnd::SnapshotLate(self.timings.snapshot.as_millis()))
        } else if missed(Some(self.frame)) {
            Err(SessionEnd::Silence(self.timings.silence.as_millis()))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn timings() -> Timings {
        Timings { silence: SECOND * 3, snapshot: SECOND * 10, whole: SECOND * 60, ..Timings::default() }
    }

    #[test]
    fn a_node_has_so_long_for_a_frame_whatever_else_it_sends() {
        let start = Instant::now();
        let mut deadlines = Deadlines::begin(timings(), start);
        assert_eq!(deadlines.next(), start + SECOND * 3);
        deadlines.put_off(start + SECOND * 2, false, false);
        assert!(deadlines.check(start + SECOND * 4).is_ok());
        assert!(matches!(deadlines.check(start + SECOND * 5), Err(SessionEnd::Silence(3_000))));
    }

    #[test]
    fn only_parts_put_off_the_next_part() {
        let start = Instant::now();
        let mut deadlines = Deadlines::begin(timings(), start);
        for second in 0..10 {
            deadlines.put_off(start + SECOND * second, second == 4, true);
        }
        for second in 10..14 {
            assert!(deadlines.check(start + SECOND * second).is_ok());
            deadlines.put_off(start + SECOND * second, false, true);
        }
        let end = deadlines.check(start + SECOND * 14);
        assert!(matches!(end, Err(SessionEnd::SnapshotLate(10_000))), "{end:?}");
    }

    #[test]
    fn parts_for_ever_are_no_whole() {
        let start = Instant::now();
        let mut deadlines = Deadlines::begin(timings(), start);
        for second in 0..60 {
            assert!(deadlines.check(start + SECOND * second).is_ok());
            deadlines.put_off(start + SECOND * second, true, true);
        }
        assert!(matches!(deadlines.check(start + SECOND * 60), Err(SessionEnd::NeverWhole(60_000))));
        deadlines.put_off(start + SECOND * 60, false, false);
        assert!(deadlines.check(start + SECOND * 62).is_ok(), "once it is whole there is time again");
    }
}
