//! A run from start to verdict.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::archive::Saved;
use super::caller::{Habits, Keys, Reads};
use super::crowd::{Crowd, EPOCH, Report};
use super::fault::Fault;
use super::ground::{Ground, Syncs};
use super::history::{Answer, Record};
use super::last;
use super::nemesis::Nemesis;
use super::tally::{Outcome, Tally};
use super::verdict::{self, Violation, ViolationKind};
use crate::wait;

/// Complaints about answers that are kept.
const MAX_COMPLAINTS: usize = 20;

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
    /// How they name what they send again.
    pub keys: Keys,
    /// What the servers' fsync does.
    pub syncs: Syncs,
}

impl Options {
    /// A run of three servers that are as they should be.
    pub fn new(seed: u64, plan: Plan) -> Self {
        let (reads, keys, syncs) = (Reads::Linearizable, Keys::Kept, Syncs::Real);
        Self { servers: 3, seed, plan, reads, keys, syncs }
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
    /// Revision of the backup that was put back, and how many entries it held.
    pub restored: Option<(u64, usize)>,
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
    let habits = Habits { reads: options.reads, keys: options.keys };
    let crowd = Crowd::start(&ground.doors(), &ground.token()?, habits, options.seed, start)?;
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
        last::reads(&ground, start)?.into_iter().for_each(|record| book.put(record));
    }
    let mut restored = None;
    if book.violations.is_empty()
        && let Some(backup) = book.backup.take()
    {
        let revision = backup.revision;
        match last::restored(&ground, backup) {
            Ok((records, entries)) => {
                records.into_iter().for_each(|record| book.put(record));
                restored = Some((revision, entries));
            }
            Err(error) => {
                let detail = format!("of revision {revision}: {error:#}");
                book.violations.push(Violation { kind: ViolationKind::Backup, detail });
            }
        }
    }
    book.check_all();
    let kept = (!book.violations.is_empty()).then(|| ground.keep());
    Ok(Summary {
        seed: options.seed,
        faults: nemesis.counts,
        tally: book.tally,
        restored,
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

/// Everything that was reported, by epoch.
#[derive(Debug, Default)]
struct Book {
    epochs: BTreeMap<u16, Vec<Record>>,
    /// The first epoch that was not looked at yet.
    unchecked: u16,
    newest: u16,
    tally: Tally,
    complaints: usize,
    /// The newest.
    backup: Option<Saved>,
    violations: Vec<Violation>,
}

impl Book {
    fn take(&mut self, report: Report) {
        self.tally.count(report.kind, report.outcome);
        if let Some(keyed) = report.keyed {
            self.tally.count_keyed(keyed);
        }
        if let Some(record) = report.record {
            self.put(record);
        }
        if report.backup.is_some() {
            self.backup = report.backup;
        }
        for complaint in report.complaints {
            self.complaints += 1;
            if self.complaints <= MAX_COMPLAINTS {
                self.violations.push(complaint);
            }
        }
    }

    fn put(&mut self, record: Record) {
        let epoch = record.call.epoch();
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
            let last =
                records.iter().filter(|record| record.client == last::READER).find_map(
                    |record| match &record.answer {
                        Answer::Listed(entries) => Some(entries.iter().copied().collect::<BTreeMap<_, _>>()),
                        _ => None,
                    },
                );
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
        if let Some((revision, entries)) = self.restored {
            writeln!(f, "a backup of revision {revision} was put into a new cluster: {entries} entries")?;
        }
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
