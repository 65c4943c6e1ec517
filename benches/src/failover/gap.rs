//! How long nobody can write. Writers on the survivors try without pause, each try with a short limit; only tries begun
//! after the fault count, so that an answer that was already on its way is no proof.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::future::{Either, join_all, select};
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::contender::Contender;
use crate::load::{Client as _, Numbers};

/// Writers on each survivor: tries begin at different times, so that their limit does not round the result up.
const WRITERS: usize = 4;
/// A try is given up after this time and another one begun.
const TRY_TIMEOUT: Duration = Duration::from_millis(250);
/// After a failed try.
const RETRY_PAUSE: Duration = Duration::from_millis(2);
/// Writes flow for this long before the fault.
const LEAD_IN: Duration = Duration::from_millis(500);
/// … and for this long after the leader is gone, when it was asked to go.
const LEAD_OUT: Duration = Duration::from_millis(500);
/// No write after this time is a failure.
const LIMIT: Duration = Duration::from_secs(30);
/// How often it is looked whether a process is gone.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// When a measurement is over.
#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
    /// With the first write begun after the fault that is acknowledged; the result is the time from the fault to it.
    FirstWrite,
    /// A while after this process is gone; the result is the longest time without an acknowledged write since the fault.
    Gone(Pid),
}

#[derive(Default)]
struct Seen {
    fault: Cell<Option<Instant>>,
    /// Acknowledgements of writes begun after the fault.
    acknowledged: RefCell<Vec<Instant>>,
    /// When the process was first seen to be gone.
    gone: Cell<Option<Instant>>,
}

/// Strikes while writers work, and measures.
pub(super) async fn gap<C: Contender>(
    cluster: &C,
    survivors: &[usize],
    strike: impl FnOnce() -> Result<()>,
    until: Until,
    numbers: &Numbers,
) -> Result<Duration> {
    let seen = Seen::default();
    let writers = survivors.iter().flat_map(|node| std::iter::repeat_n(*node, WRITERS));
    let writers = join_all(writers.map(|node| write_on(cluster, node, &seen, numbers)));
    let watch = async {
        tokio::time::sleep(LEAD_IN).await;
        let fault = Instant::now();
        seen.fault.set(Some(fault));
        strike()?;
        while !over(until, &seen) {
            ensure!(fault.elapsed() < LIMIT, "no write for {} s after the fault", LIMIT.as_secs());
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        let acknowledged = seen.acknowledged.borrow();
        Ok(match until {
            Until::FirstWrite => acknowledged.first().map_or(LIMIT, |first| *first - fault),
            Until::Gone(_) => longest_silence(fault, &acknowledged),
        })
    };
    match select(std::pin::pin!(watch), std::pin::pin!(writers)).await {
        Either::Left((found, _)) => found,
        Either::Right(_) => anyhow::bail!("the writers ended"),
    }
}

fn over(until: Until, seen: &Seen) -> bool {
    let acknowledged = seen.acknowledged.borrow();
    match until {
        Until::FirstWrite => !acknowledged.is_empty(),
        Until::Gone(pid) => {
            if seen.gone.get().is_none() && gone(pid) {
                seen.gone.set(Some(Instant::now()));
            }
            // A silence is over, and can be measured, once another acknowledgement has come.
            let enough = seen.gone.get().map(|gone| gone + LEAD_OUT);
            enough.zip(acknowledged.last()).is_some_and(|(enough, last)| *last >= enough)
        }
    }
}

/// True for a process that ended, waited for or not.
fn gone(pid: Pid) -> bool {
    kill(pid, None).is_err()
        || std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .map_or(true, |stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
}

fn longest_silence(fault: Instant, acknowledged: &[Instant]) -> Duration {
    let mut last = fault;
    let mut longest = Duration::ZERO;
    for moment in acknowledged {
        longest = longest.max(*moment - last);
        last = *moment;
    }
    longest
}

/// Writes on `node` for ever.
async fn write_on<C: Contender>(cluster: &C, node: usize, seen: &Seen, numbers: &Numbers) {
    let mut client = None;
    loop {
        let began = Instant::now();
        let attempt = async {
            if client.is_none() {
                client = cluster.connect(node, 1).await?.pop();
            }
            match client.as_mut() {
                Some(client) => client.put(numbers.next()).await,
                None => anyhow::bail!("no client"),
            }
        };
        match tokio::time::timeout(TRY_TIMEOUT, attempt).await {
            Ok(Ok(())) => {
                if seen.fault.get().is_some_and(|fault| began >= fault) {
                    seen.acknowledged.borrow_mut().push(Instant::now());
                }
            }
            // What became of the write is unknown; the connection is of no more use.
            Ok(Err(_)) | Err(_) => {
                client = None;
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_silence_before_the_first_acknowledgement_counts_too() {
        let fault = Instant::now();
        let at = |ms| fault + Duration::from_millis(ms);
        assert_eq!(longest_silence(fault, &[at(40), at(45), at(60)]), Duration::from_millis(40));
        assert_eq!(longest_silence(fault, &[at(1), at(31), at(32)]), Duration::from_millis(30));
    }
}
