//! `outputguardctl cluster …` through the real program, on real nodes with their peer TLS, disks and APIs, while clients
//! write.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use node::api::{self, AppState, Settings, Transport};
use node::cluster::{Cluster, ClusterSettings, Join, Tuning};
use node::feed::{Limits, Sessions};
use node::tls::NodeTls;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

const PATIENCE: Duration = Duration::from_secs(60);
const WRITERS: usize = 6;

struct Node {
    settings: ClusterSettings,
    cluster: Option<Cluster>,
    api: Option<(SocketAddr, JoinHandle<()>)>,
}

struct Nodes {
    dir: TempDir,
    prefix: String,
    nodes: Vec<Node>,
    client: Client,
}

impl Nodes {
    /// Three that found a cluster.
    async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let [.., high, low] = std::process::id().to_be_bytes();
        let part = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut nodes = Self {
            dir: tempfile::tempdir().unwrap(),
            prefix: format!("127.{high}.{low}.{}", 1 + part),
            nodes: Vec::new(),
            client: Client::builder().timeout(Duration::from_secs(20)).build().unwrap(),
        };
        let peers: Vec<_> = (1..=3).map(|number| nodes.raft_address(number)).collect();
        for number in 1..=3 {
            nodes.prepare(number, peers.clone(), Join::Auto);
            nodes.run(number - 1).await;
        }
        for index in 0..3 {
            nodes.is_complete(index).await;
        }
        nodes
    }

    fn raft_address(&self, number: usize) -> String {
        format!("{}:{}", self.prefix, 8_080 + number)
    }

    fn prepare(&mut self, number: usize, peers: Vec<String>, join: Join) {
        let name = format!("server-{number}");
        self.nodes.push(Node {
            settings: ClusterSettings {
                data_dir: self.dir.path().join(&name),
                advertise: self.raft_address(number),
                peers,
                join,
                admin_token_file: self.dir.path().join("admin.token"),
                tls: NodeTls::prepare(&self.dir.path().join("tls"), &name, &[&self.prefix]).unwrap(),
                tuning: Tuning::default(),
                name,
            },
            cluster: None,
            api: None,
        });
    }

    /// One more node, that waits until it is added; its index.
    async fn spare(&mut self) -> usize {
        self.prepare(self.nodes.len() + 1, Vec::new(), Join::Wait);
        self.run(self.nodes.len() - 1).await;
        self.nodes.len() - 1
    }

    async fn run(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let raft = TcpListener::bind(&node.settings.advertise).await.unwrap();
        let cluster = Cluster::start(node.settings.clone(), raft).await.unwrap();
        let sessions = Sessions::new(&node.settings.name, Limits::default()).unwrap();
        let app = AppState::new(cluster.clone(), sessions, Settings::default()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = api::router(app, Transport::Plain).into_make_service_with_connect_info::<SocketAddr>();
        let serving = tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
        (node.cluster, node.api) = (Some(cluster), Some((address, serving)));
    }

    async fn kill(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let (_, serving) = node.api.take().unwrap();
        serving.abort();
        let _ = serving.await;
        node.cluster.take().unwrap().crash().await;
    }

    async fn end(mut self) {
        for index in 0..self.nodes.len() {
            if self.nodes[index].cluster.is_some() {
                self.kill(index).await;
            }
        }
    }

    async fn is_complete(&self, index: usize) {
        let mut complete = self.nodes[index].cluster.as_ref().unwrap().complete();
        tokio::time::timeout(PATIENCE, complete.wait_for(|complete| *complete)).await.unwrap().unwrap();
    }

    fn url(&self, index: usize) -> String {
        format!("http://{}", self.nodes[index].api.as_ref().unwrap().0)
    }

    fn token(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("admin.token")).unwrap().trim().to_owned()
    }

    async fn get(&self, index: usize, path: &str) -> (StatusCode, Value) {
        let url = format!("{}{path}", self.url(index));
        let answer = self.client.get(url).bearer_auth(self.token()).send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    /// What the program prints, or says when it fails.
    async fn ctl(&self, index: usize, args: &[&str]) -> Result<String, String> {
        let (url, file) = (self.url(index), self.dir.path().join("admin.token"));
        let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let run = move || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_outputguardctl"));
            command
                .args(["--addr", &url, "--token-file"])
                .arg(file)
                .arg("cluster")
                .args(args)
                .output()
                .unwrap()
        };
        let output = tokio::task::spawn_blocking(run).await.unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap()),
            false => Err(String::from_utf8(output.stderr).unwrap()),
        }
    }

    async fn voters(&self, index: usize) -> BTreeSet<String> {
        let (_, list) = self.get(index, "/api/v1/cluster/members").await;
        let members = list["members"].as_array().unwrap().iter().filter(|member| member["voter"] == true);
        members.map(|member| member["name"].as_str().unwrap().to_owned()).collect()
    }

    async fn leader(&self, asked: usize) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (_, list) = self.get(asked, "/api/v1/cluster/members").await;
            let leads = |node: &Node| node.api.is_some() && list["leader"] == *node.settings.name;
            if let Some(leader) = self.nodes.iter().position(leads) {
                return leader;
            }
            assert!(Instant::now() < deadline, "no leader: {list}");
        }
    }

    async fn becomes(&self, what: &str, mut reached: impl AsyncFnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !reached(self).await {
            assert!(Instant::now() < deadline, "never: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn id(&self, index: usize) -> String {
        self.nodes[index].cluster.as_ref().unwrap().id().to_string()
    }

    fn name(&self, index: usize) -> &str {
        &self.nodes[index].settings.name
    }

    /// Kind, node and actor of what the audit log has of members, oldest first, as node `index` shows it.
    async fn member_events(&self, index: usize) -> Vec<(String, String, String)> {
        let mut events = Vec::new();
        let mut before = String::new();
        loop {
            let (status, page) = self.get(index, &format!("/api/v1/audit?limit=1000{before}")).await;
            assert_eq!(status, StatusCode::OK, "{page}");
            let text = |event: &Value, key: &str| event[key].as_str().unwrap().to_owned();
            for event in page["events"].as_array().unwrap() {
                let kind = text(event, "kind");
                if kind.starts_with("member_") || kind == "leader_chosen" {
                    assert!(event["at"].as_str().unwrap().starts_with("20"), "{event}");
                    events.push((kind, text(event, "id"), text(event, "actor")));
                }
            }
            match page["next_before"].as_u64() {
                Some(next) => before = format!("&before={next}"),
                None => break,
            }
        }
        events.reverse();
        // Whoever hands over late is asked again.
        events.dedup();
        events
    }
}

/// Clients that go to another node, once, when theirs takes no work.
struct Load {
    stop: Arc<AtomicBool>,
    nodes: Arc<Mutex<Vec<String>>>,
    acknowledged: Arc<AtomicUsize>,
    writers: JoinSet<BTreeSet<String>>,
}

impl Load {
    fn start(nodes: &Nodes, used: &[usize]) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            nodes: Arc::default(),
            acknowledged: Arc::default(),
            writers: JoinSet::new(),
        };
        load.use_nodes(nodes, used);
        for writer in 0..WRITERS {
            let (stop, urls, acknowledged) =
                (load.stop.clone(), load.nodes.clone(), load.acknowledged.clone());
            let (client, token) = (nodes.client.clone(), nodes.token());
            load.writers.spawn(async move {
                let mut written = BTreeSet::new();
                while !stop.load(Ordering::Relaxed) {
                    let count = written.len();
                    let target = format!("93.{writer}.{}.{}", count / 256, count % 256);
                    let (first, second) = {
                        let urls = urls.lock().unwrap();
                        let at = (writer + count) % urls.len();
                        (urls[at].clone(), urls[(at + 1) % urls.len()].clone())
                    };
                    let add = async |url: &str| {
                        let request = client.post(format!("{url}/api/v1/entries")).bearer_auth(&token);
                        let answer = request.json(&json!({ "target": target })).send().await.unwrap();
                        (answer.status(), answer.text().await.unwrap())
                    };
                    let mut answer = add(&first).await;
                    if answer.0 == StatusCode::SERVICE_UNAVAILABLE {
                        answer = add(&second).await;
                    }
                    assert_eq!(answer.0, StatusCode::CREATED, "{target}: {}", answer.1);
                    written.insert(target);
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                written
            });
        }
        load
    }

    fn use_nodes(&self, nodes: &Nodes, used: &[usize]) {
        *self.nodes.lock().unwrap() = used.iter().map(|index| nodes.url(*index)).collect();
    }

    async fn goes_on(&self, nodes: &Nodes) {
        let before = self.acknowledged.load(Ordering::Relaxed);
        nodes
            .becomes("more writes", async |_| self.acknowledged.load(Ordering::Relaxed) >= before + 20)
            .await;
    }

    async fn end(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.writers.join_all().await.into_iter().flatten().collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_become_five_and_three_again_by_one_command_each_under_load_and_the_audit_log_has_it() {
    let mut nodes = Nodes::start().await;
    let load = Load::start(&nodes, &[0, 1, 2]);
    load.goes_on(&nodes).await;
    let mut expected = Vec::new();
    let mut expect = |kind: &str, id: String| expected.push((kind.to_owned(), id, "admin".to_owned()));
    for asked in [0, 1] {
        let new = nodes.spare().await;
        let said = nodes.ctl(asked, &["add", &nodes.raft_address(new + 1)]).await.unwrap();
        assert!(said.contains(&format!("{} at", nodes.name(new))) && said.contains("is a voter"), "{said}");
        expect("member_adding", nodes.id(new));
        expect("member_added", nodes.id(new));
        nodes.is_complete(new).await;
    }
    load.use_nodes(&nodes, &[0, 1, 2, 3, 4]);
    load.goes_on(&nodes).await;
    assert_eq!(nodes.voters(4).await.len(), 5);

    let leader = nodes.leader(0).await;
    let to = (leader + 1) % 5;
    let said = nodes.ctl((leader + 2) % 5, &["step-down", "--to", nodes.name(to)]).await.unwrap();
    assert!(said.contains(&format!("{} leads", nodes.name(to))), "{said}");
    expect("leader_chosen", nodes.id(to));
    load.goes_on(&nodes).await;

    // The leader among them.
    let leader = nodes.leader(0).await;
    let mut there: Vec<_> = (0..5).collect();
    for gone in [leader, (leader + 1) % 5] {
        there.retain(|node| *node != gone);
        // The balancer is told first, as before maintenance.
        load.use_nodes(&nodes, &there);
        load.goes_on(&nodes).await;
        let said = nodes.ctl(there[0], &["remove", nodes.name(gone)]).await.unwrap();
        assert!(said.contains(&format!("{} is no member any more", nodes.name(gone))), "{said}");
        expect("member_removing", nodes.id(gone));
        expect("member_removed", nodes.id(gone));
        load.goes_on(&nodes).await;
    }
    assert_eq!(nodes.voters(there[0]).await.len(), 3);

    // One of the three is exchanged for a new one.
    let (old, new) = (there[2], nodes.spare().await);
    let serve = [there[0], there[1]];
    load.use_nodes(&nodes, &serve);
    load.goes_on(&nodes).await;
    let said =
        nodes.ctl(there[0], &["replace", nodes.name(old), &nodes.raft_address(new + 1)]).await.unwrap();
    assert!(said.contains(&format!("{} is no member any more", nodes.name(old))), "{said}");
    expect("member_adding", nodes.id(new));
    expect("member_removing", nodes.id(old));
    expect("member_added", nodes.id(new));
    expect("member_removed", nodes.id(old));
    nodes.is_complete(new).await;
    load.use_nodes(&nodes, &[there[0], there[1], new]);
    load.goes_on(&nodes).await;

    let written = load.end().await;
    for index in [there[0], there[1], new] {
        let cluster = nodes.nodes[index].cluster.as_ref().unwrap();
        cluster.read_barrier(PATIENCE).await.unwrap();
        let state = cluster.reader().state();
        let held: BTreeSet<_> = state.entries().values().map(|entry| entry.target.to_string()).collect();
        let lost: Vec<_> = written.difference(&held).collect();
        assert!(lost.is_empty(), "{} lost {lost:?}", nodes.name(index));
        if index != new {
            assert_eq!(nodes.member_events(index).await, expected, "on {}", nodes.name(index));
        }
    }
    nodes.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_copies_and_removed_nodes_are_refused_and_told_what_to_do() {
    let mut nodes = Nodes::start().await;
    let says = |refused: Result<String, String>, parts: &[&str]| {
        let text = refused.unwrap_err();
        for part in parts {
            assert!(text.contains(part), "{part:?} is missing in: {text}");
        }
    };
    // Nobody is there.
    let nobody = nodes.raft_address(90);
    says(nodes.ctl(0, &["add", &nobody]).await, &[&nobody, "start it there", "cluster.advertise"]);
    says(
        nodes.ctl(1, &["remove", "server-9"]).await,
        &["server-9", "members are server-1, server-2, server-3"],
    );
    says(nodes.ctl(1, &["step-down", "--to", "server-9"]).await, &["server-9", "members are"]);
    says(nodes.ctl(1, &["add", "not an address"]).await, &["host:port"]);

    // Two nodes with one id: the data directory of a member, copied.
    let copy = nodes.spare().await;
    nodes.kill(copy).await;
    let member = nodes.leader(0).await;
    let asked = (member + 1) % 3;
    nodes.kill(member).await;
    let (from, to) =
        (nodes.nodes[member].settings.data_dir.clone(), nodes.nodes[copy].settings.data_dir.clone());
    std::fs::remove_dir_all(&to).unwrap();
    copy_dir(&from, &to);
    nodes.run(member).await;
    nodes.run(copy).await;
    nodes.is_complete(member).await;
    nodes.becomes("the copy says so", async |nodes| told(nodes, copy, "is a copy").await).await;
    let address = nodes.raft_address(copy + 1);
    says(nodes.ctl(asked, &["add", &address]).await, &["is a copy", "empty its data directory"]);
    nodes.kill(copy).await;

    // Removed while it was down, it comes back with all it had.
    let gone = (member + 2) % 3;
    let old_id = nodes.id(gone);
    nodes.kill(gone).await;
    nodes.ctl(asked, &["remove", &old_id]).await.unwrap();
    nodes.run(gone).await;
    nodes.becomes("it says so", async |nodes| told(nodes, gone, "was removed from the cluster").await).await;
    let (status, problem) = nodes.get(gone, "/api/v1/entries?consistency=stale").await;
    assert_eq!((status, &problem["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("not_a_member")));
    let address = nodes.raft_address(gone + 1);
    says(
        nodes.ctl(asked, &["add", &address]).await,
        &["was removed from this cluster", "empty its data directory", "add it again"],
    );
    // It did what it was told.
    nodes.kill(gone).await;
    std::fs::remove_dir_all(&nodes.nodes[gone].settings.data_dir).unwrap();
    nodes.run(gone).await;
    nodes.is_complete(gone).await;
    assert_ne!(nodes.id(gone), old_id);
    assert_eq!(nodes.voters(gone).await.len(), 3);
    // It came by itself.
    let events = nodes.member_events(asked).await;
    let joined = ("member_added".to_owned(), nodes.id(gone), "join".to_owned());
    assert!(events.contains(&joined), "{events:?}");
    nodes.end().await;
}

/// Whether a node that does not belong says `what`, and what to do, to whoever asks whether it is ready.
async fn told(nodes: &Nodes, index: usize, what: &str) -> bool {
    let (status, ready) = nodes.get(index, "/readyz").await;
    let reasons = ready["reasons"].to_string();
    status == StatusCode::SERVICE_UNAVAILABLE
        && reasons.contains(what)
        && reasons.contains("empty its data directory")
}

fn copy_dir(from: &Path, to: &PathBuf) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, target) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).unwrap();
        if path.is_dir() {
            copy_dir(&path, &target);
        } else {
            std::fs::copy(path, target).unwrap();
        }
    }
}
