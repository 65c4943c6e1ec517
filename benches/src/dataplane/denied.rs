//! What a port scan at full speed takes from what is allowed: one processor sends what passes, another what does not,
//! and the real gateway process runs beside them.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use lab::Run;
use rand::Rng as _;
use rand::seq::SliceRandom as _;

use super::Extent;
use super::rates::Stream;
use crate::alone::{processors, take_processor};
use crate::daemon::Daemon;
use crate::layout::Row;
use crate::load::median;
use crate::packets::{End, Frame, Sender, Sent, syn};
use crate::path::LAN;
use crate::report::{Line, Report, progress};
use crate::shell;

/// The processor that the flood arrives on.
const FLOOD_PROCESSOR: usize = 1;
/// Different packets of the flood; each begins a new flow that never comes to be.
const SCANNED: usize = 16_384;
/// None of these is listed.
const SCANNED_PREFIX: u32 = u32::from_be_bytes([40, 0, 0, 0]);
const SCANNED_BITS: u32 = 24;

/// Where the flood goes meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flood {
    /// There is none.
    Quiet,
    /// To the gateway that is measured.
    Here,
    /// To another gateway on the same machine: what is lost then is lost to the other processor, not in the rules.
    Elsewhere,
}

pub(super) fn run(run: &Run, row: &Row, other: &Row, extent: Extent, report: &mut Report) -> Result<()> {
    if processors() <= FLOOD_PROCESSOR {
        progress("denied traffic needs two processors; left out");
        return Ok(());
    }
    let daemon = Daemon::start(run, &row.path.gateway, "denying", &run.directory().join("denying"))?;
    let stream = Stream::begin(row)?;
    let frames = scan();
    let floods = [Sender::open(&row.path.inside, LAN)?, Sender::open(&other.path.inside, LAN)?];
    let mut order = [Flood::Quiet, Flood::Here, Flood::Elsewhere];
    let mut samples: [Vec<f64>; 3] = Default::default();
    let (mut scanned, mut scan_rates) = (0, Vec::new());
    let before = denied(row)?;
    for round in 0..extent.rounds {
        order.shuffle(&mut rand::rng());
        for flood in order {
            let mut scan = None;
            let sent = stream.delivered(|| {
                let beside = match flood {
                    Flood::Quiet => return stream.send(extent),
                    Flood::Here => &floods[0],
                    Flood::Elsewhere => &floods[1],
                };
                let (sent, scanned) = flooded(beside, &frames, || stream.send(extent))?;
                scan = Some(scanned);
                Ok(sent)
            })?;
            let rate = sent.per_second();
            progress(&format!("round {}: flood {flood:?}: {rate:.0} packets/s", round + 1));
            samples[flood as usize].push(rate);
            if let (Flood::Here, Some(scan)) = (flood, scan) {
                scanned += scan.packets;
                scan_rates.push(scan.per_second());
            }
        }
    }
    let counted = denied(row)? - before;
    ensure!(counted == scanned, "{counted} of {scanned} scanning packets were denied");
    report.set("denied_flood_pps", median(&scan_rates).round());
    for (key, what, beside, aim) in [
        ("denied_flood_vs_quiet", "allowed packets/s, port scan / quiet", Flood::Quiet, "≥ 0.95"),
        ("denied_flood_vs_elsewhere", "allowed packets/s, scan here / elsewhere", Flood::Elsewhere, "≥ 0.95"),
    ] {
        let line = super::compare(&samples[Flood::Here as usize], &samples[beside as usize]);
        report.result(key, Line { what: what.into(), aim, ..line });
    }
    for line in daemon.metrics()?.lines().filter(|line| line.starts_with("outputguard_denied")) {
        progress(line);
    }
    daemon.stop()
}

/// First packets of connections to addresses and ports all over.
fn scan() -> Vec<Frame> {
    let mut random = rand::rng();
    let mut random = || random.random::<u32>();
    (0..SCANNED)
        .map(|_| {
            let address = Ipv4Addr::from_bits(SCANNED_PREFIX | random() >> (u32::BITS - SCANNED_BITS));
            syn((random() as u16).max(1), End { address, port: (random() as u16).max(1) })
        })
        .collect()
}

/// Runs `sample` while `frames` are sent; gives what both sent.
fn flooded(sender: &Sender, frames: &[Frame], sample: impl FnOnce() -> Result<Sent>) -> Result<(Sent, Sent)> {
    let (stop, running) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let flood = scope.spawn(|| {
            take_processor(FLOOD_PROCESSOR)?;
            sender.send_while(frames, |sent| {
                running.store(sent > 0, Ordering::Relaxed);
                !stop.load(Ordering::Relaxed)
            })
        });
        while !running.load(Ordering::Relaxed) && !flood.is_finished() {
            thread::yield_now();
        }
        let sampled = sample();
        stop.store(true, Ordering::Relaxed);
        let scanned = flood.join().map_err(|_| anyhow!("the flood panicked"))??;
        Ok((sampled?, scanned))
    })
}

/// Packets that the gateway of `row` counted as denied.
fn denied(row: &Row) -> Result<u64> {
    let set = shell::run(row.path.gateway.command("ipset").args(["save", "og4deny"]), "")?;
    let counts = set.lines().filter_map(|line| line.split_once(" packets "));
    let counts = counts.map(|(_, rest)| rest.split(' ').next().unwrap_or_default().parse::<u64>());
    counts.sum::<Result<u64, _>>().context("counts of denied packets")
}
