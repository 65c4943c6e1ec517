//! What gateways proved: the flows they cut for revocations.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::AppState;
use super::entry_view::rfc3339;
use super::input::Params;
use super::problem::{Problem, ProblemBody};
use crate::auth::Viewer;
use crate::feed::receipts::{CutReceipt, MAX_CUT_RECEIPTS};

/// What to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// Only of this gateway.
    gateway: Option<String>,
    /// Only of this revision and later ones.
    since: Option<u64>,
}

/// Flows that a gateway took out of its kernel's table, for one reason.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CutReceipt)]
pub(super) struct CutView {
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
/// Newest first, at most 1,000: what gateways with a session on the answering node said since it started.
#[utoipa::path(get, path = "/api/v1/receipts/cuts", tag = "about", params(Filter), responses(
    (status = 200, body = Vec<CutView>),
    (status = 400, body = ProblemBody, content_type = "application/problem+json"),
    (status = 401, body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn cuts(
    State(app): State<AppState>,
    _: Viewer,
    Params(filter): Params<Filter>,
) -> Result<Json<Vec<CutView>>, Problem> {
    let receipts = app.sessions().receipts().newest(MAX_CUT_RECEIPTS, |receipt| {
        filter.gateway.as_ref().is_none_or(|gateway| *gateway == receipt.gateway)
            && filter.since.is_none_or(|since| receipt.report.revision >= since)
    });
    Ok(Json(receipts.into_iter().map(CutView::from).collect()))
}

impl From<CutReceipt> for CutView {
    fn from(CutReceipt { gateway, report }: CutReceipt) -> Self {
        let element = |part: allowlist::feed::CutElement| CutElementView {
            element: part.element.to_string(),
            flows: part.flows,
            bytes_out: part.bytes_out,
            bytes_in: part.bytes_in,
        };
        Self {
            gateway,
            revision: report.revision,
            cause: report.cause.word(),
            flows: report.flows,
            uncounted: report.uncounted,
            bytes_out: report.bytes_out,
            bytes_in: report.bytes_in,
            at: rfc3339(report.at_ms),
            took_us: report.took_us,
            elements: report.elements.into_iter().map(element).collect(),
        }
    }
}
