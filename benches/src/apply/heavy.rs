//! A million elements: into the kernel, out of it, and what the real gateway process takes for them.

use std::thread;
use std::time::{Duration, Instant};

use allowlist::Element;
use anyhow::{Result, ensure};
use lab::Run;

use super::Extent;
use super::peers::Ipset;
use super::station::Station;
use crate::daemon::Daemon;
use crate::layout::elements;
use crate::report::{Line, Report, progress};

/// How long the idle process is watched: it looks after its sets every few seconds.
const WATCHED: Duration = Duration::from_secs(12);
/// Counts on the metrics page how often the process has made sure that the kernel holds what it stored.
const SETS_DONE: &str = "outputguard_apply_duration_seconds_count{kind=\"whole\"} ";
/// How long the first may take, on a machine that has other work too.
const PATIENCE: Duration = Duration::from_secs(600);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

pub(super) fn run(run: &Run, extent: Extent, report: &mut Report) -> Result<()> {
    let set: Vec<Element> = elements(extent.many).into_iter().collect();
    let mut station = Station::start(run, "heavy")?;
    let frames = station.snapshot(&set)?;
    drop(set);
    let ours = station.apply(&frames)?.as_secs_f64();
    drop(frames);
    progress(&format!("into the kernel: {ours:.2} s"));
    let (ipset, program) = Ipset::fill(run, "ipset-heavy", extent.many)?;
    let line = |what: &str, ours: f64, program: Option<Duration>, aim| Line {
        what: what.to_owned(),
        ours: Some(ours),
        peer: program.map(|program| program.as_secs_f64()),
        result: Some(ours),
        aim,
    };
    report.result("sync_1m_s", line("very many into the kernel, s", ours, Some(program), "≤ 3"));
    let start = Instant::now();
    let counters = station.counters()?;
    let ours = start.elapsed().as_secs_f64();
    ensure!(counters.len() == extent.many, "counters of {} elements", counters.len());
    drop(counters);
    report.result("dump_1m_s", line("their counters out of it, s", ours, Some(ipset.dump()?), ""));
    drop(ipset);

    let (path, state) = station.stop();
    let start = Instant::now();
    let daemon = Daemon::start(run, &path.gateway, "heavy-gateway", &state)?;
    let restarted = start.elapsed().as_secs_f64();
    progress(&format!("a restart: live after {restarted:.2} s, {:.0} MiB", daemon.usage()?.rss_mib));
    report.result("restart_1m_s", line("restart with them, until it is live, s", restarted, None, ""));
    // Before that it is not idle.
    while !holds_its_set(&daemon.metrics()?) {
        ensure!(start.elapsed() < PATIENCE, "the gateway does not finish its first set");
        thread::sleep(POLL_INTERVAL);
    }
    let before = daemon.usage()?;
    let watch = Instant::now();
    thread::sleep(WATCHED);
    let usage = daemon.usage()?;
    let busy = (usage.busy - before.busy).as_secs_f64() / watch.elapsed().as_secs_f64() * 100.0;
    report.result("rss_mib_1m", line("memory of the gateway process, MiB", usage.rss_mib, None, ""));
    report.set("rss_peak_mib_1m", usage.peak_mib.round());
    report.result("idle_cpu_percent_1m", line("its processor time while idle, %", busy, None, ""));
    daemon.stop()
}

fn holds_its_set(metrics: &str) -> bool {
    let count = metrics.lines().find_map(|line| line.strip_prefix(SETS_DONE));
    count.is_some_and(|count| count.trim() != "0")
}
