//! The allowlist's entries.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::{SystemTime, UNIX_EPOCH};

use allowlist::entry::check_texts;
use allowlist::{EntryId, PortRange, Ports, Revision, Target, TargetError, linger};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use raft_store::command::{Command, CommandRefusal, EntryUpdate, NewEntry, Reply};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::entry_view::EntryView;
use super::input::{Params, Segment};
use super::once::{IdempotencyKey, Keyed, KeyedBody};
use super::problem::{Code, Problem, ProblemBody};
use super::revision::{Consistency, ReadParams, Tagged};
use super::search::Search;
use super::wait::{Receipt, WaitFor, WaitParams};
use super::{AppState, expiry, impact, paging};
use crate::auth::{EntryEditor, Viewer};

/// Entries on a page when the client does not say.
const DEFAULT_PAGE_ENTRIES: usize = 100;
/// Most entries on a page.
const MAX_PAGE_ENTRIES: usize = 1_000;

/// Which entries to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// Text in target, comment, owner or ticket; an address also finds what covers it.
    q: Option<String>,
    /// Entries on a page, 1 to 1,000; 100 when left out.
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// `linearizable` (the default) or `stale`.
    #[serde(default)]
    #[param(inline, required = false)]
    consistency: Consistency,
}

/// A page of entries, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EntryPage {
    /// The revision the page was read at.
    revision: Revision,
    entries: Vec<EntryView>,
    /// Give it as `cursor` for the next page; null on the last page.
    next_cursor: Option<String>,
}

/// An entry as it was at a revision.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EntryAt {
    /// The revision it was read at.
    revision: Revision,
    #[serde(flatten)]
    entry: EntryView,
}

/// What to add.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AddEntry {
    /// Domain, address or CIDR block.
    #[schema(example = "api.example.com")]
    pub(super) target: String,
    /// Such as `tcp/443` or `udp/5000-5010`; leave out for every protocol and port.
    #[serde(default)]
    pub(super) ports: Vec<String>,
    /// Protected entries can be neither deleted nor weakened.
    #[serde(default)]
    pub(super) protected: bool,
    #[serde(default)]
    pub(super) comment: String,
    #[serde(default)]
    pub(super) owner: String,
    #[serde(default)]
    pub(super) ticket: String,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    /// When the entry ends by itself, RFC 3339; null for never, as for every protected one.
    #[schema(example = "2030-01-31T18:00:00Z")]
    pub(super) expires_at: Option<String>,
}

/// An entry that was added, or was there.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AddedEntry)]
pub(super) struct Added {
    #[serde(flatten)]
    entry: EntryView,
    /// How far it came, when that was waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt: Option<Receipt>,
}

/// What to change; what is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateEntry {
    /// `true` protects; protection cannot be taken away.
    protected: Option<bool>,
    comment: Option<String>,
    owner: Option<String>,
    ticket: Option<String>,
    /// All labels.
    labels: Option<BTreeMap<String, String>>,
    /// When the entry ends by itself, RFC 3339; null for never. A protected entry never ends.
    #[serde(default, deserialize_with = "expiry::given")]
    #[schema(value_type = Option<String>)]
    expires_at: Option<Option<String>>,
}

/// Lists entries
#[utoipa::path(get, path = "/api/v1/entries", tag = "entries", params(ListParams), responses(
    (status = 200, body = EntryPage),
    (status = 304, description = "Unchanged since the revision in `if-none-match`"),
    (status = 400, body = ProblemBody, content_type = "application/problem+json"),
    (status = 401, body = ProblemBody, content_type = "application/problem+json"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<AppState>,
    _: Viewer,
    Params(params): Params<ListParams>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let limit = paging::limit(params.limit, DEFAULT_PAGE_ENTRIES, MAX_PAGE_ENTRIES)?;
    let after =
        paging::cursor(params.cursor.as_deref())?.map_or(Bound::Unbounded, Bound::<EntryId>::Excluded);
    let search = params.q.as_deref().map(Search::new);
    let state = app.read(params.consistency).await?;
    let mut found = state
        .entries()
        .range((after, Bound::Unbounded))
        .filter(|entry| search.as_ref().is_none_or(|search| search.finds(entry, &state)));
    let mut last = None;
    let mut entries = Vec::new();
    for entry in found.by_ref().take(limit) {
        entries.push(EntryView::new(entry, &state, app.asked()));
        last = Some(entry.id);
    }
    let next_cursor = found.next().and(last).map(|id| id.to_string());
    let revision = state.revision();
    Ok(Tagged(revision, Json(EntryPage { revision, entries, next_cursor })).answer(&headers))
}

/// Adds an entry, or returns the one with the same target and ports
#[utoipa::path(post, path = "/api/v1/entries", tag = "entries", request_body = AddEntry,
    params(WaitParams, IdempotencyKey), responses(
    (status = 201, body = Added, description = "Added"),
    (status = 200, body = Added, description = "It was there: same target and ports"),
    (status = 403, body = ProblemBody, content_type = "application/problem+json"),
    (status = 422, body = ProblemBody, content_type = "application/problem+json"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json"),
    (status = 504, body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn add(
    State(app): State<AppState>,
    EntryEditor(caller): EntryEditor,
    Params(wait): Params<WaitParams>,
    KeyedBody(asked, once): KeyedBody<AddEntry>,
) -> Result<Response, Problem> {
    let wait = wait.check()?;
    let new = asked.check()?;
    let written = app.write(&caller, once, Command::AddEntry(new.clone())).await?;
    let Reply::Added { id, created } = written.reply else {
        return Err(Problem::new(Code::Internal, "adding was answered with something else"));
    };
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    let receipt = match wait {
        Some(wait) => Some(app.receipt(wait, written.revision, Some(id)).await),
        None => None,
    };
    let entry = match app.view(id) {
        Ok(view) => view,
        // The answer to a request that is repeated after the entry went is what it was: the entry that was made.
        Err(_) if written.replayed && created => {
            let at_ms = written.at_ms.unwrap_or_default();
            EntryView::new(&NewEntry { id, ..new }.made_by(&caller.name, at_ms), &app.local(), app.asked())
        }
        Err(gone) => return Err(gone.replayed(written.replayed)),
    };
    Ok(written.answer((status, Json(Added { entry, receipt }))))
}

/// Returns an entry
#[utoipa::path(get, path = "/api/v1/entries/{id}", tag = "entries",
    params(("id" = String, Path, description = "The entry's id"), ReadParams), responses(
    (status = 200, body = EntryAt),
    (status = 404, body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn get(
    State(app): State<AppState>,
    _: Viewer,
    Segment(id): Segment,
    Params(params): Params<ReadParams>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = parse_id(&id)?;
    let state = app.read(params.consistency).await?;
    let entry = state.entries().get(&id).ok_or(CommandRefusal::NoSuchEntry(id))?;
    let revision = state.revision();
    let entry = EntryAt { revision, entry: EntryView::new(entry, &state, app.asked()) };
    Ok(Tagged(revision, Json(entry)).answer(&headers))
}

/// Changes the texts of an entry, protects it, or says when it ends
#[utoipa::path(patch, path = "/api/v1/entries/{id}", tag = "entries", request_body = UpdateEntry,
    params(("id" = String, Path, description = "The entry's id"), IdempotencyKey), responses(
    (status = 200, body = EntryView),
    (status = 404, body = ProblemBody, content_type = "application/problem+json"),
    (status = 409, body = ProblemBody, content_type = "application/problem+json", description = "It is protected"),
    (status = 422, body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn update(
    State(app): State<AppState>,
    EntryEditor(caller): EntryEditor,
    Segment(id): Segment,
    KeyedBody(asked, once): KeyedBody<UpdateEntry>,
) -> Result<Response, Problem> {
    let id = parse_id(&id)?;
    let written = app.write(&caller, once, asked.check(id)?).await?;
    let view = app.view(id).map_err(|gone| gone.replayed(written.replayed))?;
    Ok(written.answer(Json(view)))
}

/// Whether to remove at all.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct RemoveParams {
    /// `true` only shows what the removal would do.
    #[param(required = false)]
    dry_run: bool,
    /// `applied`: answer when every gateway with a session holds the removal in its kernel, with a receipt.
    #[param(inline, required = false)]
    wait: Option<WaitFor>,
    /// At most so many seconds, 1 to 6; 5 when left out.
    #[param(required = false, minimum = 1, maximum = 6)]
    wait_s: Option<u64>,
}

/// What a removal is answered with when it was waited for.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RemovedEntry)]
pub(super) struct Removed {
    receipt: Receipt,
}

/// Removes an entry; flows that only it allowed are cut
#[utoipa::path(delete, path = "/api/v1/entries/{id}", tag = "entries",
    params(("id" = String, Path, description = "The entry's id"), RemoveParams, IdempotencyKey), responses(
    (status = 200, body = impact::Impact, description = "What it would do (`dry_run=true`); with `wait` a RemovedEntry"),
    (status = 204, description = "Removed"),
    (status = 404, body = ProblemBody, content_type = "application/problem+json"),
    (status = 409, body = ProblemBody, content_type = "application/problem+json", description = "It is protected")))]
pub(super) async fn remove(
    State(app): State<AppState>,
    EntryEditor(caller): EntryEditor,
    Segment(id): Segment,
    Params(params): Params<RemoveParams>,
    Keyed(once): Keyed,
) -> Result<Response, Problem> {
    let id = parse_id(&id)?;
    if params.dry_run {
        let state = app.read(Consistency::default()).await?;
        return Ok(Json(impact::of(&state, id)?).into_response());
    }
    let wait = WaitParams { wait: params.wait, wait_s: params.wait_s }.check()?;
    let written = app.write(&caller, once, Command::RemoveEntry { id }).await?;
    let Some(wait) = wait else { return Ok(written.answer(StatusCode::NO_CONTENT)) };
    let receipt = app.receipt(wait, written.revision, None).await;
    Ok(written.answer(Json(Removed { receipt })))
}

impl AppState {
    /// An entry after a write of this node, which has applied it.
    fn view(&self, id: EntryId) -> Result<EntryView, Problem> {
        let state = self.local();
        let entry = state.entries().get(&id).ok_or_else(|| {
            Problem::new(Code::NotFound, format!("entry {id} was removed by someone else in the same moment"))
        })?;
        Ok(EntryView::new(entry, &state, self.asked()))
    }
}

impl AddEntry {
    pub(super) fn check(self) -> Result<NewEntry, Problem> {
        let target = parse_target(&self.target)?;
        let ports = parse_ports(&self.ports)?;
        check_texts(&self.comment, &self.owner, &self.ticket, &self.labels)
            .map_err(|error| Problem::new(Code::TextTooLong, error.to_string()))?;
        check_linger(&self.labels)?;
        let expires_at_ms = self.expires_at.as_deref().map(expiry::parse).transpose()?;
        if self.protected && expires_at_ms.is_some() {
            return Err(expiry::of_protected());
        }
        Ok(NewEntry {
            id: EntryId(Uuid::now_v7()),
            target,
            ports,
            protected: self.protected,
            comment: self.comment.into(),
            owner: self.owner.into(),
            ticket: self.ticket.into(),
            labels: self.labels.into(),
            expires_at_ms,
        })
    }
}

impl UpdateEntry {
    fn check(self, id: EntryId) -> Result<Command, Problem> {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let labels = self.labels.clone().unwrap_or_default();
        check_texts(&text(&self.comment), &text(&self.owner), &text(&self.ticket), &labels)
            .map_err(|error| Problem::new(Code::TextTooLong, error.to_string()))?;
        check_linger(&labels)?;
        let update = EntryUpdate {
            protected: self.protected,
            comment: self.comment.map(Into::into),
            owner: self.owner.map(Into::into),
            ticket: self.ticket.map(Into::into),
            labels: self.labels.map(Into::into),
        };
        let Some(expires_at) = self.expires_at else { return Ok(Command::UpdateEntry { id, update }) };
        let expires_at_ms = expires_at.as_deref().map(expiry::parse).transpose()?;
        if update.protected == Some(true) && expires_at_ms.is_some() {
            return Err(expiry::of_protected());
        }
        Ok(Command::ChangeEntry { id, update, expires_at_ms })
    }
}

fn check_linger(labels: &BTreeMap<String, String>) -> Result<(), Problem> {
    let checked = linger::of_labels(labels);
    checked.map(drop).map_err(|error| Problem::new(Code::InvalidLinger, error.to_string()))
}

impl From<CommandRefusal> for Problem {
    fn from(refusal: CommandRefusal) -> Self {
        let code = match refusal {
            CommandRefusal::NoSuchEntry(_) | CommandRefusal::NoSuchToken(_) => Code::NotFound,
            CommandRefusal::Protected(_) => Code::Protected,
            CommandRefusal::LastAdmin(_) => Code::LastAdmin,
            CommandRefusal::TokenExists(_) => Code::TokenExists,
            CommandRefusal::KeyReused(_) => Code::IdempotencyKeyReused,
            // Ids are drawn by this server: that one exists is its fault, not the caller's.
            CommandRefusal::IdTaken(_) => Code::Internal,
        };
        Self::new(code, refusal.to_string())
    }
}

pub(super) fn parse_id(text: &str) -> Result<EntryId, Problem> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(64).collect();
        let detail =
            format!("`{shown}` is not an entry's id; ids are UUIDs, GET /api/v1/entries?q=… finds them");
        Problem::new(Code::InvalidId, detail)
    })
}

fn parse_target(text: &str) -> Result<Target, Problem> {
    let target: Target = text.parse().map_err(|error: TargetError| {
        let code = match &error {
            TargetError::NotPublic(_) => Code::NotPublic,
            _ => Code::InvalidTarget,
        };
        Problem::new(code, error.to_string())
    })?;
    if let Target::Wildcard { suffix, .. } = &target {
        let detail = format!(
            "`{target}` is a wildcard: gateways cannot learn names yet; add the names below {suffix} one by one"
        );
        return Err(Problem::new(Code::WildcardUnsupported, detail));
    }
    Ok(target)
}

fn parse_ports(texts: &[String]) -> Result<Ports, Problem> {
    let ranges: Result<Vec<PortRange>, _> = texts.iter().map(|text| text.parse()).collect();
    ranges.and_then(Ports::new).map_err(|error| Problem::new(Code::InvalidPorts, error.to_string()))
}

/// This node's wall clock, Unix milliseconds.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
