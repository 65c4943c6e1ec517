//! Packets a second of a thousand flows, one processor doing all of it.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::{Extent, HUNDRED_THOUSAND, PROCESSOR, TEN_THOUSAND, THOUSAND, alone_on, compare, rounds};
use crate::layout::{Layout, Row, short};
use crate::packets::{Frame, Sender, Sent, answer, counted};
use crate::path::{LAN, WAN, listed};
use crate::report::{Line, Report, progress};

/// Flows of a row.
const FLOWS: usize = 1_000;
const FIRST_PORT: u16 = 10_000;

/// A row with its flows.
pub(super) struct Stream<'a> {
    row: &'a Row,
    sender: Sender,
    frames: Vec<Frame>,
    answerer: Sender,
    answers: Vec<Frame>,
}

impl<'a> Stream<'a> {
    /// Flows spread over all that `row` lists, each begun.
    pub(super) fn begin(row: &'a Row) -> Result<Self> {
        let addresses = listed(row.layout.listed());
        let flows =
            || (0..FLOWS).map(|flow| (FIRST_PORT + flow as u16, addresses[flow * addresses.len() / FLOWS]));
        let stream = Self {
            row,
            sender: Sender::open(&row.path.inside, LAN)?,
            frames: flows().map(|(port, address)| counted(port, address)).collect(),
            answerer: Sender::open(&row.path.outside, WAN)?,
            answers: flows().map(|(port, address)| answer(port, address)).collect(),
        };
        let before = row.path.delivered()?;
        stream.sender.send_each(&stream.frames)?;
        let arrived = row.path.delivered()? - before;
        ensure!(arrived == FLOWS as u64, "{}: {arrived} of {FLOWS} flows arrive", row.layout);
        Ok(stream)
    }

    /// Packets a second, every one of them delivered with the gateway's address.
    pub(super) fn sample(&self, extent: Extent) -> Result<f64> {
        Ok(self.delivered(|| self.send(extent))?.per_second())
    }

    /// Packets a second, as many of them answers as questions, every one delivered.
    fn sample_both_ways(&self, extent: Extent) -> Result<f64> {
        let before = self.row.path.returned()?;
        let mut answers = 0;
        let mut rate = 0.0;
        self.delivered(|| {
            let start = Instant::now();
            let sent = alone_on(PROCESSOR, || {
                let mut packets = 0;
                while start.elapsed() < extent.sample {
                    packets += self.sender.send_each(&self.frames)?.packets;
                    answers += self.answerer.send_each(&self.answers)?.packets;
                }
                Ok(Sent { packets, time: start.elapsed() })
            })?;
            rate = (sent.packets + answers) as f64 / sent.time.as_secs_f64();
            Ok(sent)
        })?;
        let returned = self.row.path.returned()? - before;
        ensure!(returned == answers, "{returned} of {answers} answers were delivered");
        Ok(rate)
    }

    /// Sends for the time of a sample.
    pub(super) fn send(&self, extent: Extent) -> Result<Sent> {
        alone_on(PROCESSOR, || self.sender.send_for(&self.frames, extent.sample))
    }

    /// Makes sure that all that `send` sends arrives.
    pub(super) fn delivered(&self, send: impl FnOnce() -> Result<Sent>) -> Result<Sent> {
        let before = self.row.path.delivered()?;
        let sent = send()?;
        let delivered = self.row.path.delivered()? - before;
        ensure!(delivered == sent.packets, "{delivered} of {} packets were delivered", sent.packets);
        Ok(sent)
    }
}

/// The first two rows are plain NAT and ours.
pub(super) fn run(rows: &[&Row], extent: Extent, report: &mut Report) -> Result<()> {
    let streams = rows.iter().map(|row| Stream::begin(row)).collect::<Result<Vec<_>>>()?;
    let at = |layout: Layout| rows.iter().position(|row| row.layout == layout);
    let samples = rounds(rows, extent.rounds, |row, round| {
        let at = at(row.layout).context("an unknown row")?;
        let rate = streams[at].sample(extent)?;
        progress(&format!("round {}: {}: {:.0} packets/s", round + 1, row.layout, rate));
        Ok(rate)
    })?;
    let of = |layout: Layout| -> Result<&[f64]> {
        Ok(&samples[at(layout).with_context(|| format!("{layout} was not measured"))?])
    };
    let many = rows.iter().map(|row| row.layout).max_by_key(|layout| match layout {
        Layout::Sets(count) => *count,
        Layout::Plain | Layout::Rules(_) => 0,
    });
    let many = many.context("no rows")?;
    report.set("delivered", 1.0);
    for (key, layout) in
        [("1k", Layout::Sets(THOUSAND)), ("100k", Layout::Sets(HUNDRED_THOUSAND)), ("1m", many)]
    {
        let what = format!("packets/s, {} elements / plain NAT", short(layout.listed()));
        let line = compare(of(layout)?, of(Layout::Plain)?);
        report.result(&format!("pps_vs_plain_{key}"), Line { what, aim: "≥ 0.85", ..line });
    }
    let line = compare(of(many)?, of(Layout::Sets(THOUSAND))?);
    let what = format!("packets/s, {} elements / 1k", short(many.listed()));
    report.result("flatness_1m_vs_1k", Line { what, aim: "≥ 0.93", ..line });
    for (key, count, aim) in [("1k", THOUSAND, "≥ 2"), ("10k", TEN_THOUSAND, "≥ 15")] {
        // What ours costs does not depend on the number: 100k stands for 10k.
        let ours = if count == THOUSAND { Layout::Sets(THOUSAND) } else { Layout::Sets(HUNDRED_THOUSAND) };
        let line = compare(of(ours)?, of(Layout::Rules(count))?);
        let what = format!("packets/s, {} elements / {key} rule pairs", short(ours.listed()));
        report.result(&format!("pps_vs_original_{key}"), Line { what, aim, ..line });
    }
    // Last, because from the first answer on a flow is another to conntrack.
    let both_ways = rounds(&rows[..2], extent.rounds, |row, _| {
        streams[at(row.layout).context("an unknown row")?].sample_both_ways(extent)
    })?;
    let line = compare(&both_ways[1], &both_ways[0]);
    let what = "packets/s, half answers, 100k / plain NAT".into();
    report.result("pps_both_ways_vs_plain_100k", Line { what, aim: "≥ 0.85", ..line });
    Ok(())
}
