//! Which server node next, and when: all nodes in a ring, one at a time, at once after the first loss and then with
//! backoff. No I/O; the clock and the dice are passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;

use crate::config::ServerUrl;

/// Upper bound of the first random wait after two failures in a row; it doubles with each further one.
pub const BACKOFF_BASE: Duration = Duration::from_millis(250);
/// Upper bound of any random wait after failures.
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// As [`BACKOFF_BASE`], when a node refused us (credentials, subprotocol, name): somebody has to act first.
pub const REFUSED_BACKOFF_BASE: Duration = Duration::from_secs(2);
/// As [`BACKOFF_MAX`], when nodes refuse us.
pub const REFUSED_BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A session that lived this long ends the counting of failures.
pub const STABLE_AFTER: Duration = Duration::from_secs(5);
/// Shortest time we stay away from a node that sent us away, whatever it said.
pub const MIN_HOLD_OFF: Duration = Duration::from_millis(500);
/// Longest time we stay away from a node that asked for it.
pub const MAX_HOLD_OFF: Duration = Duration::from_secs(60);

/// One address of one server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node {
    /// Where to connect to.
    pub address: SocketAddr,
    /// The URL it came from; its host is the name the certificate must bear.
    pub url: Arc<ServerUrl>,
}

impl std::fmt::Display for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.url.host == self.address.ip().to_string() {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{} ({})", self.address, self.url.host)
        }
    }
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Connect to this node.
    Try(Node),
    /// Wait until then.
    Wait(Instant),
}

/// How an attempt or a session ended, as far as the next choice is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The link was lost or never came to be.
    Lost {
        /// How long a session was up.
        after: Duration,
    },
    /// The node refused us; trying often will not help.
    Refused,
    /// The node asked us to stay away from it for a while; others may be tried at once.
    HoldOff(Duration),
}

/// The ring of nodes.
#[derive(Debug)]
pub struct Rotation {
    last: Option<Node>,
    failures: u32,
    refusals: u32,
    not_before: Instant,
    held_off: BTreeMap<Node, Instant>,
}

impl Rotation {
    /// A ring that may start at `now`.
    pub fn new(now: Instant) -> Self {
        Self { last: None, failures: 0, refusals: 0, not_before: now, held_off: BTreeMap::new() }
    }

    /// Chooses among `nodes`: the first time by dice, so that gateways spread over the nodes; later the one after
    /// the last. Nodes that asked for peace are left out until their time is over.
    pub fn next(&mut self, nodes: &BTreeSet<Node>, now: Instant, dice: &mut impl Rng) -> Next {
        self.held_off.retain(|_, until| *until > now);
        if self.not_before > now {
            return Next::Wait(self.not_before);
        }
        let free: Vec<&Node> = nodes.iter().filter(|node| !self.held_off.contains_key(node)).collect();
        let Some(first) = free.first() else {
            let earliest = nodes.iter().filter_map(|node| self.held_off.get(node)).min();
            return Next::Wait(earliest.copied().unwrap_or(now + BACKOFF_MAX));
        };
        let chosen = match &self.last {
            None => free[dice.random_range(0..free.len())],
            Some(last) => free.iter().find(|node| **node > last).unwrap_or(first),
        };
        self.last = Some(chosen.clone());
        Next::Try(chosen.clone())
    }

    /// Takes note of how it went with `node`.
    pub fn report(&mut self, node: &Node, verdict: Verdict, now: Instant, dice: &mut impl Rng) {
        match verdict {
            Verdict::Lost { after } => {
                if after >= STABLE_AFTER {
                    self.failures = 0;
                    self.refusals = 0;
                }
                self.failures = self.failures.saturating_add(1);
                self.not_before = now + full_jitter(self.failures, BACKOFF_BASE, BACKOFF_MAX, dice);
            }
            Verdict::Refused => {
                self.refusals = self.refusals.saturating_add(1);
                self.not_before =
                    now + full_jitter(self.refusals, REFUSED_BACKOFF_BASE, REFUSED_BACKOFF_MAX, dice);
            }
            Verdict::HoldOff(time) => {
                self.held_off.insert(node.clone(), now + time.clamp(MIN_HOLD_OFF, MAX_HOLD_OFF));
                self.not_before = now;
            }
        }
    }

    /// No name could be resolved to any address: counts as a failure of its own.
    pub fn nothing_to_try(&mut self, now: Instant, dice: &mut impl Rng) {
        self.failures = self.failures.saturating_add(2);
        self.not_before = now + full_jitter(self.failures, BACKOFF_BASE, BACKOFF_MAX, dice);
    }
}

/// Nothing for the first failure; then a random time below a bound that doubles. Full jitter spreads a crowd of
/// gateways best (Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
fn full_jitter(failures: u32, base: Duration, max: Duration, dice: &mut impl Rng) -> Duration {
    let Some(doublings) = failures.checked_sub(2) else { return Duration::ZERO };
    let bound = base.saturating_mul(2_u32.saturating_pow(doublings)).min(max);
    // Never nothing at all, so that a crowd of refusals cannot become a busy loop.
    bound.mul_f64(dice.random_range(0.05..=1.0))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn nodes(count: u8) -> BTreeSet<Node> {
        (1..=count)
            .map(|last| {
                let url: ServerUrl = format!("wss://10.1.0.{last}:8443/ws").parse().unwrap();
                Node { address: format!("10.1.0.{last}:8443").parse().unwrap(), url: Arc::new(url) }
            })
            .collect()
    }

    fn tried(next: Next) -> Node {
        match next {
            Next::Try(node) => node,
            Next::Wait(_) => panic!("expected a node"),
        }
    }

    #[test]
    fn the_first_loss_leads_to_another_node_at_once_and_further_ones_wait() {
        let (nodes, now, mut dice) = (nodes(3), Instant::now(), StdRng::seed_from_u64(1));
        let mut rotation = Rotation::new(now);
        let first = tried(rotation.next(&nodes, now, &mut dice));
        rotation.report(&first, Verdict::Lost { after: Duration::ZERO }, now, &mut dice);
        let second = tried(rotation.next(&nodes, now, &mut dice));
        assert_ne!(first, second);
        rotation.report(&second, Verdict::Lost { after: Duration::ZERO }, now, &mut dice);
        let Next::Wait(until) = rotation.next(&nodes, now, &mut dice) else { panic!("must wait") };
        assert!(until <= now + BACKOFF_BASE);
        let third = tried(rotation.next(&nodes, until, &mut dice));
        assert!(third != first && third != second, "every node gets its turn");
    }

    #[test]
    fn waits_are_bounded_however_often_it_fails() {
        let (nodes, mut now, mut dice) = (nodes(2), Instant::now(), StdRng::seed_from_u64(2));
        let mut rotation = Rotation::new(now);
        let mut longest = Duration::ZERO;
        for _ in 0..200 {
            match rotation.next(&nodes, now, &mut dice) {
                Next::Try(node) => {
                    rotation.report(&node, Verdict::Lost { after: Duration::ZERO }, now, &mut dice);
                }
                Next::Wait(until) => {
                    longest = longest.max(until - now);
                    now = until;
                }
            }
        }
        assert!(longest <= BACKOFF_MAX && longest > BACKOFF_MAX / 2, "{longest:?}");
    }

    #[test]
    fn nodes_that_accept_and_close_at_once_are_asked_at_a_bounded_rate_and_in_turn() {
        let (nodes, start, mut dice) = (nodes(2), Instant::now(), StdRng::seed_from_u64(7));
        let (mut rotation, mut now) = (Rotation::new(start), start);
        let (mut tries, mut waits) = (Vec::new(), BTreeSet::new());
        while tries.len() < 50 {
            match rotation.next(&nodes, now, &mut dice) {
                Next::Try(node) => {
                    let verdict = Verdict::Lost { after: Duration::from_millis(3) };
                    rotation.report(&node, verdict, now, &mut dice);
                    tries.push((node, now));
                }
                Next::Wait(until) => {
                    waits.insert(until - now);
                    now = until;
                }
            }
        }
        assert!(tries.windows(2).all(|two| two[0].0 != two[1].0), "the other node has its turn");
        let within = |window: Duration, from: Instant| {
            tries.iter().filter(|(_, at)| (from..from + window).contains(at)).count()
        };
        assert!(tries.iter().skip(10).all(|(_, from)| within(BACKOFF_MAX, *from) <= 20), "never hot");
        assert!(now - start >= BACKOFF_MAX * 10, "{:?} for 50 tries", now - start);
        assert!(waits.len() > 40, "each wait is another, so that gateways do not come all at once");
        assert!(rotation.held_off.is_empty(), "nothing is kept of them");
    }

    #[test]
    fn a_stable_session_forgives_former_failures() {
        let (nodes, now, mut dice) = (nodes(2), Instant::now(), StdRng::seed_from_u64(3));
        let mut rotation = Rotation::new(now);
        let node = tried(rotation.next(&nodes, now, &mut dice));
        for _ in 0..9 {
            rotation.report(&node, Verdict::Lost { after: Duration::ZERO }, now, &mut dice);
        }
        rotation.report(&node, Verdict::Lost { after: STABLE_AFTER }, now, &mut dice);
        assert_ne!(tried(rotation.next(&nodes, now, &mut dice)), node);
    }

    #[test]
    fn refusals_are_retried_more_slowly_than_losses() {
        let (nodes, now, mut dice) = (nodes(2), Instant::now(), StdRng::seed_from_u64(4));
        let mut rotation = Rotation::new(now);
        let node = tried(rotation.next(&nodes, now, &mut dice));
        let mut waits = Vec::new();
        for _ in 0..12 {
            rotation.report(&node, Verdict::Refused, now, &mut dice);
            waits.push(rotation.not_before - now);
        }
        assert_eq!(waits[0], Duration::ZERO);
        assert!(waits.iter().max().unwrap() > &BACKOFF_MAX);
        assert!(waits.iter().all(|wait| wait <= &REFUSED_BACKOFF_MAX));
    }

    #[test]
    fn a_node_that_asked_for_peace_is_left_alone_for_that_time() {
        let (nodes, now, mut dice) = (nodes(2), Instant::now(), StdRng::seed_from_u64(5));
        let mut rotation = Rotation::new(now);
        let quiet = tried(rotation.next(&nodes, now, &mut dice));
        let rest = Duration::from_secs(30);
        rotation.report(&quiet, Verdict::HoldOff(rest), now, &mut dice);
        for _ in 0..4 {
            let other = tried(rotation.next(&nodes, now, &mut dice));
            assert_ne!(other, quiet);
        }
        let other = tried(rotation.next(&nodes, now, &mut dice));
        rotation.report(&other, Verdict::HoldOff(rest * 2), now, &mut dice);
        assert_eq!(rotation.next(&nodes, now, &mut dice), Next::Wait(now + rest));
        assert_eq!(tried(rotation.next(&nodes, now + rest, &mut dice)), quiet);
    }

    #[test]
    fn gateways_that_start_together_spread_over_the_nodes() {
        let (nodes, now) = (nodes(3), Instant::now());
        let chosen: BTreeSet<Node> = (0..32)
            .map(|seed| tried(Rotation::new(now).next(&nodes, now, &mut StdRng::seed_from_u64(seed))))
            .collect();
        assert_eq!(chosen.len(), 3);
    }
}
