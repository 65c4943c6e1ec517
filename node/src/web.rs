//! The UI's files, embedded at build time from `web/dist`. A build without them serves a page that says how to make
//! them, so that `cargo build` needs no Node.

use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use rust_embed::{EmbeddedFile, RustEmbed};

use crate::api::problem::{Code, Problem};

/// Debug builds read the folder when asked, release builds carry the files.
#[derive(RustEmbed)]
#[folder = "$CARGO_MANIFEST_DIR/../web/dist"]
#[allow_missing = true]
struct Dist;

/// Served at `/` when the UI was not built.
const NO_UI: &str = include_str!("web/no_ui.html");
const INDEX: &str = "index.html";
/// Vite puts files here whose names carry a hash of their content.
const HASHED: &str = "assets/";

/// Answers every path the API does not have: files of the UI, and its page for addresses inside it.
pub(crate) async fn serve(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path().trim_start_matches('/');
    let of_api = path == "api" || path.starts_with("api/");
    if of_api || !matches!(method, Method::GET | Method::HEAD) {
        return Problem::new(Code::NotFound, "no such path; GET /api/v1/openapi.json lists all")
            .into_response();
    }
    if let Some(file) = Dist::get(if path.is_empty() { INDEX } else { path }) {
        return respond(if path.is_empty() { INDEX } else { path }, file, &headers);
    }
    let names_a_file = path.rsplit('/').next().is_some_and(|name| name.contains('.'));
    if names_a_file {
        return Problem::new(Code::NotFound, "the UI has no such file").into_response();
    }
    match Dist::get(INDEX) {
        Some(file) => respond(INDEX, file, &headers),
        None => ([(CONTENT_TYPE, content_type(INDEX)), (CACHE_CONTROL, "no-cache")], NO_UI).into_response(),
    }
}

fn respond(path: &str, file: EmbeddedFile, headers: &HeaderMap) -> Response {
    let hash = file.metadata.sha256_hash();
    let tag = hash.iter().take(8).fold(String::from("\""), |tag, byte| format!("{tag}{byte:02x}")) + "\"";
    let cache = if path.starts_with(HASHED) { "public, max-age=31536000, immutable" } else { "no-cache" };
    let known = headers.get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes());
    if known {
        return (StatusCode::NOT_MODIFIED, [(ETAG, tag), (CACHE_CONTROL, cache.to_owned())]).into_response();
    }
    let about =
        [(CONTENT_TYPE, content_type(path).to_owned()), (CACHE_CONTROL, cache.to_owned()), (ETAG, tag)];
    (about, file.data.into_owned()).into_response()
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit('.').next().unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "txt" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashed_files_are_cached_for_ever_and_pages_are_not() {
        let file = || EmbeddedFile {
            data: std::borrow::Cow::Borrowed(b"x"),
            metadata: rust_embed::Metadata::__rust_embed_new([7; 32], None, None),
        };
        let script = respond("assets/index-ab12.js", file(), &HeaderMap::new());
        assert_eq!(script.headers()[CACHE_CONTROL], "public, max-age=31536000, immutable");
        assert_eq!(script.headers()[CONTENT_TYPE], "text/javascript; charset=utf-8");
        let page = respond(INDEX, file(), &HeaderMap::new());
        assert_eq!(page.headers()[CACHE_CONTROL], "no-cache");

        let mut asked = HeaderMap::new();
        asked.insert(IF_NONE_MATCH, page.headers()[ETAG].clone());
        assert_eq!(respond(INDEX, file(), &asked).status(), StatusCode::NOT_MODIFIED);
    }
}
