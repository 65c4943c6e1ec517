//! Makes things go wrong, one at a time, and right again.

mod disks;
mod members;

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::fault::{Deck, Fault};
use super::ground::Ground;
use super::history::Moment;
use crate::wait;

/// How long a fault lasts.
const FAULT_MS: std::ops::Range<u64> = 1_000..4_000;
/// How long the cluster is left alone between two faults.
const CALM_MS: std::ops::Range<u64> = 300..1_200;
/// How far a wall clock jumps, seconds.
const JUMPS_S: [i64; 6] = [-86_400, -3_600, -20, 20, 3_600, 86_400];
/// How far it jumps beside another fault: so that certificates stay valid and the server can start.
const SMALL_JUMPS_S: [i64; 3] = [-20, 20, 3_600];
/// How long a server recovers until it stumbles again.
const STUMBLE_MS: std::ops::Range<u64> = 30..600;
/// How often an interrupt is looked for while time passes.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);

/// What goes on beside a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Company {
    SlowLink,
    /// Of this server.
    Clock(usize),
}

/// The one who does it.
#[derive(Debug)]
pub(super) struct Nemesis {
    dice: StdRng,
    deck: Deck,
    start: Instant,
    /// How often each kind was done.
    pub(super) counts: BTreeMap<Fault, u64>,
    /// What was done when.
    pub(super) log: Vec<String>,
}

impl Nemesis {
    /// One whose choices are those of `seed`, with times measured from `start`.
    pub(super) fn new(seed: u64, start: Instant) -> Self {
        let counts = BTreeMap::new();
        Self { dice: StdRng::seed_from_u64(seed), deck: Deck::default(), start, counts, log: Vec::new() }
    }

    /// The next kind of fault.
    pub(super) fn draw(&mut self) -> Fault {
        self.deck.draw(&mut self.dice)
    }

    /// Lets the cluster work undisturbed for a moment.
    ///
    /// # Errors
    /// When interrupted.
    pub(super) fn calm(&mut self) -> Result<()> {
        self.linger(CALM_MS)
    }

    /// Does it, takes it back, and waits until the cluster is whole.
    ///
    /// # Errors
    /// When the cluster does not recover, or the fault cannot be made.
    pub(super) fn strike(&mut self, ground: &mut Ground, fault: Fault) -> Result<()> {
        *self.counts.entry(fault).or_default() += 1;
        let company = self.company(ground, fault)?;
        self.act(ground, fault).with_context(|| format!("{fault}"))?;
        if let Some(company) = company {
            self.part(ground, company)?;
        }
        ground.recovered().with_context(|| format!("the cluster does not recover from: {fault}"))?;
        self.note("the cluster is whole");
        Ok(())
    }

    /// Now and then a fault does not come alone: something that stops nobody goes on from before it until after it.
    fn company(&mut self, ground: &mut Ground, fault: Fault) -> Result<Option<Company>> {
        if !self.dice.random_ratio(1, 3) {
            return Ok(None);
        }
        let victim = self.dice.random_range(0..ground.servers.len());
        let (company, kind) = match fault {
            // Each of the two can be had once at a time.
            Fault::ClockJump => (Company::SlowLink, Fault::SlowLink),
            Fault::SlowLink | Fault::Partition | Fault::OneWayPartition | Fault::IsolatedLeader => {
                (Company::Clock(victim), Fault::ClockJump)
            }
            _ if self.dice.random() => (Company::SlowLink, Fault::SlowLink),
            _ => (Company::Clock(victim), Fault::ClockJump),
        };
        *self.counts.entry(kind).or_default() += 1;
        match company {
            Company::SlowLink => {
                self.note(format!("slow and lossy link of {} meanwhile", names(&[victim])));
                ground.slow(victim)?;
            }
            Company::Clock(_) => {
                let seconds = SMALL_JUMPS_S.choose(&mut self.dice).copied().unwrap_or_default();
                self.note(format!("the clock of {} jumps by {seconds:+} s meanwhile", names(&[victim])));
                ground.clocks[victim].set_off(seconds)?;
            }
        }
        Ok(Some(company))
    }

    fn part(&mut self, ground: &Ground, company: Company) -> Result<()> {
        match company {
            Company::SlowLink => {
                self.note("heal the network");
                ground.heal_network()
            }
            Company::Clock(victim) => {
                self.note(format!("the clock of {} jumps back", names(&[victim])));
                ground.clocks[victim].set_off(0)
            }
        }
    }

    fn act(&mut self, ground: &mut Ground, fault: Fault) -> Result<()> {
        match fault {
            Fault::Kill => self.kill(ground),
            Fault::Pause => self.pause(ground),
            Fault::Partition => self.partition(ground),
            Fault::OneWayPartition => self.one_way(ground),
            Fault::IsolatedLeader => self.isolate_leader(ground),
            Fault::SlowLink => self.slow_link(ground),
            Fault::ClockJump => self.jump(ground),
            Fault::DiskFull => self.fill_disk(ground),
            Fault::DiskError => self.fail_disk(ground),
            Fault::PowerLoss => {
                let victim = self.victim(ground)?;
                self.lose_power(ground, &[victim])
            }
            Fault::PowerLossEverywhere => {
                let all: Vec<usize> = (0..ground.servers.len()).collect();
                self.lose_power(ground, &all)
            }
            Fault::WipedDisk => self.wipe(ground),
            Fault::RollingRestart => self.restart_all(ground),
            Fault::MembershipChange => self.change_members(ground),
            Fault::Resize => self.resize(ground),
        }
    }

    fn kill(&mut self, ground: &mut Ground) -> Result<()> {
        let victims = self.one_or_all(ground)?;
        self.note(format!("SIGKILL {}", names(&victims)));
        for victim in &victims {
            ground.servers[*victim].process.kill();
        }
        self.linger(FAULT_MS)?;
        self.note(format!("start {}", names(&victims)));
        for victim in &victims {
            ground.servers[*victim].process.start_again()?;
        }
        if self.dice.random_ratio(1, 3) {
            self.linger(STUMBLE_MS)?;
            self.note(format!("SIGKILL {} again", names(&victims)));
            for victim in &victims {
                ground.servers[*victim].process.kill();
            }
        }
        Ok(())
    }

    fn pause(&mut self, ground: &mut Ground) -> Result<()> {
        let first = self.victim(ground)?;
        let mut victims = vec![first];
        if self.dice.random_ratio(1, 3) {
            let majority = ground.servers.len() / 2 + 1;
            victims.extend((1..majority).map(|next| (first + next) % ground.servers.len()));
        }
        self.note(format!("SIGSTOP {}", names(&victims)));
        for victim in &victims {
            ground.servers[*victim].process.pause()?;
        }
        let lingered = self.linger(FAULT_MS);
        self.note(format!("SIGCONT {}", names(&victims)));
        for victim in victims {
            ground.servers[victim].process.resume()?;
        }
        lingered
    }

    fn partition(&mut self, ground: &mut Ground) -> Result<()> {
        let count = ground.servers.len();
        let one = self.dice.random_range(0..count);
        let others: Vec<usize> = (0..count).filter(|other| *other != one).collect();
        // Alone, or out of reach of one other only: then the rest still hears both.
        let whole = self.dice.random_ratio(2, 3);
        let far = if whole { others } else { others.choose(&mut self.dice).copied().into_iter().collect() };
        self.note(format!("cut {} from {}", names(&[one]), names(&far)));
        for other in far {
            ground.cut(one, other)?;
            ground.cut(other, one)?;
        }
        self.heal_after_a_while(ground)
    }

    fn one_way(&mut self, ground: &mut Ground) -> Result<()> {
        let count = ground.servers.len();
        // Half of the time the leader: it is the one that matters.
        let one = if self.dice.random() { ground.leader()? } else { self.dice.random_range(0..count) };
        let deaf = self.dice.random::<bool>();
        let others: Vec<usize> = (0..count).filter(|other| *other != one).collect();
        let verb = if deaf { "does not hear" } else { "is not heard by" };
        self.note(format!("{} {verb} {}", names(&[one]), names(&others)));
        for other in others {
            if deaf { ground.cut(other, one)? } else { ground.cut(one, other)? }
        }
        self.heal_after_a_while(ground)
    }

    fn isolate_leader(&mut self, ground: &mut Ground) -> Result<()> {
        let leader = ground.leader()?;
        self.note(format!("isolate the leader {} ({})", names(&[leader]), ground.address(leader)));
        for other in (0..ground.servers.len()).filter(|other| *other != leader) {
            ground.cut(leader, other)?;
            ground.cut(other, leader)?;
        }
        self.heal_after_a_while(ground)
    }

    fn slow_link(&mut self, ground: &mut Ground) -> Result<()> {
        let victim = self.victim(ground)?;
        self.note(format!("slow and lossy link of {}", names(&[victim])));
        ground.slow(victim)?;
        self.heal_after_a_while(ground)
    }

    fn heal_after_a_while(&mut self, ground: &Ground) -> Result<()> {
        let lingered = self.linger(FAULT_MS);
        self.note("heal the network");
        ground.heal_network()?;
        lingered
    }

    fn jump(&mut self, ground: &mut Ground) -> Result<()> {
        let victim = self.victim(ground)?;
        let seconds = JUMPS_S.choose(&mut self.dice).copied().unwrap_or_default();
        self.note(format!("the clock of {} jumps by {seconds:+} s", names(&[victim])));
        ground.clocks[victim].set_off(seconds)?;
        let lingered = self.linger(FAULT_MS);
        self.note(format!("the clock of {} jumps back", names(&[victim])));
        ground.clocks[victim].set_off(0)?;
        lingered
    }

    fn restart_all(&mut self, ground: &mut Ground) -> Result<()> {
        for index in 0..ground.servers.len() {
            self.note(format!("SIGTERM {}", names(&[index])));
            let server = &mut ground.servers[index];
            server.process.stop()?;
            let status = server.process.last_exit();
            ensure!(
                status.is_some_and(|status| status.success()),
                "{} was asked to end and ended with {status:?}",
                server.name()
            );
            server.process.start_again()?;
            server.wait_ready()?;
        }
        Ok(())
    }

    fn one_or_all(&mut self, ground: &Ground) -> Result<Vec<usize>> {
        let all = self.dice.random_ratio(1, 4);
        if all { Ok((0..ground.servers.len()).collect()) } else { Ok(vec![self.victim(ground)?]) }
    }

    /// Any server; half of the time the leader.
    fn victim(&mut self, ground: &Ground) -> Result<usize> {
        if self.dice.random() { ground.leader() } else { Ok(self.dice.random_range(0..ground.servers.len())) }
    }

    fn linger(&mut self, ms: std::ops::Range<u64>) -> Result<()> {
        let time = Duration::from_millis(self.dice.random_range(ms));
        let start = Instant::now();
        while start.elapsed() < time {
            if wait::interrupted() {
                bail!("interrupted");
            }
            thread::sleep(WATCH_INTERVAL);
        }
        Ok(())
    }

    /// Writes a line of the log.
    pub(super) fn note(&mut self, what: impl std::fmt::Display) {
        let line = format!("{:>10}  {what}", Moment(self.start.elapsed()).to_string());
        tracing::info!("{line}");
        self.log.push(line);
    }
}

/// `srv1 srv3`
fn names(servers: &[usize]) -> String {
    if servers.is_empty() {
        return "none".to_owned();
    }
    servers.iter().map(|index| format!("srv{}", index + 1)).collect::<Vec<_>>().join(" ")
}
