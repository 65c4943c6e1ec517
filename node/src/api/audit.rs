//! Who did what, when: the stream of applied changes with its authors, newest first.
//!
//! A node answers from the changes it applied since it started (or was sent a snapshot), a bounded number of them;
//! `complete_after` says from which revision on nothing is missing.

use allowlist::{DomainName, Revision};
use axum::Json;
use axum::extract::State;
use raft_store::command::{MemberAction, NameStatus, Origin};
use raft_store::state::{Event, EventKind, Resolved};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::entry_view::rfc3339;
use super::input::Params;
use super::problem::{Problem, ProblemBody};
use super::revision::{At, Consistency};
use super::{AppState, paging};
use crate::auth::Viewer;

const DEFAULT_PAGE_EVENTS: usize = 100;
const MAX_PAGE_EVENTS: usize = 1_000;

/// Query parameters.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditParams {
    /// About how many events, at most; those of one revision stay together. 100 when left out.
    #[param(required = false)]
    limit: Option<usize>,
    /// Only what is older than this revision: `next_before` of the page before.
    #[param(required = false)]
    before: Option<Revision>,
    /// Only what this token's holder did.
    #[param(required = false)]
    actor: Option<String>,
    /// `linearizable` (the default) or `stale`.
    #[serde(default)]
    #[param(inline, required = false)]
    consistency: Consistency,
}

/// A page of events.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuditPage {
    /// Newest first.
    events: Vec<AuditEvent>,
    /// Where the next page begins; null on the last.
    next_before: Option<Revision>,
    /// Every event after this revision is kept on this node.
    complete_after: Revision,
}

/// One thing that happened.
#[derive(Debug, Serialize, ToSchema)]
struct AuditEvent {
    revision: Revision,
    /// RFC 3339.
    at: String,
    /// Name of the token, or the part of the server that did it.
    actor: String,
    /// Address the request came from; empty for the server itself.
    remote: String,
    /// Of the request; empty for the server itself.
    request_id: String,
    kind: AuditKind,
    /// Id of the entry, node or cluster; null for others.
    id: Option<String>,
    /// The target, the name, or what else it is about.
    subject: String,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum AuditKind {
    EntryAdded,
    EntryRemoved,
    EntryUpdated,
    /// Somebody tried to remove or weaken a protected entry.
    ProtectedRefused,
    /// Addresses or status of a domain changed.
    Resolved,
    TokenAdded,
    TokenRemoved,
    ClusterInitialised,
    /// The cluster agreed on a feature level.
    FeaturesRaised,
    /// A node is about to be made a member.
    MemberAdding,
    /// A node became a voter.
    MemberAdded,
    /// A member is about to be taken out.
    MemberRemoving,
    /// A node is no member any more.
    MemberRemoved,
    /// Somebody asked that this node lead.
    LeaderChosen,
}

/// Shows who changed what, newest first
#[utoipa::path(get, path = "/api/v1/audit", tag = "about", params(AuditParams), responses(
    (status = 200, body = AuditPage),
    (status = 400, body = ProblemBody, content_type = "application/problem+json"),
    (status = 401, body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<AppState>,
    _: Viewer,
    Params(params): Params<AuditParams>,
) -> Result<At<Json<AuditPage>>, Problem> {
    let limit = paging::limit(params.limit, DEFAULT_PAGE_EVENTS, MAX_PAGE_EVENTS)?;
    let revision = app.read(params.consistency).await?.revision();
    let reader = app.cluster().reader();
    let wanted = |event: &Event| params.actor.as_ref().is_none_or(|actor| event.origin.actor == *actor);
    let mut before = params.before.unwrap_or(Revision::MAX);
    let mut events = Vec::new();
    let mut next_before = None;
    'pages: loop {
        let batches = reader.before(before, limit);
        let Some(oldest) = batches.last() else { break };
        before = oldest.revision;
        for batch in &batches {
            if events.len() >= limit {
                next_before = events.last().map(|event: &AuditEvent| event.revision);
                break 'pages;
            }
            let at = rfc3339(batch.at_ms);
            let of_batch = batch.events.iter().rev().filter(|event| wanted(event));
            events.extend(of_batch.map(|event| AuditEvent::new(batch.revision, &at, event)));
        }
    }
    Ok(At(revision, Json(AuditPage { events, next_before, complete_after: reader.history_after() })))
}

impl AuditEvent {
    fn new(revision: Revision, at: &str, event: &Event) -> Self {
        let (kind, id, subject) = describe(&event.kind);
        let Origin { actor, remote, request_id } = Origin::clone(&event.origin);
        Self { revision, at: at.to_owned(), actor, remote, request_id, kind, id, subject }
    }
}

/// With what DNS said when it was not simply an answer: that is why nothing moved.
fn resolved(domain: &DomainName, added: usize, retired: usize, status: &NameStatus) -> String {
    let counts = format!("{domain}: {added} addresses more, {retired} fewer");
    match status {
        NameStatus::Pending | NameStatus::Ok => counts,
        NameStatus::Stale { error, .. } => format!("{counts}; DNS fails: {error}"),
        NameStatus::NoSuchName => format!("{counts}; DNS says: no such name"),
        NameStatus::Refused { reason } => format!("{counts}; answers refused: {reason}"),
        NameStatus::Mixed { reason } => format!("{counts}; some answers refused: {reason}"),
    }
}

fn describe(kind: &EventKind) -> (AuditKind, Option<String>, String) {
    match kind {
        EventKind::EntryAdded(entry) => {
            (AuditKind::EntryAdded, Some(entry.id.to_string()), entry.target.to_string())
        }
        EventKind::EntryRemoved(entry) => {
            (AuditKind::EntryRemoved, Some(entry.id.to_string()), entry.target.to_string())
        }
        EventKind::EntryUpdated(entry) => {
            (AuditKind::EntryUpdated, Some(entry.id.to_string()), entry.target.to_string())
        }
        EventKind::ProtectedRefused(id) => (AuditKind::ProtectedRefused, Some(id.to_string()), String::new()),
        EventKind::Resolved(event) => {
            let Resolved { domain, added, retired, status } = &**event;
            (AuditKind::Resolved, None, resolved(domain, added.len(), retired.len(), status))
        }
        EventKind::TokenAdded(name) => (AuditKind::TokenAdded, None, name.clone()),
        EventKind::TokenRemoved(name) => (AuditKind::TokenRemoved, None, name.clone()),
        EventKind::ClusterInitialised(id) => {
            (AuditKind::ClusterInitialised, Some(id.to_string()), String::new())
        }
        EventKind::FeaturesRaised(level) => (AuditKind::FeaturesRaised, None, level.to_string()),
        EventKind::Member(event) => {
            let kind = match event.action {
                MemberAction::Adding => AuditKind::MemberAdding,
                MemberAction::Added => AuditKind::MemberAdded,
                MemberAction::Removing => AuditKind::MemberRemoving,
                MemberAction::Removed => AuditKind::MemberRemoved,
                MemberAction::Leads => AuditKind::LeaderChosen,
            };
            (kind, Some(event.id.to_string()), event.node.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_answer_is_told_with_upstream_and_address() {
        let status = NameStatus::Mixed { reason: "192.0.2.1:53 gave 10.0.0.1".to_owned() };
        let text = resolved(&"api.example.com".parse().unwrap(), 1, 0, &status);
        assert_eq!(
            text,
            "api.example.com: 1 addresses more, 0 fewer; some answers refused: 192.0.2.1:53 gave 10.0.0.1"
        );
    }
}
