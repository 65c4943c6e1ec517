//! From a call of the API to the first packet that passes: three servers and two gateways on machines of the lab, and
//! etcd beside the servers, which only has to acknowledge a put.

pub(crate) mod cluster;
mod probe;

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use clap::Args;
use lab::{Binaries, Gateway, Network, Run};
use tokio::time::{sleep, timeout};

use crate::contender::Contender as _;
use crate::etcd::Etcd;
use crate::layout::short;
use crate::load::{Client as _, Numbers, quantile};
use crate::outputguard::{OutputGuard, certificates, import_body};
use crate::report::{Line, Report, progress, rounded};
use crate::seat::{NODES, Seat, check_disk};
use probe::Probe;

/// Knobs of the bench.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Entries that are there before, at each level
    #[arg(long, value_delimiter = ',', default_values_t = [0, 10_000, 100_000])]
    levels: Vec<u64>,
    /// Entries added at each level
    #[arg(long, default_value_t = 300)]
    adds: usize,
}

const QUICK_ADDS: usize = 20;
/// Not measured: neighbours are found, connections opened.
const WARM_UP: usize = 3;
const GATEWAYS: usize = 2;
const CONNECTIONS_OF_ETCD: usize = 1;
/// Comments of what is loaded before, bytes.
const COMMENT_BYTES: usize = 20;
/// The addresses that are added, one after the other; the lab's internet is behind all of them.
const FIRST_ADDED: u32 = u32::from_be_bytes([93, 184, 0, 1]);
const ADDED_MAX: usize = 65_000;
/// Probes are on their way for so long before the address is added.
const LEAD: Duration = Duration::from_millis(3);
/// A packet that has not passed by then never will.
const PATIENCE: Duration = Duration::from_secs(10);

/// Of one entry, ms.
#[derive(Debug, Clone, Copy)]
struct Added {
    /// Until the API's answer.
    answered: f64,
    /// Until a packet had passed each gateway.
    passed: f64,
    /// What etcd took for a put right after.
    etcd: f64,
}

pub(crate) fn run(options: &Options, output: &Path, quick: bool, profile: &str) -> Result<()> {
    let adds = if quick { QUICK_ADDS.min(options.adds) } else { options.adds }.max(1);
    let levels = &options.levels;
    ensure!(levels.is_sorted(), "levels must rise: nothing is removed");
    ensure!((adds + WARM_UP) * levels.len() <= ADDED_MAX, "at most {ADDED_MAX} adds in all");
    let run = Run::begin()?;
    check_disk(run.directory())?;
    let network = Network::build(&run, NODES, GATEWAYS)?;
    let mut report = Report::new("propagation", profile, adds).beside("etcd put");
    report.set("quick", quick);
    let probe = Probe::start(&network)?;
    // The clients' host. Threads of this runtime are started inside it as well.
    network.balancer.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let seats = Seat::in_lab(&network);
        let servers = runtime.block_on(OutputGuard::start(seats.clone(), run.directory()))?;
        let binaries = Binaries::find()?;
        let mut gateways = Vec::new();
        for index in 0..GATEWAYS {
            let token = runtime.block_on(cluster::gateway_token(&servers, &format!("gw{}", index + 1)))?;
            gateways.push(Gateway::start(&run, &network, index, &binaries, &token)?);
        }
        gateways.iter_mut().try_for_each(Gateway::wait_live)?;
        let (etcd_data, tls) = (run.directory().join("etcd"), certificates(run.directory()));
        let etcd = runtime.block_on(Etcd::start(seats, &etcd_data, &tls, CONNECTIONS_OF_ETCD))?;
        let mut bench = Bench { servers, etcd, probe: &probe, numbers: Numbers::default(), number: 0 };
        runtime.block_on(async {
            let mut loaded = 0;
            for level in levels {
                progress(&format!("{} entries", short(usize::try_from(*level)?)));
                bench.load(loaded..*level).await.context("load entries")?;
                loaded = *level;
                let added = bench.level(adds).await.with_context(|| format!("at {level} entries"))?;
                say(&mut report, *level, &added)?;
            }
            anyhow::Ok(())
        })
    })?;
    report.finish(output)
}

struct Bench<'a> {
    servers: OutputGuard,
    etcd: Etcd,
    probe: &'a Probe,
    numbers: Numbers,
    /// Of addresses added so far.
    number: u32,
}

impl Bench<'_> {
    /// Adds entries in one request and waits until both gateways hold them.
    async fn load(&self, numbers: std::ops::Range<u64>) -> Result<()> {
        if !numbers.is_empty() {
            let mut http = self.servers.http(0).await?;
            self.servers.import(&mut http, &import_body(numbers, COMMENT_BYTES)?).await?;
        }
        cluster::wait_in_sync(&self.servers, GATEWAYS).await
    }

    /// Adds addresses at a follower, one after the other.
    async fn level(&mut self, adds: usize) -> Result<Vec<Added>> {
        let follower = (self.servers.leader().await? + 1) % NODES;
        let mut http = self.servers.http(follower).await?;
        let headers = self.servers.headers("application/json");
        let etcd_follower = (self.etcd.leader().await? + 1) % NODES;
        let mut etcd = self.etcd.connect(etcd_follower, 1).await?.pop().context("no client of etcd")?;
        let mut all = Vec::with_capacity(adds);
        for round in 0..WARM_UP + adds {
            let address = Ipv4Addr::from_bits(FIRST_ADDED + self.number);
            self.number += 1;
            let mut arrivals = self.probe.aim(self.number.into(), address);
            sleep(LEAD).await;
            let body = format!(r#"{{"target":"{address}"}}"#);
            let (start, begun) = (SystemTime::now(), Instant::now());
            let answer = http.request("POST", "/api/v1/entries", &headers, body.as_bytes()).await?;
            ensure!(answer.status == 201, "adding {address}: status {}: {}", answer.status, answer.text());
            let answered = ms(begun.elapsed());
            let mut passed = SystemTime::UNIX_EPOCH;
            for _ in 0..GATEWAYS {
                let arrival = timeout(PATIENCE, arrivals.recv()).await;
                let arrival = arrival.with_context(|| format!("{address} does not pass"))?;
                passed = passed.max(arrival.context("the probe ended")?);
            }
            self.probe.rest();
            let passed = ms(passed.duration_since(start).context("a packet passed before it was allowed")?);
            let begun = Instant::now();
            etcd.put(self.numbers.next()).await?;
            let etcd = ms(begun.elapsed());
            if round >= WARM_UP {
                all.push(Added { answered, passed, etcd });
            }
        }
        Ok(all)
    }
}

fn say(report: &mut Report, level: u64, added: &[Added]) -> Result<()> {
    let level = short(usize::try_from(level)?);
    let sorted = |value: fn(&Added) -> f64| {
        let mut values: Vec<f64> = added.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let (passed, answered, etcd) =
        (sorted(|added| added.passed), sorted(|added| added.answered), sorted(|added| added.etcd));
    for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
        let aim = if level == "100k" && name == "p99" { "≤ 25" } else { "" };
        let (ours, peer) = (quantile(&passed, part), quantile(&etcd, part));
        let what = format!("call to packets, {level} entries, {name}, ms");
        let line = Line { what, ours: Some(ours), peer: Some(peer), result: Some(ours), aim };
        report.result(&format!("e2e_ms_{name}_{level}"), line);
        report.set(&format!("api_ms_{name}_{level}"), rounded(quantile(&answered, part)));
        report.set(&format!("etcd_put_ms_{name}_{level}"), rounded(peer));
    }
    let ratio = quantile(&passed, 0.5) / quantile(&etcd, 0.5);
    report.set(&format!("e2e_p50_vs_etcd_put_p50_{level}"), rounded(ratio));
    // The last level, which has the most entries, stays.
    let what = format!("call to packets / etcd's put, {level} entries, p50");
    let line = Line { what, result: Some(ratio), aim: "≤ 1.5", ..Line::default() };
    report.result("e2e_p50_vs_etcd_put_p50", line);
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
