//! Resolves the domains of the list, on the leader only.
//!
//! Map, in the order a name passes through: [`schedule`] says which name is due, `upstreams` whom it is asked of
//! ([`zone`]: some domains have their own), [`lookup`] asks one of them: [`breaker`] leaves out who does not answer,
//! [`pace`] bounds the rate of questions, `wire` carries them to an [`endpoint`] whose certificate [`trust`] judges.
//! [`answer`] is what they said, [`judge`] compares it with the replicated state, and `term` ties them together for as
//! long as this node leads. [`standing`] and [`record`] tell people how a name stands and how its lookups go. The resolver
//! writes as everybody does: it proposes commands. Wildcards are not resolved here.

pub mod answer;
pub mod breaker;
pub mod endpoint;
pub mod judge;
pub mod lookup;
pub mod metrics;
pub mod pace;
pub mod record;
pub mod schedule;
pub mod standing;
mod term;
pub mod trust;
mod upstreams;
mod wire;
pub mod zone;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use allowlist::DomainName;
use hickory_resolver::config::ProtocolConfig;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use answer::MAX_UPSTREAMS;
use endpoint::Endpoint;
pub use judge::Quorum;
pub use metrics::Metrics;
pub use record::{LookupError, NameLookups, Record};
pub use standing::Standing;
use trust::TrustError;
pub use upstreams::MAX_ZONES;
use upstreams::Upstreams;
use zone::ZoneName;

/// The actor in the audit log behind what DNS changed.
pub const ACTOR: &str = "resolver";

/// How names are resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Recursive DNS servers, all of them asked; empty for those of the system (`/etc/resolv.conf`).
    pub upstreams: Vec<Endpoint>,
    /// Domains whose names are asked of servers of their own, and only of those; the longest one that fits counts.
    pub zones: Vec<ZoneSettings>,
    /// How many upstreams must give an address before it is published.
    pub quorum: Quorum,
    /// PEM file with the CAs that encrypted upstreams are checked against; none for those of the system.
    pub ca_file: Option<PathBuf>,
    /// Shortest time between two lookups of a name, however short its TTL.
    pub min_interval: Duration,
    /// Longest time between two lookups of a name, however long its TTL.
    pub max_interval: Duration,
    /// How long an address stays published after DNS last gave it.
    pub linger: Duration,
    /// How long an upstream has to answer a question.
    pub timeout: Duration,
    /// Most names looked up at the same time.
    pub max_lookups: usize,
    /// Most questions a second to each upstream.
    pub questions_per_second: u32,
}

/// The upstreams of one domain and what lies below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneSettings {
    /// Where the zone begins.
    pub domain: ZoneName,
    /// All of them are asked; at least one.
    pub upstreams: Vec<Endpoint>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            upstreams: Vec::new(),
            zones: Vec::new(),
            quorum: Quorum::Any,
            ca_file: None,
            min_interval: Duration::from_secs(5),
            max_interval: Duration::from_secs(60),
            linger: Duration::from_secs(600),
            timeout: Duration::from_secs(2),
            max_lookups: 128,
            questions_per_second: 5_000,
        }
    }
}

/// Settings the resolver cannot work with.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The system's own settings are of no use.
    #[error("read the system's DNS servers from /etc/resolv.conf: {0}; name some in resolver.upstreams")]
    System(String),
    /// Too many to ask.
    #[error("{key} names {count} servers, at most {MAX_UPSTREAMS} can be asked for one name")]
    TooManyUpstreams {
        /// Where.
        key: &'static str,
        /// How many.
        count: usize,
    },
    /// Too many domains have their own.
    #[error("resolver.zones names {0} domains, at most {MAX_ZONES} may have upstreams of their own")]
    TooManyZones(usize),
    /// Names below it could never be resolved.
    #[error("resolver.zones names no upstreams for {0}; name at least one, or leave the zone out")]
    EmptyZone(String),
    /// It is not clear which servers are meant.
    #[error("resolver.zones names {0} twice; put all its upstreams into one list")]
    ZoneTwice(String),
    /// Encrypted upstreams could not be checked.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The bounds exclude each other.
    #[error(
        "resolver.min_interval_s ({min:?}) must be above zero and at most resolver.max_interval_s ({max:?})"
    )]
    Intervals {
        /// The lower one.
        min: Duration,
        /// The upper one.
        max: Duration,
    },
}

/// How many upstreams a name is asked of; by default one.
#[derive(Clone)]
pub struct Asked(Arc<dyn Fn(&DomainName) -> usize + Send + Sync>);

impl Asked {
    /// By the settings of this node.
    pub fn count(&self, name: &DomainName) -> usize {
        (self.0)(name)
    }
}

impl Default for Asked {
    fn default() -> Self {
        Self(Arc::new(|_| 1))
    }
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Asked")
    }
}

/// A resolver with checked settings.
#[derive(Debug)]
pub struct Resolver {
    settings: Settings,
    upstreams: Arc<Upstreams>,
    metrics: Metrics,
    record: Record,
}

impl Resolver {
    /// Checks the settings and finds the upstreams.
    ///
    /// # Errors
    /// [`SettingsError`] naming the key.
    pub fn new(settings: Settings, metrics: Metrics) -> Result<Self, SettingsError> {
        let (min, max) = (settings.min_interval, settings.max_interval);
        if min.is_zero() || min > max {
            return Err(SettingsError::Intervals { min, max });
        }
        let system = if settings.upstreams.is_empty() { system_upstreams()? } else { Vec::new() };
        let general = if settings.upstreams.is_empty() { &system } else { &settings.upstreams };
        let upstreams = Arc::new(Upstreams::new(general, &settings)?);
        Ok(Self { settings, upstreams, metrics, record: Record::default() })
    }

    /// How many upstreams the settings name for each domain; for those who show what upstreams said.
    pub fn asked(&self) -> Asked {
        let upstreams = Arc::clone(&self.upstreams);
        Asked(Arc::new(move |name| upstreams.of(name).upstreams.len()))
    }

    /// Resolves whenever this node leads, until `shutdown`.
    pub async fn run(self, cluster: Cluster, shutdown: CancellationToken) {
        cluster.set_lookups(self.record.clone());
        let mut leadership = cluster.leadership();
        loop {
            let lead = async { leadership.wait_for(|leads| *leads).await.is_ok() };
            tokio::select! {
                () = shutdown.cancelled() => return,
                leads = lead => if !leads {
                    // The cluster is gone: no leadership will come any more.
                    return;
                },
            }
            tracing::info!(upstreams = ?self.upstreams.all(), "this node leads; resolving the domains of the list");
            let lost = async { leadership.wait_for(|leads| !*leads).await.is_err() };
            let gone = tokio::select! {
                () = shutdown.cancelled() => true,
                gone = lost => gone,
                () = term::serve(&self, &cluster) => false,
            };
            self.metrics.show_no_names();
            self.record.retain(|_| false);
            self.metrics.upstreams_up.reset();
            if gone {
                return;
            }
            tracing::info!("this node leads no more; another one resolves");
        }
    }
}

/// Resolves whenever this node leads, until `shutdown`, counting where nobody looks. See [`Resolver`] for metrics.
///
/// # Errors
/// [`SettingsError`] at once when the settings are of no use.
pub async fn run(cluster: Cluster, settings: Settings, shutdown: CancellationToken) -> Result<(), RunError> {
    let metrics = Metrics::new()?;
    Resolver::new(settings, metrics)?.run(cluster, shutdown).await;
    Ok(())
}

/// Why [`run`] did not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The settings.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The metrics.
    #[error("make the resolver's metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

fn system_upstreams() -> Result<Vec<Endpoint>, SettingsError> {
    let (config, _) = hickory_resolver::system_conf::read_system_conf()
        .map_err(|error| SettingsError::System(error.to_string()))?;
    let upstreams = config.name_servers().iter().filter_map(|server| {
        let udp = server
            .connections
            .iter()
            .find(|connection| matches!(connection.protocol, ProtocolConfig::Udp))?;
        Some(SocketAddr::new(server.ip, udp.port).into())
    });
    Ok(upstreams.collect())
}
