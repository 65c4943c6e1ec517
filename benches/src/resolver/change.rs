//! From a changed record to a set in the kernel: three servers and a gateway on machines of the lab.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab::addresses::{self, Net};
use lab::{Binaries, Gateway, Network, Run};

use super::authority::{self, Authority};
use super::zone::name;
use crate::load::quantile;
use crate::outputguard::OutputGuard;
use crate::propagation::cluster;
use crate::report::{Line, Report};
use crate::seat::{NODES, Seat};
use crate::shell;

/// What DNS allows to keep an answer: the shortest time that is kept to.
const TTL_S: u32 = 5;
/// The names change one after the other, spread over this time, so that they stand at every point of their TTL.
const SPREAD: Duration = Duration::from_secs(20);
/// The set of the kernel that holds what may be reached.
const SET: &str = "og4o";
/// Between two looks at it.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// A change that is not there by then never comes.
const PATIENCE: Duration = Duration::from_secs(60);
const OLD: u32 = u32::from_be_bytes([93, 184, 0, 1]);
const NEW: u32 = u32::from_be_bytes([93, 185, 0, 1]);

/// A record that has changed.
#[derive(Debug, Clone, Copy)]
struct Changed {
    /// From here on the old answer must not be used any more.
    due: Instant,
    number: u32,
}

pub(super) fn run(run: &Run, changes: u32, report: &mut Report) -> Result<()> {
    let network = Network::build(run, NODES, 1)?;
    let upstream = authority::address(Net::Management.v4(addresses::resolver()));
    let authority = Authority::start(&network.dns, upstream, TTL_S)?;
    for number in 0..changes {
        authority.set(&name(number), Ipv4Addr::from_bits(OLD + number));
    }
    let delays = network.balancer.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let seats = Seat::in_lab(&network);
        let servers =
            runtime.block_on(OutputGuard::start_with_upstreams(seats, run.directory(), &[upstream]))?;
        let binaries = Binaries::find()?;
        let token = runtime.block_on(cluster::gateway_token(&servers, "gw1"))?;
        let mut gateway = Gateway::start(run, &network, 0, &binaries, &token)?;
        gateway.wait_live()?;
        let mut body = String::new();
        for number in 0..changes {
            writeln!(body, r#"{{"target":"{}"}}"#, name(number))?;
        }
        runtime.block_on(async {
            let mut http = servers.http(0).await?;
            servers.import(&mut http, &body).await
        })?;
        let mut watch = Watch { gateway: &gateway, missing: HashMap::new(), delays: Vec::new() };
        let first: Vec<Changed> =
            (0..changes).map(|number| Changed { due: Instant::now(), number }).collect();
        first.into_iter().for_each(|changed| watch.expect(OLD, changed));
        watch.until_all_are_there()?;
        watch.delays.clear();

        let begun = Instant::now();
        for number in 0..changes {
            let due = begun + SPREAD.mul_f64(f64::from(number) / f64::from(changes));
            while Instant::now() < due {
                watch.look()?;
                std::thread::sleep(LOOK_INTERVAL);
            }
            let given = authority.set(&name(number), Ipv4Addr::from_bits(NEW + number));
            let now = Instant::now();
            let kept = given.context("a name nobody asked for")? + Duration::from_secs(TTL_S.into());
            watch.expect(NEW, Changed { due: kept.max(now), number });
        }
        watch.until_all_are_there()?;
        Ok(watch.delays)
    })?;
    let mut delays = delays;
    delays.sort_by(f64::total_cmp);
    for (key, part, aim) in [("p50", 0.5, ""), ("p99", 0.99, "≤ 1000")] {
        let result = quantile(&delays, part);
        let what = format!("record changed to kernel, beyond the TTL, {key}, ms");
        report.result(
            &format!("dns_change_to_kernel_ms_{key}"),
            Line { what, ours: Some(result), result: Some(result), aim, ..Line::default() },
        );
    }
    Ok(())
}

/// Looks at the kernel's set until what is expected is there.
struct Watch<'a> {
    gateway: &'a Gateway,
    missing: HashMap<Ipv4Addr, Instant>,
    /// Milliseconds.
    delays: Vec<f64>,
}

impl Watch<'_> {
    fn expect(&mut self, base: u32, changed: Changed) {
        self.missing.insert(Ipv4Addr::from_bits(base + changed.number), changed.due);
    }

    fn look(&mut self) -> Result<()> {
        if self.missing.is_empty() {
            return Ok(());
        }
        let listed = shell::run(self.gateway.namespace().command("ipset").args(["save", SET]), "")?;
        let now = Instant::now();
        for line in listed.lines() {
            let Some(address) = line.split(' ').nth(2).and_then(|text| text.parse().ok()) else { continue };
            if let Some(due) = self.missing.remove(&address) {
                self.delays.push(now.saturating_duration_since(due).as_secs_f64() * 1e3);
            }
        }
        Ok(())
    }

    fn until_all_are_there(&mut self) -> Result<()> {
        let begun = Instant::now();
        while !self.missing.is_empty() {
            if begun.elapsed() > PATIENCE {
                bail!("{} addresses are not in the kernel after {PATIENCE:?}", self.missing.len());
            }
            self.look()?;
            std::thread::sleep(LOOK_INTERVAL);
        }
        Ok(())
    }
}
