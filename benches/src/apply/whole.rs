//! A whole set into an empty kernel, and all its counters out again.

use std::time::Instant;

use allowlist::Element;
use anyhow::{Context, Result, ensure};
use lab::Run;

use super::Extent;
use super::peers::Ipset;
use super::station::Station;
use crate::layout::elements;
use crate::load::median;
use crate::report::{Line, Report, progress};

/// Returns the last station, with the set in it.
pub(super) fn run(run: &Run, extent: Extent, report: &mut Report) -> Result<Station> {
    let set: Vec<Element> = elements(extent.held).into_iter().collect();
    let (mut ours, mut program, mut last) = (Vec::new(), Vec::new(), None);
    let (mut dumps, mut program_dumps) = (Vec::new(), Vec::new());
    for round in 0..extent.rounds {
        let mut station = Station::start(run, &format!("sync{round}"))?;
        let frames = station.snapshot(&set)?;
        ours.push(station.apply(&frames)?.as_secs_f64() * 1e3);
        let (ipset, took) = Ipset::fill(run, &format!("ipset{round}"), extent.held)?;
        program.push(took.as_secs_f64() * 1e3);
        let start = Instant::now();
        let counters = station.counters()?;
        dumps.push(start.elapsed().as_secs_f64() * 1e3);
        ensure!(counters.len() == extent.held, "counters of {} elements", counters.len());
        program_dumps.push(ipset.dump()?.as_secs_f64() * 1e3);
        progress(&format!(
            "round {}: {:.0} ms, ipset restore {:.0} ms",
            round + 1,
            ours[round],
            program[round]
        ));
        last = Some(station);
    }
    for (key, what, aim, ours, program) in [
        ("sync_100k_ms", "a whole set into the kernel, ms", "≤ 300", &ours, &program),
        ("dump_100k_ms", "all counters out of it, ms", "≤ 100", &dumps, &program_dumps),
    ] {
        let (ours, program) = (median(ours), median(program));
        let line = Line { what: what.into(), ours: Some(ours), peer: Some(program), result: Some(ours), aim };
        report.result(key, line);
        report.set(&format!("{key}_ipset"), program.round());
    }
    last.context("no round was made")
}
