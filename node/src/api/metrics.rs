//! `/metrics`: what the API counts, and what is read from the state when somebody asks.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::AppState;
use super::problem::{Code, Problem};

/// Bucket bounds, seconds: a local read takes well under a millisecond, a write one or two disk flushes.
const LATENCY_BUCKETS_S: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0];
/// Route label of everything that is not in the list of paths: files of the UI and mistyped paths.
const OTHER_ROUTES: &str = "other";
const RAFT_ROLES: [&str; 5] = ["leader", "follower", "candidate", "learner", "shutdown"];

/// The metric families of the API.
pub(super) struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    seconds: HistogramVec,
    entries: IntGauge,
    published: IntGauge,
    revision: IntGauge,
    committed: IntGauge,
    term: IntGauge,
    role: IntGaugeVec,
    feed_sessions: IntGauge,
}

impl Metrics {
    pub(super) fn new(registry: Registry) -> Result<Self, prometheus::Error> {
        let requests = IntCounterVec::new(
            Opts::new("outputguard_http_requests_total", "HTTP requests answered"),
            &["method", "route", "status"],
        )?;
        let seconds = HistogramVec::new(
            HistogramOpts::new("outputguard_http_request_duration_seconds", "Time from request to answer")
                .buckets(LATENCY_BUCKETS_S.to_vec()),
            &["route"],
        )?;
        let role =
            IntGaugeVec::new(Opts::new("outputguard_raft_role", "1 for the role this node has"), &["role"])?;
        let build = IntGaugeVec::new(
            Opts::new("outputguard_build_info", "1; the label is the program's version"),
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let entries = gauge("outputguard_entries", "Entries in the allowlist")?;
        let published =
            gauge("outputguard_published_elements", "Elements (prefix and ports) published to gateways")?;
        let revision = gauge("outputguard_revision", "Newest revision (log index) applied on this node")?;
        let committed = gauge("outputguard_raft_committed_index", "Newest log index known to be committed")?;
        let term = gauge("outputguard_raft_term", "Raft term of this node")?;
        let feed_sessions = gauge("outputguard_feed_sessions", "Gateway sessions on this node")?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(role.clone()))?;
        registry.register(Box::new(build))?;
        Ok(Self {
            registry,
            requests,
            seconds,
            entries,
            published,
            revision,
            committed,
            term,
            role,
            feed_sessions,
        })
    }

    fn read_from(&self, app: &AppState) {
        let state = app.local();
        app.cluster().meter().read_from(app.cluster());
        self.entries.set(signed(state.entries().len()));
        self.published.set(signed(state.published().len()));
        self.revision.set(signed(state.revision()));
        self.feed_sessions.set(signed(app.sessions().snapshot().len()));
        if let Some(status) = app.cluster().node_status() {
            self.term.set(signed(status.term));
            self.committed.set(signed(status.committed));
            for role in RAFT_ROLES {
                self.role.with_label_values(&[role]).set(i64::from(role == status.role));
            }
        }
    }
}

/// A request on its way, counted by route, never by path, so that ids cannot grow the number of series.
pub(super) struct Observed {
    route: Option<MatchedPath>,
    method: Method,
    begun: Instant,
}

impl Observed {
    pub(super) fn begin(request: &Request) -> Self {
        let route = request.extensions().get::<MatchedPath>().cloned();
        Self { route, method: request.method().clone(), begun: Instant::now() }
    }

    pub(super) fn end(self, app: &AppState, status: StatusCode) {
        let route = self.route.as_ref().map_or(OTHER_ROUTES, MatchedPath::as_str);
        // An unknown method is the client's invention and must not become a label.
        let method = self.method.as_str();
        let method = if KNOWN_METHODS.contains(&method) { method } else { OTHER_ROUTES };
        let metrics = app.metrics();
        metrics.requests.with_label_values(&[method, route, status.as_str()]).inc();
        metrics.seconds.with_label_values(&[route]).observe(self.begun.elapsed().as_secs_f64());
    }
}

const KNOWN_METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// Metrics in the Prometheus text format; open, as scrapers expect: it holds counts and gateway names
#[utoipa::path(get, path = "/metrics", tag = "about", security(()), responses(
    (status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn scrape(State(app): State<AppState>) -> Result<Response, Problem> {
    let metrics = app.metrics();
    metrics.read_from(&app);
    let encoder = TextEncoder::new();
    let mut page = Vec::new();
    encoder
        .encode(&metrics.registry.gather(), &mut page)
        .map_err(|error| Problem::new(Code::Internal, format!("encode metrics: {error}")))?;
    Ok(([(CONTENT_TYPE, encoder.format_type().to_owned())], page).into_response())
}

fn signed(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}
