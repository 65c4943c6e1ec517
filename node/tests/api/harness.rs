//! A server's HTTP side on loopback.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use node::api::{self, AppState, Settings, Transport};
use node::auth::token;
use node::cluster::{Cluster, ClusterSettings, Join, Tuning};
use node::feed::{Limits, Sessions};
use node::tls::NodeTls;
use raft_store::command::{BatchReply, Command, Operation, Origin, Role, Token};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::{Builder, Runtime};

/// How long a test waits for something that must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) cluster: Cluster,
    /// The other nodes of its cluster, if any.
    pub(crate) others: Vec<Cluster>,
    pub(crate) sessions: Sessions,
    /// Text of the admin token.
    pub(crate) admin: String,
    client: reqwest::Client,
    /// The node's own threads, so that it can be stopped before its files go.
    runtime: Option<Runtime>,
    /// What the node keeps; removed in the end.
    _dir: TempDir,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(Transport::Tls, Limits::default()).await
    }

    /// The router of a listener. Tests speak plain TCP with the TLS listener's router as well: TLS is not its part.
    pub(crate) async fn start_with(transport: Transport, limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let nodes = async move { vec![Cluster::single_for_tests(&path).await.unwrap()] };
        Self::start_on(dir, nodes, transport, limits).await
    }

    /// The first of three nodes.
    pub(crate) async fn start_one_of_three() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let nodes = three_nodes(dir.path().to_owned());
        Self::start_on(dir, nodes, Transport::Tls, Limits::default()).await
    }

    async fn start_on(
        dir: TempDir,
        nodes: impl Future<Output = Vec<Cluster>> + Send + 'static,
        transport: Transport,
        limits: Limits,
    ) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let starting = runtime.spawn(async move {
            let mut nodes = nodes.await;
            let cluster = nodes.remove(0);
            let (address, sessions) = serve(cluster.clone(), transport, limits).await;
            (address, cluster, nodes, sessions)
        });
        let (address, cluster, others, sessions) = starting.await.unwrap();
        let client = reqwest::Client::builder().build().unwrap();
        let admin = std::fs::read_to_string(dir.path().join("admin.token")).unwrap().trim().to_owned();
        Self { address, cluster, others, sessions, admin, client, runtime: Some(runtime), _dir: dir }
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

    /// Serves the API of one of the other nodes too.
    pub(crate) async fn serve_other(&self, index: usize) -> SocketAddr {
        let (node, runtime) = (self.others[index].clone(), self.runtime.as_ref().unwrap());
        runtime.spawn(serve(node, Transport::Tls, Limits::default())).await.unwrap().0
    }

    /// A request of the admin to another address.
    pub(crate) fn request_at(&self, address: SocketAddr, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{address}{path}")).bearer_auth(&self.admin)
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
        let runtime = self.runtime.take().unwrap();
        let nodes: Vec<_> = self.others.drain(..).chain([self.cluster.clone()]).collect();
        // A node ends its process when its files vanish under it.
        let stopping = std::thread::spawn(move || {
            runtime.block_on(async {
                for node in nodes {
                    node.crash().await;
                }
            });
        });
        stopping.join().unwrap();
    }
}

async fn serve(cluster: Cluster, transport: Transport, limits: Limits) -> (SocketAddr, Sessions) {
    let sessions = Sessions::new("server-1", limits).unwrap();
    let app = AppState::new(cluster, sessions.clone(), Settings::default()).unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    // Accepted sockets inherit it: a client that does not read is noticed soon.
    socket.set_send_buffer_size(4096).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(64).unwrap();
    let address = listener.local_addr().unwrap();
    let service = api::router(app, transport).into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, service).await });
    (address, sessions)
}

/// Three nodes that found a cluster over mutual TLS.
async fn three_nodes(dir: PathBuf) -> Vec<Cluster> {
    let mut listeners = Vec::new();
    for _ in 0..3 {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let mut peers: Vec<_> =
        listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
    peers.sort();
    let mut nodes = Vec::new();
    for (index, listener) in listeners.into_iter().enumerate() {
        let name = format!("server-{}", index + 1);
        let settings = ClusterSettings {
            tls: NodeTls::prepare(&dir.join("tls"), &name, &["127.0.0.1"]).unwrap(),
            data_dir: dir.join(&name),
            advertise: listener.local_addr().unwrap().to_string(),
            peers: peers.clone(),
            join: Join::Auto,
            admin_token_file: dir.join("admin.token"),
            tuning: Tuning::default(),
            name,
        };
        nodes.push(Cluster::start(settings, listener).await.unwrap());
    }
    for node in &nodes {
        let mut complete = node.complete();
        let founded = complete.wait_for(|complete| *complete);
        tokio::time::timeout(PATIENCE, founded).await.expect("the cluster is founded").unwrap();
    }
    nodes
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
