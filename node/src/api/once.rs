//! `Idempotency-Key`: a client names its write, and may then send it again until it has an answer. The write takes
//! effect once; the answer comes again, whichever node is asked (draft-ietf-httpapi-idempotency-key-header).
//!
//! Key and answer are replicated ([`raft_store::kept`]), apart for each token.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use raft_store::command::{Command, OnceCommand, Operation, Reply};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use utoipa::IntoParams;

use super::input::Body;
use super::problem::{Code, Problem};
use super::revision::REVISION_HEADER;
use super::{AppState, MAX_BODY_BYTES, WRITE_TIMEOUT};
use crate::auth::Caller;
use crate::cluster::WriteError;

/// The client's name for a request.
pub(super) const KEY_HEADER: HeaderName = HeaderName::from_static("idempotency-key");
/// `true` on an answer that was given before.
pub(super) const REPLAYED_HEADER: HeaderName = HeaderName::from_static("idempotency-replayed");
/// Longest key, bytes.
const MAX_KEY_BYTES: usize = 128;

/// For the API's description.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "only described")]
pub(super) struct IdempotencyKey {
    /// Names this write, 1 to 128 visible ASCII characters: the same request with the same key takes effect once, and is
    /// answered as the first time (with `idempotency-replayed: true`) for a day, on every node.
    #[param(required = false, rename = "Idempotency-Key", value_type = String)]
    idempotency_key: Option<String>,
}

/// A request's key and what was asked under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OnceKey {
    key: String,
    fingerprint: [u8; 32],
}

/// The key of a request without a body, if it has one.
pub(super) struct Keyed(pub(super) Option<OnceKey>);

/// A JSON body, and the request's key if it has one.
pub(super) struct KeyedBody<T>(pub(super) T, pub(super) Option<OnceKey>);

/// What became of a write.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) revision: u64,
    pub(super) reply: Reply,
    /// When it was carried out, Unix milliseconds; `None` for a write without a key, which was just now.
    pub(super) at_ms: Option<u64>,
    /// The answer was given before.
    pub(super) replayed: bool,
}

impl OnceKey {
    /// The key among `headers`, for a request that asks `method` and `uri` with the body whose SHA-256 is `body`.
    pub(super) fn find(parts: &Parts, body: &[u8; 32]) -> Result<Option<Self>, Problem> {
        let Some(key) = key(&parts.headers)? else { return Ok(None) };
        let mut sum = Sha256::new();
        for part in [parts.method.as_str(), parts.uri.path(), parts.uri.query().unwrap_or_default()] {
            sum.update((part.len() as u64).to_be_bytes());
            sum.update(part);
        }
        sum.update(body);
        Ok(Some(Self { key, fingerprint: sum.finalize().into() }))
    }

    /// For the server's own use: nobody else's request has this key.
    pub(super) fn own(key: String) -> Self {
        Self { key, fingerprint: [0; 32] }
    }

    /// The key of one part of the request. A client's keys have no spaces, so it is nobody else's.
    pub(super) fn part(&self, number: usize) -> Self {
        Self { key: format!("{} {number}", self.key), fingerprint: self.fingerprint }
    }

    pub(super) fn command(self, commands: Vec<Command>) -> Command {
        Command::Once(OnceCommand { key: self.key, fingerprint: self.fingerprint, commands })
    }
}

fn key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(KEY_HEADER).into_iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let legal = (1..=MAX_KEY_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    if !legal || values.next().is_some() {
        let detail = format!(
            "send one Idempotency-Key of 1 to {MAX_KEY_BYTES} visible ASCII characters, such as a random UUID"
        );
        return Err(Problem::new(Code::InvalidIdempotencyKey, detail));
    }
    Ok(Some(text.to_owned()))
}

/// SHA-256 of a body, for [`OnceKey::find`].
pub(super) fn sum_of(body: &[u8]) -> [u8; 32] {
    Sha256::digest(body).into()
}

impl<S: Send + Sync> FromRequestParts<S> for Keyed {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        OnceKey::find(parts, &sum_of(&[])).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for KeyedBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !request.headers().contains_key(KEY_HEADER) {
            let Body(body) = Body::from_request(request, state).await?;
            return Ok(Self(body, None));
        }
        let (parts, body) = request.into_parts();
        let whole = Bytes::from_request(Request::from_parts(parts.clone(), body), state).await;
        let bytes = whole.map_err(|error| {
            let status = error.into_response().status();
            if status == StatusCode::PAYLOAD_TOO_LARGE {
                Problem::new(Code::BodyTooLarge, format!("the body is larger than {MAX_BODY_BYTES} bytes"))
            } else {
                Problem::new(Code::BadRequest, "the body cannot be read")
            }
        })?;
        let once = OnceKey::find(&parts, &sum_of(&bytes))?;
        let Body(body) =
            Body::from_request(Request::from_parts(parts, axum::body::Body::from(bytes)), state).await?;
        Ok(Self(body, once))
    }
}

impl Written {
    /// Puts revision and, if so, the mark of a repeated answer on `answer`.
    pub(super) fn answer(&self, answer: impl IntoResponse) -> Response {
        let mut response = answer.into_response();
        response.headers_mut().insert(REVISION_HEADER, HeaderValue::from(self.revision));
        if self.replayed {
            response.headers_mut().insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
        }
        response
    }
}

impl AppState {
    /// Writes one command on behalf of `caller`, whose token must still stand when it enters the log; once for a key if
    /// there is one. A refusal by the state is an error.
    pub(super) async fn write(
        &self,
        caller: &Caller,
        once: Option<OnceKey>,
        command: Command,
    ) -> Result<Written, Problem> {
        let keyed = once.is_some();
        let command = match once {
            Some(once) => once.command(vec![command]),
            None => command,
        };
        let operation = Operation { origin: caller.origin(), command };
        let answered = self.cluster().propose_for(caller.token(), vec![operation], WRITE_TIMEOUT).await;
        let mut answer = answered.map_err(|error| match error {
            WriteError::Unknown(_) if keyed => Problem::new(
                Code::OutcomeUnknown,
                format!("{error}; send it again with the same Idempotency-Key to learn what became of it"),
            ),
            error => error.into(),
        })?;
        let written = match answer.replies.pop() {
            Some(Reply::Once { replayed, at_ms, revision, mut replies }) => {
                let Some(reply) = replies.pop() else { return Err(no_answer()) };
                Written { revision, reply, at_ms: Some(at_ms), replayed }
            }
            Some(reply) => Written { revision: answer.revision, reply, at_ms: None, replayed: false },
            None => return Err(no_answer()),
        };
        match written {
            Written { reply: Reply::Refused(refusal), replayed, .. } => {
                Err(Problem::from(refusal).replayed(replayed))
            }
            written => Ok(written),
        }
    }
}

fn no_answer() -> Problem {
    Problem::new(Code::Internal, "the write was applied without an answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(method: &str, uri: &str, keys: &[&str], body: &[u8]) -> Result<Option<OnceKey>, Problem> {
        let mut request = axum::http::Request::builder().method(method).uri(uri);
        for key in keys {
            request = request.header(KEY_HEADER, *key);
        }
        OnceKey::find(&request.body(()).unwrap().into_parts().0, &sum_of(body))
    }

    #[test]
    fn method_path_query_and_body_make_another_request() {
        let asked = [("POST", "/a", "x"), ("PATCH", "/a", "x"), ("POST", "/a?b", "x"), ("POST", "/a", "y")];
        let prints: std::collections::BTreeSet<_> = asked
            .iter()
            .map(|(method, uri, body)| {
                found(method, uri, &["k"], body.as_bytes()).unwrap().unwrap().fingerprint
            })
            .collect();
        assert_eq!(prints.len(), asked.len());
    }

    #[test]
    fn a_key_is_one_word_of_visible_ascii() {
        assert!(found("POST", "/a", &[], b"").unwrap().is_none());
        let longest = "x".repeat(MAX_KEY_BYTES);
        assert!(found("POST", "/a", &[&longest], b"").unwrap().is_some());
        for wrong in [&[""][..], &["a b"], &["ä"], &["a", "b"], &[&format!("{longest}x")]] {
            let problem = found("POST", "/a", wrong, b"").unwrap_err();
            assert_eq!(problem.code(), Code::InvalidIdempotencyKey, "{wrong:?}");
        }
    }

    #[test]
    fn the_key_of_a_part_is_none_a_client_can_send() {
        let whole = found("POST", "/a", &["k"], b"").unwrap().unwrap();
        assert!(found("POST", "/a", &[&whole.part(1).key], b"").is_err());
    }
}
