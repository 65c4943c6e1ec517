//! The one error shape of the API: RFC 9457 `application/problem+json` with a stable `code` and the request's id.
//!
//! A handler returns a [`Problem`]; it travels in the response's extensions until [`render`], near the outside of
//! the router, writes the body. That is where the request id is known, and where answers that axum itself gave
//! (method not allowed and the like) get the same shape.

use std::borrow::Cow;

use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::once::REPLAYED_HEADER;
use crate::cluster::{ChangeError, ReadError, RefusalKind, WriteError};

/// Content type of every error.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// `Retry-After` when the cluster has no quorum: an election takes about a second.
pub const NO_QUORUM_RETRY_S: u32 = 1;
/// `Retry-After` when this node takes no work.
pub const UNAVAILABLE_RETRY_S: u32 = 5;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:ident, $title:literal;)*) => {
        /// Every kind of error, with the text programs may rely on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// The stable text.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The HTTP status.
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)* }
            }

            /// The kind of error in a few words.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }
        }
    };
}

codes! {
    /// The request is not valid HTTP for this API.
    BadRequest = "bad_request", BAD_REQUEST, "The request cannot be read";
    /// The body is not JSON.
    InvalidJson = "invalid_json", BAD_REQUEST, "The body is not JSON";
    /// The body is JSON of another shape.
    InvalidBody = "invalid_body", UNPROCESSABLE_ENTITY, "The body has the wrong shape";
    /// The content type is not JSON.
    UnsupportedMediaType = "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE, "The content type is not JSON";
    /// The body is over the limit.
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE, "The body is too large";
    /// A query parameter is unknown or malformed.
    InvalidQuery = "invalid_query", BAD_REQUEST, "A query parameter is wrong";
    /// The cursor is not one this API gave.
    InvalidCursor = "invalid_cursor", BAD_REQUEST, "The cursor is wrong";
    /// The id in the path is not one.
    InvalidId = "invalid_id", BAD_REQUEST, "The id is wrong";
    /// The target is no domain, address or CIDR block.
    InvalidTarget = "invalid_target", UNPROCESSABLE_ENTITY, "The target is wrong";
    /// The target is outside public address space.
    NotPublic = "not_public", UNPROCESSABLE_ENTITY, "The target is not public address space";
    /// Wildcards cannot be enforced yet.
    WildcardUnsupported = "wildcard_unsupported", UNPROCESSABLE_ENTITY, "Wildcards cannot be enforced yet";
    /// The ports are wrong.
    InvalidPorts = "invalid_ports", UNPROCESSABLE_ENTITY, "The ports are wrong";
    /// The label that says how long addresses stay cannot be read.
    InvalidLinger = "invalid_linger", UNPROCESSABLE_ENTITY, "The linger time cannot be used";
    /// A text is too long.
    TextTooLong = "text_too_long", UNPROCESSABLE_ENTITY, "A text is too long";
    /// Entries cannot end by themselves yet.
    InvalidExpiry = "invalid_expiry", UNPROCESSABLE_ENTITY, "Not a time at which the entry can end";
    /// A name has other characters than allowed.
    InvalidName = "invalid_name", UNPROCESSABLE_ENTITY, "The name is wrong";
    /// The idempotency key is not one.
    InvalidIdempotencyKey = "invalid_idempotency_key", BAD_REQUEST, "The idempotency key is wrong";
    /// The idempotency key was used for another request.
    IdempotencyKeyReused = "idempotency_key_reused", UNPROCESSABLE_ENTITY, "The idempotency key belongs to another request";
    /// Lines of an import are wrong.
    InvalidImport = "invalid_import", UNPROCESSABLE_ENTITY, "The list has errors";
    /// The backup cannot be read.
    InvalidBackup = "invalid_backup", UNPROCESSABLE_ENTITY, "The backup cannot be used";
    /// A backup is only restored into an empty cluster.
    NotEmpty = "not_empty", CONFLICT, "The cluster is not empty";
    /// The entry is protected.
    Protected = "protected", CONFLICT, "The entry is protected";
    /// The last admin token must stay.
    LastAdmin = "last_admin", CONFLICT, "The last admin token must stay";
    /// A token has this name.
    TokenExists = "token_exists", CONFLICT, "The token exists";
    /// Nothing is there.
    NotFound = "not_found", NOT_FOUND, "Nothing is here";
    /// The path has other methods.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED, "The method does not fit the path";
    /// No valid token.
    Unauthorized = "unauthorized", UNAUTHORIZED, "No valid token";
    /// The role is too low.
    Forbidden = "forbidden", FORBIDDEN, "The role is too low";
    /// The request comes from another site's page.
    BadOrigin = "bad_origin", FORBIDDEN, "The request comes from another site";
    /// The feed is only spoken over TLS.
    TlsRequired = "tls_required", FORBIDDEN, "TLS is required";
    /// The path speaks WebSocket.
    NotWebsocket = "not_websocket", BAD_REQUEST, "A WebSocket upgrade is needed";
    /// The feed's subprotocol was not offered.
    UnknownSubprotocol = "unknown_subprotocol", BAD_REQUEST, "The subprotocol is unknown";
    /// The node has not recovered, or the cluster has no identity.
    NotReady = "not_ready", SERVICE_UNAVAILABLE, "The node is not ready";
    /// The node is being shut down.
    Draining = "draining", SERVICE_UNAVAILABLE, "The node is being drained";
    /// The node holds as many sessions as it may.
    TooManySessions = "too_many_sessions", SERVICE_UNAVAILABLE, "Too many sessions";
    /// The node to be added does not answer at its address.
    NodeUnreachable = "node_unreachable", CONFLICT, "The node does not answer";
    /// The node cannot be a member as it is.
    NodeUnfit = "node_unfit", CONFLICT, "The node cannot be a member";
    /// The voters that are left could not form a majority.
    WouldLoseQuorum = "would_lose_quorum", CONFLICT, "The cluster would lose its quorum";
    /// Going on alone is not called for, or not from this node.
    RecoveryRefused = "recovery_refused", CONFLICT, "Recovering is refused";
    /// Another change of the membership is under way.
    MembershipBusy = "membership_busy", SERVICE_UNAVAILABLE, "The membership is being changed";
    /// The node does not belong to its cluster any more.
    NotAMember = "not_a_member", SERVICE_UNAVAILABLE, "The node does not belong to the cluster";
    /// No leader in reach.
    NoQuorum = "no_quorum", SERVICE_UNAVAILABLE, "The cluster has no quorum";
    /// Writes that make the state larger are refused.
    DiskFull = "disk_full", INSUFFICIENT_STORAGE, "The disk has no room";
    /// Not all nodes run a release that knows what is asked.
    FeatureNotActive = "feature_not_active", SERVICE_UNAVAILABLE, "The feature is not active";
    /// The node takes no writes.
    Unavailable = "unavailable", SERVICE_UNAVAILABLE, "The node takes no writes";
    /// A write may or may not take effect.
    OutcomeUnknown = "outcome_unknown", GATEWAY_TIMEOUT, "The outcome is unknown";
    /// The request ran out of time.
    DeadlineExceeded = "deadline_exceeded", GATEWAY_TIMEOUT, "The request ran out of time";
    /// A fault of this program.
    Internal = "internal", INTERNAL_SERVER_ERROR, "A fault of the server";
}

/// An error on its way to the client.
#[derive(Debug, Clone)]
pub struct Problem {
    code: Code,
    detail: Cow<'static, str>,
    retry_after_s: Option<u32>,
    replayed: bool,
    errors: Vec<LineError>,
}

/// What is wrong with one line of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct LineError {
    /// Counted from 1.
    pub(crate) line: u64,
    /// As in [`ProblemBody`].
    pub(crate) code: &'static str,
    /// What was wrong and what would be right.
    pub(crate) detail: String,
}

/// An error as the client reads it (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ProblemBody<'a> {
    /// `urn:outputguard:problem:<code>`
    #[serde(rename = "type")]
    kind: String,
    /// The kind of error in a few words.
    title: &'a str,
    /// The HTTP status.
    status: u16,
    /// What was wrong and what would be right.
    detail: &'a str,
    /// The kind of error for programs.
    code: &'a str,
    /// The request's id, also in the header `x-request-id` and in the server's log.
    request_id: &'a str,
    /// Of an import: the first wrong lines.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(value_type = Vec<LineError>)]
    errors: &'a [LineError],
}

impl Problem {
    /// An error of kind `code`; `detail` says what was wrong and what would be right.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into(), retry_after_s: None, replayed: false, errors: Vec::new() }
    }

    /// Tells the client when to come again.
    #[must_use]
    pub fn retry_after(self, seconds: u32) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }

    /// Marks an answer that was given before, to the same request.
    #[must_use]
    pub(crate) fn replayed(self, replayed: bool) -> Self {
        Self { replayed, ..self }
    }

    /// Adds what is wrong with single lines.
    #[must_use]
    pub(crate) fn with_errors(self, errors: Vec<LineError>) -> Self {
        Self { errors, ..self }
    }

    /// In words.
    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    /// The kind of error.
    pub const fn code(&self) -> Code {
        self.code
    }

    /// For an answer that came without one: the closest kind for its status.
    fn for_status(status: StatusCode) -> Self {
        let (code, detail) = match status {
            StatusCode::NOT_FOUND => (Code::NotFound, "no such path; GET /api/v1/openapi.json lists all"),
            StatusCode::METHOD_NOT_ALLOWED => {
                (Code::MethodNotAllowed, "this path has other methods; the header `allow` lists them")
            }
            StatusCode::PAYLOAD_TOO_LARGE => (Code::BodyTooLarge, "the body is too large"),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                (Code::UnsupportedMediaType, "send `content-type: application/json`")
            }
            status if status.is_client_error() => (Code::BadRequest, "the request cannot be read"),
            _ => (Code::Internal, "the server failed; its log has more under this request id"),
        };
        Self::new(code, detail)
    }

    fn write(&self, mut response: Response, request_id: &str) -> Response {
        let code = self.code;
        let body = ProblemBody {
            kind: format!("urn:outputguard:problem:{}", code.as_str()),
            title: code.title(),
            status: code.status().as_u16(),
            detail: &self.detail,
            code: code.as_str(),
            request_id,
            errors: &self.errors,
        };
        // The shape has only texts and a number: it always serialises.
        *response.body_mut() = Body::from(serde_json::to_vec(&body).unwrap_or_default());
        *response.status_mut() = code.status();
        let headers = response.headers_mut();
        headers.remove(CONTENT_LENGTH);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if code == Code::Unauthorized {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"outputguard\""));
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.replayed {
            headers.insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<WriteError> for Problem {
    fn from(error: WriteError) -> Self {
        match &error {
            WriteError::NoQuorum(_) => Self::new(
                Code::NoQuorum,
                format!("{error}; nothing was written by this request, it may be sent again"),
            )
            .retry_after(NO_QUORUM_RETRY_S),
            WriteError::Unknown(_) => Self::new(
                Code::OutcomeUnknown,
                format!("{error}; the write may or may not take effect: read before sending it again"),
            ),
            WriteError::NoRoom(_) => Self::new(
                Code::DiskFull,
                format!("{error}; nothing was written by this request. Removals are taken: make room on the disk, then send it again"),
            )
            .retry_after(UNAVAILABLE_RETRY_S),
            WriteError::Unavailable(_) => Self::new(Code::Unavailable, format!("{error}; ask another node"))
                .retry_after(UNAVAILABLE_RETRY_S),
            WriteError::FeatureNotActive(_) => {
                Self::new(Code::FeatureNotActive, format!("{error}; nothing was written by this request"))
                    .retry_after(UNAVAILABLE_RETRY_S)
            }
            WriteError::TokenGone => Self::new(Code::Unauthorized, format!("{error}; nothing was written")),
        }
    }
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        Self::new(Code::NoQuorum, format!("{error}; `?consistency=stale` reads what this node holds"))
            .retry_after(NO_QUORUM_RETRY_S)
    }
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        let text = error.to_string();
        match error {
            ChangeError::Refused(refusal) => {
                let code = match refusal.kind {
                    RefusalKind::NoSuchMember => Code::NotFound,
                    RefusalKind::Unfit => Code::NodeUnfit,
                    RefusalKind::Unreachable => Code::NodeUnreachable,
                    RefusalKind::NoQuorumLeft => Code::WouldLoseQuorum,
                    RefusalKind::Busy => Code::MembershipBusy,
                };
                let problem = Self::new(code, text);
                if code == Code::MembershipBusy { problem.retry_after(NO_QUORUM_RETRY_S) } else { problem }
            }
            ChangeError::NoLeader(_) => Self::new(
                Code::NoQuorum,
                format!("{text}; nothing was changed, the request may be sent again"),
            )
            .retry_after(NO_QUORUM_RETRY_S),
            ChangeError::Unknown(_) => Self::new(
                Code::OutcomeUnknown,
                format!("{text}; send the request again: what is done already is left as it is"),
            ),
        }
    }
}

/// Writes the body of an error answer; `id` is the request's.
pub(super) fn render(mut response: Response, id: Option<&HeaderValue>) -> Response {
    let status = response.status();
    let problem = match response.extensions_mut().remove::<Problem>() {
        Some(problem) => problem,
        None if !status.is_client_error() && !status.is_server_error() => return response,
        // Health answers are JSON of their own shape.
        None if is_json(&response) => return response,
        None => Problem::for_status(status),
    };
    let id = id.and_then(|id| id.to_str().ok()).unwrap_or_default();
    problem.write(response, id)
}

fn is_json(response: &Response) -> bool {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("application/json"))
}
