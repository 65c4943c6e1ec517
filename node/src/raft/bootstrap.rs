//! From an empty disk to a member, without a human.
//!
//! The first of the configured peers (in sorted order) founds the cluster, and only when its own disk and all peers
//! answer "pristine": then nothing can be lost by founding. Everybody else, and everybody later, asks to join. All of
//! this may run again at every start.

use std::collections::BTreeMap;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use raft_store::NodeInfo;
use raft_store::command::{Command, Operation, Origin, Reply, Role, Token};
use raft_store::types::NodeId;
use rand::Rng as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::admin_token;
use super::link::{CallError, Purpose};
use super::wire::{Probe, Refusal, Request, Response, Standing};
use crate::cluster::{Cluster, Join, WriteError, leader_of};

/// A peer has this long to say who it is.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// A leader has this long to make a new node a voter.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// First and longest wait between two rounds.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Writes of the bootstrap itself.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// The actor in the audit log.
const ACTOR: &str = "bootstrap";
/// Name of the first admin token.
const ADMIN_TOKEN_NAME: &str = "admin";

/// Runs until this node is a voter of a cluster that has an id and an admin token.
pub(crate) async fn run(cluster: Cluster, completed: watch::Sender<bool>, stop: CancellationToken) {
    let work = async {
        become_voter(&cluster).await;
        complete(&cluster).await;
        completed.send_replace(true);
    };
    // A node that does not belong any more has nothing to become.
    let work = async {
        tokio::select! {
            () = work => {}
            () = cluster.fence().closed() => {}
        }
    };
    if stop.run_until_cancelled(work).await.is_some() {
        // Keep the channel open as long as the node runs.
        stop.cancelled().await;
    }
}

async fn become_voter(cluster: &Cluster) {
    let mut rounds = Rounds::default();
    loop {
        match round(cluster).await {
            Progress::Voter => return,
            Progress::Again(reason) => {
                rounds.tell(&reason);
                rounds.pause().await;
            }
            Progress::Soon => rounds = Rounds::default(),
        }
    }
}

enum Progress {
    Voter,
    /// Something happened; look again.
    Soon,
    Again(String),
}

async fn round(cluster: &Cluster) -> Progress {
    let initialised = match cluster.raft().is_initialized().await {
        Ok(initialised) => initialised,
        // Raft has ended; whoever watches it says why.
        Err(_) => std::future::pending().await,
    };
    let metrics = cluster.raft().metrics().borrow_watched().clone();
    let me = cluster.id();
    if initialised && metrics.membership_config.membership().voter_ids().any(|voter| voter == me) {
        return match metrics.current_leader {
            Some(_) => Progress::Voter,
            None => Progress::Again("no leader yet".to_owned()),
        };
    }
    if !initialised && cluster.join_mode() == Join::Wait {
        return Progress::Again(format!(
            "waiting to be added: `outputguardctl cluster add {}`",
            cluster.node().raft_address
        ));
    }
    let others: Vec<_> =
        cluster.configured_peers().iter().filter(|peer| **peer != cluster.node().raft_address).collect();
    if !initialised && others.is_empty() {
        return found(cluster, BTreeMap::from([(me, cluster.node().clone())])).await;
    }
    let known: Vec<String> = metrics
        .membership_config
        .membership()
        .nodes()
        .filter(|(id, _)| **id != me)
        .map(|(_, node)| node.raft_address.clone())
        .collect();
    let addresses = if known.is_empty() { others.into_iter().cloned().collect() } else { known };
    let answers = probe(cluster, addresses).await;
    let standings: Vec<_> = answers.values().collect();
    for (address, answer) in &answers {
        if let Ok(Probe { standing: Standing::Member { led: true, .. }, .. }) = answer {
            return join(cluster, address, !initialised).await;
        }
    }
    if !initialised && standings.iter().any(|answer| is_member(answer)) {
        return Progress::Again("the cluster has no leader to join".to_owned());
    }
    let missing: Vec<_> = answers
        .iter()
        .filter_map(|(address, answer)| Some((address.as_str(), answer.as_ref().err()?.to_string())))
        .collect();
    if let Some((_, reason)) = missing.first() {
        let names: Vec<_> = missing.iter().map(|(address, _)| *address).collect();
        let names = names.join(", ");
        return Progress::Again(if initialised {
            format!("waiting for members {names} to be up ({reason})")
        } else {
            format!("waiting for peers {names} to be up to found the cluster ({reason})")
        });
    }
    let founder = cluster.configured_peers().first() == Some(&cluster.node().raft_address);
    if initialised || !founder {
        return Progress::Again("waiting for the first of cluster.peers to found the cluster".to_owned());
    }
    let mut members = BTreeMap::from([(me, cluster.node().clone())]);
    members.extend(answers.into_values().flatten().map(|probe| (probe.id, probe.node)));
    if members.len() != cluster.configured_peers().len() {
        return Progress::Again("two addresses in cluster.peers lead to the same node".to_owned());
    }
    found(cluster, members).await
}

fn is_member(answer: &Result<Probe, CallError>) -> bool {
    matches!(answer, Ok(Probe { standing: Standing::Member { .. }, .. }))
}

async fn found(cluster: &Cluster, members: BTreeMap<NodeId, NodeInfo>) -> Progress {
    let mut names: Vec<_> = members.values().map(|node| node.name.clone()).collect();
    names.sort();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        return Progress::Again(format!("nodes have the same name ({}); set node.name", names.join(", ")));
    }
    tracing::info!(members = names.join(", "), "founding a cluster");
    match cluster.raft().initialize(members).await {
        Ok(()) => Progress::Soon,
        Err(error) => Progress::Again(format!("found a cluster: {error}")),
    }
}

/// Asks the member at `address`, and then whoever it says leads.
async fn join(cluster: &Cluster, address: &str, pristine: bool) -> Progress {
    let mut address = address.to_owned();
    for _hop in 0..3 {
        let link = cluster.peers().link(&address, None, Purpose::Forward);
        let request = Request::Join { id: cluster.id(), node: cluster.node().clone(), pristine };
        match link.call(request, Instant::now() + JOIN_TIMEOUT).await {
            Ok(Response::Joined) => {
                return await_membership(cluster).await;
            }
            Err(CallError::Refused { refusal: Refusal::NotLeader { leader: Some((_, node)) }, .. }) => {
                address = node.raft_address;
            }
            Err(error) => return Progress::Again(format!("join the cluster: {error}")),
            Ok(_) => {
                return Progress::Again(format!(
                    "join the cluster: {address} gave an answer that does not fit"
                ));
            }
        }
    }
    Progress::Again("join the cluster: nobody says who leads".to_owned())
}

/// The leader counts this node as a voter; the log entry that says so is on its way here.
async fn await_membership(cluster: &Cluster) -> Progress {
    let me = cluster.id();
    let member = move |metrics: &super::Metrics| {
        metrics.membership_config.membership().voter_ids().any(|voter| voter == me)
    };
    match cluster.raft().wait(Some(JOIN_TIMEOUT)).metrics(member, "the new membership arrives").await {
        Ok(_) => Progress::Soon,
        Err(_) => Progress::Again("waiting for the leader's log".to_owned()),
    }
}

async fn probe(cluster: &Cluster, addresses: Vec<String>) -> BTreeMap<String, Result<Probe, CallError>> {
    let mut asked = JoinSet::new();
    for address in addresses {
        let link = cluster.peers().link(&address, None, Purpose::Forward);
        let request = Request::Probe { peers: cluster.configured_peers().to_vec() };
        asked.spawn(async move {
            let answer = match link.call(request, Instant::now() + PROBE_TIMEOUT).await {
                Ok(Response::Probe(probe)) => Ok(probe),
                Ok(_) => Err(CallError::Lost(address.clone())),
                Err(error) => Err(error),
            };
            (address, answer)
        });
    }
    asked.join_all().await.into_iter().collect()
}

/// The answer to [`Request::Probe`].
pub(crate) async fn answer_probe(cluster: &Cluster, peers: &[String]) -> Result<Probe, Refusal> {
    let initialised = cluster
        .raft()
        .is_initialized()
        .await
        .map_err(|error| Refusal::Unable(format!("look at the log: {error}")))?;
    let standing = if initialised {
        let metrics = cluster.raft().metrics().borrow_watched().clone();
        Standing::Member {
            cluster: cluster.reader().state().cluster(),
            members: metrics.membership_config.membership().nodes().map(|(id, _)| *id).collect(),
            led: leader_of(&metrics).is_some(),
        }
    } else if cluster.configured_peers() == peers {
        Standing::Pristine
    } else {
        return Err(Refusal::PeersDiffer(cluster.configured_peers().to_vec()));
    };
    Ok(Probe { id: cluster.id(), node: cluster.node().clone(), standing })
}

/// Gives the cluster its id (whoever leads) and its first admin token (the founder).
async fn complete(cluster: &Cluster) {
    let mut rounds = Rounds::default();
    loop {
        match try_complete(cluster).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => rounds.tell(&error),
        }
        rounds.pause().await;
    }
}

async fn try_complete(cluster: &Cluster) -> Result<bool, String> {
    cluster.read_barrier(WRITE_TIMEOUT).await.map_err(|error| error.to_string())?;
    let state = cluster.reader().state();
    let leads = *cluster.leadership().borrow();
    if state.cluster().is_none() {
        if leads {
            // All of them are there, so a new cluster begins with what they have.
            if let Err(error) = cluster.raise_features().await {
                tracing::debug!(%error, "agree on a feature level");
            }
            let id = Uuid::new_v4();
            write(cluster, Command::InitCluster { cluster: id }).await?;
            tracing::info!(cluster = %id, "the cluster is founded");
        }
        return Ok(false);
    }
    // The last admin token cannot be removed: without any, the cluster is still being founded.
    if state.tokens().values().any(|token| token.role == Role::Admin) {
        return Ok(true);
    }
    let peers = cluster.configured_peers();
    if peers.is_empty() || peers.first() == Some(&cluster.node().raft_address) {
        let path = cluster.admin_token_file().to_owned();
        let text = tokio::task::spawn_blocking(move || admin_token::ensure(&path))
            .await
            .map_err(|error| error.to_string())??;
        let token = Token {
            name: ADMIN_TOKEN_NAME.to_owned(),
            role: Role::Admin,
            sha256: crate::auth::token::sha256(text.expose()),
            created_at_ms: super::clock::wall_clock_ms(),
        };
        write(cluster, Command::AddToken(token)).await?;
        tracing::info!(file = %cluster.admin_token_file().display(), "the first admin token is in its file");
    }
    Ok(false)
}

async fn write(cluster: &Cluster, command: Command) -> Result<(), String> {
    let origin = Origin { actor: ACTOR.to_owned(), ..Origin::default() };
    let reply = cluster
        .propose(vec![Operation { origin, command }], WRITE_TIMEOUT)
        .await
        .map_err(|error: WriteError| error.to_string())?;
    match reply.replies.into_iter().next() {
        Some(Reply::Refused(refusal)) => Err(refusal.to_string()),
        _ => Ok(()),
    }
}

/// Pauses that grow, and reasons that are told once.
struct Rounds {
    pause: Duration,
    told: String,
}

impl Default for Rounds {
    fn default() -> Self {
        Self { pause: FIRST_PAUSE, told: String::new() }
    }
}

impl Rounds {
    fn tell(&mut self, reason: &str) {
        if self.told != reason {
            tracing::info!("not part of the cluster yet: {reason}");
            reason.clone_into(&mut self.told);
        }
    }

    async fn pause(&mut self) {
        let jitter = rand::rng().random_range(0.5..1.0);
        tokio::time::sleep(self.pause.mul_f64(jitter)).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}
