//! A set is exchanged for another, again and again, while packets flow through elements that are in both.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use allowlist::Element;
use anyhow::{Result, anyhow};
use lab::Run;

use super::Extent;
use super::station::Station;
use crate::layout::elements;
use crate::packets::{Frame, Sender, counted};
use crate::path::{LAN, listed};
use crate::report::{Line, Report, progress};

/// Elements with traffic; they stay.
const FLOWING: usize = 1_000;
/// Of the others, one in so many is exchanged each time.
const EXCHANGED_ONE_IN: usize = 10;
/// Packets that leave together.
const BURST: u64 = 64;
/// From one burst to the next: 64,000 packets a second.
const INTERVAL: Duration = Duration::from_millis(1);
const FIRST_PORT: u16 = 20_000;

pub(super) fn run(run: &Run, extent: Extent, report: &mut Report) -> Result<()> {
    let mut station = Station::start(run, "resync")?;
    let flowing = listed(FLOWING);
    let frames: Vec<Frame> =
        flowing.iter().zip(FIRST_PORT..).map(|(address, port)| counted(port, *address)).collect();
    // Two sets that share all but a part of what has no traffic.
    let all: Vec<Element> = elements(extent.held + extent.held / EXCHANGED_ONE_IN).into_iter().collect();
    let stays = elements(FLOWING);
    let without = |rest: usize| -> Vec<Element> {
        let goes = |at: usize| at % EXCHANGED_ONE_IN == rest;
        let kept = all.iter().enumerate().filter(|(at, element)| stays.contains(element) || !goes(*at));
        kept.map(|(_, element)| *element).collect()
    };
    let sets = [without(0), without(1)];
    station.apply(&station.snapshot(&sets[0])?)?;
    let sender = Sender::open(&station.path.inside, LAN)?;
    let before = station.path.delivered()?;
    let counted_before = counted_packets(&station, &stays)?;
    let stop = AtomicBool::new(false);
    let sent = thread::scope(|scope| -> Result<u64> {
        let stream = scope.spawn(|| stream(&sender, &frames, &stop));
        let exchanged = (1..=extent.rounds).try_for_each(|round| {
            station.reconnect()?;
            let took = station.apply(&station.snapshot(&sets[round % 2])?)?;
            progress(&format!("exchange {round}: {:.0} ms", took.as_secs_f64() * 1e3));
            anyhow::Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        let sent = stream.join().map_err(|_| anyhow!("the stream panicked"))?;
        exchanged.and(sent)
    })?;
    let lost = sent.saturating_sub(station.path.delivered()? - before);
    let uncounted = sent.abs_diff(counted_packets(&station, &stays)? - counted_before);
    report.set("resync_packets_sent", sent);
    report.set("resync_exchanges", extent.rounds);
    for (key, what, value) in [
        ("resync_unchanged_packets_lost", "packets lost while sets were exchanged", lost),
        ("resync_unchanged_packets_uncounted", "packets not counted meanwhile, or twice", uncounted),
    ] {
        let line = Line { what: what.into(), result: Some(value as f64), aim: "0", ..Line::default() };
        report.result(key, line);
    }
    Ok(())
}

fn counted_packets(station: &Station, of: &std::collections::BTreeSet<Element>) -> Result<u64> {
    let counters = station.counters()?;
    Ok(counters.iter().filter(|line| of.contains(&line.element)).map(|line| line.packets_out).sum())
}

/// Sends at a steady pace until told to stop; gives the number sent.
fn stream(sender: &Sender, frames: &[Frame], stop: &AtomicBool) -> Result<u64> {
    let start = Instant::now();
    let sent = sender.send_while(frames, |sent| {
        let due = INTERVAL.saturating_mul(u32::try_from(sent / BURST).unwrap_or(u32::MAX));
        thread::sleep(due.saturating_sub(start.elapsed()));
        !stop.load(Ordering::Relaxed)
    })?;
    Ok(sent.packets)
}
