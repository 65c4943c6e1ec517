//! A cluster that is as busy as it can be must not lose its leader for it.

use std::time::Duration;

use anyhow::Result;

use crate::contender::{Contender as _, connect_everywhere};
use crate::load::{Extent, Numbers, Operation, give_entries, measure};
use crate::outputguard::OutputGuard;
use crate::report::{Line, Report, progress};
use crate::seat::NODES;

/// Each overwrites an entry of its own without pause.
const CLIENTS: usize = 256;
/// New entries of this bench begin here, beyond those of the faults.
const FIRST_NUMBER: u64 = 100_000_000;

pub(super) async fn run(cluster: &OutputGuard, time: Duration, report: &mut Report) -> Result<()> {
    progress(&format!("saturating for {} s", time.as_secs()));
    cluster.wait_ready().await?;
    let mut clients = connect_everywhere(cluster, CLIENTS).await?;
    let numbers = Numbers::default();
    numbers.take(FIRST_NUMBER);
    give_entries(&mut clients, &numbers).await?;
    let before = term(cluster).await?;
    let extent = Extent::Time { warm_up: Duration::ZERO, measured: time };
    let sample = measure(&mut clients, Operation::Update, extent, &numbers).await?;
    let elections = term(cluster).await? - before;
    report.set("saturate_s", time.as_secs());
    report.set("saturate_per_s", sample.per_second.round());
    let what = format!("elections in {} s of saturation", time.as_secs());
    report.result("spurious_elections", Line { what, result: Some(elections), aim: "0", ..Line::default() });
    Ok(())
}

/// The newest term any node knows.
async fn term(cluster: &OutputGuard) -> Result<f64> {
    let mut newest: f64 = 0.0;
    for node in 0..NODES {
        newest = newest.max(cluster.metric(node, "outputguard_raft_term").await?);
    }
    Ok(newest)
}
