//! A server's HTTP side on loopback.

use std::net::SocketAddr;
use std::time::Duration;

use node::api::{self, AppState, Settings, Transport};
use node::auth::token;
use node::cluster::Cluster;
use node::feed::{Limits, Sessions};
use raft_store::command::{BatchReply, Command, Operation, Origin, Role, Token};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;
use tokio::net::TcpSocket;
use tokio::task::AbortHandle;
use uuid::Uuid;

/// How long a test waits for something that must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) cluster: Cluster,
    pub(crate) sessions: Sessions,
    /// Text of the admin token.
    pub(crate) admin: String,
    client: reqwest::Client,
    serving: AbortHandle,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(Transport::Tls, Limits::default()).await
    }

    /// The router of a listener. Tests speak plain TCP with the TLS listener's router as well: TLS is not its part.
    pub(crate) async fn start_with(transport: Transport, limits: Limits) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let cluster = Cluster::in_memory();
        propose(&cluster, vec![Command::InitCluster { cluster: Uuid::new_v4() }]).await;
        let sessions = Sessions::new("server-1", limits).unwrap();
        let app = AppState::new(cluster.clone(), sessions.clone(), Settings::default()).unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        // Accepted sockets inherit it: a client that does not read is noticed soon.
        socket.set_send_buffer_size(4096).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        let service = api::router(app, transport).into_make_service_with_connect_info::<SocketAddr>();
        let serving = tokio::spawn(async move { axum::serve(listener, service).await }).abort_handle();
        let client = reqwest::Client::builder().build().unwrap();
        let mut server = Self { address, cluster, sessions, admin: String::new(), client, serving };
        server.admin = server.token("admin", Role::Admin).await;
        server
    }

    /// Makes a token past the API.
    pub(crate) async fn token(&self, name: &str, role: Role) -> String {
        let secret = token::generate(role);
        let sha256 = token::sha256(secret.expose());
        let stored = Token { name: name.to_owned(), role, sha256, created_at_ms: 1 };
        propose(&self.cluster, vec![Command::AddToken(stored)]).await;
        secret.expose().to_owned()
    }

    pub(crate) async fn propose(&self, commands: Vec<Command>) -> BatchReply {
        propose(&self.cluster, commands).await
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A request without a token.
    pub(crate) fn bare(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path))
    }

    /// A request of the admin.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.bare(method, path).bearer_auth(&self.admin)
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    /// GET as JSON; it must succeed.
    pub(crate) async fn read(&self, path: &str) -> Value {
        let response = self.get(path).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        response.json().await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Response {
        self.request(Method::POST, path).json(body).send().await.unwrap()
    }

    /// Adds an entry that is not there yet.
    pub(crate) async fn add(&self, body: Value) -> Value {
        let response = self.post("/api/v1/entries", &body).await;
        let status = response.status();
        let answer: Value = response.json().await.unwrap();
        assert_eq!(status, StatusCode::CREATED, "{body} → {answer}");
        answer
    }

    /// The value of a metric line, 0 when it is not there.
    pub(crate) async fn metric(&self, line: &str) -> f64 {
        let page = self.bare(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
        let value = page.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
        value.unwrap_or(0.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn propose(cluster: &Cluster, commands: Vec<Command>) -> BatchReply {
    let origin = Origin { actor: "test".into(), ..Origin::default() };
    let operations =
        commands.into_iter().map(|command| Operation { origin: origin.clone(), command }).collect();
    cluster.propose(operations, PATIENCE).await.unwrap()
}

/// Checks that an answer is a problem of this code, and returns its detail.
pub(crate) async fn problem(response: Response, status: u16, code: &str) -> String {
    let id = response.headers().get("x-request-id").expect("a request id").to_str().unwrap().to_owned();
    let kind = response.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
    let answered = response.status();
    let text = response.text().await.unwrap();
    assert_eq!(answered.as_u16(), status, "{text}");
    assert_eq!(kind.as_deref(), Some("application/problem+json"), "{text}");
    let body: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(body["code"], code, "{body}");
    assert_eq!(body["status"], status, "{body}");
    assert_eq!(body["request_id"], id, "{body}");
    assert_eq!(body["type"], format!("urn:outputguard:problem:{code}"), "{body}");
    assert!(body["title"].as_str().is_some_and(|title| !title.is_empty()), "{body}");
    body["detail"].as_str().unwrap().to_owned()
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}
