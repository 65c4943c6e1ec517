//! The caller of a request: extractors that let a handler say which role it needs.

use std::net::SocketAddr;

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::header::{AUTHORIZATION, COOKIE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method};
use raft_store::command::{Origin, Role, Token};
use tower_http::request_id::RequestId;

use super::{same_origin, token};
use crate::api::AppState;
use crate::api::problem::{Code, Problem};

/// Name of the UI's session cookie. Its value is the token's text, so that every node can check it.
pub const SESSION_COOKIE: &str = "og_session";

/// Who sent a request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Name of the token.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Hash of the token, to see later whether it still stands.
    pub sha256: [u8; 32],
    /// Address the request came from, empty when unknown.
    pub remote: String,
    /// The request's id.
    pub request_id: String,
}

impl Caller {
    /// For the audit log.
    pub fn origin(&self) -> Origin {
        Origin { actor: self.name.clone(), remote: self.remote.clone(), request_id: self.request_id.clone() }
    }

    /// Name and hash of its token, for `Cluster::propose_for`.
    pub(crate) fn token(&self) -> (String, [u8; 32]) {
        (self.name.clone(), self.sha256)
    }

    fn require(self, needed: Role) -> Result<Self, Problem> {
        if self.role >= needed { Ok(self) } else { Err(self.lacks(token::role_name(needed))) }
    }

    fn lacks(&self, needed: &str) -> Problem {
        let has = token::role_name(self.role);
        Problem::new(
            Code::Forbidden,
            format!("this needs the role {needed}; token `{}` has the role {has}", self.name),
        )
    }
}

/// A caller that may read.
#[derive(Debug, Clone)]
pub struct Viewer(pub Caller);

/// A caller that may change entries.
#[derive(Debug, Clone)]
pub struct Editor(pub Caller);

/// As [`Editor`], for handlers that change nothing but by `AppState::write`: that looks once more whether the token still
/// stands, where the write enters the log, so here what this node knows of the token is enough.
#[derive(Debug, Clone)]
pub struct EntryEditor(pub Caller);

/// A caller that may do everything.
#[derive(Debug, Clone)]
pub struct Admin(pub Caller);

/// A caller that may do everything as far as this node itself knows: for what is done when nobody else can be asked.
#[derive(Debug, Clone)]
pub struct LocalAdmin(pub Caller);

/// A caller that may open a feed: exactly gateways, and admins to look at it.
#[derive(Debug, Clone)]
pub struct FeedClient(pub Caller);

/// How sure it must be that a token was not removed a moment ago on another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// This node knows the token; what is done with it is checked again, or only reads.
    AsKnownHere,
    /// Nobody has removed it before the request.
    Confirmed,
}

/// Any valid token.
impl FromRequestParts<AppState> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &AppState) -> Result<Self, Problem> {
        let standing = if reads(parts) { Standing::AsKnownHere } else { Standing::Confirmed };
        Self::find(parts, app, standing).await
    }
}

fn reads(parts: &Parts) -> bool {
    matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS)
}

impl Caller {
    async fn find(parts: &Parts, app: &AppState, standing: Standing) -> Result<Self, Problem> {
        let remote = remote(parts);
        let (text, by_cookie) = match bearer(&parts.headers)? {
            Some(text) => (text, false),
            None => match cookie(&parts.headers) {
                Some(text) => (text, true),
                None => {
                    return Err(Problem::new(
                        Code::Unauthorized,
                        "no token; send `Authorization: Bearer og_…` or log in with POST /api/v1/session",
                    ));
                }
            },
        };
        let token = match standing {
            Standing::AsKnownHere => app.find_token(text).await?,
            Standing::Confirmed => app.find_token_to_write(text).await?,
        };
        let Some(Token { name, role, sha256, .. }) = token else {
            tracing::info!(%remote, path = parts.uri.path(), "refused an unknown token");
            return Err(Problem::new(
                Code::Unauthorized,
                "the token is not known here; it was mistyped, removed, or belongs to another cluster",
            ));
        };
        if by_cookie && !reads(parts) {
            same_origin::check(parts)?;
        }
        Ok(Self { name, role, sha256, remote, request_id: request_id(parts) })
    }
}

impl FromRequestParts<AppState> for Viewer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &AppState) -> Result<Self, Problem> {
        Caller::from_request_parts(parts, app).await?.require(Role::Viewer).map(Self)
    }
}

impl FromRequestParts<AppState> for Editor {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &AppState) -> Result<Self, Problem> {
        Caller::from_request_parts(parts, app).await?.require(Role::Editor).map(Self)
    }
}

impl FromRequestParts<AppState> for EntryEditor {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &AppState) -> Result<Self, Problem> {
        Caller::find(parts, app, Standing::AsKnownHere).await?.require(Role::Editor).map(Self)
    }
}

impl FromRequestParts<AppState> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &AppState) -> Result<Self, Problem> {
        Caller::from_request_parts(parts, app).await?.require(Role::Admin).map(Self)
    }
}

impl FromRequestParts<AppState> for LocalAdmin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &AppState) -> Result<Self, Problem> {
        let found = bearer(&parts.headers)?.and_then(|text| app.token_here(text));
        let Some(Token { name, role, sha256, .. }) = found else {
            let detail = "this needs `Authorization: Bearer …` with an admin token that this node knows";
            return Err(Problem::new(Code::Unauthorized, detail));
        };
        let (remote, request_id) = (remote(parts), request_id(parts));
        Caller { name, role, sha256, remote, request_id }.require(Role::Admin).map(Self)
    }
}

impl FromRequestParts<AppState> for FeedClient {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &AppState) -> Result<Self, Problem> {
        // A browser's upgrade always names its origin; a gateway's never does.
        same_origin::check_if_present(parts)?;
        let caller = Caller::from_request_parts(parts, app).await?;
        match caller.role {
            Role::Gateway | Role::Admin => Ok(Self(caller)),
            Role::Viewer | Role::Editor => Err(caller.lacks("gateway")),
        }
    }
}

/// The address of the other end, as the listener put it into the request.
pub(crate) fn remote(parts: &Parts) -> String {
    parts.extensions.get::<ConnectInfo<SocketAddr>>().map_or_else(String::new, |info| info.0.ip().to_string())
}

fn request_id(parts: &Parts) -> String {
    let id = parts.extensions.get::<RequestId>().and_then(|id| id.header_value().to_str().ok());
    id.unwrap_or_default().to_owned()
}

/// The token in `Authorization`; a header of another scheme is an error, so that a mistake does not fall back to a
/// cookie unseen.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(value) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let text = value.to_str().ok().and_then(|text| text.split_once(' '));
    match text {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && usable(token.trim()) => {
            Ok(Some(token.trim()))
        }
        _ => Err(Problem::new(
            Code::Unauthorized,
            "the Authorization header is not of the form `Bearer og_<role>_<64 hex digits>`",
        )),
    }
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let pairs = headers.get_all(COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    pairs
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, value)| *name == SESSION_COOKIE && usable(value))
        .map(|(_, value)| value)
}

fn usable(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= token::MAX_TOKEN_TEXT_BYTES
        && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn the_session_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("theme=dark; og_session=og_viewer_1"));
        assert_eq!(cookie(&headers), Some("og_viewer_1"));
        headers.insert(COOKIE, HeaderValue::from_static("og_session=; xog_session=1"));
        assert_eq!(cookie(&headers), None);
    }

    #[test]
    fn a_header_of_another_scheme_is_refused() {
        let mut headers = HeaderMap::new();
        assert!(matches!(bearer(&headers), Ok(None)));
        headers.insert(AUTHORIZATION, HeaderValue::from_static("bearer  og_x"));
        assert!(matches!(bearer(&headers), Ok(Some("og_x"))));
        for wrong in ["Basic abc", "Bearer", "Bearer ", "og_x"] {
            headers.insert(AUTHORIZATION, HeaderValue::from_static(wrong));
            assert!(bearer(&headers).is_err(), "{wrong}");
        }
    }
}
