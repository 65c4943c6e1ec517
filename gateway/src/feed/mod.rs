//! The feed's client: one session with one of the servers, moved when it is lost.
//!
//! [`session`] are the rules and [`nodes`] the choice of a node, both without I/O; `connect` opens a link and `pump`
//! runs a session over it within `deadlines`; [`status`] says how it stands.

mod connect;
mod deadlines;
pub mod nodes;
mod pump;
pub mod session;
pub mod status;
pub mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use allowlist::feed::{HEARTBEAT_INTERVAL_MS, MISSED_HEARTBEATS_BEFORE_MOVE};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::connect::Connected;
pub use self::connect::{ConnectError, Credentials};
use self::nodes::{Next, Node, Rotation, Verdict};
use self::pump::Pump;
use self::status::{LinkState, StatusBoard};
use self::traffic::TrafficMeter;
use crate::config::ServerUrl;
use crate::enforce::{DENIAL_INTERVAL, Enforcer};

/// How often counted traffic is reported.
pub const TRAFFIC_INTERVAL: Duration = Duration::from_secs(10);
/// Time for each of TCP, TLS, upgrade and name lookup.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Time for the next part of a snapshot.
pub const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a whole snapshot or a whole change in parts. A million entries are 40 MB: at 1 Mbit/s they take five minutes.
pub const WHOLE_TIMEOUT: Duration = Duration::from_secs(600);
/// Time to say goodbye.
pub const FAREWELL_LIMIT: Duration = Duration::from_millis(500);

/// How long things may take; tests shorten them.
#[derive(Debug, Clone, Copy)]
pub struct Timings {
    /// No frame for this long: move on.
    pub silence: Duration,
    /// Limit of each step of connecting.
    pub connect: Duration,
    /// No part of an awaited snapshot for this long: move on, whatever else comes.
    pub snapshot: Duration,
    /// Parts come, but the whole did not for this long: move on.
    pub whole: Duration,
    /// Limit of closing.
    pub farewell: Duration,
    /// Between traffic reports.
    pub traffic: Duration,
    /// Between reports of denied flows, at least.
    pub denials: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            silence: Duration::from_millis(HEARTBEAT_INTERVAL_MS) * MISSED_HEARTBEATS_BEFORE_MOVE,
            connect: CONNECT_LIMIT,
            snapshot: SNAPSHOT_TIMEOUT,
            whole: WHOLE_TIMEOUT,
            farewell: FAREWELL_LIMIT,
            traffic: TRAFFIC_INTERVAL,
            denials: DENIAL_INTERVAL,
        }
    }
}

/// The client.
#[derive(Debug)]
pub struct FeedClient {
    /// This gateway's name.
    pub name: String,
    /// The servers.
    pub servers: Vec<Arc<ServerUrl>>,
    /// Token and CA.
    pub credentials: Credentials,
    /// Limits.
    pub timings: Timings,
    /// Where changes go.
    pub enforcer: Enforcer,
    /// Where it is shown how the link stands.
    pub status: StatusBoard,
    /// What was reported of the traffic so far.
    pub meter: TrafficMeter,
    /// What is counted.
    pub metrics: FeedMetrics,
    /// Ends the client.
    pub shutdown: CancellationToken,
}

impl FeedClient {
    /// Keeps a session until shutdown.
    pub async fn run(mut self) {
        let mut lookup = Lookup::default();
        let mut meter = std::mem::take(&mut self.meter);
        let mut dice = StdRng::from_os_rng();
        let mut rotation = Rotation::new(Instant::now());
        let mut last_node: Option<Node> = None;
        while !self.shutdown.is_cancelled() {
            let nodes = lookup.resolve(&self.servers, self.timings.connect).await;
            if nodes.is_empty() {
                self.status.problem("none of the servers' names has an address".to_owned());
                rotation.nothing_to_try(Instant::now(), &mut dice);
            }
            match rotation.next(&nodes, Instant::now(), &mut dice) {
                Next::Wait(until) => {
                    self.status.link(LinkState::Waiting, None);
                    tokio::select! {
                        () = tokio::time::sleep_until(until.into()) => {}
                        () = self.shutdown.cancelled() => {}
                    }
                }
                Next::Try(node) => {
                    if last_node.replace(node.clone()).is_some_and(|last| last != node) {
                        self.metrics.switches.inc();
                    }
                    let verdict = self.attempt(&node, &mut meter).await;
                    rotation.report(&node, verdict, Instant::now(), &mut dice);
                }
            }
        }
        self.status.link(LinkState::Stopped, None);
    }

    async fn attempt(&self, node: &Node, meter: &mut TrafficMeter) -> Verdict {
        self.status.link(LinkState::Connecting, Some(node));
        let connecting = connect::connect(node, &self.credentials, self.timings.connect);
        let connected = tokio::select! {
            connected = connecting => connected,
            () = self.shutdown.cancelled() => return Verdict::Lost { after: Duration::ZERO },
        };
        let Connected { feed, takes_sources } = match connected {
            Ok(connected) => connected,
            Err(error) => return self.note_failure(&error),
        };
        self.status.link(LinkState::Syncing, Some(node));
        let opened = Instant::now();
        let mut pump = Pump {
            name: &self.name,
            enforcer: &self.enforcer,
            metrics: &self.metrics,
            status: &self.status,
            timings: self.timings,
            meter,
            takes_sources,
            shutdown: &self.shutdown,
        };
        let end = Box::pin(pump.run(feed, node)).await;
        let after = opened.elapsed();
        self.metrics.ends.with_label_values(&[end.kind()]).inc();
        let verdict = end.verdict(after);
        match verdict {
            Verdict::Refused => tracing::error!(node = %node, reason = %end, "session refused"),
            Verdict::Lost { .. } | Verdict::HoldOff(_) => {
                tracing::info!(node = %node, reason = %end, after_ms = after.as_millis(), "session ended");
            }
        }
        self.status.problem(format!("{node}: {end}"));
        self.status.link(LinkState::Waiting, None);
        verdict
    }

    fn note_failure(&self, error: &ConnectError) -> Verdict {
        self.metrics.failures.with_label_values(&[error.kind()]).inc();
        self.status.problem(error.to_string());
        self.status.link(LinkState::Waiting, None);
        if error.is_refusal() {
            tracing::error!(error = %error, "no session");
            Verdict::Refused
        } else {
            tracing::warn!(error = %error, "no session");
            Verdict::Lost { after: Duration::ZERO }
        }
    }
}

/// Names to addresses; what was found last is kept while a name cannot be resolved.
#[derive(Debug, Default)]
struct Lookup(BTreeMap<Arc<ServerUrl>, Vec<SocketAddr>>);

impl Lookup {
    async fn resolve(&mut self, servers: &[Arc<ServerUrl>], limit: Duration) -> BTreeSet<Node> {
        for url in servers {
            let found = timeout(limit, tokio::net::lookup_host((url.host.as_str(), url.port))).await;
            match found {
                Ok(Ok(addresses)) => {
                    self.0.insert(Arc::clone(url), addresses.collect());
                }
                Ok(Err(error)) => tracing::warn!(host = url.host, error = %error, "server name not resolved"),
                Err(_) => tracing::warn!(host = url.host, "server name not resolved in time"),
            }
        }
        let nodes = |(url, addresses): (&Arc<ServerUrl>, &Vec<SocketAddr>)| {
            let url = Arc::clone(url);
            addresses.clone().into_iter().map(move |address| Node { address, url: Arc::clone(&url) })
        };
        self.0.iter().flat_map(nodes).collect()
    }
}

/// What the client counts.
#[derive(Debug, Clone)]
pub struct FeedMetrics {
    switches: IntCounter,
    resyncs: IntCounterVec,
    ends: IntCounterVec,
    failures: IntCounterVec,
}

impl FeedMetrics {
    /// Registers the families.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let vec = |name: &str, help: &str| -> Result<IntCounterVec, prometheus::Error> {
            let counter = IntCounterVec::new(Opts::new(name, help), &["reason"])?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let switches = IntCounter::new(
            "outputguard_feed_switches_total",
            "Times the gateway turned to another server node.",
        )?;
        registry.register(Box::new(switches.clone()))?;
        let metrics = Self {
            switches,
            resyncs: vec(
                "outputguard_feed_resyncs_total",
                "Whole snapshots asked for or received, by reason.",
            )?,
            ends: vec("outputguard_feed_session_ends_total", "Sessions that ended, by reason.")?,
            failures: vec("outputguard_feed_connect_failures_total", "Connections that failed, by reason.")?,
        };
        for reason in ["digest", "session_start"] {
            metrics.resyncs.with_label_values(&[reason]);
        }
        Ok(metrics)
    }
}
