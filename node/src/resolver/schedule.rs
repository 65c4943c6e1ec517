//! Which name is asked when. Pure: time is the duration since some fixed start, random numbers come from the caller.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use allowlist::DomainName;

/// Part of an interval by which the moment of asking is spread, so that names do not march in step.
const JITTER: f64 = 0.1;
/// Most of it after a TTL has ended: until then a moved service cannot be reached.
const MAX_DELAY: Duration = Duration::from_millis(500);
/// Wait after a first failure; doubles with each further one, up to the longest interval.
const FIRST_RETRY: Duration = Duration::from_secs(2);

/// Bounds on the time between two lookups of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intervals {
    /// However short the TTL.
    pub min: Duration,
    /// However long the TTL.
    pub max: Duration,
}

/// What a lookup means for the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AskAgain {
    /// When the answer ends; `None` when nothing sets a time.
    pub ttl: Option<Duration>,
    /// Lookups that failed in a row, 0 when this one did not.
    pub failures: u32,
}

/// The right to look a name up once; given back with [`Schedule::finished`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// The name.
    pub name: DomainName,
    ticket: u64,
}

/// Every domain of the list, with the moment it is due.
#[derive(Debug)]
pub struct Schedule {
    intervals: Intervals,
    names: HashMap<DomainName, Slot>,
    /// Names nobody has asked for yet, before all others. May hold stale tickets.
    new: VecDeque<Turn>,
    due: BTreeMap<(Duration, u64), DomainName>,
    last_ticket: u64,
}

#[derive(Debug, Clone, Copy)]
enum Slot {
    New { ticket: u64 },
    Waiting { due: Duration, ticket: u64 },
    Asking { ticket: u64 },
}

impl Schedule {
    /// An empty schedule.
    pub fn new(intervals: Intervals) -> Self {
        Self { intervals, names: HashMap::new(), new: VecDeque::new(), due: BTreeMap::new(), last_ticket: 0 }
    }

    /// Takes in a name without an answer so far: it is due at once and goes first. A known name stays as it is.
    pub fn add(&mut self, name: &DomainName) {
        if self.names.contains_key(name) {
            return;
        }
        let ticket = self.ticket();
        self.names.insert(name.clone(), Slot::New { ticket });
        self.new.push_back(Turn { name: name.clone(), ticket });
    }

    /// Takes in a name that an earlier leader has looked after and whose answer may be kept for `ttl`: due at some moment
    /// of its interval, so that upstreams see no more questions than before. `random` is in `0.0..1.0`.
    pub fn resume(&mut self, name: &DomainName, ttl: Option<Duration>, now: Duration, random: f64) {
        if !self.names.contains_key(name) {
            let Intervals { min, max } = self.intervals;
            let interval = ttl.unwrap_or(max).clamp(min, max);
            self.wait(name.clone(), now + interval.mul_f64(random));
        }
    }

    /// Drops a name. A lookup under way ends in nothing.
    pub fn remove(&mut self, name: &DomainName) {
        if let Some(Slot::Waiting { due, ticket }) = self.names.remove(name) {
            self.due.remove(&(due, ticket));
        }
    }

    /// Drops every name that `keep` does not want.
    pub fn retain(&mut self, keep: impl Fn(&DomainName) -> bool) {
        let gone: Vec<DomainName> = self.names.keys().filter(|name| !keep(name)).cloned().collect();
        for name in &gone {
            self.remove(name);
        }
    }

    /// How many names are in it.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// True when there is no name in it.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// True when the name is in it.
    pub fn contains(&self, name: &DomainName) -> bool {
        self.names.contains_key(name)
    }

    /// True when there are names nobody has asked for yet.
    pub fn has_new(&mut self) -> bool {
        self.drop_stale();
        !self.new.is_empty()
    }

    /// The moment the next name is due; `None` when all names are being asked for, or there is none.
    pub fn next_due(&mut self) -> Option<Duration> {
        self.drop_stale();
        if self.new.is_empty() { self.due.keys().next().map(|(due, _)| *due) } else { Some(Duration::ZERO) }
    }

    /// A name that is due, if there is one. It is not due again until the turn is given back.
    pub fn take(&mut self, now: Duration) -> Option<Turn> {
        self.drop_stale();
        let turn = match self.new.pop_front() {
            Some(turn) => turn,
            None => {
                let first = self.due.first_entry().filter(|first| first.key().0 <= now)?;
                let ticket = first.key().1;
                Turn { name: first.remove(), ticket }
            }
        };
        self.names.insert(turn.name.clone(), Slot::Asking { ticket: turn.ticket });
        Some(turn)
    }

    /// Gives a turn back; gives the time until the name is asked for again. `random` is in `0.0..1.0`. `None` when the
    /// name has left the schedule in the meantime, even if it came back since.
    pub fn finished(&mut self, turn: Turn, again: AskAgain, now: Duration, random: f64) -> Option<Duration> {
        if !self.holds(&turn) {
            return None;
        }
        let interval = self.interval(again, random);
        self.wait(turn.name, now + interval);
        Some(interval)
    }

    /// True while the name of this turn has not left the schedule.
    pub fn holds(&self, turn: &Turn) -> bool {
        matches!(self.names.get(&turn.name), Some(Slot::Asking { ticket }) if *ticket == turn.ticket)
    }

    fn interval(&self, again: AskAgain, random: f64) -> Duration {
        let Intervals { min, max } = self.intervals;
        let by_ttl = match again.ttl {
            // After the TTL, not before it: before it, a caching upstream would only repeat itself.
            Some(ttl) if ttl < max => {
                let ttl = ttl.max(min);
                ttl + ttl.mul_f64(JITTER).min(MAX_DELAY).mul_f64(random)
            }
            _ => max.mul_f64(1.0 - JITTER * random),
        };
        let by_ttl = by_ttl.clamp(min, max);
        match again.failures {
            0 => by_ttl,
            failures => {
                let doublings = (failures - 1).min(16);
                let backoff = FIRST_RETRY.saturating_mul(1 << doublings).min(max);
                backoff.mul_f64(1.0 - random / 2.0).min(by_ttl)
            }
        }
    }

    fn wait(&mut self, name: DomainName, due: Duration) {
        let ticket = self.ticket();
        self.due.insert((due, ticket), name.clone());
        self.names.insert(name, Slot::Waiting { due, ticket });
    }

    fn ticket(&mut self) -> u64 {
        self.last_ticket += 1;
        self.last_ticket
    }

    fn drop_stale(&mut self) {
        while let Some(turn) = self.new.front()
            && !matches!(self.names.get(&turn.name), Some(Slot::New { ticket }) if *ticket == turn.ticket)
        {
            self.new.pop_front();
        }
    }
}

#[cfg(test)]
impl Slot {
    fn is_asking(self) -> bool {
        matches!(self, Self::Asking { .. })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVALS: Intervals = Intervals { min: Duration::from_secs(5), max: Duration::from_secs(60) };

    fn name(text: &str) -> DomainName {
        text.parse().expect("a domain name")
    }

    fn after_ttl(seconds: u64) -> AskAgain {
        AskAgain { ttl: Some(Duration::from_secs(seconds)), failures: 0 }
    }

    fn due_after(again: AskAgain, random: f64) -> Duration {
        let mut schedule = Schedule::new(INTERVALS);
        schedule.add(&name("a.test"));
        let turn = schedule.take(Duration::ZERO).expect("a new name is due");
        assert!(schedule.finished(turn, again, Duration::ZERO, random).is_some());
        schedule.next_due().expect("it is due again")
    }

    #[test]
    fn a_new_name_goes_before_all_that_wait() {
        let mut schedule = Schedule::new(INTERVALS);
        schedule.resume(&name("old.test"), None, Duration::ZERO, 0.0);
        schedule.add(&name("new.test"));
        let later = Duration::from_secs(1);
        assert_eq!(schedule.take(later).map(|turn| turn.name), Some(name("new.test")));
        assert_eq!(schedule.take(later).map(|turn| turn.name), Some(name("old.test")));
        assert_eq!(schedule.take(later), None);
    }

    #[test]
    fn a_name_is_asked_again_when_its_ttl_has_ended() {
        assert_eq!(due_after(after_ttl(20), 0.0), Duration::from_secs(20));
        assert_eq!(due_after(after_ttl(20), 0.5), Duration::from_millis(20_250));
    }

    #[test]
    fn a_new_leader_asks_for_every_name_within_its_interval_and_without_a_burst() {
        let mut schedule = Schedule::new(INTERVALS);
        for number in 0..6_000 {
            let ttl = Some(Duration::from_secs(300));
            schedule.resume(&name(&format!("n{number}.test")), ttl, Duration::ZERO, rand::random());
        }
        schedule.resume(&name("short.test"), Some(Duration::from_secs(1)), Duration::ZERO, 0.999);
        for second in 1..=60 {
            let now = Duration::from_secs(second);
            let due: Vec<Turn> = std::iter::from_fn(|| schedule.take(now)).collect();
            // A hundred on average; twice that is ten standard deviations away.
            assert!(due.len() <= 200, "{} names in second {second}", due.len());
            assert!(second != 5 || schedule.names[&name("short.test")].is_asking(), "its TTL is short");
        }
        assert_eq!(schedule.next_due(), None, "a minute is over");
    }

    #[test]
    fn short_and_long_ttls_are_clamped() {
        assert_eq!(due_after(after_ttl(0), 0.0), Duration::from_secs(5));
        assert_eq!(due_after(after_ttl(86_400), 0.0), Duration::from_secs(60));
        assert_eq!(due_after(AskAgain::default(), 0.0), Duration::from_secs(60));
        assert_eq!(due_after(after_ttl(86_400), 0.5), Duration::from_secs(57));
        assert_eq!(due_after(after_ttl(59), 0.5), Duration::from_millis(59_250));
        assert_eq!(
            due_after(AskAgain { ttl: Some(Duration::from_millis(59_900)), failures: 0 }, 0.9),
            Duration::from_secs(60)
        );
    }

    #[test]
    fn failures_are_retried_in_seconds_and_then_less_often() {
        let after = |failures| due_after(AskAgain { ttl: None, failures }, 0.0);
        assert_eq!(after(1), Duration::from_secs(2));
        assert_eq!(after(2), Duration::from_secs(4));
        assert_eq!(after(3), Duration::from_secs(8));
        assert_eq!(after(30), Duration::from_secs(60));
    }

    #[test]
    fn a_removed_name_is_not_asked_again() {
        let mut schedule = Schedule::new(INTERVALS);
        for text in ["new.test", "waiting.test", "asking.test"] {
            schedule.add(&name(text));
        }
        schedule.remove(&name("new.test"));
        let waiting = schedule.take(Duration::ZERO).expect("due");
        let asking = schedule.take(Duration::ZERO).expect("due");
        schedule.finished(waiting, after_ttl(5), Duration::ZERO, 0.0);
        schedule.retain(|_| false);
        assert_eq!(schedule.finished(asking, after_ttl(5), Duration::ZERO, 0.0), None);
        assert_eq!(schedule.next_due(), None);
        assert!(schedule.is_empty());
    }

    #[test]
    fn a_name_that_left_and_came_back_does_not_take_the_old_answer() {
        let mut schedule = Schedule::new(INTERVALS);
        schedule.add(&name("a.test"));
        let old = schedule.take(Duration::ZERO).expect("due");
        schedule.remove(&name("a.test"));
        schedule.add(&name("a.test"));
        assert!(!schedule.holds(&old));
        assert_eq!(schedule.finished(old, after_ttl(60), Duration::ZERO, 0.0), None);
        assert!(schedule.take(Duration::ZERO).is_some(), "the new one is still due at once");
    }

    proptest! {
        #[test]
        fn every_interval_without_failures_lies_within_the_bounds(ttl_s in 0_u64..200_000, random in 0.0..1.0_f64) {
            let due = due_after(after_ttl(ttl_s), random);
            prop_assert!(INTERVALS.min <= due && due <= INTERVALS.max, "{due:?}");
        }

        #[test]
        fn no_name_is_lost_or_asked_twice_at_once(steps in prop::collection::vec((0_u8..4, 0_usize..5), 0..200)) {
            let names: Vec<DomainName> = (0..5).map(|n| name(&format!("n{n}.test"))).collect();
            let mut schedule = Schedule::new(INTERVALS);
            let mut listed = std::collections::BTreeSet::new();
            let mut turns: Vec<Turn> = Vec::new();
            let mut now = Duration::ZERO;
            for (step, which) in steps {
                match step {
                    0 => { schedule.add(&names[which]); listed.insert(names[which].clone()); }
                    1 => { schedule.remove(&names[which]); listed.remove(&names[which]); }
                    2 => {
                        now += Duration::from_secs(60);
                        if let Some(turn) = schedule.take(now) {
                            prop_assert!(listed.contains(&turn.name));
                            turns.retain(|old| schedule.holds(old));
                            prop_assert!(turns.iter().all(|other| other.name != turn.name));
                            turns.push(turn);
                        }
                    }
                    _ => if let Some(turn) = turns.pop() {
                        schedule.finished(turn, after_ttl(10), now, 0.5);
                    }
                }
                prop_assert_eq!(schedule.len(), listed.len());
            }
            turns.retain(|turn| schedule.holds(turn));
            now += Duration::from_secs(61);
            let mut due = turns.len();
            while schedule.take(now).is_some() { due += 1; }
            prop_assert_eq!(due, listed.len());
        }
    }
}
