//! Reading a list in: all of it is checked before any of it is written.

use std::collections::HashSet;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use raft_store::command::{Command, NewEntry, Reply};
use raft_store::state;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::format::Format;
use super::{BODY_DEADLINE, MAX_IMPORT_BYTES, cut, off_the_async_threads, whole_body};
use crate::api::AppState;
use crate::api::input::Params;
use crate::api::once::{IdempotencyKey, OnceKey, REPLAYED_HEADER, sum_of};
use crate::api::problem::{Code, LineError, Problem, ProblemBody};
use crate::api::revision::{At, Consistency};
use crate::auth::Editor;

/// How to import.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct ImportParams {
    /// `true` checks and counts, and writes nothing.
    #[serde(default)]
    dry_run: bool,
}

/// What an import did, or would do.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct Imported {
    /// Entries that were added.
    created: u64,
    /// Entries that were there already, with the same target and ports; they stay as they are (protection is added
    /// where the list asks for it).
    existing: u64,
    /// Where all of it is visible.
    revision: u64,
    /// True when nothing was written.
    dry_run: bool,
}

/// Adds a whole list of entries
///
/// At most 200,000 entries as NDJSON (one entry per line, as in POST /api/v1/entries), YAML (`entries:` with a list) or CSV
/// (a header, then target, ports, protected, comment, owner, ticket, labels). Everything is checked first; with one wrong
/// line nothing is written, and the first 100 are named. The list is then written in batches: an import that broke off is
/// finished by sending it again, which changes nothing in what is there.
#[utoipa::path(post, path = "/api/v1/import", tag = "bulk", params(ImportParams, IdempotencyKey),
    request_body(content((String = "application/x-ndjson"), (String = "application/yaml"), (String = "text/csv"))),
    responses(
    (status = 200, body = Imported),
    (status = 413, body = ProblemBody, content_type = "application/problem+json"),
    (status = 415, body = ProblemBody, content_type = "application/problem+json"),
    (status = 422, body = ProblemBody, content_type = "application/problem+json", description = "Wrong lines"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json"),
    (status = 504, body = ProblemBody, content_type = "application/problem+json")))]
pub(in crate::api) async fn import(
    State(app): State<AppState>,
    Editor(caller): Editor,
    Params(params): Params<ImportParams>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let format = format_of(&parts.headers)?;
    let place = app.bulk_place()?;
    let body = whole_body(body, MAX_IMPORT_BYTES, BODY_DEADLINE).await?;
    let read = move || (format.read(&body), sum_of(&body), place);
    let (list, sum, place) = off_the_async_threads(read).await?;
    let entries = list.map_err(wrong_lines)?;
    let once = OnceKey::find(&parts, &sum)?.unwrap_or_else(|| OnceKey::own(Uuid::new_v4().to_string()));
    if params.dry_run {
        let state = app.read(Consistency::Linearizable).await?;
        let revision = state.revision();
        let counting = move || {
            let _place = place;
            count(&entries, &state)
        };
        let (created, existing) = off_the_async_threads(counting).await?;
        let answer = Imported { created, existing, revision, dry_run: true };
        return Ok(At(revision, Json(answer)).into_response());
    }
    let commands = cut(entries).into_iter().map(Command::AddEntries).collect();
    let written = app.write_parts(&caller, &once, commands).await?;
    let (mut created, mut existing, mut refused) = (0, 0, 0);
    for reply in &written.replies {
        if let Reply::AddedMany { created: c, existing: e, refused: r } = reply {
            (created, existing, refused) = (created + c, existing + e, refused + r);
        }
    }
    if refused > 0 {
        let detail =
            format!("{refused} entries drew an id that was taken; send the list again, that is harmless");
        return Err(Problem::new(Code::Internal, detail));
    }
    // An empty list changes nothing.
    let revision = if written.revision == 0 { app.local().revision() } else { written.revision };
    tracing::info!(actor = %caller.name, created, existing, revision, "list imported");
    let answer = Imported { created, existing, revision, dry_run: false };
    let mut response = At(revision, Json(answer)).into_response();
    if written.replayed {
        response.headers_mut().insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
    }
    Ok(response)
}

fn format_of(headers: &HeaderMap) -> Result<Format, Problem> {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    Format::of_media_type(kind).ok_or_else(|| {
        let detail = "send `content-type: application/x-ndjson`, `application/yaml` or `text/csv`";
        Problem::new(Code::UnsupportedMediaType, detail)
    })
}

fn wrong_lines(errors: Vec<LineError>) -> Problem {
    let first = errors.first().map(|error| format!("line {}: {}", error.line, error.detail));
    let detail = match errors.len() {
        1 => format!("nothing was written; {}", first.unwrap_or_default()),
        count => {
            format!("nothing was written; {count} lines are wrong, the first: {}", first.unwrap_or_default())
        }
    };
    Problem::new(Code::InvalidImport, detail).with_errors(errors)
}

/// What adding `entries` to `state` would do.
fn count(entries: &[NewEntry], state: &state::State) -> (u64, u64) {
    let mut seen = HashSet::with_capacity(entries.len());
    let (mut created, mut existing) = (0, 0);
    for entry in entries {
        let key = (entry.target.to_string(), entry.ports.ranges().to_vec());
        if state.entry_by_key(&entry.target, &entry.ports).is_some() || !seen.insert(format!("{key:?}")) {
            existing += 1;
        } else {
            created += 1;
        }
    }
    (created, existing)
}
