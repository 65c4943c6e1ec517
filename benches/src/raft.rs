//! Three processes of ours and three of etcd on loopback, on the same disk, in turns.

mod churn;
mod import;
mod large;
mod side_by_side;

use std::path::Path;

use anyhow::Result;
use clap::{Args, ValueEnum};
use lab::Run;

use crate::report::{Report, progress};
use crate::seat::check_disk;

/// What can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Puts and reads beside etcd
    Load,
    /// 100,000 entries in one request, beside etcd's largest transactions
    Import,
    /// Memory and start with many entries
    Large,
    /// Disk after many overwriting writes
    Churn,
}

/// Knobs of the bench.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Rounds of everything that is measured beside etcd
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Entries for memory and start
    #[arg(long, default_value_t = 1_000_000)]
    entries: u64,
    /// Overwriting writes before the disk is looked at; the full run has 5,000,000
    #[arg(long, default_value_t = 500_000)]
    churn: u64,
    /// HTTP/2 connections to each member that etcd's clients share
    #[arg(long, default_value_t = 1)]
    etcd_connections: usize,
    /// Only these
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Load, Part::Import, Part::Large, Part::Churn])]
    parts: Vec<Part>,
}

/// Quick mode: a look whether everything works.
const QUICK_ROUNDS: usize = 1;
const QUICK_ENTRIES: u64 = 20_000;
const QUICK_CHURN: u64 = 5_000;

pub(crate) fn run(options: &Options, output: &Path, quick: bool, profile: &str) -> Result<()> {
    let few = |number: u64, few: u64| if quick { number.min(few) } else { number };
    let rounds = if quick { QUICK_ROUNDS } else { options.rounds.max(1) };
    let run = Run::begin()?;
    check_disk(run.directory())?;
    let mut report = Report::new("raft", profile, rounds);
    report.set("quick", quick);
    // One thread for the clients of both sides.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let part = |part| options.parts.contains(&part);
        if part(Part::Load) || part(Part::Import) {
            let directory = run.directory().join("side-by-side");
            let mut sides = side_by_side::Sides::start(&directory, options.etcd_connections).await?;
            if part(Part::Load) {
                side_by_side::run(&mut sides, rounds, quick, &mut report).await?;
            }
            if part(Part::Import) {
                import::run(&mut sides, rounds, quick, &mut report).await?;
            }
        }
        if part(Part::Large) {
            progress("memory and start");
            large::run(&run.directory().join("large"), few(options.entries, QUICK_ENTRIES), &mut report)
                .await?;
        }
        if part(Part::Churn) {
            progress("disk after churn");
            churn::run(&run.directory().join("churn"), few(options.churn, QUICK_CHURN), &mut report).await?;
        }
        anyhow::Ok(())
    })?;
    report.finish(output)
}
