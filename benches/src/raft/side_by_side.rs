//! Puts and linearizable reads: a round measures each load on both sides, and the side that begins changes with the
//! round. Only the ratio inside a round counts, since disk and machine are not the same from minute to minute; the
//! result is the median of the rounds' ratios.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::contender::{Contender, connect_everywhere};
use crate::etcd::Etcd;
use crate::load::{Extent, Numbers, Operation, Sample, give_entries, measure, median};
use crate::outputguard::{OutputGuard, certificates};
use crate::report::{Line, Report, progress};
use crate::seat::{NODES, Seat};

/// Both clusters, running at the same time; only one has work at a time.
pub(crate) struct Sides {
    pub(crate) outputguard: OutputGuard,
    pub(crate) etcd: Etcd,
    /// New keys of both sides.
    pub(crate) numbers: Numbers,
}

impl Sides {
    pub(crate) async fn start(directory: &Path, etcd_connections: usize) -> Result<Self> {
        progress("starting outputguard and etcd");
        let (ours, theirs) = (directory.join("outputguard"), directory.join("etcd"));
        let seats = Seat::on_loopback();
        let outputguard = OutputGuard::start(seats.clone(), &ours).await.context("start outputguard")?;
        let etcd = Etcd::start(seats, &theirs, &certificates(&ours), etcd_connections)
            .await
            .context("start etcd")?;
        Ok(Self { outputguard, etcd, numbers: Numbers::default() })
    }
}

/// Where clients connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Leader,
    Follower,
    Everywhere,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compare {
    /// Ours by theirs: less is better.
    Latency,
    /// Ours by theirs: more is better.
    Throughput,
}

struct Load {
    key: &'static str,
    clients: usize,
    at: At,
    operation: Operation,
    compare: Compare,
    aim: &'static str,
}

type Figure = fn(&Sample) -> f64;

const LOADS: [Load; 5] = [
    Load {
        key: "put_c1_vs_etcd",
        clients: 1,
        at: At::Leader,
        operation: Operation::Put,
        compare: Compare::Latency,
        aim: "≤ 0.8",
    },
    Load {
        key: "put_c1_follower_vs_etcd",
        clients: 1,
        at: At::Follower,
        operation: Operation::Put,
        compare: Compare::Latency,
        aim: "",
    },
    Load {
        key: "put_c64_vs_etcd",
        clients: 64,
        at: At::Everywhere,
        operation: Operation::Put,
        compare: Compare::Throughput,
        aim: "≥ 4",
    },
    Load {
        key: "put_c256_vs_etcd",
        clients: 256,
        at: At::Everywhere,
        operation: Operation::Put,
        compare: Compare::Throughput,
        aim: "≥ 4",
    },
    Load {
        key: "read_linearizable_vs_etcd",
        clients: 64,
        at: At::Everywhere,
        operation: Operation::Read,
        compare: Compare::Throughput,
        aim: "≥ 1.5",
    },
];

const FULL: Extent = Extent::Time { warm_up: Duration::from_secs(1), measured: Duration::from_secs(4) };
const QUICK: Extent = Extent::Time { warm_up: Duration::from_millis(500), measured: Duration::from_secs(3) };

/// Runs all loads and reports them.
pub(crate) async fn run(sides: &mut Sides, rounds: usize, quick: bool, report: &mut Report) -> Result<()> {
    let extent = if quick { QUICK } else { FULL };
    let mut samples: Vec<Vec<[Sample; 2]>> = LOADS.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        for (load, samples) in LOADS.iter().zip(&mut samples) {
            let pair = in_turn(
                round,
                async || load.sample(&sides.outputguard, extent, &sides.numbers).await.context("outputguard"),
                async || load.sample(&sides.etcd, extent, &sides.numbers).await.context("etcd"),
            )
            .await
            .with_context(|| load.key)?;
            progress(&format!("round {}: {} {:.2}", round + 1, load.key, load.ratio(&pair)));
            samples.push(pair);
        }
    }
    for (load, samples) in LOADS.iter().zip(&samples) {
        load.report(samples, report);
    }
    Ok(())
}

/// Ours and theirs, the one that begins changing with the round.
pub(crate) async fn in_turn<T>(
    round: usize,
    ours: impl AsyncFnOnce() -> Result<T>,
    theirs: impl AsyncFnOnce() -> Result<T>,
) -> Result<[T; 2]> {
    Ok(if round.is_multiple_of(2) {
        let ours = ours().await?;
        [ours, theirs().await?]
    } else {
        let theirs = theirs().await?;
        [ours().await?, theirs]
    })
}

impl Load {
    async fn sample<C: Contender>(&self, side: &C, extent: Extent, numbers: &Numbers) -> Result<Sample> {
        let mut clients = match self.at {
            At::Everywhere => connect_everywhere(side, self.clients).await?,
            At::Leader => side.connect(side.leader().await?, self.clients).await?,
            At::Follower => side.connect((side.leader().await? + 1) % NODES, self.clients).await?,
        };
        if self.operation != Operation::Put {
            give_entries(&mut clients, numbers).await?;
        }
        measure(&mut clients, self.operation, extent, numbers).await
    }

    fn ratio(&self, [ours, theirs]: &[Sample; 2]) -> f64 {
        match self.compare {
            Compare::Latency => ours.p50_us / theirs.p50_us,
            Compare::Throughput => ours.per_second / theirs.per_second,
        }
    }

    fn report(&self, samples: &[[Sample; 2]], report: &mut Report) {
        let stem = self.key.trim_end_matches("_vs_etcd");
        let middle = |side: usize, value: Figure| {
            median(&samples.iter().map(|pair| value(&pair[side])).collect::<Vec<_>>())
        };
        let values: [(&str, Figure); 3] = [
            ("per_s", |sample| sample.per_second),
            ("p50_us", |sample| sample.p50_us),
            ("p99_us", |sample| sample.p99_us),
        ];
        let ratios: Vec<f64> = samples.iter().map(|pair| self.ratio(pair)).collect();
        let by_latency = self.compare == Compare::Latency;
        report.result(self.key, Line { result: Some(median(&ratios)), aim: self.aim, ..Line::default() });
        for (name, value) in values {
            let (ours, etcd) = (middle(0, value), middle(1, value));
            report.set(&format!("{stem}_{name}"), ours.round());
            report.set(&format!("etcd_{stem}_{name}"), etcd.round());
            if by_latency || name != "p50_us" {
                let what = format!("  {stem}, {}", name.replace("_us", " µs").replace("per_s", "1/s"));
                report.line(Line { what, ours: Some(ours), peer: Some(etcd), ..Line::default() });
            }
        }
        report.set(&format!("{}_min", self.key), ratios.iter().copied().fold(f64::INFINITY, f64::min));
        report.set(&format!("{}_max", self.key), ratios.iter().copied().fold(0.0, f64::max));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_side_that_begins_changes_with_the_round() {
        let order = std::cell::RefCell::new(Vec::new());
        for round in 0..2 {
            let pair = in_turn(
                round,
                async || {
                    order.borrow_mut().push("ours");
                    Ok(1)
                },
                async || {
                    order.borrow_mut().push("theirs");
                    Ok(2)
                },
            );
            assert_eq!(pair.await.unwrap(), [1, 2]);
        }
        assert_eq!(*order.borrow(), ["ours", "theirs", "theirs", "ours"]);
    }
}
