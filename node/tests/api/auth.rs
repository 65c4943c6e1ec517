//! Tokens, roles and the UI's cookie.

use node::api::Transport;
use node::feed::Limits;
use raft_store::command::Role;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Server, problem};

#[tokio::test]
async fn without_a_valid_token_nothing_is_said() {
    let server = Server::start().await;
    for path in ["/api/v1/entries", "/api/v1/status", "/api/v1/tokens", "/api/v1/session"] {
        let none = server.bare(Method::GET, path).send().await.unwrap();
        assert_eq!(none.headers()["www-authenticate"], "Bearer realm=\"outputguard\"");
        problem(none, 401, "unauthorized").await;
        let unknown = format!("og_admin_{}", "0".repeat(64));
        let wrong = server.bare(Method::GET, path).bearer_auth(unknown).send().await.unwrap();
        problem(wrong, 401, "unauthorized").await;
    }
    let basic =
        server.bare(Method::GET, "/api/v1/status").basic_auth("admin", Some("x")).send().await.unwrap();
    let detail = problem(basic, 401, "unauthorized").await;
    assert!(detail.contains("Bearer"), "{detail}");
}

#[tokio::test]
async fn each_role_reaches_what_it_may_and_nothing_more() {
    let server = Server::start().await;
    let gateway = server.token("gw", Role::Gateway).await;
    let viewer = server.token("eye", Role::Viewer).await;
    let editor = server.token("hand", Role::Editor).await;
    let status = async |token: &str, method: Method, path: &str, body: Value| {
        server.bare(method, path).bearer_auth(token).json(&body).send().await.unwrap()
    };
    let entry = || json!({"target": "9.9.9.9"});

    let refused = status(&gateway, Method::GET, "/api/v1/entries", Value::Null).await;
    let detail = problem(refused, 403, "forbidden").await;
    assert!(detail.contains("viewer") && detail.contains("gateway"), "{detail}");
    let refused = status(&viewer, Method::POST, "/api/v1/entries", entry()).await;
    let detail = problem(refused, 403, "forbidden").await;
    assert!(detail.contains("editor"), "{detail}");
    let refused = status(&editor, Method::GET, "/api/v1/tokens", Value::Null).await;
    let detail = problem(refused, 403, "forbidden").await;
    assert!(detail.contains("admin"), "{detail}");

    assert_eq!(status(&viewer, Method::GET, "/api/v1/entries", Value::Null).await.status(), StatusCode::OK);
    assert_eq!(status(&viewer, Method::GET, "/api/v1/status", Value::Null).await.status(), StatusCode::OK);
    assert_eq!(status(&editor, Method::POST, "/api/v1/entries", entry()).await.status(), StatusCode::CREATED);
    let who: Value =
        status(&gateway, Method::GET, "/api/v1/session", Value::Null).await.json().await.unwrap();
    assert_eq!(who, json!({"name": "gw", "role": "gateway"}));
}

#[tokio::test]
async fn a_token_is_shown_once_works_and_stops_working_when_removed() {
    let server = Server::start().await;
    let made = server.post("/api/v1/tokens", &json!({"name": "ci", "role": "editor"})).await;
    assert_eq!(made.status(), StatusCode::CREATED);
    assert_eq!(made.headers()["cache-control"], "no-store");
    let made: Value = made.json().await.unwrap();
    let text = made["token"].as_str().unwrap();
    assert_eq!(node::auth::token::parse(text), Ok(Role::Editor));

    let list = server.read("/api/v1/tokens").await;
    let names: Vec<_> = list["tokens"].as_array().unwrap().iter().map(|token| &token["name"]).collect();
    assert_eq!(names, ["admin", "ci"]);
    assert!(!list.to_string().contains(&text[10..]));

    let again = server.post("/api/v1/tokens", &json!({"name": "ci", "role": "viewer"})).await;
    problem(again, 409, "token_exists").await;
    let named = server.post("/api/v1/tokens", &json!({"name": "a b", "role": "viewer"})).await;
    problem(named, 422, "invalid_name").await;
    let role = server.post("/api/v1/tokens", &json!({"name": "x", "role": "root"})).await;
    let detail = problem(role, 422, "invalid_body").await;
    assert!(detail.contains("viewer"), "{detail}");

    let read = || server.bare(Method::GET, "/api/v1/entries").bearer_auth(text).send();
    assert_eq!(read().await.unwrap().status(), StatusCode::OK);
    let remove = |name: &str| server.request(Method::DELETE, &format!("/api/v1/tokens/{name}")).send();
    assert_eq!(remove("ci").await.unwrap().status(), StatusCode::NO_CONTENT);
    problem(read().await.unwrap(), 401, "unauthorized").await;
    problem(remove("ci").await.unwrap(), 404, "not_found").await;
    problem(remove("admin").await.unwrap(), 409, "last_admin").await;
}

#[tokio::test]
async fn a_browser_session_reads_freely_and_writes_only_from_our_own_pages() {
    let server = Server::start_with(Transport::Plain, Limits::default()).await;
    let log_in =
        |token: &str| server.bare(Method::POST, "/api/v1/session").json(&json!({"token": token})).send();
    problem(log_in("og_admin_0").await.unwrap(), 401, "unauthorized").await;
    let answer = log_in(&server.admin).await.unwrap();
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    let set = answer.headers()["set-cookie"].to_str().unwrap();
    for part in ["og_session=og_admin_", "Path=/", "HttpOnly", "SameSite=Strict"] {
        assert!(set.contains(part), "{set}");
    }
    assert!(!set.contains("Secure"), "{set}");
    let cookie = set.split(';').next().unwrap().to_owned();

    let ask = |method: Method, path: &str| server.bare(method, path).header("cookie", &cookie);
    let who: Value = ask(Method::GET, "/api/v1/session").send().await.unwrap().json().await.unwrap();
    assert_eq!(who, json!({"name": "admin", "role": "admin"}));
    let write = || ask(Method::POST, "/api/v1/entries").json(&json!({"target": "9.9.9.9"}));
    problem(write().send().await.unwrap(), 403, "bad_origin").await;
    let foreign = write().header("origin", "https://evil.example").send().await.unwrap();
    problem(foreign, 403, "bad_origin").await;
    let own = write().header("origin", server.url("")).send().await.unwrap();
    assert_eq!(own.status(), StatusCode::CREATED);

    let forged = ask(Method::DELETE, "/api/v1/session").header("origin", "https://evil.example").send();
    problem(forged.await.unwrap(), 403, "bad_origin").await;
    let out = ask(Method::DELETE, "/api/v1/session").header("origin", server.url("")).send().await.unwrap();
    let cleared = out.headers()["set-cookie"].to_str().unwrap();
    assert!(cleared.starts_with("og_session=;") && cleared.contains("Max-Age=0"), "{cleared}");
}

#[tokio::test]
async fn over_tls_the_cookie_stays_on_tls() {
    let server = Server::start_with(Transport::Tls, Limits::default()).await;
    let answer = server.bare(Method::POST, "/api/v1/session").json(&json!({"token": server.admin})).send();
    let answer = answer.await.unwrap();
    assert!(answer.headers()["set-cookie"].to_str().unwrap().contains("; Secure"));
}
