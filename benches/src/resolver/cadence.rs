//! The real servers with all the names in their list: what the one that leads takes to keep them.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Namespace, Run};
use tokio::time::sleep;

use super::zone::{Zone, name};
use crate::contender::{Contender as _, until};
use crate::outputguard::OutputGuard;
use crate::report::{Line, Report, progress};
use crate::seat::Seat;
use crate::usage::Usage;

/// How long the servers are watched before they have a name.
const IDLE: Duration = Duration::from_secs(10);
/// Until every name has its addresses for the first time.
const FIRST_TIMEOUT: Duration = Duration::from_secs(300);
/// After that, before the measurement: each name is asked for once more at its own time.
const SETTLE: Duration = Duration::from_secs(65);
const RESOLVED: &str = "outputguard_dns_names{state=\"ok\"}";
const LOOKUPS: &str = "outputguard_dns_rounds_total{result=\"unchanged\"}";
const CHANGED: &str = "outputguard_dns_rounds_total{result=\"changed\"}";
const COMMITTED: &str = "outputguard_raft_committed_index";

/// What the leader has taken and done at a moment.
#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    usage: Usage,
    lookups: f64,
    changed: f64,
    committed: f64,
}

/// Gives the names looked up for each second of processor time.
pub(super) fn run(
    run: &Run,
    namespace: &Arc<Namespace>,
    zone: &Zone,
    seconds: u64,
    report: &mut Report,
) -> Result<f64> {
    namespace.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(watch(run, namespace, zone, seconds, report))
    })
}

async fn watch(
    run: &Run,
    namespace: &Arc<Namespace>,
    zone: &Zone,
    seconds: u64,
    report: &mut Report,
) -> Result<f64> {
    let seats = Seat::on_loopback_of(namespace);
    let mut servers =
        OutputGuard::start_with_upstreams(seats, &run.directory().join("servers"), &[zone.address]).await?;
    let leader = servers.leader().await?;
    let reading = async |servers: &mut OutputGuard| -> Result<Reading> {
        let pid = servers.process(leader).pid().context("the leader has ended")?;
        Ok(Reading {
            lookups: servers.metric(leader, LOOKUPS).await.unwrap_or_default(),
            changed: servers.metric(leader, CHANGED).await.unwrap_or_default(),
            committed: servers.metric(leader, COMMITTED).await?,
            usage: Usage::of(pid)?,
            at: Instant::now(),
        })
    };
    let before = reading(&mut servers).await?;
    sleep(IDLE).await;
    let idle = reading(&mut servers).await?;

    let mut body = String::new();
    for number in 0..zone.names {
        writeln!(body, r#"{{"target":"{}"}}"#, name(number))?;
    }
    let begun = Instant::now();
    let mut http = servers.http(leader).await?;
    servers.import(&mut http, &body).await?;
    until("every name has its addresses", FIRST_TIMEOUT, async || {
        // A scrape is not free.
        sleep(Duration::from_millis(500)).await;
        let resolved = servers.metric(leader, RESOLVED).await?;
        ensure!(resolved >= f64::from(zone.names), "{resolved} of {} so far", zone.names);
        Ok(())
    })
    .await?;
    let first = begun.elapsed();
    progress(&format!("all names resolved after {:.1} s; waiting for a steady state", first.as_secs_f64()));
    sleep(SETTLE).await;

    let start = reading(&mut servers).await?;
    sleep(Duration::from_secs(seconds)).await;
    let end = reading(&mut servers).await?;
    ensure!(servers.leader().await? == leader, "another node leads now; run again");
    let looked_up = end.lookups - start.lookups;
    let per_core_second = looked_up / (end.usage.busy - start.usage.busy).as_secs_f64();
    let line = |what: &str, result: f64, aim| Line {
        what: what.to_owned(),
        ours: Some(result),
        result: Some(result),
        aim,
        ..Line::default()
    };
    report.set("lookups_per_second", (looked_up / (end.at - start.at).as_secs_f64()).round());
    report.set("cpu_share_before_names", crate::report::rounded(share(&before, &idle)));
    report.set("first_resolution_s", crate::report::rounded(first.as_secs_f64()));
    report.result("names_per_core_second", line("names looked up per processor second", per_core_second, ""));
    // By what was looked up: names added together stay together for a while, and a window may hold more or fewer of them.
    let at_100k = 100_000.0 / 60.0 / per_core_second;
    report.result(
        "cpu_share_at_100k_per_min",
        line("processors taken by 100k names a minute", at_100k, "≤ 0.10"),
    );
    report.result("rss_mib", line("memory of the leader, MiB", end.usage.rss_mib, ""));
    ensure!(end.changed == start.changed, "names changed that did not");
    let written = end.committed - start.committed;
    report.result("raft_writes_for_unchanged", line("log entries for unchanged names", written, "0"));
    Ok(per_core_second)
}

/// Of one processor, between two readings.
fn share(from: &Reading, to: &Reading) -> f64 {
    (to.usage.busy - from.usage.busy).as_secs_f64() / (to.at - from.at).as_secs_f64()
}
