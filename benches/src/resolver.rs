//! What it costs to keep 100,000 names up to date, beside programs that ask DNS for other reasons, and how long a change
//! in DNS takes to the kernel of a gateway.
//!
//! - [`zone`] is the local authority (knot) with all the names.
//! - [`cadence`] watches the real servers keep them.
//! - [`peers`] ask for the same names: a plain loop over the same library, unbound, and dnsmasq filling sets.
//! - [`change`] goes the whole way, from a changed record to a set in the kernel, past an [`authority`] that remembers
//!   what it said last.

mod authority;
mod cadence;
mod change;
mod peers;
mod zone;

use std::path::Path;

use anyhow::{Result, ensure};
use clap::Args;
use lab::{Namespace, Run};

use crate::report::{Line, Report, progress};
use crate::seat::check_disk;
use zone::Zone;

/// Knobs of the bench.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Names in the list
    #[arg(long, default_value_t = 100_000)]
    names: u32,
    /// How long the servers are watched, seconds
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Records that change
    #[arg(long, default_value_t = 300)]
    changes: u32,
    /// Parts to run: cadence, peers, change
    #[arg(long, value_delimiter = ',', default_values_t = ["cadence", "peers", "change"].map(str::to_owned))]
    parts: Vec<String>,
}

const QUICK_NAMES: u32 = 5_000;
const QUICK_SECONDS: u64 = 15;
const QUICK_CHANGES: u32 = 40;

pub(crate) fn run(options: &Options, output: &Path, quick: bool, profile: &str) -> Result<()> {
    let of = |full: u32, small: u32| if quick { small.min(full) } else { full };
    let names = of(options.names, QUICK_NAMES);
    let seconds = if quick { QUICK_SECONDS.min(options.seconds) } else { options.seconds }.max(1);
    for part in &options.parts {
        ensure!(["cadence", "peers", "change"].contains(&part.as_str()), "no part {part}");
    }
    let has = |part: &str| options.parts.iter().any(|wanted| wanted == part);
    let run = Run::begin()?;
    check_disk(run.directory())?;
    let mut report = Report::new("resolver", profile, 1).beside("plain loop");
    report.set("quick", quick);
    report.set("names", names);
    if has("cadence") || has("peers") {
        let namespace = Namespace::create(&run.namespace_name("names"))?;
        namespace.ip("link set lo up")?;
        let zone = Zone::start(&run, &namespace, names)?;
        let kept = if has("cadence") {
            progress("cadence: three servers and the names");
            Some(cadence::run(&run, &namespace, &zone, seconds, &mut report)?)
        } else {
            None
        };
        if has("peers") {
            progress("peers: the same names, by others");
            let others = peers::run(&run, &namespace, &zone)?;
            say(&mut report, kept, &others);
        }
    }
    if has("change") {
        progress("change: from a record to the kernel");
        change::run(&run, of(options.changes, QUICK_CHANGES), &mut report)?;
    }
    report.finish(output)
}

/// Names a second of one processor: ours beside each of the others.
fn say(report: &mut Report, kept: Option<f64>, others: &[(&'static str, f64)]) {
    for (name, rate) in others {
        report.set(&format!("names_per_core_second_{name}"), rate.round());
        if let Some(kept) = kept {
            let what = format!("names per processor second / {name}'s");
            let line = Line { what, ours: Some(kept), peer: Some(*rate), result: Some(kept / rate), aim: "" };
            report.result(&format!("names_per_core_second_vs_{name}"), line);
        }
    }
}
