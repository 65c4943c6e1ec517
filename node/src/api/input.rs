//! axum's extractors with this API's error shape.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::MAX_BODY_BYTES;
use super::problem::{Code, Problem};

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

/// Query parameters.
pub(super) struct Params<T>(pub(super) T);

/// The last segment of the path.
pub(super) struct Segment(pub(super) String);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(JsonRejection::MissingJsonContentType(_)) => {
                Err(Problem::new(Code::UnsupportedMediaType, "send `content-type: application/json`"))
            }
            Err(JsonRejection::JsonSyntaxError(error)) => {
                Err(Problem::new(Code::InvalidJson, error.body_text()))
            }
            Err(JsonRejection::JsonDataError(error)) => {
                Err(Problem::new(Code::InvalidBody, error.body_text()))
            }
            Err(other) if other.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(Problem::new(
                Code::BodyTooLarge,
                format!("the body is larger than {MAX_BODY_BYTES} bytes"),
            )),
            Err(other) => Err(Problem::new(Code::BadRequest, other.body_text())),
        }
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(error) => Err(Problem::new(Code::InvalidQuery, error.body_text())),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(error) => Err(Problem::new(Code::InvalidId, error.body_text())),
        }
    }
}
