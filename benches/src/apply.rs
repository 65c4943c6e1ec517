//! From a frame to the kernel: single changes, whole sets, counters, memory, beside the programs people use for that.
//!
//! What runs is the gateway's own way of a change (decoder, session rules, owner thread, state files, kernel), without
//! the socket it comes from.

mod heavy;
mod peers;
mod resync;
mod single;
mod station;
mod whole;

use std::path::Path as FilePath;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use lab::Run;

use crate::report::{Report, progress};
use crate::seat::check_disk;

/// What can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// One element more, one less, all counters, a whole set
    Held,
    /// Packets lost while a set is exchanged
    Resync,
    /// Time and memory of very many
    Heavy,
}

/// Knobs of the bench.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Elements held
    #[arg(long, default_value_t = 100_000)]
    held: usize,
    /// Very many elements
    #[arg(long, default_value_t = 1_000_000)]
    many: usize,
    /// Whole sets, dumps, exchanges
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Single changes
    #[arg(long, default_value_t = 500)]
    changes: usize,
    /// Only these
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Held, Part::Resync, Part::Heavy])]
    parts: Vec<Part>,
}

const QUICK_MANY: usize = 200_000;
const QUICK_ROUNDS: usize = 2;
const QUICK_CHANGES: usize = 40;

/// How many and how often.
#[derive(Debug, Clone, Copy)]
struct Extent {
    held: usize,
    many: usize,
    rounds: usize,
    changes: usize,
}

pub(crate) fn run(options: &Options, output: &FilePath, quick: bool, profile: &str) -> Result<()> {
    let few = |number: usize, few: usize| if quick { number.min(few) } else { number.max(1) };
    let extent = Extent {
        held: options.held,
        many: few(options.many, QUICK_MANY),
        rounds: few(options.rounds, QUICK_ROUNDS),
        changes: few(options.changes, QUICK_CHANGES),
    };
    let run = Run::begin()?;
    check_disk(run.directory())?;
    let mut report = Report::new("apply", profile, extent.rounds).beside("program");
    report.set("quick", quick);
    report.set("elements_held", extent.held);
    report.set("elements_many", extent.many);
    let part = |part| options.parts.contains(&part);
    if part(Part::Held) {
        progress("whole sets");
        let mut station = whole::run(&run, extent, &mut report).context("whole sets")?;
        progress("single changes");
        single::run(&run, &mut station, extent, &mut report).context("single changes")?;
    }
    if part(Part::Resync) {
        progress("exchanging a set under traffic");
        resync::run(&run, extent, &mut report).context("exchange a set under traffic")?;
    }
    if part(Part::Heavy) {
        progress("very many elements");
        heavy::run(&run, extent, &mut report).context("very many elements")?;
    }
    report.finish(output)
}
