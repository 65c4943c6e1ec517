//! Linearizable reads that come at the same time share one confirmation. A read joins only a round that begins after it
//! came: what was acknowledged before the read is then before the round, too.

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

/// Reads that may wait for a round; more are refused at once.
const QUEUE_READS: usize = 16_384;
/// A round that takes longer than this does not keep the next from beginning: it may have met a leader that is gone.
const ROUND_PATIENCE: Duration = Duration::from_millis(10);
/// Rounds under way at once; the next waits for one to end.
const MAX_ROUNDS: usize = 32;

/// Why a read was not confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ReadFailure<E> {
    /// The round failed.
    Round(E),
    /// It took too long.
    Timeout,
    /// Too many reads, or the node stops.
    Unable(&'static str),
}

type Answer<E> = Result<u64, E>;

struct Read<E> {
    deadline: Instant,
    answer: oneshot::Sender<Arc<Answer<E>>>,
}

/// Where reads wait for their round. Cheap to clone.
pub(crate) struct ReadRounds<E> {
    queue: mpsc::Sender<Read<E>>,
    reads: IntCounter,
}

/// The other end: makes the rounds.
pub(crate) struct RoundMaker<E> {
    reads: mpsc::Receiver<Read<E>>,
    rounds: IntCounter,
}

/// A queue of reads and who serves it; `reads` and `rounds` are counted.
pub(crate) fn channel<E>(reads: IntCounter, rounds: IntCounter) -> (ReadRounds<E>, RoundMaker<E>) {
    let (queue, receiver) = mpsc::channel(QUEUE_READS);
    (ReadRounds { queue, reads }, RoundMaker { reads: receiver, rounds })
}

impl<E: Clone> ReadRounds<E> {
    /// Up to where a reader must have applied to see everything acknowledged before the call.
    pub(crate) async fn join(&self, deadline: Instant) -> Result<u64, ReadFailure<E>> {
        self.reads.inc();
        let (answer, confirmed) = oneshot::channel();
        self.queue.try_send(Read { deadline, answer }).map_err(|error| {
            ReadFailure::Unable(match error {
                mpsc::error::TrySendError::Full(_) => "too many reads are waiting",
                mpsc::error::TrySendError::Closed(_) => "it is shutting down",
            })
        })?;
        match timeout_at(deadline, confirmed).await {
            Ok(Ok(answer)) => (*answer).clone().map_err(ReadFailure::Round),
            Ok(Err(_)) => Err(ReadFailure::Unable("it is shutting down")),
            Err(_) => Err(ReadFailure::Timeout),
        }
    }
}

impl<E: Send + Sync + 'static> RoundMaker<E> {
    /// Serves reads; `confirm` makes one round within its deadline.
    pub(crate) async fn run<F>(mut self, confirm: impl Fn(Instant) -> F)
    where
        F: Future<Output = Answer<E>> + Send + 'static,
    {
        let mut under_way = JoinSet::new();
        while let Some(first) = self.reads.recv().await {
            while under_way.len() >= MAX_ROUNDS {
                under_way.join_next().await;
            }
            let mut joined = vec![first];
            while let Ok(read) = self.reads.try_recv() {
                joined.push(read);
            }
            joined.retain(|read| !read.answer.is_closed());
            // The round serves whoever has most time; the others stop waiting on their own.
            let Some(deadline) = joined.iter().map(|read| read.deadline).max() else { continue };
            self.rounds.inc();
            let round = confirm(deadline);
            under_way.spawn(async move {
                let answer = Arc::new(round.await);
                for read in joined {
                    // It may have given up.
                    let _ = read.answer.send(Arc::clone(&answer));
                }
            });
            let _ = timeout(ROUND_PATIENCE, under_way.join_next()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn counter() -> IntCounter {
        IntCounter::new("n", "n").unwrap()
    }

    fn deadline() -> Instant {
        Instant::now() + PATIENCE
    }

    #[tokio::test]
    async fn a_read_does_not_join_a_round_that_has_begun() {
        let (reads, maker) = channel::<()>(counter(), counter());
        // Each round waits until the test ends it.
        let begun: Arc<Mutex<Vec<oneshot::Sender<u64>>>> = Arc::default();
        let rounds = Arc::clone(&begun);
        let serving = tokio::spawn(maker.run(move |_| {
            let (end, ended) = oneshot::channel();
            rounds.lock().unwrap().push(end);
            async move { Ok(ended.await.unwrap()) }
        }));
        let reads = Arc::new(reads);
        let read = || {
            let reads = Arc::clone(&reads);
            tokio::spawn(async move { reads.join(deadline()).await })
        };
        let has_begun = async |count: usize| {
            while begun.lock().unwrap().len() < count {
                tokio::task::yield_now().await;
            }
        };
        let first = read();
        has_begun(1).await;
        let second = read();
        has_begun(2).await;
        // The later round ends first; the first read still waits for its own.
        begun.lock().unwrap().pop().unwrap().send(2).unwrap();
        assert_eq!(second.await.unwrap(), Ok(2));
        begun.lock().unwrap().pop().unwrap().send(1).unwrap();
        assert_eq!(first.await.unwrap(), Ok(1));
        drop(reads);
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn reads_that_wait_together_share_a_round() {
        let rounds = counter();
        let (reads, maker) = channel::<()>(counter(), rounds.clone());
        let reads = Arc::new(reads);
        let mut joined = JoinSet::new();
        for _ in 0..100 {
            let reads = Arc::clone(&reads);
            joined.spawn(async move { reads.join(deadline()).await });
        }
        // All are in the queue before anybody serves it.
        while reads.reads.get() < 100 {
            tokio::task::yield_now().await;
        }
        let serving = tokio::spawn(maker.run(|_| async { Ok(7) }));
        assert!(joined.join_all().await.into_iter().all(|read| read == Ok(7)));
        assert_eq!(rounds.get(), 1);
        serving.abort();
    }

    #[tokio::test]
    async fn a_read_gives_up_in_time_and_a_failed_round_says_why() {
        let (reads, maker) = channel::<&str>(counter(), counter());
        assert_eq!(reads.join(Instant::now() + Duration::from_millis(5)).await, Err(ReadFailure::Timeout));
        let serving = tokio::spawn(maker.run(|_| async { Err("no majority") }));
        assert_eq!(reads.join(deadline()).await, Err(ReadFailure::Round("no majority")));
        serving.abort();
        assert!(serving.await.is_err());
        assert!(matches!(reads.join(deadline()).await, Err(ReadFailure::Unable(_))));
    }
}
