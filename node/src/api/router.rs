//! The whole API as a list.

use std::any::Any;
use std::time::Duration;

use axum::Extension;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::HeaderName;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};
use tower_http::trace::{DefaultOnFailure, TraceLayer};
use tracing::{Level, Span};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::problem::{self, Code, Problem};
use super::{
    AppState, MAX_BODY_BYTES, REQUEST_DEADLINE, Transport, audit, backup, bulk, denied, entries, fence,
    headers, health, history, impact, members, metrics, names, receipts, recovery, session, status, tokens,
    traffic,
};
use crate::auth::caller::SESSION_COOKIE;
use crate::{feed, web};

/// Longest request id taken over from a client, bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;

fn paths() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(entries::list, entries::add))
        .routes(routes!(entries::get, entries::update, entries::remove))
        .routes(routes!(impact::show))
        .routes(routes!(history::show))
        .routes(routes!(names::list))
        .routes(routes!(bulk::import::import))
        .routes(routes!(bulk::export::export))
        .routes(routes!(backup::backup))
        .routes(routes!(backup::restore))
        .routes(routes!(status::get))
        .routes(routes!(receipts::cuts))
        .routes(routes!(denied::list))
        .routes(routes!(traffic::top))
        .routes(routes!(members::list, members::add))
        .routes(routes!(members::remove))
        .routes(routes!(members::step_down))
        .routes(routes!(recovery::plan, recovery::recover))
        .routes(routes!(tokens::list, tokens::add))
        .routes(routes!(tokens::remove))
        .routes(routes!(session::get, session::log_in, session::log_out))
        .routes(routes!(audit::list))
        .routes(routes!(openapi_json))
        .routes(routes!(feed::upgrade::connect))
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
        .routes(routes!(metrics::scrape))
}

/// The router of one listener. All other paths are the UI's files.
pub fn router(app: AppState, transport: Transport) -> axum::Router {
    let (router, _) = paths().split_for_parts();
    // The first layer is the outermost.
    let layers = ServiceBuilder::new()
        .map_request(drop_unusable_request_id)
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(span)
                .on_failure(DefaultOnFailure::new().level(Level::WARN)),
        )
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(CompressionLayer::new())
        .layer(from_fn_with_state(app.clone(), answer))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(Extension(transport));
    router.fallback(web::serve).layer(layers).with_state(app)
}

/// The description of the API, also served at `/api/v1/openapi.json`.
pub fn openapi() -> utoipa::openapi::OpenApi {
    paths().into_openapi()
}

/// The description of this API (OpenAPI 3.1)
#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "about", security(()),
    responses((status = 200, description = "This document", content_type = "application/json")))]
async fn openapi_json() -> axum::Json<utoipa::openapi::OpenApi> {
    axum::Json(openapi())
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "OutputGuard",
        description = "The allowlist of what may leave the network. Errors are RFC 9457 problem+json.",
        license(name = "Apache-2.0 OR MIT", identifier = "Apache-2.0 OR MIT"),
    ),
    modifiers(&Security),
    security(("token" = []), ("session" = [])),
    components(schemas(problem::ProblemBody)),
)]
struct Document;

struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let bearer =
            HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("og_<role>_<64 hex>").build();
        components.add_security_scheme("token", SecurityScheme::Http(bearer));
        let cookie = ApiKey::Cookie(ApiKeyValue::new(SESSION_COOKIE));
        components.add_security_scheme("session", SecurityScheme::ApiKey(cookie));
    }
}

/// A client's request id is kept when it can stand in logs and headers as it is.
fn drop_unusable_request_id<B>(mut request: axum::http::Request<B>) -> axum::http::Request<B> {
    let name = HeaderName::from_static("x-request-id");
    let usable =
        |id: &[u8]| id.len() <= MAX_REQUEST_ID_BYTES && id.iter().all(u8::is_ascii_graphic) && !id.is_empty();
    if request.headers().get(&name).is_some_and(|id| !usable(id.as_bytes())) {
        request.headers_mut().remove(&name);
    }
    request
}

fn span<B>(request: &axum::http::Request<B>) -> Span {
    let id = request.extensions().get::<RequestId>().and_then(|id| id.header_value().to_str().ok());
    tracing::info_span!(
        "request",
        method = %request.method(),
        path = request.uri().path(),
        request_id = id.unwrap_or_default()
    )
}

#[allow(clippy::needless_pass_by_value, reason = "the layer hands the cause over")]
fn panicked(cause: Box<dyn Any + Send>) -> Response {
    let text =
        cause.downcast_ref::<String>().map(String::as_str).or_else(|| cause.downcast_ref::<&str>().copied());
    tracing::error!(panic = text.unwrap_or("of unknown kind"), "a handler panicked");
    Problem::new(Code::Internal, "the server failed; its log has more under this request id").into_response()
}

/// Middleware: what every request and every answer goes through, in one place, since each middleware costs a copy of all
/// that lie within.
async fn answer(State(app): State<AppState>, request: Request, next: Next) -> Response {
    let observed = metrics::Observed::begin(&request);
    let id = request.extensions().get::<RequestId>().map(|id| id.header_value().clone());
    let path = request.uri().path();
    let is_api = path.starts_with("/api/");
    let limit = bulk::deadline(path).unwrap_or(REQUEST_DEADLINE);
    let response = match fence::check_open(&app, path) {
        // No request hangs.
        Ok(()) => within(limit, next.run(request)).await,
        Err(problem) => problem.into_response(),
    };
    let mut response = problem::render(response, id.as_ref());
    headers::complete(&app, is_api, &mut response);
    observed.end(&app, response.status());
    response
}

async fn within(limit: Duration, answer: impl Future<Output = Response>) -> Response {
    match tokio::time::timeout(limit, answer).await {
        Ok(response) => response,
        Err(_) => {
            let detail = format!(
                "no answer within {} s; a write may or may not take effect: read before sending it again",
                limit.as_secs_f32()
            );
            Problem::new(Code::DeadlineExceeded, detail).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    #[tokio::test]
    async fn an_answer_that_never_comes_becomes_a_problem() {
        let response = within(Duration::from_millis(1), std::future::pending()).await;
        assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(response.extensions().get::<Problem>().map(Problem::code), Some(Code::DeadlineExceeded));
    }

    #[test]
    fn a_panic_becomes_a_problem_that_does_not_tell_its_cause() {
        let response = panicked(Box::new("secret details"));
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let problem = response.extensions().get::<Problem>().unwrap();
        assert!(!format!("{problem:?}").contains("secret"));
    }

    #[test]
    fn the_deadline_is_longer_than_any_step_within() {
        assert!(REQUEST_DEADLINE > super::super::WRITE_TIMEOUT + 2 * super::super::READ_TIMEOUT);
    }

    #[test]
    fn an_unusable_request_id_is_dropped() {
        let with = |id: &str| {
            let request = axum::http::Request::get("/").header("x-request-id", id).body(()).unwrap();
            drop_unusable_request_id(request).headers().contains_key("x-request-id")
        };
        assert!(with("abc-123"));
        assert!(!with(""));
        assert!(!with("a b"));
        assert!(!with(&"x".repeat(MAX_REQUEST_ID_BYTES + 1)));
    }
}
