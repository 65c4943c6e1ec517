//! What the removal of an entry would do.

use allowlist::{Element, EntryId, Revision};
use axum::Json;
use axum::extract::State as Shared;
use raft_store::command::CommandRefusal;
use raft_store::state::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::entries::{now_ms, parse_id};
use super::input::{Params, Segment};
use super::problem::{Problem, ProblemBody};
use super::revision::ReadParams;
use crate::auth::Viewer;

/// Most elements of each kind that are shown; the counts cover all.
const MAX_SHOWN_ELEMENTS: usize = 1_000;

/// Most entries that are named for one element.
const MAX_SHOWN_OWNERS: usize = 10;

/// What would become of an entry's elements if it were removed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Impact {
    /// The revision it was worked out at.
    revision: Revision,
    id: String,
    target: String,
    /// True for a protected entry, which cannot be removed.
    protected: bool,
    /// How many elements would pass no more; flows through them would be cut.
    removed_count: usize,
    /// The first 1,000 of them.
    removed: Vec<String>,
    /// How many elements would go on passing, because of other entries.
    kept_count: usize,
    /// The first 1,000 of them.
    kept: Vec<KeptView>,
    /// How many elements left DNS within a week, and may still drain: their flows would be cut as well.
    drained_count: usize,
    /// The first 1,000 of them.
    drained: Vec<String>,
}

/// An element that other entries let pass too.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = KeptElement)]
struct KeptView {
    element: String,
    /// Those entries, at most 10.
    because_of: Vec<OwnerView>,
}

/// An entry that keeps an element open.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ElementOwner)]
struct OwnerView {
    id: String,
    target: String,
}

/// Shows what removing an entry would do
///
/// Nothing is changed. `DELETE` with `dry_run=true` answers the same.
#[utoipa::path(get, path = "/api/v1/entries/{id}/impact", tag = "entries",
    params(("id" = String, Path, description = "The entry's id"), ReadParams), responses(
    (status = 200, body = Impact),
    (status = 404, body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn show(
    Shared(app): Shared<AppState>,
    _: Viewer,
    Segment(id): Segment,
    Params(params): Params<ReadParams>,
) -> Result<Json<Impact>, Problem> {
    let state = app.read(params.consistency).await?;
    of(&state, parse_id(&id)?).map(Json)
}

/// The impact of removing the entry with this id.
pub(super) fn of(state: &State, id: EntryId) -> Result<Impact, Problem> {
    let entry = state.entry(id).ok_or(CommandRefusal::NoSuchEntry(id))?;
    let impact = state.impact(entry, now_ms());
    let owner = |id: &EntryId| OwnerView {
        id: id.to_string(),
        target: state.entry(*id).map(|entry| entry.target.to_string()).unwrap_or_default(),
    };
    let kept = impact.kept.iter().take(MAX_SHOWN_ELEMENTS).map(|(element, owners)| KeptView {
        element: element.to_string(),
        because_of: owners.iter().take(MAX_SHOWN_OWNERS).map(owner).collect(),
    });
    Ok(Impact {
        revision: state.revision(),
        id: id.to_string(),
        target: entry.target.to_string(),
        protected: entry.protected,
        removed_count: impact.removed.len(),
        removed: shown(&impact.removed),
        kept_count: impact.kept.len(),
        kept: kept.collect(),
        drained_count: impact.drained.len(),
        drained: shown(&impact.drained),
    })
}

fn shown(elements: &[Element]) -> Vec<String> {
    elements.iter().take(MAX_SHOWN_ELEMENTS).map(ToString::to_string).collect()
}
