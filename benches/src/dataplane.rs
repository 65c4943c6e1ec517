//! What a packet costs on its way through the gateway: beside a gateway that judges nothing, and beside one rule pair
//! for each address.
//!
//! Everything is measured in pairs within one run, in random order, and it is the median of the pairs' ratios that
//! counts. Addresses are the worst case: flows are spread over all that are listed.

mod connections;
mod denied;
mod latency;
mod rates;
mod tcp;

use std::path::Path as FilePath;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use lab::Run;
use rand::seq::SliceRandom as _;

use crate::alone::alone_on;
use crate::layout::{Layout, Row};
use crate::load::median;
use crate::report::{Line, Report, progress};

/// The processor that measures.
const PROCESSOR: usize = 0;

/// What can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Packets a second
    Rates,
    /// Bytes a second of one TCP connection
    Tcp,
    /// New TCP connections a second
    Connections,
    /// Round trips
    Latency,
    /// What a port scan takes from what is allowed
    Denied,
}

/// Knobs of the bench.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Pairs of everything
    #[arg(long, default_value_t = 25)]
    rounds: usize,
    /// Elements that one layout is to hold; the others are 1k and 100k
    #[arg(long, default_value_t = 1_000_000)]
    many: usize,
    /// One sample, ms
    #[arg(long, default_value_t = 250)]
    sample_ms: u64,
    /// Only these
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Rates, Part::Tcp, Part::Connections, Part::Latency, Part::Denied])]
    parts: Vec<Part>,
}

const QUICK_ROUNDS: usize = 3;
const QUICK_MANY: usize = 200_000;
const QUICK_SAMPLE_MS: u64 = 100;

/// How often and how long.
#[derive(Debug, Clone, Copy)]
struct Extent {
    rounds: usize,
    sample: Duration,
}

pub(crate) fn run(options: &Options, output: &FilePath, quick: bool, profile: &str) -> Result<()> {
    let extent = Extent {
        rounds: if quick { QUICK_ROUNDS } else { options.rounds.max(1) },
        sample: Duration::from_millis(if quick { QUICK_SAMPLE_MS } else { options.sample_ms }),
    };
    let many = if quick { options.many.min(QUICK_MANY) } else { options.many };
    let run = Run::begin()?;
    let mut report = Report::new("dataplane", profile, extent.rounds).beside("peer");
    report.set("quick", quick);
    report.set("elements_many", many);
    let part = |part| options.parts.contains(&part);
    let build = |layout: Layout| {
        progress(&format!("building {layout}"));
        Row::build(&run, layout).with_context(|| format!("build {layout}"))
    };
    let pair = [build(Layout::Plain)?, build(Layout::Sets(HUNDRED_THOUSAND))?];
    if part(Part::Rates) || part(Part::Denied) {
        let thousand = build(Layout::Sets(THOUSAND))?;
        if part(Part::Rates) {
            let others = [
                build(Layout::Sets(many))?,
                build(Layout::Rules(THOUSAND))?,
                build(Layout::Rules(TEN_THOUSAND))?,
            ];
            let all: Vec<&Row> = pair.iter().chain([&thousand]).chain(&others).collect();
            rates::run(&all, extent, &mut report).context("packets a second")?;
        }
        if part(Part::Denied) {
            denied::run(&run, &pair[1], &thousand, extent, &mut report).context("denied traffic")?;
        }
    }
    if part(Part::Tcp) {
        tcp::run(&pair, extent, &mut report).context("bytes a second")?;
    }
    if part(Part::Connections) {
        connections::run(&pair, extent, &mut report).context("connections a second")?;
    }
    if part(Part::Latency) {
        latency::run(&pair, extent, &mut report).context("round trips")?;
    }
    report.finish(output)
}

const THOUSAND: usize = 1_000;
const TEN_THOUSAND: usize = 10_000;
const HUNDRED_THOUSAND: usize = 100_000;

/// Samples of each of `rows`, taken together in rounds, each round in another order.
fn rounds<T>(
    rows: &[&Row],
    rounds: usize,
    mut sample: impl FnMut(&Row, usize) -> Result<T>,
) -> Result<Vec<Vec<T>>> {
    let mut samples: Vec<Vec<T>> = rows.iter().map(|_| Vec::with_capacity(rounds)).collect();
    let mut order: Vec<usize> = (0..rows.len()).collect();
    for round in 0..rounds {
        order.shuffle(&mut rand::rng());
        for at in &order {
            let row = rows[*at];
            let value = sample(row, round).with_context(|| format!("round {}, {}", round + 1, row.layout))?;
            samples[*at].push(value);
        }
    }
    Ok(samples)
}

/// Medians of both, and of their ratio within the rounds.
fn compare(ours: &[f64], theirs: &[f64]) -> Line {
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
    Line {
        ours: Some(median(ours)),
        peer: Some(median(theirs)),
        result: Some(median(&ratios)),
        ..Line::default()
    }
}
