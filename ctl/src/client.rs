//! Calls of `/api/v1`.

use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::args::{Add, Connection};
use allowlist::linger::LINGER_LABEL;

/// Longest wait for one answer; the server's own deadline is shorter.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Entries asked for at a time.
const PAGE: usize = 1_000;

/// The server's refusal (RFC 9457).
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    code: Option<String>,
    detail: String,
    request_id: Option<String>,
    /// Of an import: one for each wrong line.
    lines: Vec<String>,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.detail)?;
        match &self.request_id {
            Some(id) => write!(f, " (status {}, request {id})", self.status.as_u16())?,
            None => write!(f, " (status {})", self.status.as_u16())?,
        }
        self.lines.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

impl std::error::Error for Problem {}

impl Problem {
    /// The stable text of the API.
    pub(crate) fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }
}

pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
}

impl Client {
    pub(crate) fn new(connection: &Connection) -> anyhow::Result<Self> {
        let mut builder = reqwest::Client::builder().timeout(REQUEST_TIMEOUT);
        // Only the cluster's own CA is trusted: its servers never carry certificates of a public one.
        let mut roots = Vec::new();
        if let Some(path) = &connection.ca_file {
            let pem = std::fs::read(path).with_context(|| format!("read CA file {}", path.display()))?;
            roots = reqwest::Certificate::from_pem_bundle(&pem)
                .with_context(|| format!("{} holds no PEM certificate", path.display()))?;
        } else if connection.addr.starts_with("https://") {
            bail!("{} needs --ca-file (or OUTPUTGUARD_CA_FILE), the cluster's ca.pem", connection.addr);
        }
        builder = builder.tls_certs_only(roots);
        let token = match &connection.token_file {
            None => None,
            Some(path) => Some(
                std::fs::read_to_string(path)
                    .with_context(|| format!("read token file {}", path.display()))?
                    .trim()
                    .to_owned(),
            ),
        };
        Ok(Self {
            http: builder.build().context("set up the HTTP client")?,
            base: format!("{}/api/v1", connection.addr.trim_end_matches('/')),
            token,
        })
    }

    pub(crate) async fn add(&self, add: &Add) -> anyhow::Result<Value> {
        let linger = add.linger.map(|linger| json!({ LINGER_LABEL: format!("{}s", linger.as_secs()) }));
        let body = json!({
            "target": add.target,
            "ports": add.ports,
            "comment": add.comment,
            "owner": add.owner,
            "ticket": add.ticket,
            "protected": add.protected,
            "labels": linger.unwrap_or_else(|| json!({})),
            "expires_at": add.expires.as_ref().map(|ends| ends.text(OffsetDateTime::now_utc())).transpose()?,
        });
        self.post(if add.wait { "/entries?wait=applied" } else { "/entries" }, &body).await
    }

    /// All pages of the list.
    pub(crate) async fn list(&self, query: Option<&str>) -> anyhow::Result<Vec<Value>> {
        let mut entries = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let mut url = reqwest::Url::parse(&format!("{}/entries", self.base))
                .with_context(|| format!("{} is not a URL", self.base))?;
            {
                let mut pairs = url.query_pairs_mut();
                pairs.append_pair("limit", &PAGE.to_string());
                if let Some(query) = query {
                    pairs.append_pair("q", query);
                }
                if let Some(cursor) = &cursor {
                    pairs.append_pair("cursor", cursor);
                }
            }
            let page = self.send(self.http.get(url)).await?;
            if let Some(found) = page.get("entries").and_then(Value::as_array) {
                entries.extend(found.iter().cloned());
            }
            cursor = page.get("next_cursor").and_then(Value::as_str).map(str::to_owned);
            if cursor.is_none() {
                return Ok(entries);
            }
        }
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.send(self.request(Method::GET, path)).await
    }

    pub(crate) async fn get_where(&self, path: &str, query: &[(&str, &str)]) -> anyhow::Result<Value> {
        let mut url = reqwest::Url::parse(&format!("{}{path}", self.base))
            .with_context(|| format!("{} is not a URL", self.base))?;
        url.query_pairs_mut().extend_pairs(query);
        self.send(self.http.get(url)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.send(self.request(Method::PATCH, path).json(body)).await
    }

    /// DELETE of one thing below `path`, whose name may hold any character.
    pub(crate) async fn delete_named(
        &self,
        path: &str,
        name: &str,
        query: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let mut url = reqwest::Url::parse(&format!("{}{path}", self.base))
            .with_context(|| format!("{} is not a URL", self.base))?;
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.push(name);
        }
        url.query_pairs_mut().extend_pairs(query);
        self.send(self.http.delete(url)).await.map(drop)
    }

    pub(crate) async fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.send(self.request(Method::DELETE, path)).await.map(drop)
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    pub(crate) async fn send(&self, request: RequestBuilder) -> anyhow::Result<Value> {
        let response = self.respond(request).await?;
        let bytes =
            response.bytes().await.with_context(|| format!("the answer of {} broke off", self.base))?;
        Ok(serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    /// The answer as it comes, when it is no refusal.
    pub(crate) async fn respond(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let response = request.send().await.with_context(|| format!("no answer from {}", self.base))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes =
            response.bytes().await.with_context(|| format!("the answer of {} broke off", self.base))?;
        let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let text = |key: &str| body.get(key).and_then(Value::as_str).map(str::to_owned);
        let mut detail = text("detail").or_else(|| text("title")).unwrap_or_else(|| status.to_string());
        if status == StatusCode::UNAUTHORIZED && self.token.is_none() {
            detail.push_str("; give --token-file or OUTPUTGUARD_TOKEN_FILE");
        }
        let errors = body.get("errors").and_then(Value::as_array).into_iter().flatten();
        let lines = errors.filter_map(|error| {
            Some(format!("line {}: {}", error.get("line")?, error.get("detail")?.as_str()?))
        });
        let (code, request_id) = (text("code"), text("request_id"));
        Err(Problem { status, code, detail, request_id, lines: lines.collect() }.into())
    }
}
