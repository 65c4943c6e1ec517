//! A leader that is gone is replaced as soon as a majority knows, instead of after raft's timeouts.
//!
//! Each follower keeps a connection to the leader open and notes when it last heard of it. A connection that breaks and
//! cannot be made again because nobody listens any more (the process is gone, its host alive), or silence for
//! [`SILENCE`], makes the follower *miss* the leader. It asks the other voters whether they miss it too. When a majority
//! does, the one among them with the longest log elects itself at once: the others give it their votes although they
//! still owe the old leader patience, as in a hand-over. All see the same answers, so they do not run against each
//! other. A leader that only one follower cannot hear stays.
//!
//! None of this is needed for safety: it only chooses the moment of an ordinary election. Raft's own timeouts remain for
//! everything else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver as _;
use openraft::raft::TransferLeaderRequest;
use raft_store::NodeInfo;
use raft_store::types::{LogId, NodeId, Vote};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::link::{CallError, Purpose};
use super::wire::{Request, Response};
use super::{Metrics, Raft};
use crate::cluster::{Cluster, leader_of};

/// A leader not heard for this long is missed: eight heartbeats.
const SILENCE: Duration = Duration::from_millis(400);
/// Who is asked agrees a little sooner: heartbeats do not reach all at the same moment.
const SILENCE_ASKED: Duration = Duration::from_millis(300);
/// Another voter has this long to say whether it misses the leader.
const ASK_TIMEOUT: Duration = Duration::from_millis(200);
/// The leader has this long to show that it is there after its connection broke, and …
const PROBE_TIMEOUT: Duration = Duration::from_millis(200);
/// … when that told nothing or its connection breaks again, it is looked at again after this time, …
const PROBE_PAUSE: Duration = Duration::from_millis(5);
/// … each time twice as long, up to this, while it is heard on other connections, …
const LONGEST_PROBE_PAUSE: Duration = Duration::from_millis(500);
/// … until a connection lasts this long.
const LASTING: Duration = Duration::from_secs(1);
/// A successor has this long to lead before all is looked at again; also the first pause when no majority agrees …
const SUCCESSION_PAUSE: Duration = Duration::from_millis(100);
/// … and the longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// When each node was last heard as a leader.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard {
    at: Arc<Mutex<BTreeMap<NodeId, Instant>>>,
    /// Somebody else misses the leader, and so does this node: there is no reason to wait longer.
    agreed: Arc<Notify>,
}

impl Heard {
    /// Log entries or a heartbeat came from `node`.
    pub(crate) fn note(&self, node: NodeId) {
        self.at.lock().unwrap_or_else(PoisonError::into_inner).insert(node, Instant::now());
    }

    /// When anybody was heard last.
    pub(crate) fn newest(&self) -> Option<Instant> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner).values().max().copied()
    }

    fn last(&self, node: NodeId) -> Option<Instant> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner).get(&node).copied()
    }
}

/// The leader this node follows.
#[derive(Clone)]
struct Followed {
    vote: Vote,
    id: NodeId,
    node: NodeInfo,
    since: Instant,
}

/// Watches whoever leads, until `stop`.
pub(crate) async fn run(cluster: Cluster, stop: CancellationToken) {
    stop.run_until_cancelled(watch(&cluster)).await;
}

async fn watch(cluster: &Cluster) {
    let mut changes = cluster.raft().server_metrics();
    let mut pause = SUCCESSION_PAUSE;
    let mut since: Option<(Vote, Instant)> = None;
    loop {
        changes.borrow_and_update();
        let Some(mut leader) = followed(cluster) else {
            if changes.changed().await.is_err() {
                return;
            }
            continue;
        };
        match since {
            Some((vote, at)) if vote == leader.vote => leader.since = at,
            _ => {
                since = Some((leader.vote, leader.since));
                pause = SUCCESSION_PAUSE;
            }
        }
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                continue;
            }
            () = missed(cluster, &leader) => {}
        }
        if let Err(reason) = succeed(cluster, &leader).await {
            tracing::debug!(leader = %leader.node, reason, "the leader is missed here, but stays");
        }
        // Whoever succeeds shows itself by another vote.
        let _ = timeout(pause, changes.changed()).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// `None` unless this node is a voter that follows another.
fn followed(cluster: &Cluster) -> Option<Followed> {
    let metrics = cluster.raft().metrics().borrow_watched().clone();
    let me = cluster.id();
    let (id, node) = leader_of(&metrics).filter(|(id, _)| *id != me)?;
    let voter = metrics.membership_config.membership().voter_ids().any(|voter| voter == me);
    (voter && metrics.state == ServerState::Follower).then(|| Followed {
        vote: metrics.vote,
        id,
        node,
        since: Instant::now(),
    })
}

/// Returns when the leader is not heard any more, is gone, or another voter that misses it made this node look.
async fn missed(cluster: &Cluster, leader: &Followed) {
    tokio::select! {
        () = silent(cluster.heard(), leader) => {}
        () = gone(cluster, leader) => {}
        () = cluster.heard().agreed.notified() => {}
    }
}

async fn silent(heard: &Heard, leader: &Followed) {
    loop {
        let last = heard.last(leader.id).map_or(leader.since, |at| at.max(leader.since));
        if last.elapsed() >= SILENCE {
            return;
        }
        sleep_until(last + SILENCE).await;
    }
}

async fn gone(cluster: &Cluster, leader: &Followed) {
    let link = cluster.peers().link(&leader.node.raft_address, Some(leader.id), Purpose::Forward);
    let mut pauses = ProbePauses::default();
    loop {
        let since = Instant::now();
        link.until_closed().await;
        let lasted = since.elapsed();
        if let Presence::Gone = probe(cluster, leader.id, &leader.node).await {
            return;
        }
        let heard = cluster.heard().last(leader.id).is_some_and(|at| at.elapsed() < SILENCE);
        sleep(pauses.after(lasted, heard)).await;
    }
}

/// A leader that is heard but refuses this connection is not called hundreds of times a second.
struct ProbePauses {
    next: Duration,
}

impl Default for ProbePauses {
    fn default() -> Self {
        Self { next: PROBE_PAUSE }
    }
}

impl ProbePauses {
    /// After a connection that lasted so long; `heard` tells whether the leader shows itself otherwise.
    fn after(&mut self, lasted: Duration, heard: bool) -> Duration {
        if lasted >= LASTING || !heard {
            self.next = PROBE_PAUSE;
        }
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST_PROBE_PAUSE);
        pause
    }
}

enum Presence {
    Leads,
    /// Nobody listens there, or who does is not leading.
    Gone,
    Unclear,
}

async fn probe(cluster: &Cluster, id: NodeId, node: &NodeInfo) -> Presence {
    match timeout(PROBE_TIMEOUT, TcpStream::connect(&node.raft_address)).await {
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => return Presence::Gone,
        Ok(Ok(_)) => {}
        Ok(Err(_)) | Err(_) => return Presence::Unclear,
    }
    let link = cluster.peers().link(&node.raft_address, Some(id), Purpose::Forward);
    match link.call(Request::Status, Instant::now() + PROBE_TIMEOUT).await {
        Ok(Response::Status(status)) if status.role == "leader" => Presence::Leads,
        // A process that was started again leads no more, and one that only starts does not yet.
        Ok(_) | Err(CallError::Refused { .. }) => Presence::Gone,
        Err(CallError::NotSent(_) | CallError::Lost(_) | CallError::Timeout(_)) => Presence::Unclear,
    }
}

/// What another voter says.
struct Opinion {
    id: NodeId,
    last: Option<LogId>,
}

/// Elects this node when a majority misses the leader and this node has the longest log among them.
async fn succeed(cluster: &Cluster, leader: &Followed) -> Result<(), String> {
    let mine = last_log_id(cluster.raft()).await.ok_or("raft has ended")?;
    let metrics = cluster.raft().metrics().borrow_watched().clone();
    if cluster.is_retiring() {
        return Err("this node is about to stop".to_owned());
    }
    if metrics.vote != leader.vote {
        return Err("another election is under way".to_owned());
    }
    let me = cluster.id();
    let mut agreed = vec![Opinion { id: me, last: mine }];
    agreed.extend(ask(cluster, &metrics, leader).await);
    if !is_majority(&metrics, &agreed) {
        return Err(format!("{} of the voters agree", agreed.len()));
    }
    match agreed.iter().max_by_key(|opinion| (opinion.last, opinion.id)) {
        Some(first) if first.id == me => {}
        _ => return Err("another voter is to succeed it".to_owned()),
    }
    tracing::info!(leader = %leader.node, agreed = agreed.len(), "the leader is gone; this node is to succeed it");
    // What the leader itself would send when it hands over.
    let request = TransferLeaderRequest::new(leader.vote, me, mine);
    match cluster.raft().handle_transfer_leader(request).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

async fn ask(cluster: &Cluster, metrics: &Metrics, leader: &Followed) -> Vec<Opinion> {
    let mut asked = JoinSet::new();
    let membership = metrics.membership_config.membership();
    for id in membership.voter_ids().filter(|id| *id != cluster.id() && *id != leader.id) {
        let Some(node) = membership.get_node(&id) else { continue };
        let link = cluster.peers().link(&node.raft_address, Some(id), Purpose::Vote);
        let request = Request::Misses { vote: leader.vote };
        asked.spawn(async move {
            match link.call(request, Instant::now() + ASK_TIMEOUT).await {
                Ok(Response::Misses { missed: true, last }) => Some(Opinion { id, last }),
                Ok(_) | Err(_) => None,
            }
        });
    }
    asked.join_all().await.into_iter().flatten().collect()
}

fn is_majority(metrics: &Metrics, agreed: &[Opinion]) -> bool {
    metrics.membership_config.membership().get_joint_config().iter().all(|voters| {
        let agreeing = agreed.iter().filter(|opinion| voters.contains(&opinion.id)).count();
        agreeing > voters.len() / 2
    })
}

/// The answer to [`Request::Misses`].
pub(crate) async fn answer(cluster: &Cluster, vote: Vote) -> Response {
    let metrics = cluster.raft().metrics().borrow_watched().clone();
    let Some(asked) = asked_about(&metrics, vote) else {
        return Response::Misses { missed: false, last: last_log_id(cluster.raft()).await.flatten() };
    };
    let silent = cluster.heard().last(asked.id).is_none_or(|at| at.elapsed() >= SILENCE_ASKED);
    let missed = silent || matches!(probe(cluster, asked.id, &asked.node).await, Presence::Gone);
    if missed {
        cluster.heard().agreed.notify_one();
    }
    // A node that is about to stop leaves it to others, and so must one that does not follow this leader yet.
    let last = match asked.followed && !cluster.is_retiring() {
        true => last_log_id(cluster.raft()).await.flatten(),
        false => None,
    };
    Response::Misses { missed, last }
}

/// A leader that another voter may miss.
#[derive(Debug, PartialEq, Eq)]
struct AskedAbout {
    id: NodeId,
    node: NodeInfo,
    /// This node follows it.
    followed: bool,
}

/// `None` when this node has no say, leads or elects itself, or knows of a later election. A node that was just started
/// may not have heard who leads; without its say nobody would follow a leader that ends just then.
fn asked_about(metrics: &Metrics, vote: Vote) -> Option<AskedAbout> {
    let membership = metrics.membership_config.membership();
    let voter = membership.voter_ids().any(|voter| voter == metrics.id);
    let id = vote.leader_id.node_id;
    let knows_no_later = metrics.vote <= vote;
    (voter && metrics.state == ServerState::Follower && vote.committed && id != metrics.id && knows_no_later)
        .then_some(())?;
    let node = membership.get_node(&id)?.clone();
    Some(AskedAbout { id, node, followed: metrics.vote == vote })
}

async fn last_log_id(raft: &Raft) -> Option<Option<LogId>> {
    raft.with_raft_state(|state| state.log_ids.last().copied()).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_that_is_heard_but_refuses_a_connection_is_called_less_and_less() {
        let mut pauses = ProbePauses::default();
        let mut total = Duration::ZERO;
        for _ in 0..20 {
            total += pauses.after(Duration::ZERO, true);
        }
        assert!(total > LONGEST_PROBE_PAUSE * 10, "{total:?}");
        assert_eq!(pauses.after(Duration::ZERO, true), LONGEST_PROBE_PAUSE);
        // One that is not heard is looked at closely, and so is one whose connection was well.
        assert_eq!(pauses.after(Duration::ZERO, false), PROBE_PAUSE);
        assert_eq!(pauses.after(Duration::ZERO, true), PROBE_PAUSE * 2);
        assert_eq!(pauses.after(LASTING, true), PROBE_PAUSE);
    }
    #[test]
    fn a_node_that_has_not_heard_yet_who_leads_has_a_say_on_it_but_does_not_succeed_it() {
        let node =
            |n: u64| NodeInfo { name: format!("server-{n}"), raft_address: format!("10.1.0.{n}:8081") };
        let nodes = (1..=3).map(|n| (n, node(n))).collect::<BTreeMap<_, _>>();
        let membership = openraft::Membership::new(vec![[1, 2, 3].into()], nodes).unwrap();
        let mut metrics = Metrics::new_initial(1);
        metrics.state = ServerState::Follower;
        metrics.membership_config = Arc::new(openraft::StoredMembership::new(None, membership));
        let leader = Vote::new_committed(5, 2);
        let about = |followed| Some(AskedAbout { id: 2, node: node(2), followed });

        metrics.vote = leader;
        assert_eq!(asked_about(&metrics, leader), about(true));
        // As a leader of before comes back.
        metrics.vote = Vote::new(4, 1);
        assert_eq!(asked_about(&metrics, leader), about(false));
        // It gave its vote to another one, later.
        metrics.vote = Vote::new(6, 3);
        assert_eq!(asked_about(&metrics, leader), None);
        metrics.vote = Vote::new(4, 1);
        metrics.state = ServerState::Candidate;
        assert_eq!(asked_about(&metrics, leader), None);
        metrics.state = ServerState::Learner;
        assert_eq!(asked_about(&metrics, leader), None);
    }
}
