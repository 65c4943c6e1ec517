//! Messages between nodes. They take their time, wait while the way is cut (TCP sends again), arrive twice, or break
//! their connection, so that the sender does not know whether they arrived. Two messages overtake each other unless
//! they use the same [`Lane`].

use std::future::Future;
use std::sync::Arc;

use raft_store::types::NodeId;
use tokio::sync::oneshot;

use crate::nodes::Running;
use crate::process::spawn_outside;
use crate::types::{sleep_ms, sleep_us};
use crate::world::World;

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallError {
    /// Nobody listens there: the message was not delivered.
    Refused,
    /// The connection broke: it may have been.
    Lost,
}

pub(crate) type Answer<T> = oneshot::Receiver<Result<T, CallError>>;

/// A connection whose messages, and whose answers, stay in order.
#[derive(Default)]
pub(crate) struct Lane {
    /// The life of the peer it was opened to.
    life: Option<u64>,
    last_request: Option<oneshot::Receiver<()>>,
    last_answer: Option<oneshot::Receiver<()>>,
}

/// How a message travels.
pub(crate) enum Kind<'a> {
    /// Raft's, after those before it on the lane.
    InOrder(&'a mut Lane),
    /// Raft's, by itself. Raft must bear that it comes twice, or late.
    Alone,
    /// A client's request that a node passes on: the connection keeps it from coming twice.
    Once,
}

struct Turns {
    life: Option<u64>,
    before: Option<oneshot::Receiver<()>>,
    delivered: oneshot::Sender<()>,
    answered_before: Option<oneshot::Receiver<()>>,
    answered: oneshot::Sender<()>,
}

impl Lane {
    fn next(&mut self, world: &World, to: NodeId) -> Turns {
        let (delivered, next_request) = oneshot::channel();
        let (answered, next_answer) = oneshot::channel();
        self.life = self.life.or_else(|| world.running(to).map(|node| node.life));
        Turns {
            life: self.life,
            before: self.last_request.replace(next_request),
            delivered,
            answered_before: self.last_answer.replace(next_answer),
            answered,
        }
    }
}

/// Retransmission begins after so long.
const RETRANSMIT_MS: (u64, u64) = (20, 120);
/// A sender gives up on a message that does not get through for so long.
const GIVE_UP_ROUNDS: u32 = 60;
/// A duplicate comes up to so much later.
const DUPLICATE_MAX_MS: u64 = 800;

/// Sends a message that `handle` answers in the process of `to`.
pub(crate) fn send<T, H, F>(
    world: &World,
    from: NodeId,
    to: NodeId,
    kind: Kind<'_>,
    name: &'static str,
    handle: H,
) -> Answer<T>
where
    T: Send + 'static,
    H: Fn(Running) -> F + Send + Sync + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let (answer, receiver) = oneshot::channel();
    let (turns, twice) = match kind {
        Kind::InOrder(lane) => (Some(lane.next(world, to)), true),
        Kind::Alone => (None, true),
        Kind::Once => (None, false),
    };
    let message = Arc::new(Message { world: world.clone(), from, to, name, handle });
    let duplicates = world.lock().plan.duplicate_permille;
    if twice && world.chance(duplicates) {
        let message = Arc::clone(&message);
        spawn_outside(async move {
            let later = message.world.below(DUPLICATE_MAX_MS);
            sleep_ms(later).await;
            // Nobody waits for this answer.
            drop(message.travel(None).await);
        });
    }
    spawn_outside(async move {
        let result = message.travel(turns).await;
        // Who asked may be gone.
        drop(answer.send(result));
    });
    receiver
}

struct Message<H> {
    world: World,
    from: NodeId,
    to: NodeId,
    name: &'static str,
    handle: H,
}

impl<H, F> Message<H>
where
    F: Future<Output: Send + 'static> + Send + 'static,
    H: Fn(Running) -> F + Send + Sync + 'static,
{
    async fn travel(&self, turns: Option<Turns>) -> Result<F::Output, CallError> {
        pass(&self.world, self.from, self.to).await?;
        let Some(Turns { life, before, delivered, answered_before, answered }) = turns else {
            let answer = self.hand_over(None)?;
            return self.bring_back(answer, None).await;
        };
        in_turn(before).await?;
        let answer = self.hand_over(life)?;
        // There may be no next message.
        let _ = delivered.send(());
        let result = self.bring_back(answer, answered_before).await?;
        let _ = answered.send(());
        Ok(result)
    }

    /// Starts the handler at the peer; first steps are taken in the order of arrival.
    fn hand_over(&self, life: Option<u64>) -> Result<oneshot::Receiver<F::Output>, CallError> {
        let peer = self.world.running(self.to).ok_or(CallError::Refused)?;
        if life.is_some_and(|life| life != peer.life) {
            return Err(CallError::Lost);
        }
        self.world.trace(format_args!("{} {} -> {}", self.name, self.from, self.to));
        let (done, answer) = oneshot::channel();
        let handled = (self.handle)(peer.clone());
        peer.process.spawn(async move { drop(done.send(handled.await)) });
        Ok(answer)
    }

    async fn bring_back(
        &self,
        answer: oneshot::Receiver<F::Output>,
        before: Option<oneshot::Receiver<()>>,
    ) -> Result<F::Output, CallError> {
        let answer = answer.await.map_err(|_| CallError::Lost)?;
        pass(&self.world, self.to, self.from).await?;
        in_turn(before).await?;
        Ok(answer)
    }
}

async fn in_turn(before: Option<oneshot::Receiver<()>>) -> Result<(), CallError> {
    match before {
        Some(before) => before.await.map_err(|_| CallError::Lost),
        None => Ok(()),
    }
}

/// The way of one message.
async fn pass(world: &World, from: NodeId, to: NodeId) -> Result<(), CallError> {
    sleep_us(world.delay_us(from, to)).await;
    for _ in 0..GIVE_UP_ROUNDS {
        let (lost, reset) = {
            let mut inner = world.lock();
            let (loss, reset) = (inner.plan.loss_permille, inner.plan.reset_permille);
            (inner.rng.chance(loss), inner.rng.chance(reset))
        };
        if reset {
            return Err(CallError::Lost);
        }
        if !lost && !world.is_cut(from, to) {
            return Ok(());
        }
        let wait = world.between(RETRANSMIT_MS.0, RETRANSMIT_MS.1);
        sleep_ms(wait).await;
    }
    Err(CallError::Lost)
}
