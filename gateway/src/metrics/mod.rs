//! HTTP on port 9900: `/metrics` for Prometheus, `/livez` and `/readyz` for probes.

mod families;
pub mod traffic_page;

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::stream;
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use serde::Serialize;

pub(crate) use self::families::registered;
use self::traffic_page::TrafficPage;
use crate::config::PerIpMetrics;
use crate::enforce::{DenialLogHealth, Enforcer, KernelHealth};
use crate::feed::status::StatusBoard;

const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the pages are made of.
#[derive(Debug, Clone)]
pub struct Pages {
    name: String,
    registry: Registry,
    enforcer: Enforcer,
    status: StatusBoard,
    per_ip: PerIpMetrics,
    gauges: StatusGauges,
}

/// Gauges that are read from the board at each scrape.
#[derive(Debug, Clone)]
struct StatusGauges {
    connected: IntGaugeVec,
    state: IntGaugeVec,
    cluster_revision: IntGauge,
    lag: IntGauge,
}

impl Pages {
    /// Pages over what was registered in `registry`.
    ///
    /// # Errors
    /// When a family is registered already.
    pub fn new(
        name: String,
        registry: Registry,
        enforcer: Enforcer,
        status: StatusBoard,
        per_ip: PerIpMetrics,
    ) -> Result<Self, prometheus::Error> {
        let gauges = StatusGauges::register(&registry)?;
        Ok(Self { name, registry, enforcer, status, per_ip, gauges })
    }

    /// The routes.
    pub fn router(self) -> Router {
        Router::new()
            .route("/metrics", get(metrics))
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz))
            .with_state(self)
    }

    fn refresh(&self) {
        let status = self.status.read();
        self.gauges.connected.reset();
        if let Some(node) = &status.node {
            self.gauges.connected.with_label_values(&[node]).set(status.link.is_open().into());
        }
        self.gauges.state.reset();
        self.gauges.state.with_label_values(&[status.link.word()]).set(1);
        let number = |revision: u64| i64::try_from(revision).unwrap_or(i64::MAX);
        self.gauges.cluster_revision.set(number(status.cluster_revision));
        let applied = self.enforcer.applied().borrow().as_ref().map_or(0, |applied| applied.revision);
        self.gauges.lag.set(number(status.cluster_revision.saturating_sub(applied)));
    }
}

impl StatusGauges {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let vec = |name: &str, help: &str, label: &str| {
            registered(registry, IntGaugeVec::new(Opts::new(name, help), &[label]))
        };
        let gauge = |name: &str, help: &str| registered(registry, IntGauge::new(name, help));
        let build = vec("outputguard_gateway_build_info", "The program's version; always 1.", "version")?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self {
            connected: vec(
                "outputguard_feed_connected",
                "1 while a session with this server node is open.",
                "node",
            )?,
            state: vec("outputguard_feed_state", "1 for the state the link to the servers is in.", "state")?,
            cluster_revision: gauge(
                "outputguard_cluster_revision",
                "Newest revision a server node told this gateway.",
            )?,
            lag: gauge(
                "outputguard_revision_lag",
                "Cluster revision minus the revision this gateway's kernel holds.",
            )?,
        })
    }
}

async fn metrics(State(pages): State<Pages>) -> Response {
    pages.refresh();
    let mut head = String::new();
    if let Err(error) = TextEncoder::new().encode_utf8(&pages.registry.gather(), &mut head) {
        tracing::error!(error = %error, "metrics could not be written");
        return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
    }
    // Without counters the page still says how the gateway stands; the series have a gap, which is the truth.
    let counters = match pages.per_ip {
        PerIpMetrics::Off => None,
        PerIpMetrics::All | PerIpMetrics::Active => pages.enforcer.counters().await.ok(),
    };
    let traffic = counters.map(|counters| TrafficPage::new(&pages.name, counters, pages.per_ip));
    let chunks = std::iter::once(head).chain(traffic.into_iter().flatten());
    let body = Body::from_stream(stream::iter(chunks.map(|chunk| Ok::<_, Infallible>(Bytes::from(chunk)))));
    ([(header::CONTENT_TYPE, TEXT_FORMAT)], body).into_response()
}

/// The answer of `/readyz`.
#[derive(Debug, Serialize)]
struct Readiness {
    ready: bool,
    /// A published set is known, from a server or from the state files.
    state: Latch,
    /// The kernel holds it.
    kernel: Latch,
    /// How the link to the servers stands. Not part of `ready`: traffic does not depend on servers, and a probe
    /// that took gateways out of use when servers fail would break what promise 1 keeps whole.
    session: Session,
    /// Whether denied packets are read, for people. Not part of `ready`: nothing passes that should not without it.
    denied_log: Latch,
}

#[derive(Debug, Serialize)]
struct Latch {
    ok: bool,
    reason: String,
}

#[derive(Debug, Serialize)]
struct Session {
    state: &'static str,
    node: Option<String>,
    problem: Option<String>,
}

async fn readyz(State(pages): State<Pages>) -> Response {
    let status = pages.status.read();
    let state = match pages.enforcer.point() {
        Some(point) => Latch { ok: true, reason: format!("revision {}", point.revision) },
        None => Latch { ok: false, reason: "no stored state, and no snapshot from a server yet".to_owned() },
    };
    let kernel = match pages.enforcer.health() {
        KernelHealth::InSync => Latch { ok: true, reason: "in sync".to_owned() },
        KernelHealth::Starting => Latch { ok: false, reason: "starting".to_owned() },
        KernelHealth::Failing(error) => Latch { ok: false, reason: error },
    };
    let denied_log = match pages.enforcer.denials().health() {
        DenialLogHealth::Up => Latch { ok: true, reason: "read".to_owned() },
        DenialLogHealth::Starting => Latch { ok: false, reason: "not read yet".to_owned() },
        DenialLogHealth::Down(reason) => Latch { ok: false, reason },
    };
    let session = Session { state: status.link.word(), node: status.node, problem: status.problem };
    let ready = state.ok && kernel.ok;
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(Readiness { ready, state, kernel, session, denied_log })).into_response()
}
