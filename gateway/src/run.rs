//! The gateway's life: the order of start and stop.

use std::collections::BTreeSet;
use std::time::Duration;

use allowlist::Element;
use anyhow::Context;
use prometheus::{IntGaugeVec, Opts, Registry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, FirewallKind};
use crate::enforce::{Enforcer, Origin};
use crate::feed::status::StatusBoard;
use crate::feed::traffic::TrafficMeter;
use crate::feed::{Credentials, FeedClient, FeedMetrics, Timings};
use crate::firewall::{Firewall, Mode};
use crate::held::Held;
use crate::metrics::Pages;
use crate::state::{Loaded, StateDir};

/// Time for the end of everything; what is not done by then is left.
pub const STOP_LIMIT: Duration = Duration::from_secs(5);

/// What a gateway is started with besides its configuration.
pub struct Parts {
    /// The driver, not yet installed.
    pub firewall: Box<dyn Firewall>,
    /// Bound already, so that a port in use is found before the sets are touched.
    pub listener: TcpListener,
    /// Limits of the feed.
    pub timings: Timings,
}

/// Runs until `shutdown`. The kernel keeps what it holds afterwards.
///
/// # Errors
/// What keeps a gateway from starting. Later faults are logged, counted and mended while running.
pub async fn run(config: Config, parts: Parts, shutdown: CancellationToken) -> anyhow::Result<()> {
    let Parts { firewall, listener, timings } = parts;
    let credentials = Credentials { token_file: config.token_file.clone(), ca_file: config.ca_file.clone() };
    credentials.check()?;
    // A dry run leaves the files to the gateway that it may run beside.
    let mut state_dir = match config.firewall {
        FirewallKind::Kernel => Some(StateDir::open(&config.state_dir)?),
        FirewallKind::DryRun => None,
    };

    let Installed { firewall, adopted, meter } = install(firewall).await?;
    let loaded = state_dir.as_mut().map_or(Ok(Loaded::Nothing), StateDir::load)?;
    let (held, origin) = starting_point(loaded, adopted);
    let registry = Registry::new();
    let store = state_dir.map(|dir| dir.store(&registry)).transpose()?;
    show_mode(config.unlisted.policy.mode, &registry)?;
    let (enforcer, owner) = Enforcer::start(firewall, held, origin, store, &registry)?;

    let status = StatusBoard::default();
    let feed_metrics = FeedMetrics::register(&registry)?;
    let per_ip = config.metering.per_ip;
    let pages = Pages::new(config.name.clone(), registry, enforcer.clone(), status.clone(), per_ip)?;
    let http_end = CancellationToken::new();
    let serving =
        axum::serve(listener, pages.router()).with_graceful_shutdown(http_end.clone().cancelled_owned());
    let http = tokio::spawn(serving.into_future());

    let client = FeedClient {
        name: config.name,
        servers: config.servers,
        credentials,
        timings,
        enforcer,
        status,
        meter,
        metrics: feed_metrics,
        shutdown: shutdown.clone(),
    };
    let feed = tokio::spawn(client.run());
    shutdown.cancelled().await;

    tracing::info!("stopping; the kernel keeps what it holds");
    let stop = async {
        // In this order: nothing new comes in, what came is enforced and stored, probes see it to the end.
        feed.await.context("the feed task failed")?;
        tokio::task::spawn_blocking(move || owner.stop()).await.context("the firewall thread failed")?;
        http_end.cancel();
        http.await.context("the HTTP task failed")?.context("serve HTTP")
    };
    match tokio::time::timeout(STOP_LIMIT, stop).await {
        Ok(stopped) => stopped,
        Err(_) => {
            tracing::warn!(limit_ms = STOP_LIMIT.as_millis(), "not everything ended in time");
            Ok(())
        }
    }
}

/// An audit must not be mistaken for enforcement.
fn show_mode(mode: Mode, registry: &Registry) -> Result<(), prometheus::Error> {
    let opts = Opts::new("outputguard_gateway_mode", "1 for what this gateway does with what is not listed.");
    let gauge = IntGaugeVec::new(opts, &["mode"])?;
    registry.register(Box::new(gauge.clone()))?;
    for (known, word) in [(Mode::Enforce, "enforce"), (Mode::Audit, "audit")] {
        gauge.with_label_values(&[word]).set((known == mode).into());
    }
    Ok(())
}

/// A firewall that is up.
struct Installed {
    firewall: Box<dyn Firewall>,
    adopted: BTreeSet<Element>,
    /// Where traffic reports start from.
    meter: TrafficMeter,
}

/// Closed first: after this nothing passes but what the kernel already let through.
async fn install(mut firewall: Box<dyn Firewall>) -> anyhow::Result<Installed> {
    tokio::task::spawn_blocking(move || {
        let adopted = firewall.install().context("bring up the firewall")?;
        let meter = match firewall.counters() {
            Ok(counters) => TrafficMeter::from_mark(&counters),
            Err(error) => {
                tracing::warn!(error = %error, "counters could not be read; traffic is reported from later on");
                TrafficMeter::default()
            }
        };
        Ok(Installed { firewall, adopted, meter })
    })
    .await
    .context("bring up the firewall")?
}

/// What to hold before any server was asked.
///
/// The state files are written before the kernel is, so when they can be read they are never behind it and are
/// enforced. When they cannot, what the kernel holds was once published by servers: it stays until they say
/// otherwise. After a reboot the kernel holds nothing, and then nothing passes.
fn starting_point(loaded: Loaded, adopted: BTreeSet<Element>) -> (Held, Origin) {
    match loaded {
        Loaded::State(held) => {
            tracing::info!(
                revision = held.revision(),
                elements = held.elements().len(),
                adopted = adopted.len(),
                "enforcing the stored state"
            );
            (held, Origin::Stored)
        }
        Loaded::Nothing => {
            tracing::info!(adopted = adopted.len(), "no stored state; waiting for a server");
            (Held::adopted(adopted), Origin::Kernel)
        }
        Loaded::Unusable { reason, aside } => {
            tracing::error!(
                reason,
                aside = ?aside,
                adopted = adopted.len(),
                "stored state cannot be used and was set aside; only what the kernel already holds passes until a \
                 server is reached"
            );
            (Held::adopted(adopted), Origin::Kernel)
        }
    }
}
