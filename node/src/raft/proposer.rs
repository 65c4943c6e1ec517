//! The leader's side of a write. While one log entry is on its way, the operations of the next writers gather into the
//! next one: concurrent writes share entries and fsyncs, a lone write does not wait.
//!
//! A write that is still queued when its time is over is taken out again, and its writer learns that it never entered
//! the log. Only a write whose entry is on its way has an unknown outcome.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bincode::enc::write::SizeWriter;
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{Instant as _, ServerState};
use raft_store::StateReader;
use raft_store::command::{Batch, BatchReply, MAX_OPERATIONS_PER_BATCH, Operation};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::wire::ProposeFailure;
use super::{Metrics, Raft};

/// Operations gather into one entry up to this size.
const MAX_GATHERED_BYTES: usize = 256 * 1024;
/// Largest write, which then has an entry of its own.
pub(crate) const MAX_ENTRY_BYTES: usize = 1024 * 1024;
/// Writes that may wait; one more is refused at once.
const QUEUE_PROPOSALS: usize = 4_096;
/// A leader that has not heard from a majority for this long holds writes back instead of logging them: they can then
/// be refused with certainty when their time is over.
const QUORUM_SILENCE: Duration = Duration::from_millis(500);
/// How often a leader without a quorum looks again.
const QUORUM_PAUSE: Duration = Duration::from_millis(10);

const QUEUED: u8 = 0;
const TAKEN: u8 = 1;
const WITHDRAWN: u8 = 2;

/// Hands writes to the task that gathers them.
#[derive(Clone)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Proposal>,
}

struct Proposal {
    operations: Vec<Operation>,
    bytes: usize,
    /// [`QUEUED`], then either [`TAKEN`] by the gatherer or [`WITHDRAWN`] by the writer.
    claim: Arc<AtomicU8>,
    reply: oneshot::Sender<Result<BatchReply, ProposeFailure>>,
}

impl Proposer {
    /// Starts the task; it ends when the last [`Proposer`] is dropped.
    pub(crate) fn start(raft: Raft, reader: &StateReader) -> Self {
        let (queue, proposals) = mpsc::channel(QUEUE_PROPOSALS);
        let gatherer = Gatherer { raft, proposals, carried: None, clock: Clock::new(reader.clone()) };
        tokio::spawn(gatherer.run());
        Self { queue }
    }

    /// Writes `operations` through this node, which must be the leader, and returns after commit and apply.
    pub(crate) async fn propose(
        &self,
        operations: Vec<Operation>,
        deadline: Instant,
    ) -> Result<BatchReply, ProposeFailure> {
        let bytes = size(&operations).map_err(ProposeFailure::Unavailable)?;
        if operations.len() > MAX_OPERATIONS_PER_BATCH || bytes > MAX_ENTRY_BYTES {
            return Err(ProposeFailure::Unavailable(format!(
                "{} operations of {bytes} bytes at once; at most {MAX_OPERATIONS_PER_BATCH} operations and \
                 {MAX_ENTRY_BYTES} bytes are possible",
                operations.len()
            )));
        }
        let claim = Arc::new(AtomicU8::new(QUEUED));
        let (reply, answer) = oneshot::channel();
        let proposal = Proposal { operations, bytes, claim: Arc::clone(&claim), reply };
        self.queue.try_send(proposal).map_err(|error| {
            ProposeFailure::Unavailable(match error {
                mpsc::error::TrySendError::Full(_) => format!("{QUEUE_PROPOSALS} writes are waiting already"),
                mpsc::error::TrySendError::Closed(_) => "it is shutting down".to_owned(),
            })
        })?;
        match timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) if withdraw(&claim) => {
                Err(ProposeFailure::Unavailable("it is shutting down".to_owned()))
            }
            Ok(Err(_)) => Err(ProposeFailure::Unknown("the leader stopped before it answered".to_owned())),
            Err(_) if withdraw(&claim) => {
                Err(ProposeFailure::NotEntered("the leader reached no majority in time".to_owned()))
            }
            Err(_) => Err(ProposeFailure::Unknown("no majority confirmed the write in time".to_owned())),
        }
    }
}

fn withdraw(claim: &AtomicU8) -> bool {
    claim.compare_exchange(QUEUED, WITHDRAWN, Ordering::AcqRel, Ordering::Acquire).is_ok()
}

fn size(operations: &[Operation]) -> Result<usize, String> {
    let mut writer = SizeWriter::default();
    bincode::serde::encode_into_writer(operations, &mut writer, bincode::config::standard())
        .map_err(|error| format!("encode operations: {error}"))?;
    Ok(writer.bytes_written)
}

struct Gatherer {
    raft: Raft,
    proposals: mpsc::Receiver<Proposal>,
    /// The one that did not fit into the last entry.
    carried: Option<Proposal>,
    clock: Clock,
}

impl Gatherer {
    async fn run(mut self) {
        loop {
            let first = match self.carried.take() {
                Some(proposal) => proposal,
                None => match self.proposals.recv().await {
                    Some(proposal) => proposal,
                    None => return,
                },
            };
            if self.wait_for_quorum(&first).await {
                let entry = self.gather(first);
                self.write(entry).await;
            } else if first.claim.load(Ordering::Acquire) == QUEUED {
                // The receiver may be gone; then nobody wants to know.
                let _ = first.reply.send(Err(ProposeFailure::NotLeader));
            }
        }
    }

    /// True as soon as this node leads and hears from a majority; false when it does not lead, or the writer gave up.
    async fn wait_for_quorum(&self, proposal: &Proposal) -> bool {
        let mut metrics = self.raft.metrics();
        loop {
            let standing = standing(&metrics.borrow_watched());
            match standing {
                Leading::No => return false,
                Leading::WithQuorum => return true,
                Leading::Alone if proposal.claim.load(Ordering::Acquire) != QUEUED => return false,
                Leading::Alone => {
                    // Either a change or the pause is a reason to look again.
                    let _ = timeout(QUORUM_PAUSE, metrics.changed()).await;
                }
            }
        }
    }

    fn gather(&mut self, first: Proposal) -> Vec<Proposal> {
        let (mut operations, mut bytes) = (0, 0);
        let mut entry = Vec::new();
        let mut next = Some(first);
        while let Some(proposal) = next {
            let fits = entry.is_empty()
                || (operations + proposal.operations.len() <= MAX_OPERATIONS_PER_BATCH
                    && bytes + proposal.bytes <= MAX_GATHERED_BYTES);
            if !fits {
                self.carried = Some(proposal);
                break;
            }
            let taken =
                proposal.claim.compare_exchange(QUEUED, TAKEN, Ordering::AcqRel, Ordering::Acquire).is_ok();
            if taken {
                operations += proposal.operations.len();
                bytes += proposal.bytes;
                entry.push(proposal);
            }
            next = self.proposals.try_recv().ok();
        }
        entry
    }

    async fn write(&mut self, entry: Vec<Proposal>) {
        if entry.is_empty() {
            return;
        }
        let mut writers = Vec::with_capacity(entry.len());
        let mut operations = Vec::new();
        for proposal in entry {
            writers.push((proposal.operations.len(), proposal.reply));
            operations.extend(proposal.operations);
        }
        let expected = operations.len();
        let written = self.raft.client_write(Batch { at_ms: self.clock.now_ms(), operations }).await;
        let mut replies = match written {
            Ok(response) if response.data.replies.len() == expected => Ok(response.data),
            Ok(response) => Err(ProposeFailure::Unknown(format!(
                "{} replies to {expected} operations at revision {}",
                response.data.replies.len(),
                response.data.revision
            ))),
            Err(error) => Err(failure(&error)),
        };
        for (count, reply) in writers {
            let part = match &mut replies {
                Ok(all) => {
                    let rest = all.replies.split_off(count);
                    let mine = std::mem::replace(&mut all.replies, rest);
                    Ok(BatchReply { revision: all.revision, replies: mine })
                }
                Err(failure) => Err(failure.clone()),
            };
            // Writers that gave up are not told.
            let _ = reply.send(part);
        }
    }
}

fn failure(
    error: &RaftError<raft_store::TypeConfig, ClientWriteError<raft_store::TypeConfig>>,
) -> ProposeFailure {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => ProposeFailure::NotLeader,
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => {
            ProposeFailure::Unknown("the leader changed before the write was confirmed".to_owned())
        }
        other => ProposeFailure::Unknown(format!("write log entry: {other}")),
    }
}

enum Leading {
    No,
    Alone,
    WithQuorum,
}

fn standing(metrics: &Metrics) -> Leading {
    if metrics.state != ServerState::Leader || metrics.current_leader != Some(metrics.id) {
        return Leading::No;
    }
    let voters: Vec<_> = metrics.membership_config.membership().voter_ids().collect();
    if voters == [metrics.id] {
        return Leading::WithQuorum;
    }
    match metrics.last_quorum_acked {
        Some(at) if at.into_inner().elapsed() < QUORUM_SILENCE => Leading::WithQuorum,
        _ => Leading::Alone,
    }
}

/// Unix milliseconds.
pub(crate) fn wall_clock_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// The leader's wall clock, never going back: neither behind what this node proposed, nor behind what another leader,
/// whose clock may be ahead, proposed before.
struct Clock {
    reader: StateReader,
    last_ms: u64,
}

impl Clock {
    fn new(reader: StateReader) -> Self {
        Self { reader, last_ms: 0 }
    }

    fn now_ms(&mut self) -> u64 {
        let applied = self.reader.newest().map_or(0, |batch| batch.at_ms);
        self.last_ms = self.last_ms.max(wall_clock_ms()).max(applied);
        self.last_ms
    }
}

#[cfg(test)]
mod tests {
    use raft_store::State;
    use raft_store::command::{Command, Origin};

    use super::*;

    #[test]
    fn the_leaders_clock_never_goes_back() {
        let (_publisher, reader) = raft_store::reader::channel(State::default());
        let mut clock = Clock { reader: reader.clone(), last_ms: u64::MAX / 2 };
        assert_eq!(clock.now_ms(), u64::MAX / 2);
        let mut clock = Clock::new(reader);
        let first = clock.now_ms();
        assert!(first > 0 && clock.now_ms() >= first);
    }

    #[test]
    fn the_leaders_clock_is_not_behind_what_another_leader_wrote() {
        let (publisher, reader) = raft_store::reader::channel(State::default());
        let mut clock = Clock::new(reader);
        clock.now_ms();
        let ahead = u64::MAX / 2;
        let command = Command::InitCluster { cluster: uuid::Uuid::from_u128(1) };
        let operations = vec![Operation { origin: Origin::default(), command }];
        let mut state = State::default();
        let (applied, _) = state.apply(1, &Batch { at_ms: ahead, operations });
        publisher.publish(state, vec![applied]);
        assert_eq!(clock.now_ms(), ahead);
    }

    #[test]
    fn a_withdrawn_write_cannot_be_taken_and_a_taken_one_cannot_be_withdrawn() {
        let claim = AtomicU8::new(QUEUED);
        assert!(withdraw(&claim) && !withdraw(&claim));
        let claim = AtomicU8::new(TAKEN);
        assert!(!withdraw(&claim));
    }
}
