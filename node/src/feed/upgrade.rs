//! The door of the feed: who may come in, before any frame is spoken.

use axum::Extension;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{FromRequestParts, State, WebSocketUpgrade};
use axum::http::header::SEC_WEBSOCKET_PROTOCOL;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;

use allowlist::codec::MAX_FRAME_BYTES;
use allowlist::feed::{ACCEPTS_HEADER, ACCEPTS_SOURCES, SUBPROTOCOL};

use super::session::{self, Opening};
use crate::api::problem::{Code, NO_QUORUM_RETRY_S, Problem, ProblemBody, UNAVAILABLE_RETRY_S};
use crate::api::{AppState, Transport};
use crate::auth::FeedClient;

/// Refuses requests of the plain listener, before a token is looked at.
pub(crate) struct OverTls;

impl<S: Send + Sync> FromRequestParts<S> for OverTls {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Extension::<Transport>::from_request_parts(parts, state).await {
            Ok(Extension(Transport::Tls)) => Ok(Self),
            _ => Err(Problem::new(
                Code::TlsRequired,
                "the feed is not spoken on the plain listener; connect with wss:// to the port of `listen.feed`",
            )),
        }
    }
}

/// Opens the gateway feed (WebSocket, subprotocol `outputguard.v1`; only on the TLS listener)
#[utoipa::path(get, path = "/ws", tag = "feed", responses(
    (status = 101, description = "The feed begins"),
    (status = 400, body = ProblemBody, content_type = "application/problem+json"),
    (status = 401, body = ProblemBody, content_type = "application/problem+json"),
    (status = 403, body = ProblemBody, content_type = "application/problem+json"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json")))]
pub(crate) async fn connect(
    _: OverTls,
    State(app): State<AppState>,
    FeedClient(caller): FeedClient,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let upgrade = upgrade.map_err(|error| Problem::new(Code::NotWebsocket, error.body_text()))?;
    let offered = offered_subprotocols(&headers);
    if !offered.iter().any(|name| name == SUBPROTOCOL) {
        let detail = match offered.as_slice() {
            [] => format!("no subprotocol was offered; this server speaks {SUBPROTOCOL}"),
            names => format!("none of the offered subprotocols ({}) is {SUBPROTOCOL}", names.join(", ")),
        };
        return Err(Problem::new(Code::UnknownSubprotocol, detail));
    }
    let sessions = app.sessions();
    if sessions.is_draining() {
        let detail = "the node is being shut down; connect to another one";
        return Err(Problem::new(Code::Draining, detail).retry_after(UNAVAILABLE_RETRY_S));
    }
    let Some(cluster_id) = app.cluster().reader().state().cluster() else {
        let detail = "the cluster has no identity yet: no node has bootstrapped it";
        return Err(Problem::new(Code::NotReady, detail).retry_after(NO_QUORUM_RETRY_S));
    };
    let Some(place) = sessions.place() else {
        let detail =
            format!("{} gateways are connected; connect to another node", super::sessions::MAX_SESSIONS);
        return Err(Problem::new(Code::TooManySessions, detail).retry_after(UNAVAILABLE_RETRY_S));
    };
    let opening = Opening {
        cluster: app.cluster().clone(),
        sessions: sessions.clone(),
        caller,
        cluster_id,
        _place: place,
    };
    let upgrade =
        upgrade.protocols([SUBPROTOCOL]).max_message_size(MAX_FRAME_BYTES).max_frame_size(MAX_FRAME_BYTES);
    let upgrade =
        upgrade.on_failed_upgrade(|error| tracing::info!(%error, "a gateway left during the upgrade"));
    let mut response = upgrade.on_upgrade(move |socket| session::serve(socket, opening));
    // Newer gateways send what this release reads, and no more.
    let accepts = HeaderName::from_static(ACCEPTS_HEADER);
    response.headers_mut().insert(accepts, HeaderValue::from_static(ACCEPTS_SOURCES));
    Ok(response)
}

fn offered_subprotocols(headers: &HeaderMap) -> Vec<String> {
    let lines = headers.get_all(SEC_WEBSOCKET_PROTOCOL).into_iter().filter_map(|value| value.to_str().ok());
    lines
        .flat_map(|line| line.split(','))
        .map(|name| name.trim().chars().take(64).collect())
        .take(8)
        .collect()
}
