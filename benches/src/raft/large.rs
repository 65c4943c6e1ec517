//! A cluster with very many entries: memory of its processes, and how soon a restarted node serves.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::contender::Contender as _;
use crate::load::{Numbers, median};
use crate::outputguard::{OutputGuard, import_body};
use crate::report::{Line, Report};
use crate::seat::{NODES, Seat};

/// What people write beside an address, bytes: a ticket, a word why.
const COMMENT_BYTES: usize = 24;
/// Entries in one request while the cluster is filled.
const REQUEST_ENTRIES: u64 = 50_000;
/// Restarts; the report has the median.
const RESTARTS: usize = 3;

pub(super) async fn run(directory: &Path, entries: u64, report: &mut Report) -> Result<()> {
    let mut cluster = OutputGuard::start(Seat::on_loopback(), directory).await?;
    let before = memory(&mut cluster)?;
    let numbers = Numbers::default();
    fill(&cluster, entries, COMMENT_BYTES, &numbers).await?;
    let after = memory(&mut cluster)?;
    let per_entry =
        median(&after.iter().zip(before).map(|(after, before)| after - before).collect::<Vec<_>>())
            / entries as f64;
    report.set("large_entries", entries);
    report.result(
        "rss_bytes_per_entry_1m",
        Line {
            what: format!("memory per entry, {entries} entries, bytes"),
            result: Some(per_entry),
            aim: "≤ 300",
            ..Line::default()
        },
    );

    let mut times = Vec::new();
    for restart in 0..RESTARTS {
        let node = restart % NODES;
        cluster.process(node).stop()?;
        let start = Instant::now();
        cluster.process(node).start_again()?;
        cluster.wait_node_ready(node).await?;
        times.push(start.elapsed().as_secs_f64());
    }
    // In the midst of a write, so that the checkpoint is behind.
    let first = numbers.take(REQUEST_ENTRIES);
    let body = import_body(first..first + REQUEST_ENTRIES, COMMENT_BYTES)?;
    cluster.import(&mut cluster.http(0).await?, &body).await?;
    cluster.process(0).kill();
    let start = Instant::now();
    cluster.process(0).start_again()?;
    cluster.wait_node_ready(0).await?;
    report.set("open_1m_killed_s", start.elapsed().as_secs_f64());
    let reopened = median(&memory(&mut cluster)?) / entries as f64;
    report.set("rss_bytes_per_entry_1m_reopened", reopened.round());
    report.result(
        "open_1m_s",
        Line {
            what: format!("start with {entries} entries until ready, s"),
            result: Some(median(&times)),
            aim: "≤ 5",
            ..Line::default()
        },
    );
    Ok(())
}

/// Adds `entries` entries with comments of so many bytes.
pub(super) async fn fill(
    cluster: &OutputGuard,
    entries: u64,
    comment_bytes: usize,
    numbers: &Numbers,
) -> Result<()> {
    let mut left = entries;
    while left > 0 {
        let count = left.min(REQUEST_ENTRIES);
        let first = numbers.take(count);
        let body = import_body(first..first + count, comment_bytes)?;
        // A connection of its own: making the next body takes longer than a silent one may last.
        cluster.import(&mut cluster.http(0).await?, &body).await?;
        left -= count;
    }
    // A linearizable read on each node: it has applied everything.
    cluster.wait_ready().await
}

/// Resident memory of each process, bytes.
fn memory(cluster: &mut OutputGuard) -> Result<Vec<f64>> {
    (0..NODES)
        .map(|node| {
            let pid = cluster.process(node).pid().context("a node that does not run")?;
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("no VmRSS")?;
            Ok(kib.parse::<f64>()? * 1024.0)
        })
        .collect()
}
