//! How new an answer is: linearizable by default, `?consistency=stale` on request, and the revision in a header.

use std::sync::Arc;

use allowlist::Revision;
use axum::http::header::{ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use raft_store::state::State;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::problem::Problem;
use super::{AppState, READ_TIMEOUT};

/// Carries the revision an answer was made from.
pub(super) const REVISION_HEADER: HeaderName = HeaderName::from_static("x-outputguard-revision");

/// How new an answer must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Consistency {
    /// Sees every write that was answered before, on any node.
    #[default]
    Linearizable,
    /// What this node holds, without asking others; works without a quorum.
    Stale,
}

/// Query parameters of a plain read.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ReadParams {
    /// `linearizable` (the default) or `stale`.
    #[serde(default)]
    #[param(inline, required = false)]
    pub(super) consistency: Consistency,
}

impl AppState {
    /// The state to answer a read from.
    pub(super) async fn read(&self, consistency: Consistency) -> Result<Arc<State>, Problem> {
        if consistency == Consistency::Linearizable {
            self.cluster().read_barrier(READ_TIMEOUT).await?;
        }
        Ok(self.local())
    }
}

/// An answer made from the state at a revision.
pub(super) struct At<T>(pub(super) Revision, pub(super) T);

impl<T: IntoResponse> IntoResponse for At<T> {
    fn into_response(self) -> Response {
        let Self(revision, answer) = self;
        ([(REVISION_HEADER, HeaderValue::from(revision))], answer).into_response()
    }
}

/// An answer that depends on nothing but the request and the revision: the ETag is the revision, and a client that
/// has it gets 304.
pub(super) struct Tagged<T>(pub(super) Revision, pub(super) T);

impl<T: IntoResponse> Tagged<T> {
    pub(super) fn answer(self, asked: &HeaderMap) -> Response {
        let Self(revision, answer) = self;
        respond_tagged(revision, &format!("\"{revision}\""), asked, answer)
    }
}

/// Puts `tag` on an answer, or leaves the answer out when the client has it.
pub(super) fn respond_tagged(
    revision: Revision,
    tag: &str,
    asked: &HeaderMap,
    answer: impl IntoResponse,
) -> Response {
    let known = asked.get_all(IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    let known =
        known.flat_map(|line| line.split(',')).any(|known| known.trim().trim_start_matches("W/") == tag);
    let mut response = if known { StatusCode::NOT_MODIFIED.into_response() } else { answer.into_response() };
    let headers = response.headers_mut();
    headers.insert(REVISION_HEADER, HeaderValue::from(revision));
    if let Ok(tag) = HeaderValue::from_str(tag) {
        headers.insert(ETAG, tag);
    }
    response
}
