//! The UI's session: a token exchanged for a cookie. The cookie holds the token itself, out of reach of scripts, so
//! that any node can check it and removing the token ends the session everywhere.

use axum::Json;
use axum::extract::{Extension, FromRequestParts, State};
use axum::http::header::{CACHE_CONTROL, SET_COOKIE};
use axum::http::request::Parts;
use axum::http::{HeaderName, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::input::Body;
use super::problem::{Code, Problem, ProblemBody};
use super::tokens::RoleName;
use super::{AppState, Transport};
use crate::auth::caller::SESSION_COOKIE;
use crate::auth::token::MAX_TOKEN_TEXT_BYTES;
use crate::auth::{Caller, Secret, same_origin};

/// How long a browser keeps the cookie, seconds: a working day.
const SESSION_S: u32 = 12 * 60 * 60;

type CookieAnswer = (StatusCode, [(HeaderName, String); 2]);

/// A token to log in with.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogIn {
    /// The token's text.
    #[schema(value_type = String)]
    token: Secret,
}

/// Who is logged in.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SessionView {
    /// The token's name.
    name: String,
    role: RoleName,
}

/// The request does not come from another site's page.
pub(super) struct OwnPage;

impl<S: Send + Sync> FromRequestParts<S> for OwnPage {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        same_origin::check_if_present(parts).map(|()| Self)
    }
}

/// Logs in: exchanges a token for the session cookie
#[utoipa::path(post, path = "/api/v1/session", tag = "session", request_body = LogIn, security(()), responses(
    (status = 204, description = "Logged in; the cookie is set"),
    (status = 401, body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn log_in(
    State(app): State<AppState>,
    Extension(transport): Extension<Transport>,
    _: OwnPage,
    Body(asked): Body<LogIn>,
) -> Result<CookieAnswer, Problem> {
    let text = asked.token.expose().trim();
    if text.len() > MAX_TOKEN_TEXT_BYTES || app.find_token(text).await?.is_none() {
        let detail = "the token is not known here; it was mistyped, removed, or belongs to another cluster";
        return Err(Problem::new(Code::Unauthorized, detail));
    }
    Ok(set_cookie(text, SESSION_S, transport))
}

/// Says who is logged in
#[utoipa::path(get, path = "/api/v1/session", tag = "session", responses(
    (status = 200, body = SessionView),
    (status = 401, body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn get(caller: Caller) -> Json<SessionView> {
    Json(SessionView { name: caller.name, role: caller.role.into() })
}

/// Logs out: takes the session cookie back
#[utoipa::path(delete, path = "/api/v1/session", tag = "session", security(()), responses(
    (status = 204, description = "Logged out")))]
pub(super) async fn log_out(Extension(transport): Extension<Transport>, _: OwnPage) -> CookieAnswer {
    set_cookie("", 0, transport)
}

fn set_cookie(value: &str, max_age_s: u32, transport: Transport) -> CookieAnswer {
    // `Secure` on plain HTTP would make browsers drop the cookie.
    let secure = if transport == Transport::Tls { "; Secure" } else { "" };
    let cookie =
        format!("{SESSION_COOKIE}={value}; Path=/; Max-Age={max_age_s}; HttpOnly; SameSite=Strict{secure}");
    (StatusCode::NO_CONTENT, [(SET_COOKIE, cookie), (CACHE_CONTROL, "no-store".to_owned())])
}
