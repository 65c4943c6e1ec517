//! The servers' API, as a person with a token uses it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::StatusCode;
use reqwest::blocking::{Client, RequestBuilder, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest wait for an answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The API at one address. Calls block; do not make them on an async runtime's thread.
#[derive(Debug, Clone)]
pub struct Api {
    base: String,
    token: String,
    client: Client,
}

/// A new entry. `NewEntry::to("1.1.1.1")` is a whole one.
#[derive(Debug, Clone, Default, Serialize)]
pub struct NewEntry {
    /// Domain, address or CIDR.
    pub target: String,
    /// `tcp/443`, `udp/1000-2000` …; empty is all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    /// Whether it refuses deletion.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub protected: bool,
    /// Why.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub comment: String,
}

impl NewEntry {
    /// An entry for `target`, all ports.
    pub fn to(target: impl Into<String>) -> Self {
        Self { target: target.into(), ..Self::default() }
    }

    /// Only this port, too.
    pub fn port(mut self, port: &str) -> Self {
        self.ports.push(port.to_owned());
        self
    }

    /// Protected from deletion.
    pub fn protected(mut self) -> Self {
        self.protected = true;
        self
    }

    /// With a reason.
    pub fn comment(mut self, comment: &str) -> Self {
        comment.clone_into(&mut self.comment);
        self
    }
}

/// An entry as the API shows it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Entry {
    /// Its id.
    pub id: String,
    /// What it opens.
    pub target: String,
    /// `domain`, `address` …
    pub kind: String,
    /// Whether it refuses deletion.
    pub protected: bool,
    /// What DNS said, for domains.
    pub resolution: Option<serde_json::Value>,
}

/// A page of entries.
#[derive(Debug, Clone, Deserialize)]
struct Entries {
    entries: Vec<Entry>,
}

/// `GET /api/v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Status {
    /// Newest change.
    pub revision: u64,
    /// Digest of the published set.
    pub digest: String,
    /// Name of the leader.
    pub leader: Option<String>,
    /// Name of the node that answers.
    pub node: String,
    /// The members.
    pub nodes: Vec<NodeLine>,
    /// The gateways in touch.
    pub gateways: Vec<GatewayLine>,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NodeLine {
    /// Its name.
    pub name: String,
    /// False for learners.
    pub voter: bool,
    /// Whether it answers.
    pub reachable: bool,
    /// Newest change it applied, when it answers.
    pub applied: Option<u64>,
}

/// One gateway.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct GatewayLine {
    /// Its name.
    pub name: String,
    /// The server it is connected to.
    pub node: String,
    /// Newest change its kernel holds.
    pub applied: u64,
    /// Whether its digest was right.
    pub in_sync: bool,
}

/// An RFC 9457 answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// Short name of the kind.
    #[serde(default)]
    pub title: String,
    /// What exactly is wrong.
    #[serde(default)]
    pub detail: String,
    /// Stable word for programs.
    #[serde(default)]
    pub code: String,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The server refused, and says why as `application/problem+json`.
    #[error("{} {}: {}", .0.status, .0.code, .0.detail)]
    Refused(Problem),
    /// The server refused without a problem document.
    #[error("{status} without a problem document (content type {content_type:?}): {body}")]
    Unexplained {
        /// HTTP status.
        status: u16,
        /// What it called the body.
        content_type: String,
        /// The body.
        body: String,
    },
    /// No usable answer.
    #[error("{0}")]
    NoAnswer(String),
}

impl ApiError {
    /// The problem document, if the server sent one.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused(problem) => Some(problem),
            Self::Unexplained { .. } | Self::NoAnswer(_) => None,
        }
    }
}

impl Api {
    /// The API at `address`, with `token`.
    ///
    /// # Errors
    /// When the client cannot be set up.
    pub fn new(address: SocketAddr, token: &str) -> Result<Self> {
        // Already installed is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .timeout(REQUEST_TIMEOUT)
            .no_proxy()
            // A door into a namespace cannot tell us that the other side died; a new connection can.
            .pool_max_idle_per_host(0)
            .build()
            .context("set up the HTTP client")?;
        Ok(Self { base: format!("http://{address}"), token: token.to_owned(), client })
    }

    /// The same address with another token.
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    /// `http://address`.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Adds an entry; status 201 for a new one, 200 for one that was there.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn add(&self, entry: &NewEntry) -> Result<Entry, ApiError> {
        read(self.send(self.post("/api/v1/entries").json(entry))?)
    }

    /// Sends any body to `POST /api/v1/entries`.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn add_raw(&self, body: &str) -> Result<Entry, ApiError> {
        read(self.send(
            self.post("/api/v1/entries").header("content-type", "application/json").body(body.to_owned()),
        )?)
    }

    /// Deletes an entry.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn delete(&self, id: &str) -> Result<(), ApiError> {
        self.send(self.client.delete(self.url(&format!("/api/v1/entries/{id}")))).map(drop)
    }

    /// The first page of entries, read linearizably.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn entries(&self) -> Result<Vec<Entry>, ApiError> {
        Ok(read::<Entries>(self.send(self.client.get(self.url("/api/v1/entries?limit=1000")))?)?.entries)
    }

    /// The entry for `target`, if there is one.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn find(&self, target: &str) -> Result<Option<Entry>, ApiError> {
        Ok(self.entries()?.into_iter().find(|entry| entry.target == target))
    }

    /// Cluster, nodes, gateways.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn status(&self) -> Result<Status, ApiError> {
        read(self.send(self.client.get(self.url("/api/v1/status")))?)
    }

    /// Makes the server at a raft address a voter. False while it is being sent the state: asking again waits on.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn add_member(&self, address: &str) -> Result<bool, ApiError> {
        let body = serde_json::json!({ "address": address });
        let response = self.send(self.post("/api/v1/cluster/members").json(&body))?;
        Ok(response.status() == StatusCode::OK)
    }

    /// Puts a backup into this cluster, which has no entries yet.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn restore(&self, backup: Vec<u8>) -> Result<(), ApiError> {
        let request = self.post("/api/v1/restore").header("content-type", "application/octet-stream");
        self.send(request.body(backup)).map(drop)
    }

    /// Removes a server from the cluster by its name.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn remove_member(&self, name: &str) -> Result<(), ApiError> {
        self.send(self.client.delete(self.url(&format!("/api/v1/cluster/members/{name}")))).map(drop)
    }

    /// Makes another server the leader, the named one if there is a name.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn step_down(&self, to: Option<&str>) -> Result<(), ApiError> {
        self.send(self.post("/api/v1/cluster/step-down").json(&serde_json::json!({ "to": to }))).map(drop)
    }

    /// Makes a token and returns its secret.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn create_token(&self, name: &str, role: &str) -> Result<String, ApiError> {
        #[derive(Deserialize)]
        struct Created {
            token: String,
        }
        let body = BTreeMap::from([("name", name), ("role", role)]);
        Ok(read::<Created>(self.send(self.post("/api/v1/tokens").json(&body))?)?.token)
    }

    /// `GET path` as text, with the token.
    ///
    /// # Errors
    /// [`ApiError`], also for any status but success.
    pub fn get_text(&self, path: &str) -> Result<String, ApiError> {
        self.send(self.client.get(self.url(path)))?.text().map_err(no_answer)
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(self.url(path))
    }

    fn send(&self, request: RequestBuilder) -> Result<Response, ApiError> {
        let response = request.bearer_auth(&self.token).send().map_err(no_answer)?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(response)) }
    }
}

fn read<T: DeserializeOwned>(response: Response) -> Result<T, ApiError> {
    let url = response.url().clone();
    let text = response.text().map_err(no_answer)?;
    serde_json::from_str(&text)
        .map_err(|error| ApiError::NoAnswer(format!("{url} answers {text:?}: {error}")))
}

fn refusal(response: Response) -> ApiError {
    let status: StatusCode = response.status();
    let content_type = response
        .headers()
        .get("content-type")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let body = response.text().unwrap_or_default();
    if content_type.starts_with("application/problem+json")
        && let Ok(problem) = serde_json::from_str(&body)
    {
        return ApiError::Refused(problem);
    }
    ApiError::Unexplained { status: status.as_u16(), content_type, body }
}

/// The whole chain of a transport error: reqwest's own words stop at "error sending request".
#[expect(clippy::needless_pass_by_value, reason = "the shape map_err wants")]
fn no_answer(error: reqwest::Error) -> ApiError {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    ApiError::NoAnswer(text)
}
