//! A run from start to verdict.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::caller::Reads;
use super::crowd::{Crowd, EPOCH, Report, epoch_at};
use super::fault::Fault;
use super::ground::{Ground, RECOVERY_TIMEOUT, Syncs};
use super::history::{Answer, Call, Id, Key, Moment, Record};
use super::nemesis::Nemesis;
use super::tally::{Outcome, Tally};
use super::verdict::{self, Violation, ViolationKind};
use crate::wait;

/// Complaints about answers that are kept.
const MAX_COMPLAINTS: usize = 20;
/// Largest page of the API.
const PAGE_ENTRIES: usize = 1_000;

/// Which faults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Drawn from the seed for this long.
    Drawn(Duration),
    /// These, after clients have worked undisturbed for a while.
    Given(Vec<Fault>),
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Number of servers.
    pub servers: usize,
    /// Chooses calls and faults.
    pub seed: u64,
    /// Which faults.
    pub plan: Plan,
    /// How clients read.
    pub reads: Reads,
    /// What the servers' fsync does.
    pub syncs: Syncs,
}

impl Options {
    /// A run of three servers that are as they should be.
    pub fn new(seed: u64, plan: Plan) -> Self {
        Self { servers: 3, seed, plan, reads: Reads::Linearizable, syncs: Syncs::Real }
    }
}

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Its seed.
    pub seed: u64,
    /// How often each kind of fault was done.
    pub faults: BTreeMap<Fault, u64>,
    /// How many calls came out how.
    pub tally: Tally,
    /// Revision and digest that all servers hold at the end.
    pub agreed: Option<(u64, String)>,
    /// Broken promises; none when all is well.
    pub violations: Vec<Violation>,
    /// What was done when.
    pub log: Vec<String>,
    /// Where logs and data are kept when promises were broken.
    pub kept: Option<PathBuf>,
}

/// Runs and checks.
///
/// # Errors
/// When the machines cannot be set up, or when interrupted. Broken promises are no error but in the [`Summary`].
pub fn run(options: &Options) -> Result<Summary> {
    let mut ground = Ground::start(options.servers, options.syncs)?;
    let start = Instant::now();
    let mut nemesis = Nemesis::new(options.seed, start);
    let crowd = Crowd::start(&ground.doors(), &ground.token()?, options.reads, options.seed, start)?;
    let mut book = Book::default();

    let struck = strike_all(options, &mut ground, &mut nemesis, &crowd, &mut book);
    if wait::interrupted() {
        bail!("interrupted; everything is removed");
    }
    if let Err(error) = struck {
        let dead = ground.dead();
        let detail = format!("{error:#}\n{}", dead.join("\n"));
        book.violations.push(Violation { kind: ViolationKind::Recovery, detail });
    }
    crowd.finish().into_iter().for_each(|report| book.take(report));
    nemesis.note("clients have ended");

    let mut agreed = None;
    if !book.broken(ViolationKind::Recovery) {
        match ground.agreed() {
            Ok(common) => agreed = Some(common),
            Err(error) => {
                let detail = format!("{error:#}");
                book.violations.push(Violation { kind: ViolationKind::Disagreement, detail });
            }
        }
        last_reads(&ground, start, &mut book)?;
    }
    book.check_all();
    let kept = (!book.violations.is_empty()).then(|| ground.keep());
    Ok(Summary {
        seed: options.seed,
        faults: nemesis.counts,
        tally: book.tally,
        agreed,
        violations: book.violations,
        log: nemesis.log,
        kept,
    })
}

/// Fault after fault, until the plan is over or a promise is broken.
fn strike_all(
    options: &Options,
    ground: &mut Ground,
    nemesis: &mut Nemesis,
    crowd: &Crowd,
    book: &mut Book,
) -> Result<()> {
    let start = Instant::now();
    let mut given = match &options.plan {
        Plan::Given(faults) => faults.iter(),
        Plan::Drawn(_) => [].iter(),
    };
    loop {
        nemesis.calm()?;
        crowd.reports().for_each(|report| book.take(report));
        book.check_past();
        if !book.violations.is_empty() {
            return Ok(());
        }
        if let Some(dead) = ground.dead().first() {
            bail!("a server ended by itself: {dead}");
        }
        let fault = match &options.plan {
            Plan::Given(_) => given.next().copied(),
            Plan::Drawn(length) => (start.elapsed() < *length).then(|| nemesis.draw()),
        };
        let Some(fault) = fault else { return Ok(()) };
        nemesis.strike(ground, fault)?;
    }
}

/// Reads everything once more from each server, linearizably: what is missing now is lost.
fn last_reads(ground: &Ground, start: Instant, book: &mut Book) -> Result<()> {
    for (node, server) in ground.servers.iter().enumerate() {
        let (api, mut cursor) = (server.api()?, String::new());
        let invoked = Moment(start.elapsed());
        let mut found: BTreeMap<u16, Vec<(Key, Id)>> = BTreeMap::new();
        loop {
            // Reads of a loaded machine may take too long for the server; the last ones must come.
            let page = wait::until(format!("{} shows everything", server.name()), RECOVERY_TIMEOUT, || {
                api.get_text(&format!("/api/v1/entries?limit={PAGE_ENTRIES}{cursor}"))
            })?;
            let page: serde_json::Value = serde_json::from_str(&page).context("read a page of entries")?;
            for entry in page["entries"].as_array().into_iter().flatten() {
                let key = entry["target"].as_str().and_then(Key::of_target).context("a strange target")?;
                let id = entry["id"].as_str().and_then(Id::parse).context("a strange id")?;
                found.entry(key.epoch).or_default().push((key, id));
            }
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        let returned = Moment(start.elapsed());
        for epoch in 0..=epoch_at(returned) {
            let answer = Answer::Listed(found.remove(&epoch).unwrap_or_default());
            let call = Call::List(epoch);
            book.put(
                Record { client: u16::MAX, node, invoked, returned, call, answer, revision: None },
                epoch,
            );
        }
    }
    Ok(())
}

/// Everything that was reported, by epoch.
#[derive(Debug, Default)]
struct Book {
    epochs: BTreeMap<u16, Vec<Record>>,
    /// The first epoch that was not looked at yet.
    unchecked: u16,
    newest: u16,
    tally: Tally,
    complaints: usize,
    violations: Vec<Violation>,
}

impl Book {
    fn take(&mut self, report: Report) {
        self.tally.count(report.kind, report.outcome);
        if let Some(record) = report.record {
            let epoch = match record.call {
                Call::Add(key) | Call::Delete(key, _) | Call::Get(key, _) => key.epoch,
                Call::List(epoch) => epoch,
            };
            self.put(record, epoch);
        }
        if let Some(detail) = report.complaint {
            self.complaints += 1;
            if self.complaints <= MAX_COMPLAINTS {
                self.violations.push(Violation { kind: ViolationKind::Answer, detail });
            }
        }
    }

    fn put(&mut self, record: Record, epoch: u16) {
        self.newest = self.newest.max(epoch);
        self.epochs.entry(epoch).or_default().push(record);
    }

    fn broken(&self, kind: ViolationKind) -> bool {
        self.violations.iter().any(|violation| violation.kind == kind)
    }

    /// Checks the epochs that are over, so that a broken promise is noticed while its traces are fresh. The newest may
    /// still get records, and so may the one before, from calls that take long.
    fn check_past(&mut self) {
        while self.unchecked + 1 < self.newest {
            let epoch = self.unchecked;
            self.unchecked += 1;
            let records = self.epochs.get(&epoch).map_or(&[][..], Vec::as_slice);
            self.violations.extend(verdict::violations(records, epoch));
        }
    }

    /// Checks everything, last reads included.
    fn check_all(&mut self) {
        let mut found = Vec::new();
        for (epoch, records) in &self.epochs {
            found.extend(verdict::violations(records, *epoch));
            let last = records.iter().filter(|record| record.client == u16::MAX).find_map(|record| {
                match &record.answer {
                    Answer::Listed(entries) => Some(entries.iter().copied().collect::<BTreeMap<_, _>>()),
                    _ => None,
                }
            });
            if let Some(last) = last {
                found.extend(verdict::lost(records, &last));
            }
        }
        for violation in found {
            if !self.violations.contains(&violation) {
                self.violations.push(violation);
            }
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}", self.seed)?;
        if !self.violations.is_empty() {
            writeln!(f, "\nnemesis:")?;
            self.log.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
            writeln!(f, "\nbroken promises:")?;
            self.violations.iter().try_for_each(|violation| writeln!(f, "- {violation}"))?;
        }
        writeln!(f, "\nfaults:")?;
        for fault in Fault::ALL {
            writeln!(
                f,
                "  {:<18} {:>5}",
                fault.name(),
                self.faults.get(&fault).copied().unwrap_or_default()
            )?;
        }
        writeln!(f, "\ncalls:\n{}", self.tally)?;
        if let Some((revision, digest)) = &self.agreed {
            writeln!(f, "all servers hold the same at revision {revision}, digest {digest}")?;
        }
        match &self.kept {
            Some(directory) => writeln!(f, "logs and data are kept in {}", directory.display()),
            None => {
                let answered = self.tally.with(Outcome::Ok);
                writeln!(f, "every one of {answered} answers was true, in epochs of {} s", EPOCH.as_secs())
            }
        }
    }
}
