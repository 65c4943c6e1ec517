//! Bulk: one request of 100,000 entries against etcd's largest transactions with several under way.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::side_by_side::{Sides, in_turn};
use crate::contender::{Contender as _, READY_TIMEOUT, connect_everywhere, until};
use crate::etcd::{Etcd, MAX_TXN_OPS};
use crate::load::{Numbers, median};
use crate::outputguard::{COMMENT_BYTES, OutputGuard, import_body};
use crate::report::{Line, Report, progress};
use crate::seat::NODES;

/// Entries in one request.
const REQUEST_ENTRIES: u64 = 100_000;
const QUICK_ENTRIES: u64 = 10_000;
/// Transactions of etcd under way at a time.
const TXNS_IN_FLIGHT: usize = 24;
/// What a node counts as its entries.
const ENTRIES_METRIC: &str = "outputguard_entries";

pub(super) async fn run(sides: &mut Sides, rounds: usize, quick: bool, report: &mut Report) -> Result<()> {
    let entries = if quick { QUICK_ENTRIES } else { REQUEST_ENTRIES };
    let mut pairs = Vec::new();
    for round in 0..rounds {
        let pair = in_turn(
            round,
            async || {
                import_everywhere(&sides.outputguard, entries, &sides.numbers).await.context("outputguard")
            },
            async || transactions(&sides.etcd, entries, &sides.numbers).await.context("etcd"),
        )
        .await?;
        progress(&format!("round {}: import {:.2}", round + 1, pair[1] / pair[0]));
        pairs.push(pair);
    }
    let middle = |value: fn(&[f64; 2]) -> f64| median(&pairs.iter().map(value).collect::<Vec<_>>());
    let (ours, etcd) = (middle(|pair| pair[0]), middle(|pair| pair[1]));
    report.set("import_entries", entries);
    report.set("etcd_import_s", etcd);
    let what = format!("import of {entries}, committed everywhere, s");
    report.result(
        "import_100k_s",
        Line { what, ours: Some(ours), peer: Some(etcd), result: Some(ours), aim: "" },
    );
    let ratio = middle(|pair| pair[1] / pair[0]);
    report.result("import_vs_etcd_txn", Line { result: Some(ratio), aim: "≥ 10", ..Line::default() });
    Ok(())
}

/// Seconds until every node has applied `count` new entries that one request brought.
async fn import_everywhere(cluster: &OutputGuard, count: u64, numbers: &Numbers) -> Result<f64> {
    let first = numbers.take(count);
    let body = import_body(first..first + count, COMMENT_BYTES)?;
    let before = cluster.metric(cluster.leader().await?, ENTRIES_METRIC).await?;
    let mut http = cluster.http(0).await?;
    let start = Instant::now();
    cluster.import(&mut http, &body).await?;
    for node in 0..NODES {
        until("every node has the entries", READY_TIMEOUT, async || {
            let here = cluster.metric(node, ENTRIES_METRIC).await?;
            ensure!(here >= before + count as f64, "node {node} has {here}");
            Ok(())
        })
        .await?;
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Seconds until etcd has committed `count` new keys.
async fn transactions(etcd: &Etcd, count: u64, numbers: &Numbers) -> Result<f64> {
    let first = numbers.take(count);
    let mut clients = connect_everywhere(etcd, TXNS_IN_FLIGHT).await?;
    let next = std::cell::Cell::new(first);
    let start = Instant::now();
    futures_util::future::try_join_all(clients.iter_mut().map(|client| {
        let next = &next;
        async move {
            loop {
                let from = next.get();
                let size = MAX_TXN_OPS.min(first + count - from);
                if size == 0 {
                    return anyhow::Ok(());
                }
                next.set(from + size);
                client.put_many(from, size).await?;
            }
        }
    }))
    .await?;
    Ok(start.elapsed().as_secs_f64())
}
