//! Cookies are sent by browsers whoever asks for the request, so a request that counts on one must come from our own
//! pages. Browsers put the asking site into `Origin` on every request that is not a plain read, and on every
//! WebSocket upgrade (Fetch standard, section "Origin header"; RFC 6455 section 10.2).

use axum::http::header::{HOST, ORIGIN};
use axum::http::request::Parts;

use crate::api::problem::{Code, Problem};

/// Refuses the request unless it names its origin and that is this server.
///
/// # Errors
/// 403 `bad_origin`.
pub fn check(parts: &Parts) -> Result<(), Problem> {
    if !parts.headers.contains_key(ORIGIN) {
        return Err(Problem::new(
            Code::BadOrigin,
            "a request authorised by the session cookie must carry the Origin header of this server's own pages; \
             programs send `Authorization: Bearer` instead of the cookie",
        ));
    }
    check_if_present(parts)
}

/// Refuses the request when it names an origin that is not this server.
///
/// # Errors
/// 403 `bad_origin`.
pub fn check_if_present(parts: &Parts) -> Result<(), Problem> {
    let Some(origin) = parts.headers.get(ORIGIN) else { return Ok(()) };
    let origin = String::from_utf8_lossy(origin.as_bytes());
    // The scheme is left out: behind a proxy that ends TLS it differs from what this server sees.
    let from = origin.split_once("://").map_or("", |(_, authority)| authority);
    let here = parts
        .headers
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .or_else(|| parts.uri.authority().map(axum::http::uri::Authority::as_str))
        .unwrap_or_default();
    if from.is_empty() || !from.eq_ignore_ascii_case(here) {
        let shown: String = origin.chars().take(100).collect();
        return Err(Problem::new(
            Code::BadOrigin,
            format!("the request comes from {shown}, this server is {here}"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn parts(origin: Option<&str>) -> Parts {
        let mut request = Request::post("/api/v1/entries").header(HOST, "guard.example:8080");
        if let Some(origin) = origin {
            request = request.header(ORIGIN, origin);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn only_our_own_origin_passes() {
        assert!(check(&parts(Some("http://guard.example:8080"))).is_ok());
        assert!(check(&parts(Some("https://GUARD.example:8080"))).is_ok());
        for other in
            ["http://evil.example", "http://guard.example", "null", "", "http://guard.example:8080.evil"]
        {
            assert!(check(&parts(Some(other))).is_err(), "{other}");
            assert!(check_if_present(&parts(Some(other))).is_err(), "{other}");
        }
        assert!(check(&parts(None)).is_err());
        assert!(check_if_present(&parts(None)).is_ok());
    }
}
