//! The leader's side of a write. While log entries are on their way, the operations of the next writers gather into the
//! next one: concurrent writes share entries and fsyncs, a lone write does not wait (see [`under_way`]).
//!
//! A write that is still queued when its time is over is taken out again, and its writer learns that it never entered
//! the log. Only a write whose entry is on its way has an unknown outcome.
//!
//! A write may name the token it is made with. Whether that token still stands is looked up here, when the write is put
//! into its entry: everything this leader proposed before that takes tokens away is applied by then (nothing sets out beside
//! such an entry), and so is everything of the leaders before it (see [`Leading::CatchingUp`]). So a token's removal that
//! was acknowledged, or merely logged, before a write enters the log stops that write, at the price of a look into the
//! memory.

mod under_way;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bincode::enc::write::SizeWriter;
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResponse;
use openraft::type_config::alias::LeaderIdOf;
use openraft::vote::RaftLeaderId as _;
use openraft::{Instant as _, ServerState};
use raft_store::command::{Batch, BatchReply, MAX_OPERATIONS_PER_BATCH, Operation};
use raft_store::{State, StateReader, TypeConfig};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::clock::Clock;
use super::wire::{ProposeFailure, TokenMark};
use super::{Metrics, Raft};
use crate::cluster::{InactiveFeature, Term};
use under_way::{Load, UnderWay};

/// Operations gather into one entry up to this size.
const MAX_GATHERED_BYTES: usize = 256 * 1024;
/// Largest write, which then has an entry of its own.
pub(crate) const MAX_ENTRY_BYTES: usize = 1024 * 1024;
/// Writes that may wait in the queue; one more is refused at once.
const QUEUE_PROPOSALS: usize = 4_096;
/// Writes the gatherer takes from there: more than fit into one entry.
const MAX_WAITING: usize = 2 * MAX_OPERATIONS_PER_BATCH;
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
    /// Held for reading by each log entry on its way.
    held_up: Arc<RwLock<()>>,
}

/// What must hold when a write enters the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Only that this node leads.
    None,
    /// That it leads in this term.
    Term(Term),
    /// That this token stands.
    Token(TokenMark),
}

struct Proposal {
    operations: Vec<Operation>,
    bytes: usize,
    condition: Condition,
    /// [`QUEUED`], then either [`TAKEN`] by the gatherer or [`WITHDRAWN`] by the writer.
    claim: Arc<AtomicU8>,
    reply: oneshot::Sender<Result<BatchReply, ProposeFailure>>,
}

impl Proposer {
    /// Starts the task; it ends when the last [`Proposer`] is dropped.
    pub(crate) fn start(raft: Raft, reader: &StateReader) -> Self {
        let (queue, proposals) = mpsc::channel(QUEUE_PROPOSALS);
        let held_up = Arc::new(RwLock::new(()));
        let gatherer = Gatherer {
            raft,
            proposals,
            waiting: VecDeque::new(),
            clock: Clock::new(reader.clone()),
            reader: reader.clone(),
            under_way: UnderWay::default(),
            held_up: Arc::clone(&held_up),
        };
        tokio::spawn(gatherer.run());
        Self { queue, held_up }
    }

    /// Waits until no log entry is on its way, and lets none set out as long as the result is held: leadership can be
    /// handed over without leaving a write in doubt.
    pub(crate) async fn pause(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.held_up).write_owned().await
    }

    /// Writes `operations` through this node, which must be the leader, and returns after commit and apply.
    pub(crate) async fn propose(
        &self,
        operations: Vec<Operation>,
        condition: Condition,
        deadline: Instant,
    ) -> Result<BatchReply, ProposeFailure> {
        let bytes = size(&operations).map_err(ProposeFailure::Unavailable)?;
        let count = weight(&operations);
        if count > MAX_OPERATIONS_PER_BATCH || bytes > MAX_ENTRY_BYTES {
            return Err(ProposeFailure::Unavailable(format!(
                "{count} operations of {bytes} bytes at once; at most {MAX_OPERATIONS_PER_BATCH} operations and \
                 {MAX_ENTRY_BYTES} bytes are possible"
            )));
        }
        let claim = Arc::new(AtomicU8::new(QUEUED));
        let (reply, answer) = oneshot::channel();
        let proposal = Proposal { operations, bytes, condition, claim: Arc::clone(&claim), reply };
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

fn weight(operations: &[Operation]) -> usize {
    operations.iter().map(Operation::weight).sum()
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
    /// Taken from there, for the next entry.
    waiting: VecDeque<Proposal>,
    clock: Clock,
    reader: StateReader,
    under_way: UnderWay,
    held_up: Arc<RwLock<()>>,
}

impl Gatherer {
    async fn run(mut self) {
        while self.wait_until_due().await {
            let Some(first) = self.waiting.pop_front() else { continue };
            if let Some(leader) = self.wait_for_quorum(&first).await {
                // While leadership is handed over, writes wait here and then go to the next leader.
                let passed = Arc::clone(&self.held_up).read_owned().await;
                let entry = self.gather(first, leader);
                self.write(entry, leader, passed).await;
            } else if first.claim.load(Ordering::Acquire) == QUEUED {
                // The receiver may be gone; then nobody wants to know.
                let _ = first.reply.send(Err(ProposeFailure::NotLeader));
            }
        }
    }

    /// Returns true when writes wait and may set out, false when nobody can write any more.
    async fn wait_until_due(&mut self) -> bool {
        loop {
            self.take_what_came();
            if self.waiting.is_empty() {
                match self.proposals.recv().await {
                    Some(proposal) => self.waiting.push_back(proposal),
                    None => return false,
                }
                // Others came with it.
                continue;
            }
            if self.under_way.lets_go(self.waiting.len()) {
                return true;
            }
            tokio::select! {
                () = self.under_way.arrival() => {}
                Some(proposal) = self.proposals.recv(), if self.waiting.len() < MAX_WAITING => {
                    self.waiting.push_back(proposal);
                }
            }
        }
    }

    fn take_what_came(&mut self) {
        while self.waiting.len() < MAX_WAITING
            && let Ok(proposal) = self.proposals.try_recv()
        {
            self.waiting.push_back(proposal);
        }
    }

    /// Returns as whom this node leads, as soon as it does, hears from a majority and knows what was written before it
    /// led; `None` when it does not lead, or the writer gave up.
    async fn wait_for_quorum(&self, proposal: &Proposal) -> Option<LeaderIdOf<TypeConfig>> {
        let mut metrics = self.raft.metrics();
        loop {
            let standing = standing(&metrics.borrow_watched());
            match standing {
                Leading::No => return None,
                Leading::WithQuorum(leader) => return Some(leader),
                Leading::Alone | Leading::CatchingUp if proposal.claim.load(Ordering::Acquire) != QUEUED => {
                    return None;
                }
                Leading::Alone | Leading::CatchingUp => {
                    // Either a change or the pause is a reason to look again.
                    let _ = timeout(QUORUM_PAUSE, metrics.changed()).await;
                }
            }
        }
    }

    /// The state is looked at after [`Self::wait_for_quorum`], and the entry is written only if this node still leads as
    /// `leader`: nothing can have entered the log in between.
    fn gather(&mut self, first: Proposal, leader: LeaderIdOf<TypeConfig>) -> Vec<Proposal> {
        self.take_what_came();
        let state = self.reader.state();
        let (mut operations, mut bytes) = (0, 0);
        let mut entry = Vec::new();
        let mut next = Some(first);
        while let Some(proposal) = next {
            let fits = entry.is_empty()
                || (operations + weight(&proposal.operations) <= MAX_OPERATIONS_PER_BATCH
                    && bytes + proposal.bytes <= MAX_GATHERED_BYTES);
            if !fits {
                self.waiting.push_front(proposal);
                break;
            }
            let taken =
                proposal.claim.compare_exchange(QUEUED, TAKEN, Ordering::AcqRel, Ordering::Acquire).is_ok();
            let needs = proposal.operations.iter().map(|one| one.command.needs()).max().unwrap_or_default();
            let active = state.features();
            let refused = match &proposal.condition {
                Condition::Token(token) if !stands(&state, token) => Some(ProposeFailure::TokenGone),
                // Computed under another term; its writer may be gone.
                Condition::Term(Term(term)) if *term != leader.term => Some(ProposeFailure::NotLeader),
                // It only ever rises.
                _ if needs > active => Some(ProposeFailure::FeatureNotActive(InactiveFeature {
                    needs,
                    active,
                    held_back_by: Vec::new(),
                })),
                Condition::None | Condition::Term(_) | Condition::Token(_) => None,
            };
            match refused {
                _ if !taken => {}
                Some(failure) => {
                    // Writers that gave up are not told.
                    let _ = proposal.reply.send(Err(failure));
                }
                None => {
                    operations += weight(&proposal.operations);
                    bytes += proposal.bytes;
                    let decides = proposal.operations.iter().any(|one| one.command.takes_tokens());
                    entry.push(proposal);
                    // What comes behind it in the same entry would be looked at too early.
                    if decides {
                        break;
                    }
                }
            }
            next = self.waiting.pop_front();
        }
        entry
    }

    /// Writes one log entry, provided that `leader`, which is this node, leads; does not wait until it has arrived.
    async fn write(
        &mut self,
        entry: Vec<Proposal>,
        leader: LeaderIdOf<TypeConfig>,
        passed: OwnedRwLockReadGuard<()>,
    ) {
        if entry.is_empty() {
            return;
        }
        let mut writers = Vec::with_capacity(entry.len());
        let mut operations = Vec::new();
        for proposal in entry {
            writers.push((proposal.operations.len(), proposal.reply));
            operations.extend(proposal.operations);
        }
        let decides = operations.iter().any(|operation| operation.command.takes_tokens());
        let place = self.under_way.set_out(Load { writes: writers.len(), decides });
        let expected = operations.len();
        let batch = Batch { at_ms: self.clock.now_ms(), operations };
        let (responder, written) = ProgressResponder::complete_only();
        // Entries set out in the order in which they were made; only their arrival is waited for beside the next one.
        let sent = self.raft.write(batch).responder(responder).with_leader(leader).await;
        tokio::spawn(async move {
            let result = match sent {
                Ok(()) => written.await.map_err(|_| lost(&"raft has ended")),
                Err(fatal) => Err(lost(&fatal)),
            };
            let result = result.and_then(|response| response.map_err(|error| failure(&error)));
            // Before the writers know: whoever writes again finds the way free.
            drop((place, passed));
            tell(writers, expected, result);
        });
    }
}

/// Gives each writer its part of the answer.
fn tell(
    writers: Vec<(usize, oneshot::Sender<Result<BatchReply, ProposeFailure>>)>,
    expected: usize,
    result: Result<ClientWriteResponse<TypeConfig>, ProposeFailure>,
) {
    let mut answer = result.and_then(|response| match response.data {
        BatchReply { revision, replies } if replies.len() == expected => Ok((revision, replies.into_iter())),
        BatchReply { revision, replies } => Err(ProposeFailure::Unknown(format!(
            "{} replies to {expected} operations at revision {revision}",
            replies.len()
        ))),
    });
    for (count, writer) in writers {
        let part = match &mut answer {
            Ok((revision, replies)) => {
                Ok(BatchReply { revision: *revision, replies: replies.by_ref().take(count).collect() })
            }
            Err(failure) => Err(failure.clone()),
        };
        // Writers that gave up are not told.
        let _ = writer.send(part);
    }
}

fn lost(error: &dyn std::fmt::Display) -> ProposeFailure {
    ProposeFailure::Unknown(format!("write log entry: {error}"))
}

fn failure(error: &ClientWriteError<TypeConfig>) -> ProposeFailure {
    match error {
        ClientWriteError::ForwardToLeader(_) => ProposeFailure::NotLeader,
        ClientWriteError::LogEntryDiscarded(_) => {
            ProposeFailure::Unknown("the leader changed before the write was confirmed".to_owned())
        }
        other => ProposeFailure::Unknown(format!("write log entry: {other}")),
    }
}

/// Whether `token` is in `state`, as it was when it was shown.
fn stands(state: &State, token: &TokenMark) -> bool {
    state.tokens().get(&token.name).is_some_and(|stored| stored.sha256 == token.sha256)
}

enum Leading {
    No,
    Alone,
    /// It has not applied an entry of its own term yet. With the first one it has applied everything that the leaders
    /// before it acknowledged.
    CatchingUp,
    WithQuorum(LeaderIdOf<TypeConfig>),
}

fn standing(metrics: &Metrics) -> Leading {
    if metrics.state != ServerState::Leader || metrics.current_leader != Some(metrics.id) {
        return Leading::No;
    }
    let leader = metrics.vote.leader_id;
    if metrics.last_applied.is_none_or(|applied| applied.leader_id != leader.to_committed()) {
        return Leading::CatchingUp;
    }
    let voters: Vec<_> = metrics.membership_config.membership().voter_ids().collect();
    if voters == [metrics.id] {
        return Leading::WithQuorum(leader);
    }
    match metrics.last_quorum_acked {
        Some(at) if at.into_inner().elapsed() < QUORUM_SILENCE => Leading::WithQuorum(leader),
        _ => Leading::Alone,
    }
}

#[cfg(test)]
mod tests {
    use raft_store::command::{Command, Origin, Role, Token};

    use super::*;

    #[test]
    fn a_new_token_of_the_same_name_is_not_the_old_one() {
        let mut state = State::default();
        let mut apply = |revision, command| {
            let operations = vec![Operation { origin: Origin::default(), command }];
            state.apply(revision, &Batch { at_ms: 1, operations });
            state.clone()
        };
        let token =
            |fill| Token { name: "ci".into(), role: Role::Editor, sha256: [fill; 32], created_at_ms: 1 };
        let mark = TokenMark { name: "ci".into(), sha256: [7; 32] };
        assert!(!stands(&State::default(), &mark));
        assert!(stands(&apply(1, Command::AddToken(token(7))), &mark));
        assert!(!stands(&apply(2, Command::RemoveToken { name: "ci".into() }), &mark));
        assert!(!stands(&apply(3, Command::AddToken(token(8))), &mark));
    }

    #[test]
    fn a_withdrawn_write_cannot_be_taken_and_a_taken_one_cannot_be_withdrawn() {
        let claim = AtomicU8::new(QUEUED);
        assert!(withdraw(&claim) && !withdraw(&claim));
        let claim = AtomicU8::new(TAKEN);
        assert!(!withdraw(&claim));
    }
}
