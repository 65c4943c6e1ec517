//! The HTTP side of a server: REST API, health, metrics, the UI's files, and the door to the feed.
//!
//! For `run`: make one [`AppState`] and one [`router()`] per listener.
//!
//! ```text
//! let sessions = feed::Sessions::new(&config.name, feed::Limits::default())?;
//! let app = AppState::new(cluster.clone(), sessions.clone(), Settings { registry, asked })?;
//! let plain = api::router(app.clone(), Transport::Plain); // listen.api
//! let tls = api::router(app, Transport::Tls);             // listen.feed
//! tokio::spawn(feed::watch_quorum(cluster, sessions.clone()));
//! // shutting down: /readyz turns 503 and gateways are told to move, then stop the listeners
//! sessions.drain(limit).await;
//! ```
//!
//! Whoever serves the routers puts `ConnectInfo<SocketAddr>` into the requests' extensions (that is
//! `into_make_service_with_connect_info` with `axum::serve`) and serves HTTP/1.1 connections with upgrades, which
//! the feed needs (`run/serve.rs`).
//!
//! Map: [`router`](mod@router) lists every path; `entries`, `members`, `status`, `tokens`, `session`, `health` hold the handlers;
//! `entry_view` is an entry as JSON, `search` finds entries; `input` and [`problem`] give axum's extractors and all
//! errors one shape; `once` makes writes safe to repeat; `bulk` moves whole lists, `backup` whole states; `traffic` says who moves most, `metrics`
//! counts.

use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use raft_store::command::Token;
use raft_store::state::State;
use tokio::sync::Semaphore;

use crate::auth::token;
use crate::cluster::{Cluster, GatewaySource};
use crate::feed::Sessions;
use crate::resolver::Asked;

mod audit;
mod backup;
mod bulk;
mod denied;
mod entries;
mod entry_view;
mod expiry;
mod fence;
mod headers;
mod health;
mod history;
mod impact;
mod input;
mod members;
mod metrics;
mod names;
mod once;
mod paging;
pub mod problem;
mod receipts;
mod recovery;
mod revision;
pub mod router;
mod search;
mod session;
mod status;
mod tokens;
mod traffic;
mod wait;

pub use router::{openapi, router};

use metrics::Metrics;
use problem::{Code, NO_QUORUM_RETRY_S, Problem};

/// Largest request body, bytes: an entry with every text and label at its limit, escaped, fits.
pub const MAX_BODY_BYTES: usize = 256 * 1024;
/// A request is answered after this time whatever happens. Longer than the limits below together, which give the
/// better message.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(15);
/// How long a write may take: an election and a fsync on a slow disk fit.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the confirmation of a linearizable read may take.
pub const READ_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a node waits to catch up before it says that it does not know a token.
const TOKEN_CATCH_UP: Duration = Duration::from_secs(1);
/// How many unknown tokens may make this node wait for others at a time; more are refused at once.
const TOKEN_CATCH_UPS_AT_A_TIME: usize = 8;

/// Which kind of listener a router serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Plain HTTP: everything but the feed.
    Plain,
    /// TLS: everything; cookies are marked `Secure`.
    Tls,
}

/// What a deployment may set.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Where `/metrics` reads from; other parts of the server may register their families here too.
    pub registry: Registry,
    /// How many DNS servers names are asked of.
    pub asked: Asked,
}

/// What handlers share. Cheap to clone.
#[derive(Clone)]
pub struct AppState {
    shared: Arc<Shared>,
}

struct Shared {
    cluster: Cluster,
    asked: Asked,
    sessions: Sessions,
    metrics: Metrics,
    token_catch_ups: Semaphore,
    /// Places for [`bulk`] requests.
    bulk: Arc<Semaphore>,
    /// Places for bodies that are made while they are sent.
    streams: Arc<Semaphore>,
}

impl AppState {
    /// Joins replication and feed. Registers metrics, and tells the cluster where gateway sessions are listed.
    ///
    /// # Errors
    /// A metric family of the same name is in the registry already.
    pub fn new(cluster: Cluster, sessions: Sessions, settings: Settings) -> Result<Self, prometheus::Error> {
        let source = sessions.clone();
        let source: GatewaySource = Arc::new(move || source.snapshot());
        cluster.set_gateway_source(source);
        cluster.set_denied_log(sessions.denied().clone());
        cluster.set_traffic_book(sessions.traffic().clone());
        sessions.metrics().register(&settings.registry)?;
        cluster.meter().register(&settings.registry)?;
        let metrics = Metrics::new(settings.registry)?;
        let token_catch_ups = Semaphore::new(TOKEN_CATCH_UPS_AT_A_TIME);
        let bulk = Arc::new(Semaphore::new(bulk::BULK_AT_A_TIME));
        let streams = Arc::new(Semaphore::new(bulk::paced::STREAMS_AT_A_TIME));
        Ok(Self {
            shared: Arc::new(Shared {
                cluster,
                asked: settings.asked,
                sessions,
                metrics,
                token_catch_ups,
                bulk,
                streams,
            }),
        })
    }

    /// Replication.
    pub fn cluster(&self) -> &Cluster {
        &self.shared.cluster
    }

    /// The gateways connected here.
    pub fn sessions(&self) -> &Sessions {
        &self.shared.sessions
    }

    fn asked(&self) -> &Asked {
        &self.shared.asked
    }

    fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// The applied state of this node, as of now.
    fn local(&self) -> Arc<State> {
        self.cluster().reader().state()
    }

    /// The stored token for a text, if there is one. One that is not known here may have just been made on another node,
    /// so the state is brought up to date before the answer is no.
    ///
    /// # Errors
    /// Nobody can say whether there is such a token: no majority in reach, or too many unknown ones at a time.
    pub(crate) async fn find_token(&self, text: &str) -> Result<Option<Token>, Problem> {
        match self.token_here(text) {
            Some(token) => Ok(Some(token)),
            None => self.find_new_token(text).await,
        }
    }

    /// As [`Self::find_token`], and a token that was removed on any node before the call is not found: nobody acts with a
    /// token that was taken away. That takes a round through the cluster; handlers that do nothing but [`Self::write`]
    /// need it not (see [`crate::auth::caller::EntryEditor`]).
    ///
    /// # Errors
    /// As above.
    pub(crate) async fn find_token_to_write(&self, text: &str) -> Result<Option<Token>, Problem> {
        // Unknown ones cost strangers nothing, so only a few may make this node ask others.
        if self.token_here(text).is_none() {
            return self.find_new_token(text).await;
        }
        self.cluster().read_barrier(WRITE_TIMEOUT).await.map_err(|error| {
            let detail = format!(
                "whether the token still stands cannot be told: {error}; nothing was written, the request may be sent again"
            );
            Problem::new(Code::NoQuorum, detail).retry_after(NO_QUORUM_RETRY_S)
        })?;
        Ok(self.token_here(text))
    }

    async fn find_new_token(&self, text: &str) -> Result<Option<Token>, Problem> {
        let unknown = |why: String| {
            let detail = format!(
                "the token is not known here, and whether it was just made elsewhere cannot be told: {why}"
            );
            Problem::new(Code::NoQuorum, detail).retry_after(NO_QUORUM_RETRY_S)
        };
        let _permit = self.shared.token_catch_ups.try_acquire().map_err(|_| {
            unknown(format!("{TOKEN_CATCH_UPS_AT_A_TIME} unknown tokens are being looked up already"))
        })?;
        let caught_up = self.cluster().read_barrier(TOKEN_CATCH_UP).await;
        caught_up.map_err(|error| unknown(error.to_string()))?;
        Ok(self.token_here(text))
    }

    /// The stored token for a text as far as this node knows, whatever has been written elsewhere since.
    pub(crate) fn token_here(&self, text: &str) -> Option<Token> {
        token::find(self.local().tokens().values(), text).cloned()
    }
}
