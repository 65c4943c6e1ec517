//! Closed-loop load: each client sends its next request when the last one is answered. All clients run on the one thread
//! of the caller's runtime, whichever side they talk to.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;

/// A client of either side, with one key or entry that it has written itself.
pub(crate) trait Client {
    /// Writes a new key or entry; `number` is used once in the life of a cluster.
    async fn put(&mut self, number: u64) -> Result<()>;
    /// Writes its own entry again, with another value.
    async fn update(&mut self) -> Result<()>;
    /// Reads its own entry, linearizably.
    async fn read(&mut self) -> Result<()>;
}

/// What the clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Put,
    Update,
    Read,
}

/// Hands out the numbers of new keys.
#[derive(Debug, Clone, Default)]
pub(crate) struct Numbers(Rc<Cell<u64>>);

impl Numbers {
    pub(crate) fn next(&self) -> u64 {
        self.take(1)
    }

    /// The first of `count` numbers in a row.
    pub(crate) fn take(&self, count: u64) -> u64 {
        let first = self.0.get();
        self.0.set(first + count);
        first
    }
}

/// How long the clients work.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Extent {
    /// Only what is begun and answered within `measured` after `warm_up` counts.
    Time { warm_up: Duration, measured: Duration },
    /// So many operations, all clients together.
    Count(u64),
}

/// What was measured.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sample {
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// Lets `clients` work. A failing request ends the measurement with its error: a number with failures in it says nothing.
pub(crate) async fn measure<C: Client>(
    clients: &mut [C],
    operation: Operation,
    extent: Extent,
    numbers: &Numbers,
) -> Result<Sample> {
    let start = Instant::now();
    let left = Rc::new(Cell::new(match extent {
        Extent::Time { .. } => u64::MAX,
        Extent::Count(count) => count,
    }));
    let (from, until) = match extent {
        Extent::Time { warm_up, measured } => (start + warm_up, Some(start + warm_up + measured)),
        Extent::Count(_) => (start, None),
    };
    let workers = clients.iter_mut().map(|client| {
        let (left, numbers) = (Rc::clone(&left), numbers.clone());
        async move {
            let mut latencies = Vec::new();
            loop {
                let began = Instant::now();
                if until.is_some_and(|until| began >= until) || left.get() == 0 {
                    return anyhow::Ok(latencies);
                }
                left.set(left.get() - 1);
                match operation {
                    Operation::Put => client.put(numbers.next()).await?,
                    Operation::Update => client.update().await?,
                    Operation::Read => client.read().await?,
                }
                let ended = Instant::now();
                if began >= from && until.is_none_or(|until| ended <= until) {
                    latencies.push(micros(ended - began));
                }
            }
        }
    });
    let mut latencies = try_join_all(workers).await?.concat();
    let elapsed = match extent {
        Extent::Time { measured, .. } => measured,
        Extent::Count(_) => start.elapsed(),
    };
    ensure!(!latencies.is_empty(), "no request was answered in {} s", elapsed.as_secs_f64());
    latencies.sort_unstable();
    Ok(Sample {
        per_second: latencies.len() as f64 / elapsed.as_secs_f64(),
        p50_us: f64::from(quantile(&latencies, 0.5)),
        p99_us: f64::from(quantile(&latencies, 0.99)),
    })
}

/// Gives each client an entry of its own. All at once: a server closes connections that stay silent.
pub(crate) async fn give_entries<C: Client>(clients: &mut [C], numbers: &Numbers) -> Result<()> {
    try_join_all(clients.iter_mut().map(|client| client.put(numbers.next()))).await.map(drop)
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

/// Nearest rank of a sorted list; zero for an empty one.
pub(crate) fn quantile<T: Copy + Default>(sorted: &[T], quantile: f64) -> T {
    let rank = (sorted.len() as f64 * quantile).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// The middle value; of an even number of values the mean of the two.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        length if length % 2 == 1 => sorted[length / 2],
        length => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let sorted: Vec<u32> = (1..=30).collect();
        assert_eq!(quantile(&sorted, 0.5), 15);
        assert_eq!(quantile(&sorted, 0.99), 30);
        assert_eq!(quantile(&[] as &[u32], 0.5), 0);
    }

    #[test]
    fn the_median_is_not_moved_by_one_wild_round() {
        assert_eq!(median(&[1.0, 900.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
    }

    struct Counting(u64);

    impl Client for Counting {
        async fn put(&mut self, _: u64) -> Result<()> {
            self.0 += 1;
            tokio::task::yield_now().await;
            Ok(())
        }
        async fn update(&mut self) -> Result<()> {
            anyhow::bail!("not there")
        }
        async fn read(&mut self) -> Result<()> {
            Ok(())
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn clients_share_a_count_and_a_failure_ends_the_measurement() {
        let mut clients: Vec<Counting> = (0..3).map(|_| Counting(0)).collect();
        let numbers = Numbers::default();
        measure(&mut clients, Operation::Put, Extent::Count(10), &numbers).await.unwrap();
        assert_eq!(clients.iter().map(|client| client.0).sum::<u64>(), 10);
        assert_eq!(numbers.next(), 10);
        assert!(measure(&mut clients, Operation::Update, Extent::Count(1), &numbers).await.is_err());
    }
}
