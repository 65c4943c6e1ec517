//! Three machines of the lab with a process of ours and one of etcd each; their leaders are killed, cut off, and asked to
//! stop, again and again.

mod gap;
mod saturate;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use lab::{Leg, Network, Run, addresses::Net};
use nix::sys::signal::Signal;

use crate::contender::{Contender, READY_TIMEOUT, until};
use crate::etcd::Etcd;
use crate::load::{Numbers, quantile};
use crate::outputguard::{OutputGuard, certificates};
use crate::report::{Line, Report, progress};
use crate::seat::{NODES, Seat, check_disk};
use gap::{Until, gap};

/// Knobs of the bench.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Faults of each kind
    #[arg(long, default_value_t = 30)]
    faults: usize,
    /// How long the cluster is saturated while elections are counted, minutes
    #[arg(long, default_value_t = 10.0)]
    saturate_minutes: f64,
}

const QUICK_FAULTS: usize = 3;
const QUICK_SATURATE_MINUTES: f64 = 0.2;
const CONNECTIONS_OF_ETCD: usize = 1;

/// What happens to the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// SIGKILL: the kernel refuses its connections at once.
    Killed,
    /// Its host's cable is pulled: nobody answers.
    CutOff,
    /// SIGTERM.
    Stopped,
}

pub(crate) fn run(options: &Options, output: &Path, quick: bool, profile: &str) -> Result<()> {
    let faults = if quick { QUICK_FAULTS.min(options.faults) } else { options.faults }.max(1);
    let minutes =
        if quick { QUICK_SATURATE_MINUTES.min(options.saturate_minutes) } else { options.saturate_minutes };
    let run = Run::begin()?;
    check_disk(run.directory())?;
    let network = Network::build(&run, NODES, 0)?;
    let mut report = Report::new("failover", profile, faults);
    report.set("quick", quick);
    // The clients' host. Threads of this runtime are started inside it as well.
    network.balancer.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (ours, theirs) = (run.directory().join("outputguard"), run.directory().join("etcd"));
            let seats = Seat::in_lab(&network);
            let mut outputguard =
                OutputGuard::start(seats.clone(), &ours).await.context("start outputguard")?;
            measure(&mut outputguard, &network, faults, &mut report).await?;
            saturate::run(&outputguard, Duration::from_secs_f64(minutes * 60.0), &mut report).await?;
            drop(outputguard);
            let mut etcd = Etcd::start(seats, &theirs, &certificates(&ours), CONNECTIONS_OF_ETCD).await?;
            let gaps = repeat(&mut etcd, &network, Fault::Killed, faults, &Numbers::default()).await?;
            report_gaps(&mut report, "etcd_write_gap_ms", "etcd, leader killed", &gaps, ["", ""]);
            anyhow::Ok(())
        })
    })?;
    report.finish(output)
}

async fn measure(
    cluster: &mut OutputGuard,
    network: &Network,
    faults: usize,
    report: &mut Report,
) -> Result<()> {
    let numbers = Numbers::default();
    for (fault, key, what, aims) in [
        (Fault::Killed, "write_gap_ms", "leader killed", ["", "≤ 200"]),
        (Fault::CutOff, "write_gap_silent_ms", "leader's host cut off", ["", "≤ 600"]),
        (Fault::Stopped, "write_gap_handover_ms", "leader stopped", ["", "≤ 50"]),
    ] {
        let gaps =
            repeat(cluster, network, fault, faults, &numbers).await.with_context(|| what.to_owned())?;
        report_gaps(report, key, what, &gaps, aims);
    }
    Ok(())
}

fn report_gaps(report: &mut Report, key: &str, what: &str, gaps: &[f64], aims: [&'static str; 2]) {
    for ((name, part), aim) in [("p50", 0.5), ("p99", 0.99)].into_iter().zip(aims) {
        let what = format!("{what}, {name}, ms without a write");
        let result = Some(quantile(gaps, part));
        report.result(&format!("{key}_{name}"), Line { what, result, aim, ..Line::default() });
    }
    report.set(&format!("{key}_max"), quantile(gaps, 1.0));
}

/// The gaps in milliseconds, sorted.
async fn repeat<C: Contender>(
    cluster: &mut C,
    network: &Network,
    fault: Fault,
    faults: usize,
    numbers: &Numbers,
) -> Result<Vec<f64>> {
    let mut gaps = Vec::new();
    for number in 0..faults {
        cluster.wait_ready().await?;
        let leader = cluster.leader().await?;
        let survivors: Vec<usize> = (0..NODES).filter(|node| *node != leader).collect();
        let host = format!("srv{}", leader + 1);
        let leg = Leg { host: &host, net: Net::Management };
        let found = {
            let pid = cluster.process(leader).pid().context("the leader does not run")?;
            let pid = nix::unistd::Pid::from_raw(i32::try_from(pid)?);
            let strike = || match fault {
                Fault::Killed => Ok(nix::sys::signal::kill(pid, Signal::SIGKILL)?),
                Fault::Stopped => Ok(nix::sys::signal::kill(pid, Signal::SIGTERM)?),
                Fault::CutOff => network.unplug(leg),
            };
            let until = match fault {
                Fault::Killed | Fault::CutOff => Until::FirstWrite,
                // While it drains, its answers still come: what counts is the longest silence until it is gone.
                Fault::Stopped => Until::Gone(pid),
            };
            gap(cluster, &survivors, strike, until, numbers).await
        };
        match fault {
            Fault::CutOff => network.plug(leg)?,
            Fault::Killed | Fault::Stopped => {
                let process = cluster.process(leader);
                until("the old leader is gone", READY_TIMEOUT, async || {
                    anyhow::ensure!(!process.is_running(), "it still runs");
                    Ok(())
                })
                .await?;
                cluster.process(leader).start_again()?;
            }
        }
        let found = found?;
        progress(&format!(
            "{}, {fault:?} {}: {:.1} ms",
            cluster.name(),
            number + 1,
            found.as_secs_f64() * 1e3
        ));
        gaps.push(found.as_secs_f64() * 1e3);
    }
    gaps.sort_by(f64::total_cmp);
    Ok(gaps)
}
