//! What gateways proved: the flows they cut for revocations.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::entry_view::rfc3339;
use super::input::Params;
use super::problem::{Problem, ProblemBody};
use super::{AppState, paging};
use crate::auth::Viewer;
use crate::feed::receipts::{CutPage, CutReceipt};

const DEFAULT_PAGE_RECEIPTS: usize = 50;
const MAX_PAGE_RECEIPTS: usize = 200;

/// What to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// Only of this gateway.
    #[param(required = false)]
    gateway: Option<String>,
    /// Only of this revision and later ones.
    #[param(required = false)]
    since: Option<u64>,
    /// At most so many, from 1 to 200; 50 when left out. A page that would show more than 20,000 elements is shorter.
    #[param(required = false, minimum = 1, maximum = 200)]
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    #[param(required = false)]
    cursor: Option<String>,
}

/// A page of receipts.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CutReceiptPage {
    /// Newest first.
    receipts: Vec<CutView>,
    /// Give it as `cursor` for the next page; null on the last page.
    next_cursor: Option<String>,
}

/// Flows that a gateway took out of its kernel's table, for one reason.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CutReceipt)]
struct CutView {
    gateway: String,
    /// Newest revision whose consequences it shows.
    revision: u64,
    /// `revoked`, `drained`, `stale` or `source_shown`.
    cause: &'static str,
    /// How many flows; 0 says that none was open.
    flows: u64,
    /// How many of them the kernel had not counted.
    uncounted: u64,
    /// Bytes the counted ones had moved towards the internet since they began.
    bytes_out: u64,
    /// Bytes from the internet.
    bytes_in: u64,
    /// RFC 3339.
    at: String,
    /// Time from the change of the kernel's sets to the end of the last flow, microseconds.
    took_us: u64,
    /// Elements with most flows first, at most 1,000.
    elements: Vec<CutElementView>,
}

/// The part of one element.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CutElement)]
struct CutElementView {
    element: String,
    flows: u64,
    bytes_out: u64,
    bytes_in: u64,
}

/// Shows flows that gateways cut
///
/// Newest first: what gateways with a session on the answering node said since it started, the newest 1,000. Pages go on
/// at the node that showed the first one.
#[utoipa::path(get, path = "/api/v1/receipts/cuts", tag = "about", params(Filter), responses(
    (status = 200, body = CutReceiptPage),
    (status = 400, body = ProblemBody, content_type = "application/problem+json"),
    (status = 401, body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn cuts(
    State(app): State<AppState>,
    _: Viewer,
    Params(filter): Params<Filter>,
) -> Result<Json<CutReceiptPage>, Problem> {
    let limit = paging::limit(filter.limit, DEFAULT_PAGE_RECEIPTS, MAX_PAGE_RECEIPTS)?;
    let before = paging::cursor(filter.cursor.as_deref())?;
    let CutPage { receipts, next_before } = app.sessions().receipts().page(before, limit, |receipt| {
        filter.gateway.as_deref().is_none_or(|gateway| *gateway == *receipt.gateway)
            && filter.since.is_none_or(|since| receipt.report.revision >= since)
    });
    Ok(Json(CutReceiptPage {
        receipts: receipts.iter().map(CutView::from).collect(),
        next_cursor: next_before.map(|before| before.to_string()),
    }))
}

impl From<&CutReceipt> for CutView {
    fn from(CutReceipt { gateway, report, .. }: &CutReceipt) -> Self {
        let element = |part: &allowlist::feed::CutElement| CutElementView {
            element: part.element.to_string(),
            flows: part.flows,
            bytes_out: part.bytes_out,
            bytes_in: part.bytes_in,
        };
        Self {
            gateway: gateway.as_ref().to_owned(),
            revision: report.revision,
            cause: report.cause.word(),
            flows: report.flows,
            uncounted: report.uncounted,
            bytes_out: report.bytes_out,
            bytes_in: report.bytes_in,
            at: rfc3339(report.at_ms),
            took_us: report.took_us,
            elements: report.elements.iter().map(element).collect(),
        }
    }
}
