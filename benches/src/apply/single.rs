//! One element more, one element less, while very many are held.

use std::time::Duration;

use allowlist::Element;
use anyhow::Result;
use lab::Run;

use super::Extent;
use super::peers::{Ipset, Original};
use super::station::Station;
use crate::load::quantile;
use crate::path::listed;
use crate::report::{Line, Report, progress};

/// Pairs that the original holds; with as many as we do it would not end.
const ORIGINAL_HELD: usize = 1_000;
/// Its changes; each takes as long as thousands of ours.
const ORIGINAL_CHANGES: usize = 20;

pub(super) fn run(run: &Run, station: &mut Station, extent: Extent, report: &mut Report) -> Result<()> {
    let (ipset, _) = Ipset::fill(run, "ipset-one", extent.held)?;
    let original = Original::fill(run, ORIGINAL_HELD)?;
    let new = listed(extent.held + extent.changes).split_off(extent.held);
    let (mut ours, mut program, mut originals) = (Vec::new(), Vec::new(), Vec::new());
    for (number, address) in new.iter().enumerate() {
        let frames = station.change(vec![Element::host((*address).into(), None)], Vec::new())?;
        ours.push(station.apply(&frames)?);
        program.push(ipset.add(*address)?);
        if number < ORIGINAL_CHANGES.min(extent.changes) {
            originals.push(original.add(*address)?);
        }
    }
    say(report, "add_one", "one element more", "≤ 200", ours, program);
    originals.sort_unstable();
    report.set("original_add_one_at_1k_us_p50", micros(quantile(&originals, 0.5)));
    progress("taking them out again");
    let (mut ours, mut program) = (Vec::new(), Vec::new());
    for address in &new {
        let frames = station.change(Vec::new(), vec![Element::host((*address).into(), None)])?;
        ours.push(station.apply(&frames)?);
        program.push(ipset.remove(*address)?);
    }
    say(report, "remove_one", "one element less", "", ours, program);
    Ok(())
}

fn say(
    report: &mut Report,
    key: &str,
    what: &str,
    aim: &'static str,
    mut ours: Vec<Duration>,
    mut program: Vec<Duration>,
) {
    ours.sort_unstable();
    program.sort_unstable();
    for (name, part, aim) in [("p50", 0.5, aim), ("p99", 0.99, "")] {
        let (ours, program) = (micros(quantile(&ours, part)), micros(quantile(&program, part)));
        let what = format!("{what}, frame to kernel, {name}, µs");
        let line = Line { what, ours: Some(ours), peer: Some(program), result: Some(ours), aim };
        report.result(&format!("{key}_us_{name}"), line);
        report.set(&format!("{key}_us_{name}_ipset"), program.round());
    }
}

pub(super) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
