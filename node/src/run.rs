//! A whole node: what is started in which order, and stopped in which.

mod serve;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{self, AppState, Transport};
use crate::cluster::{Cluster, ClusterSettings};
use crate::config::Config;
use crate::expiry;
use crate::feed::{self, Limits, Sessions};
use crate::resolver::{self, Resolver};
use crate::tls::reload::{Reloader, TlsMetrics};
use crate::tls::{NodeTls, host_of};
use serve::{HEADER_TIMEOUT, Serving};

/// Gateways have this long to go elsewhere.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a node that is to stop goes on serving after it began to say that it is not ready.
const NOTICE: Duration = Duration::from_secs(1);
/// Requests under way and background tasks have this long to end.
const TASKS_TIMEOUT: Duration = Duration::from_secs(3);

/// The node's sockets, bound before anything else is touched.
#[derive(Debug)]
pub struct Listeners {
    /// Plain HTTP.
    pub api: TcpListener,
    /// TLS.
    pub feed: TcpListener,
    /// Peers.
    pub raft: TcpListener,
}

impl Listeners {
    /// Binds what the configuration says.
    ///
    /// # Errors
    /// Naming the key, the address and what to do.
    pub async fn bind(config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            api: bind("listen.api", config.listen_api).await?,
            feed: bind("listen.feed", config.listen_feed).await?,
            raft: bind("listen.raft", config.listen_raft).await?,
        })
    }
}

async fn bind(key: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let remedy = match error.kind() {
            std::io::ErrorKind::AddrInUse => "stop the process that has it, or choose another port",
            std::io::ErrorKind::AddrNotAvailable => {
                "use an address of this machine, or 0.0.0.0 or [::] for all"
            }
            std::io::ErrorKind::PermissionDenied => {
                "use a port above 1023, or give the process CAP_NET_BIND_SERVICE"
            }
            _ => "check the address",
        };
        anyhow!("listen on {address} ({key}): {error}; {remedy}")
    })
}

/// Why a node ended in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to.
    Stopped,
    /// It is to be run again, from the same configuration: its data becomes another cluster's then.
    Again,
}

/// Runs a node until `shutdown`, then stops it in order: readiness says no, a leader hands over, gateways are sent
/// elsewhere, no new connections, requests under way end, raft stops, tasks end.
///
/// # Errors
/// When the node cannot start, or cannot go on.
pub async fn run(config: Config, listeners: Listeners, shutdown: CancellationToken) -> anyhow::Result<Ended> {
    let registry = Registry::new();
    check_data_dir(&config.data_dir)?;
    let resolver = resolver(&config, &registry)?;
    let expiry_metrics = expiry::Metrics::register(&registry).context("metrics of entries that end")?;
    let tls = NodeTls::prepare(&config.tls.dir, &config.name, &[host_of(&config.advertise)])?
        .verifying_peer_names(config.tls.verify_peer_names);
    check_writable_parent(&config.admin_token_file)?;
    let feed_tls = tls.clone();
    let reloader = Reloader::new(tls.clone(), TlsMetrics::new(&registry).context("metrics of certificates")?);
    let mut hangup = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
    let settings = ClusterSettings {
        name: config.name.clone(),
        data_dir: config.data_dir,
        advertise: config.advertise,
        peers: config.peers,
        join: config.join,
        admin_token_file: config.admin_token_file,
        tls,
        tuning: config.tuning,
    };
    let cluster = Cluster::start(settings, listeners.raft).await?;

    let sessions = Sessions::new(&config.name, Limits::default()).context("metrics of the feed")?;
    let app =
        AppState::new(cluster.clone(), sessions.clone(), api::Settings { registry, asked: resolver.asked() })
            .context("metrics")?;
    let (leave, accepting, working) =
        (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let (connections, tasks) = (TaskTracker::new(), TaskTracker::new());
    let serving = Serving {
        leave: leave.clone(),
        stop: accepting.clone(),
        connections: connections.clone(),
        header_timeout: HEADER_TIMEOUT,
    };
    tasks.spawn(serving.clone().plain(listeners.api, api::router(app.clone(), Transport::Plain)));
    tasks.spawn(serving.tls(listeners.feed, feed_tls, api::router(app, Transport::Tls)));
    tasks.spawn(resolver.run(cluster.clone(), working.clone()));
    tasks.spawn(expiry::run(cluster.clone(), expiry_metrics, working.clone()));
    let hangups = async move || {
        if hangup.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    };
    tasks.spawn(reloader.run(config.tls.intervals, hangups, working.clone()));
    tasks.spawn(until(working.clone(), feed::watch_quorum(cluster.clone(), sessions.clone())));
    tracing::info!(
        api = %config.listen_api, feed = %config.listen_feed, raft = %config.listen_raft, "node {} is up", config.name
    );

    let (ended, failure) = tokio::select! {
        () = shutdown.cancelled() => (Ended::Stopped, None),
        () = cluster.restart_wanted() => (Ended::Again, None),
        reason = cluster.failed() => (Ended::Stopped, Some(reason)),
    };
    tracing::info!(reason = failure.as_deref().unwrap_or("asked to"), "node stops");
    // From now on readiness says no and every answer ends its connection, but requests are still served: balancers
    // need a moment to look.
    leave.cancel();
    if failure.is_none() {
        tokio::join!(sessions.drain(DRAIN_TIMEOUT), cluster.hand_over(), tokio::time::sleep(NOTICE));
    } else {
        sessions.drain(DRAIN_TIMEOUT).await;
    }
    accepting.cancel();
    connections.close();
    if timeout(TASKS_TIMEOUT, connections.wait()).await.is_err() {
        tracing::warn!(left = connections.len(), "connections are cut");
    }
    working.cancel();
    cluster.stop().await;
    tasks.close();
    if timeout(TASKS_TIMEOUT, tasks.wait()).await.is_err() {
        tracing::warn!(left = tasks.len(), "tasks did not end in time");
    }
    match failure {
        None => Ok(ended),
        Some(reason) => Err(anyhow!("raft cannot go on: {reason}")),
    }
}

fn resolver(config: &Config, registry: &Registry) -> anyhow::Result<Resolver> {
    let metrics = resolver::Metrics::new().context("metrics of the resolver")?;
    metrics.register(registry).context("metrics of the resolver")?;
    Ok(Resolver::new(config.resolver.clone(), metrics)?)
}

fn check_data_dir(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).and_then(|()| std::fs::read_dir(dir).map(drop)).map_err(|error| {
        let remedy = match error.kind() {
            std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::NotADirectory => {
                "there is a file in the way; name a directory"
            }
            std::io::ErrorKind::PermissionDenied => "run as the user that owns it, or name another directory",
            std::io::ErrorKind::ReadOnlyFilesystem => "name a directory on a disk that can be written to",
            _ => "name a directory that can be read and written",
        };
        anyhow!("open data directory {} (node.data_dir): {error}; {remedy}", dir.display())
    })
}

/// The token is written when the cluster is founded; that it cannot be must not turn out only then.
fn check_writable_parent(token_file: &Path) -> anyhow::Result<()> {
    let dir = token_file.parent().unwrap_or(token_file);
    std::fs::create_dir_all(dir)
        .with_context(|| format!("create directory {} for auth.admin_token_file", dir.display()))
}

async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    stop.run_until_cancelled(work).await;
}
