//! How the addresses of an entry's name changed.

use allowlist::{Revision, Target};
use axum::Json;
use axum::extract::State;
use raft_store::command::CommandRefusal;
use raft_store::history::AddressChange;
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::entries::parse_id;
use super::entry_view::rfc3339;
use super::input::{Params, Segment};
use super::problem::{Problem, ProblemBody};
use super::revision::ReadParams;
use crate::auth::Viewer;

/// The last changes of a name's addresses.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AddressHistory {
    /// The revision it was read at.
    revision: Revision,
    target: String,
    /// Newest first, at most 100; empty for addresses and networks.
    changes: Vec<ChangeView>,
}

/// One change of a name's addresses.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AddressChange)]
struct ChangeView {
    revision: Revision,
    /// RFC 3339.
    at: String,
    added: Vec<String>,
    /// What left: unseen for longer than the linger time.
    retired: Vec<String>,
}

/// Shows how the addresses of a domain changed
#[utoipa::path(get, path = "/api/v1/entries/{id}/history", tag = "entries",
    params(("id" = String, Path, description = "The entry's id"), ReadParams), responses(
    (status = 200, body = AddressHistory),
    (status = 404, body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn show(
    State(app): State<AppState>,
    _: Viewer,
    Segment(id): Segment,
    Params(params): Params<ReadParams>,
) -> Result<Json<AddressHistory>, Problem> {
    let id = parse_id(&id)?;
    let state = app.read(params.consistency).await?;
    let entry = state.entry(id).ok_or(CommandRefusal::NoSuchEntry(id))?;
    let history = match &entry.target {
        Target::Domain(domain) => state.histories().get(domain),
        _ => None,
    };
    let changes = history.map_or(&[][..], |history| history.changes());
    Ok(Json(AddressHistory {
        revision: state.revision(),
        target: entry.target.to_string(),
        changes: changes.iter().rev().map(|change| ChangeView::from(&**change)).collect(),
    }))
}

impl From<&AddressChange> for ChangeView {
    fn from(change: &AddressChange) -> Self {
        let texts = |addresses: &[std::net::IpAddr]| addresses.iter().map(ToString::to_string).collect();
        Self {
            revision: change.revision,
            at: rfc3339(change.at_ms),
            added: texts(&change.added),
            retired: texts(&change.retired),
        }
    }
}
