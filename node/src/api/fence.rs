//! A node that does not belong to its cluster any more serves nobody: what it holds is out of date and stays so.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::AppState;
use super::problem::{Code, Problem};

/// Middleware: everything that reads or writes the state is refused, with the reason. Health, metrics and the page go
/// on, so that people can see what is wrong.
pub(super) async fn refuse_when_closed(
    State(app): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    let of_the_state = path.starts_with("/api/") || path == "/api" || path.starts_with("/ws");
    match app.cluster().fenced().filter(|_| of_the_state && path != "/api/v1/openapi.json") {
        Some(reason) => Problem::new(Code::NotAMember, format!("{reason}; ask another node")).into_response(),
        None => next.run(request).await,
    }
}
