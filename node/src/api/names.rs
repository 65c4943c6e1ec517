//! The domains of the list and how they stand with DNS.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use allowlist::{DomainName, Revision};
use axum::Json;
use axum::extract::State;
use raft_store::state::{Resolution, State as AllowlistState};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::entry_view::{Said, rfc3339};
use super::input::Params;
use super::problem::{Code, Problem, ProblemBody};
use super::revision::Consistency;
use super::{AppState, paging};
use crate::auth::Viewer;
use crate::cluster::MAX_NAMES_ASKED;
use crate::resolver::{NameLookups, Standing};

const DEFAULT_PAGE_NAMES: usize = 100;
/// How long the leader has to say what its lookups came to.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// Which names to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// Only names in one of these states, such as `stale,refused`.
    #[param(required = false, example = "stale,refused")]
    state: Option<String>,
    /// Only this name.
    #[param(required = false)]
    name: Option<String>,
    /// Only names that contain this text.
    #[param(required = false)]
    q: Option<String>,
    /// Names on a page, 1 to 1,000; 100 when left out.
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// `linearizable` (the default) or `stale`.
    #[serde(default)]
    #[param(inline, required = false)]
    consistency: Consistency,
}

/// A page of names, in their order.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct NamePage {
    /// The revision the page was read at.
    revision: Revision,
    /// How many names of the whole list are in each state, whatever was asked for.
    states: BTreeMap<&'static str, usize>,
    names: Vec<NameView>,
    /// Give it as `cursor` for the next page; null on the last page.
    next_cursor: Option<String>,
    /// False when the leader did not say how its lookups go: `lookups` is null then.
    leader_answered: bool,
}

/// A domain of the list.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Name)]
struct NameView {
    name: String,
    #[serde(flatten)]
    said: Said,
    /// How many of its addresses are published.
    addresses: usize,
    lookups: Option<LookupsView>,
}

/// How the lookups of a name go since the present leader leads.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = NameLookups)]
struct LookupsView {
    /// When an upstream last gave an answer, be it that there is nothing; RFC 3339.
    last_answer: Option<String>,
    /// The last lookup that failed, even if others succeeded since.
    last_error: Option<ErrorView>,
    /// When the name is asked for again; RFC 3339.
    next_try: Option<String>,
}

/// A lookup that failed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LookupError)]
struct ErrorView {
    /// RFC 3339.
    at: String,
    upstream: String,
    error: String,
}

/// Lists the domains with what DNS says of them
///
/// The state is the cluster's; how lookups go is known to the leader, which is asked.
#[utoipa::path(get, path = "/api/v1/names", tag = "entries", params(Filter), responses(
    (status = 200, body = NamePage),
    (status = 400, body = ProblemBody, content_type = "application/problem+json"),
    (status = 401, body = ProblemBody, content_type = "application/problem+json"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<AppState>,
    _: Viewer,
    Params(filter): Params<Filter>,
) -> Result<Json<NamePage>, Problem> {
    let limit = paging::limit(filter.limit, DEFAULT_PAGE_NAMES, MAX_NAMES_ASKED)?;
    let after = paging::cursor::<DomainName>(filter.cursor.as_deref())?;
    let wanted = filter.state.as_deref().map(read_states).transpose()?;
    let only = filter.name.as_deref().map(read_name).transpose()?;
    let text = filter.q.map(|text| text.trim().to_ascii_lowercase()).unwrap_or_default();
    let state = app.read(filter.consistency).await?;
    let standing = |name: &DomainName, found: &Resolution| Standing::of(name, found, &state);
    let begin = after.map_or(Bound::Unbounded, Bound::Excluded);
    let range = match only {
        Some(only) => (Bound::Included(only.clone()), Bound::Included(only)),
        None => (begin, Bound::Unbounded),
    };
    let mut found = state.resolutions().range(range).filter(|(name, resolution)| {
        name.as_str().contains(&text)
            && wanted.as_ref().is_none_or(|wanted| wanted.contains(&standing(name, resolution)))
    });
    let page: Vec<DomainName> = found.by_ref().take(limit).map(|(name, _)| name.clone()).collect();
    let next_cursor = found.next().and(page.last()).map(ToString::to_string);
    let lookups = app.cluster().name_lookups(&page, ASK_TIMEOUT).await;
    let leader_answered = lookups.is_some();
    let mut lookups = lookups.into_iter().flatten();
    let names = page.iter().filter_map(|name| {
        let lookups = lookups.next();
        let resolution = state.resolutions().get(name)?;
        Some(NameView::new(name, resolution, &state, lookups))
    });
    let names = names.collect();
    Ok(Json(NamePage {
        revision: state.revision(),
        states: count(&state),
        names,
        next_cursor,
        leader_answered,
    }))
}

fn count(state: &AllowlistState) -> BTreeMap<&'static str, usize> {
    let mut states: BTreeMap<_, _> = Standing::ALL.map(|standing| (standing.label(), 0)).into();
    for (name, resolution) in state.resolutions() {
        *states.entry(Standing::of(name, resolution, state).label()).or_default() += 1;
    }
    states
}

fn read_name(text: &str) -> Result<DomainName, Problem> {
    text.parse().map_err(|error| Problem::new(Code::InvalidQuery, format!("name: {error}")))
}

fn read_states(text: &str) -> Result<Vec<Standing>, Problem> {
    let read = |label: &str| {
        let found = Standing::ALL.into_iter().find(|standing| standing.label() == label.trim());
        found.ok_or_else(|| {
            let all: Vec<_> = Standing::ALL.map(Standing::label).into();
            let given: String = label.chars().take(30).collect();
            let detail = format!("state `{given}` is none; there are {}", all.join(", "));
            Problem::new(Code::InvalidQuery, detail)
        })
    };
    text.split(',').map(read).collect()
}

impl NameView {
    fn new(
        name: &DomainName,
        resolution: &Resolution,
        state: &AllowlistState,
        lookups: Option<NameLookups>,
    ) -> Self {
        Self {
            name: name.to_string(),
            said: Said::of(name, resolution, state),
            addresses: resolution.addresses.len(),
            lookups: lookups.map(LookupsView::from),
        }
    }
}

impl From<NameLookups> for LookupsView {
    fn from(lookups: NameLookups) -> Self {
        let NameLookups { last_answer_ms, last_error, next_try_ms } = lookups;
        Self {
            last_answer: last_answer_ms.map(rfc3339),
            last_error: last_error.map(|failed| ErrorView {
                at: rfc3339(failed.at_ms),
                upstream: failed.upstream,
                error: failed.error,
            }),
            next_try: next_try_ms.map(rfc3339),
        }
    }
}
