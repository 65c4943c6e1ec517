//! API tokens. The text of a token is shown once, when it is made.

use allowlist::Revision;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::Response;
use raft_store::command::{Command, Role, Token};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::entries::now_ms;
use super::entry_view::rfc3339;
use super::input::{Params, Segment};
use super::once::{IdempotencyKey, Keyed, KeyedBody};
use super::problem::{Code, Problem, ProblemBody};
use super::revision::{At, ReadParams};
use crate::auth::Admin;
use crate::auth::token::{self, MAX_TOKEN_NAME_CHARS, role_name};

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum RoleName {
    /// Opens a gateway feed, nothing else.
    Gateway,
    /// Reads.
    Viewer,
    /// Adds and removes entries.
    Editor,
    /// Everything.
    Admin,
}

/// A token to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AddToken {
    /// Names the caller in the audit log; letters, digits, `.`, `_`, `-`, at most 64.
    #[schema(example = "gateway-1")]
    name: String,
    role: RoleName,
}

/// A new token. Its text cannot be read again.
#[derive(Serialize, ToSchema)]
pub(super) struct NewToken {
    name: String,
    role: RoleName,
    /// The secret.
    token: String,
}

/// A token without its secret.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Token)]
pub(super) struct TokenView {
    name: String,
    role: RoleName,
    /// RFC 3339.
    created_at: String,
}

/// All tokens, sorted by name.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TokenList {
    /// The revision they were read at.
    revision: Revision,
    tokens: Vec<TokenView>,
}

/// Lists tokens, without their secrets
#[utoipa::path(get, path = "/api/v1/tokens", tag = "tokens", params(ReadParams), responses(
    (status = 200, body = TokenList),
    (status = 403, body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<AppState>,
    _: Admin,
    Params(params): Params<ReadParams>,
) -> Result<At<Json<TokenList>>, Problem> {
    let state = app.read(params.consistency).await?;
    let tokens = state.tokens().values().map(|token| TokenView {
        name: token.name.clone(),
        role: token.role.into(),
        created_at: rfc3339(token.created_at_ms),
    });
    let revision = state.revision();
    Ok(At(revision, Json(TokenList { revision, tokens: tokens.collect() })))
}

/// Makes a token
#[utoipa::path(post, path = "/api/v1/tokens", tag = "tokens", request_body = AddToken, params(IdempotencyKey), responses(
    (status = 201, body = NewToken, description = "Made; its text is shown only here"),
    (status = 409, body = ProblemBody, content_type = "application/problem+json", description = "The name is taken"),
    (status = 422, body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn add(
    State(app): State<AppState>,
    Admin(caller): Admin,
    KeyedBody(asked, once): KeyedBody<AddToken>,
) -> Result<Response, Problem> {
    check_name(&asked.name)?;
    let role = Role::from(asked.role);
    let secret = token::generate(role);
    let stored = Token {
        name: asked.name.clone(),
        role,
        sha256: token::sha256(secret.expose()),
        created_at_ms: now_ms(),
    };
    let sha256 = stored.sha256;
    let written = app.write(&caller, once, Command::AddToken(stored)).await?;
    // The text of the token is with whoever got the first answer. (This server may have had to ask twice itself: then
    // the secret that stands is its own.)
    if written.replayed && app.local().tokens().get(&asked.name).is_none_or(|token| token.sha256 != sha256) {
        let detail = format!(
            "this request made the token {} before, and its text was shown then; remove it and make another one",
            asked.name
        );
        return Err(Problem::new(Code::TokenExists, detail).replayed(true));
    }
    tracing::info!(actor = %caller.name, token = %asked.name, role = role_name(role), "token made");
    let answer = NewToken { name: asked.name, role: asked.role, token: secret.expose().to_owned() };
    Ok(written.answer((StatusCode::CREATED, [(CACHE_CONTROL, "no-store")], Json(answer))))
}

/// Removes a token; feeds opened with it end
#[utoipa::path(delete, path = "/api/v1/tokens/{name}", tag = "tokens",
    params(("name" = String, Path, description = "The token's name"), IdempotencyKey), responses(
    (status = 204, description = "Removed"),
    (status = 404, body = ProblemBody, content_type = "application/problem+json"),
    (status = 409, body = ProblemBody, content_type = "application/problem+json", description = "The last admin token")))]
pub(super) async fn remove(
    State(app): State<AppState>,
    Admin(caller): Admin,
    Segment(name): Segment,
    Keyed(once): Keyed,
) -> Result<Response, Problem> {
    check_name(&name)?;
    let written = app.write(&caller, once, Command::RemoveToken { name: name.clone() }).await?;
    tracing::info!(actor = %caller.name, token = %name, "token removed");
    Ok(written.answer(StatusCode::NO_CONTENT))
}

fn check_name(name: &str) -> Result<(), Problem> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.chars().count() > MAX_TOKEN_NAME_CHARS || !name.chars().all(legal) {
        let detail =
            format!("a token's name has 1 to {MAX_TOKEN_NAME_CHARS} letters, digits, `.`, `_` or `-`");
        return Err(Problem::new(Code::InvalidName, detail));
    }
    Ok(())
}

impl From<Role> for RoleName {
    fn from(role: Role) -> Self {
        match role {
            Role::Gateway => Self::Gateway,
            Role::Viewer => Self::Viewer,
            Role::Editor => Self::Editor,
            Role::Admin => Self::Admin,
        }
    }
}

impl From<RoleName> for Role {
    fn from(role: RoleName) -> Self {
        match role {
            RoleName::Gateway => Self::Gateway,
            RoleName::Viewer => Self::Viewer,
            RoleName::Editor => Self::Editor,
            RoleName::Admin => Self::Admin,
        }
    }
}
