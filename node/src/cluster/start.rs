//! Opening a node: disk, raft, listener for peers, and the tasks around them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use anyhow::Context as _;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver as _;
use prometheus::IntCounter;
use raft_store::{FatalHook, NodeInfo, Store, StoreOptions};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::write::confirm_read;
use super::{Cluster, Inner, Leaving, Tuning, features, room};
use crate::raft::compaction::LogStanding;
use crate::raft::link::{Identity, Peers};
use crate::raft::meter::Meter;
use crate::raft::network::NetworkFactory;
use crate::raft::proposer::Proposer;
use crate::raft::standing::{self, Fence};
use crate::raft::succession::{self, Heard};
use crate::raft::{Metrics, Raft, bootstrap, compaction, read_rounds, server};
use crate::tls::NodeTls;

/// What a node needs to know to take part in a cluster.
#[derive(Debug, Clone)]
pub struct ClusterSettings {
    /// Unique name of the node.
    pub name: String,
    /// Where its log, state and identity live.
    pub data_dir: PathBuf,
    /// `host:port` under which peers reach it.
    pub advertise: String,
    /// All nodes of the cluster, sorted; empty for a cluster of one.
    pub peers: Vec<String>,
    /// What a node with an empty disk does.
    pub join: Join,
    /// Where the first admin token is written, or was put beforehand.
    pub admin_token_file: PathBuf,
    /// Certificates.
    pub tls: NodeTls,
    /// Timeouts and sizes.
    pub tuning: Tuning,
}

/// What a node with an empty disk does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Join {
    /// Founds a cluster with its configured peers, or asks them to let it in.
    #[default]
    Auto,
    /// Waits until an operator adds it to a cluster.
    Wait,
}

impl Cluster {
    /// Opens the node's data directory and takes part in its cluster: founds it, joins it or goes on with it, in the
    /// background. `listener` is where peers connect. A disk that fails later ends the process.
    ///
    /// # Errors
    /// When the disk cannot be opened.
    pub async fn start(settings: ClusterSettings, listener: TcpListener) -> anyhow::Result<Self> {
        Self::start_with(settings, listener, FatalHook::default()).await
    }

    /// Like [`Self::start`]; `on_disk_failure` decides what happens when the disk fails later.
    ///
    /// # Errors
    /// When the disk cannot be opened.
    pub async fn start_with(
        settings: ClusterSettings,
        listener: TcpListener,
        on_disk_failure: FatalHook,
    ) -> anyhow::Result<Self> {
        let ClusterSettings {
            name,
            data_dir,
            advertise,
            peers: configured_peers,
            join,
            admin_token_file,
            tls,
            tuning,
        } = settings;
        let options = StoreOptions {
            new_id: rand::random(),
            on_fatal: on_disk_failure,
            features: tuning.features,
            ..StoreOptions::default()
        };
        let store = Store::open(&data_dir, options).await?;
        let node = NodeInfo { name, raft_address: advertise };
        let id = store.id;
        tracing::info!(node = %node, id = %format_args!("{id:016x}"), data = %data_dir.display(), "node opened");

        let fence = Fence::default();
        let peers = Peers::new(Identity { id, reader: store.reader.clone() }, tls.clone(), fence.clone());
        let network = NetworkFactory { id, peers: peers.clone() };
        let config = tuning.raft_config().context("settings for raft")?;
        let raft =
            Raft::new(id, config, network, store.log.clone(), store.machine).await.context("start raft")?;

        let (lead, leadership) = watch::channel(false);
        let (completed, complete) = watch::channel(false);
        let (standing, log_standing) = watch::channel(LogStanding::of(&store.log));
        let meter = Meter::new().context("metrics of raft")?;
        let (reads, read_rounds) = read_rounds::channel(meter.reads.clone(), meter.read_rounds.clone());
        // What the leader confirms for others is counted where it is read.
        let uncounted = || IntCounter::new("uncounted", "Not shown").context("metrics of raft");
        let (confirmations, confirmed) = read_rounds::channel(uncounted()?, uncounted()?);
        let cluster = Self {
            inner: Arc::new(Inner {
                id,
                process: rand::random(),
                node,
                configured_peers,
                join,
                data_dir,
                admin_token_file,
                snapshots: store.snapshots,
                proposer: Proposer::start(raft.clone(), &store.reader),
                raft: raft.clone(),
                reader: store.reader,
                peers,
                heard: Heard::default(),
                meter: meter.clone(),
                reads,
                confirmations,
                log_standing,
                space: store.space,
                leadership,
                complete,
                gateways: Mutex::default(),
                denied: OnceLock::new(),
                traffic: OnceLock::new(),
                lookups: OnceLock::new(),
                retiring: CancellationToken::new(),
                draining: CancellationToken::new(),
                leave: CancellationToken::new(),
                serving: TaskTracker::new(),
                stop: CancellationToken::new(),
                tasks: TaskTracker::new(),
                changing: tokio::sync::Mutex::new(()),
                fence,
                leaving: Leaving::default(),
                superseded: store.superseded,
                restart: CancellationToken::new(),
                features: tuning.features,
                too_new: OnceLock::new(),
            }),
        };
        let (tasks, stop) = (&cluster.inner.tasks, &cluster.inner.stop);
        let ending = server::Ending { leave: cluster.inner.leave.clone(), stop: stop.clone() };
        tasks.spawn(watch_leadership(raft.clone(), lead, meter, stop.clone()));
        tasks.spawn(until(stop.clone(), {
            let cluster = cluster.clone();
            read_rounds.run(move |deadline| cluster.clone().find_read_index(deadline))
        }));
        tasks.spawn(until(stop.clone(), {
            let raft = raft.clone();
            confirmed.run(move |deadline| confirm_read(raft.clone(), deadline))
        }));
        tasks.spawn(compaction::run(
            raft,
            store.log,
            cluster.snapshots().clone(),
            tuning,
            standing,
            stop.clone(),
        ));
        cluster.inner.serving.spawn(server::run(cluster.clone(), listener, tls, ending));
        tasks.spawn(room::run(cluster.clone(), stop.clone()));
        tasks.spawn(features::run(cluster.clone(), stop.clone()));
        tasks.spawn(succession::run(cluster.clone(), stop.clone()));
        tasks.spawn(bootstrap::run(cluster.clone(), completed, stop.clone()));
        tasks.spawn(standing::watch(cluster.clone(), stop.clone()));
        tasks.spawn(forget_old_peers(cluster.clone(), stop.clone()));
        Ok(cluster)
    }
}

/// Tells whether this node leads.
async fn watch_leadership(raft: Raft, lead: watch::Sender<bool>, meter: Meter, stop: CancellationToken) {
    // All metrics change with every message, these only with what is looked for; they end with raft.
    let mut metrics = raft.server_metrics();
    let mut followed = None;
    loop {
        let (leads, leader) = {
            let metrics = metrics.borrow_and_update();
            let leads = metrics.state == ServerState::Leader && metrics.current_leader == Some(metrics.id);
            // The vote is the one on disk: for a moment it may be older than the leader.
            let leader = metrics.current_leader.filter(|id| metrics.vote.leader_id.node_id == *id);
            (leads, leader.map(|id| (metrics.vote.leader_id.term, id)))
        };
        if let Some(leader) = leader.filter(|leader| followed != Some(*leader))
            && followed.replace(leader).is_some()
        {
            meter.leader_changes.inc();
        }
        lead.send_if_modified(|led| std::mem::replace(led, leads) != leads);
        let changed = tokio::select! {
            () = stop.cancelled() => break,
            changed = metrics.changed() => changed,
        };
        if changed.is_err() {
            break;
        }
    }
    lead.send_replace(false);
}

pub(super) fn leads(metrics: &Metrics) -> bool {
    metrics.running_state.is_ok()
        && metrics.state == ServerState::Leader
        && metrics.current_leader == Some(metrics.id)
}

async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    stop.run_until_cancelled(work).await;
}

/// Drops connections to addresses that no member and no configured peer has.
async fn forget_old_peers(cluster: Cluster, stop: CancellationToken) {
    let mut metrics = cluster.raft().server_metrics();
    loop {
        {
            let now = metrics.borrow_and_update();
            let membership = now.membership_config.membership();
            cluster.peers().retain(|address| {
                cluster.configured_peers().iter().any(|peer| peer == address)
                    || membership.nodes().any(|(_, node)| node.raft_address == address)
            });
        }
        let changed = tokio::select! {
            () = stop.cancelled() => return,
            changed = metrics.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}
