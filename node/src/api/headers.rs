//! Headers every answer carries.

use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;

use super::AppState;
use super::revision::REVISION_HEADER;

/// The UI loads nothing from elsewhere and is framed by nobody. `unsafe-inline` is for style attributes only.
const PAGE_POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                           object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// Adds security headers, no shared caching of API answers, and the node's revision where the handler did not name the
/// one it answered from.
pub(super) fn complete(app: &AppState, is_api: bool, response: &mut Response) {
    let headers = response.headers_mut();
    let mut default = |name: HeaderName, value: HeaderValue| {
        headers.entry(name).or_insert(value);
    };
    default(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    default(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    default(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    default(CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    if is_api {
        default(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    }
    default(REVISION_HEADER, HeaderValue::from(app.cluster().reader().state().revision()));
}
