//! The whole list as a stream, from one revision.

use std::io;
use std::ops::Bound;
use std::sync::Arc;

use allowlist::EntryId;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures_util::Stream;
use raft_store::state;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::format::Format;
use super::paced;
use crate::api::AppState;
use crate::api::input::Params;
use crate::api::problem::{Problem, ProblemBody};
use crate::api::revision::{At, Consistency};
use crate::auth::Viewer;

/// Entries written into one piece of the stream.
const PIECE_ENTRIES: usize = 256;

/// How to export.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct ExportParams {
    /// `yaml` (the default), `ndjson` or `csv`.
    #[serde(default)]
    #[param(inline, required = false)]
    format: FormatName,
    /// `linearizable` (the default) or `stale`.
    #[serde(default)]
    #[param(inline, required = false)]
    consistency: Consistency,
}

/// How a list is written.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::api) enum FormatName {
    #[default]
    Yaml,
    Ndjson,
    Csv,
}

/// Streams the whole list, as import reads it
#[utoipa::path(get, path = "/api/v1/export", tag = "bulk", params(ExportParams), responses(
    (status = 200, content((String = "application/yaml"), (String = "application/x-ndjson"), (String = "text/csv"))),
    (status = 400, body = ProblemBody, content_type = "application/problem+json"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json")))]
pub(in crate::api) async fn export(
    State(app): State<AppState>,
    _: Viewer,
    Params(params): Params<ExportParams>,
) -> Result<Response, Problem> {
    let format = match params.format {
        FormatName::Yaml => Format::Yaml,
        FormatName::Ndjson => Format::Ndjson,
        FormatName::Csv => Format::Csv,
    };
    let place = app.stream_place()?;
    let state = app.read(params.consistency).await?;
    let revision = state.revision();
    let file = format!("attachment; filename=\"outputguard-{revision}.{}\"", format.file_suffix());
    let mut response = At(revision, paced::body(pieces(state, format), place)).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    headers.extend(HeaderValue::from_str(&file).ok().map(|file| (CONTENT_DISPOSITION, file)));
    Ok(response)
}

/// The state does not change under the stream, however slowly the client reads.
fn pieces(state: Arc<state::State>, format: Format) -> impl Stream<Item = io::Result<Bytes>> {
    let start = Some((state, Bound::<EntryId>::Unbounded));
    futures_util::stream::unfold(start, move |left| async move {
        let (state, after) = left?;
        let mut text = match after {
            Bound::Unbounded => format.begin(&state),
            _ => String::new(),
        };
        let mut last = None;
        let mut count = 0;
        for entry in state.entries().range((after, Bound::Unbounded)).take(PIECE_ENTRIES) {
            format.write(entry, &mut text);
            last = Some(entry.id);
            count += 1;
        }
        let left = last.filter(|_| count == PIECE_ENTRIES).map(|last| (state, Bound::Excluded(last)));
        Some((Ok(Bytes::from(text)), left))
    })
}
