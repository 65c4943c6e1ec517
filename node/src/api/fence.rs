//! A node that does not belong to its cluster any more serves nobody: what it holds is out of date and stays so.

use super::AppState;
use super::problem::{Code, Problem};

/// Everything that reads or writes the state is refused, with the reason. Health, metrics and the page go on, so that
/// people can see what is wrong.
pub(super) fn check_open(app: &AppState, path: &str) -> Result<(), Problem> {
    let of_the_state = path.starts_with("/api/") || path == "/api" || path.starts_with("/ws");
    match app.cluster().fenced().filter(|_| of_the_state && path != "/api/v1/openapi.json") {
        Some(reason) => Err(Problem::new(Code::NotAMember, format!("{reason}; ask another node"))),
        None => Ok(()),
    }
}
