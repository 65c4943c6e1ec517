//! Nodes that can be started, killed and started again.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use node::cluster::{Cluster, ClusterSettings, Join, Tuning, WriteError};
use node::tls::NodeTls;
use raft_store::command::{BatchReply, Command, Operation, Origin, Role, Token};
use raft_store::{FatalHook, FeatureLevel};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::Instant;

/// How long a test waits for something that must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Node {
    settings: ClusterSettings,
    cluster: Option<Cluster>,
    /// A second handle on the node's listener: whoever connects after its end gets no answer, instead of being refused.
    listener: Option<std::net::TcpListener>,
}

pub(crate) struct Nodes {
    /// What the nodes keep; removed in the end.
    dir: TempDir,
    /// The cluster's loopback addresses are this and a number.
    prefix: String,
    first_number: u8,
    tuning: Tuning,
    nodes: Vec<Node>,
}

impl Nodes {
    /// `count` nodes, all started.
    pub(crate) async fn start(count: u8, tuning: Tuning) -> Self {
        let mut nodes = Self::prepared(count, &tuning);
        for index in 0..nodes.nodes.len() {
            nodes.start_node(index).await;
        }
        nodes.founded().await;
        nodes
    }

    /// `count` nodes that do not run yet.
    pub(crate) fn prepared(count: u8, tuning: &Tuning) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // A loopback address of its own per cluster: a port that a node left is not taken by somebody else.
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let [.., high, low] = std::process::id().to_be_bytes();
        let part = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("127.{high}.{low}.");
        let mut nodes =
            Self { dir, prefix, first_number: part * 20, tuning: tuning.clone(), nodes: Vec::new() };
        let peers: Vec<_> = (1..=count).map(|n| nodes.address(n)).collect();
        for number in 1..=count {
            nodes.prepare(number, &format!("server-{number}"), &peers, Join::Auto);
        }
        nodes
    }

    fn address(&self, number: u8) -> String {
        format!("{}{}:8081", self.prefix, self.first_number + number)
    }

    fn prepare(&mut self, number: u8, name: &str, peers: &[String], join: Join) {
        let advertise = self.address(number);
        let host = node::tls::host_of(&advertise).to_owned();
        let dir = self.dir.path();
        let settings = ClusterSettings {
            admin_token_file: dir.join(format!("{name}-{number}.token")),
            name: name.to_owned(),
            data_dir: dir.join(format!("{name}-{number}")),
            advertise,
            peers: peers.to_vec(),
            join,
            tls: NodeTls::prepare(&dir.join("tls"), name, &[&host]).unwrap(),
            tuning: self.tuning.clone(),
        };
        self.nodes.push(Node { settings, cluster: None, listener: None });
    }

    /// One more node, started, that waits until it is added. Returns its index.
    pub(crate) async fn start_waiting(&mut self, name: &str) -> usize {
        let number = u8::try_from(self.nodes.len() + 1).unwrap();
        self.prepare(number, name, &[], Join::Wait);
        self.start_node(self.nodes.len() - 1).await;
        self.nodes.len() - 1
    }

    /// One more node, started, that founded a cluster of its own with the same CA. Returns its index.
    pub(crate) async fn start_founding(&mut self, name: &str) -> usize {
        let number = u8::try_from(self.nodes.len() + 1).unwrap();
        self.prepare(number, name, &[], Join::Auto);
        let index = self.nodes.len() - 1;
        self.start_node(index).await;
        let mut complete = self.node(index).complete();
        tokio::time::timeout(PATIENCE, complete.wait_for(|complete| *complete)).await.unwrap().unwrap();
        index
    }

    pub(crate) fn raft_address(&self, index: usize) -> String {
        self.nodes[index].settings.advertise.clone()
    }

    /// Gives a node that does not run another address of its own; the others go on to know the old one.
    pub(crate) fn move_address(&mut self, index: usize) {
        let number = u8::try_from(self.nodes.len() + 1 + index).unwrap();
        let advertise = self.address(number);
        let host = node::tls::host_of(&advertise).to_owned();
        let settings = &mut self.nodes[index].settings;
        settings.tls = NodeTls::prepare(&self.dir.path().join("tls"), &settings.name, &[&host]).unwrap();
        settings.advertise = advertise;
    }

    /// Puts a copy of what `from` has on its disk into the place of `to`'s; neither runs.
    pub(crate) fn copy_disk(&self, from: usize, to: usize) {
        assert!(self.nodes[from].cluster.is_none() && self.nodes[to].cluster.is_none());
        let (from, to) = (&self.nodes[from].settings.data_dir, &self.nodes[to].settings.data_dir);
        // It may never have run.
        let _ = std::fs::remove_dir_all(to);
        copy_dir(from, to);
    }

    /// What a node that does not run plays to be, from its next start on.
    pub(crate) fn set_features(&mut self, index: usize, features: FeatureLevel) {
        assert!(self.nodes[index].cluster.is_none());
        self.nodes[index].settings.tuning.features = features;
    }

    /// What nodes that are prepared from now on play to be.
    pub(crate) fn next_features(&mut self, features: FeatureLevel) {
        self.tuning.features = features;
    }

    pub(crate) async fn start_node(&mut self, index: usize) {
        self.try_start_node(index).await.unwrap();
    }

    pub(crate) async fn try_start_node(&mut self, index: usize) -> anyhow::Result<()> {
        let node = &mut self.nodes[index];
        node.listener = None;
        let listener = TcpListener::bind(&node.settings.advertise).await.unwrap().into_std().unwrap();
        node.listener = Some(listener.try_clone().unwrap());
        let listener = TcpListener::from_std(listener).unwrap();
        node.cluster = Some(Cluster::start_with(node.settings.clone(), listener, disk_gone()).await?);
        Ok(())
    }

    /// Ends a node without a word to the others.
    pub(crate) async fn kill(&mut self, index: usize) {
        self.nodes[index].listener = None;
        self.nodes[index].cluster.take().unwrap().crash().await;
    }

    /// Ends a node as when its host is cut off: what it hears is not answered, and nobody is refused.
    pub(crate) async fn silence(&mut self, index: usize) {
        let listener = self.nodes[index].listener.as_ref().unwrap().try_clone().unwrap();
        self.kill(index).await;
        self.nodes[index].listener = Some(listener);
    }

    /// Ends a node in order.
    pub(crate) async fn stop(&mut self, index: usize) {
        self.nodes[index].listener = None;
        self.nodes[index].cluster.take().unwrap().stop().await;
    }

    /// Removes what a node that does not run has on its disk.
    pub(crate) fn lose_disk(&self, index: usize) {
        assert!(self.nodes[index].cluster.is_none());
        std::fs::remove_dir_all(&self.nodes[index].settings.data_dir).unwrap();
    }

    /// Puts a node that never ran on a disk of its own.
    pub(crate) fn small_disk(&self, index: usize, mebibytes: u64) -> SmallDisk {
        assert!(self.nodes[index].cluster.is_none());
        SmallDisk::mount(&self.nodes[index].settings.data_dir, mebibytes)
    }

    pub(crate) fn node(&self, index: usize) -> &Cluster {
        self.nodes[index].cluster.as_ref().unwrap()
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = (usize, &Cluster)> {
        self.nodes.iter().enumerate().filter_map(|(index, node)| Some((index, node.cluster.as_ref()?)))
    }

    pub(crate) fn admin_token_file(&self, index: usize) -> PathBuf {
        self.nodes[index].settings.admin_token_file.clone()
    }

    pub(crate) fn admin_token_files(&self) -> Vec<PathBuf> {
        let files = self.nodes.iter().map(|node| node.settings.admin_token_file.clone());
        files.filter(|file| file.exists()).collect()
    }

    /// Waits until every running node is a voter of a cluster with id and admin token.
    pub(crate) async fn founded(&self) {
        for (index, cluster) in self.running() {
            let mut complete = cluster.complete();
            let waiting = complete.wait_for(|complete| *complete);
            let waited = tokio::time::timeout(PATIENCE, waiting).await;
            assert!(waited.is_ok_and(|held| held.is_ok()), "node {index} is no voter in time");
        }
    }

    /// The one running node that leads.
    pub(crate) async fn leader(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let leading: Vec<_> = self
                .running()
                .filter(|(_, cluster)| *cluster.leadership().borrow())
                .map(|(index, _)| index)
                .collect();
            if let [leader] = leading[..] {
                return leader;
            }
            assert!(Instant::now() < deadline, "no leader: {leading:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn follower(&self) -> usize {
        let leader = self.leader().await;
        self.running().map(|(index, _)| index).find(|index| *index != leader).unwrap()
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// At a test's end the disks go while nodes still run; that must not end the process before the test has its say.
fn disk_gone() -> FatalHook {
    FatalHook::new(|_| {})
}

/// A write that can be recognised.
pub(crate) fn mark(name: &str) -> Operation {
    let token = Token { name: name.to_owned(), role: Role::Viewer, sha256: [7; 32], created_at_ms: 1 };
    Operation {
        origin: Origin { actor: "test".to_owned(), ..Origin::default() },
        command: Command::AddToken(token),
    }
}

pub(crate) async fn write(cluster: &Cluster, name: &str) -> Result<BatchReply, WriteError> {
    cluster.propose(vec![mark(name)], PATIENCE).await
}

/// What a linearizable read on this node sees.
pub(crate) async fn sees(cluster: &Cluster, name: &str) -> bool {
    cluster.read_barrier(PATIENCE).await.unwrap();
    cluster.reader().state().tokens().contains_key(name)
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A disk of a few mebibytes, in memory; gone with this value.
pub(crate) struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    fn mount(path: &Path, mebibytes: u64) -> Self {
        std::fs::create_dir_all(path).unwrap();
        let size = format!("size={mebibytes}m");
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
        Self { path: path.to_owned() }
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Leaves `free` bytes.
    pub(crate) fn fill(&self, free: u64) {
        let disk = nix::sys::statvfs::statvfs(&self.path).unwrap();
        let room = disk.blocks_available() * disk.fragment_size();
        let ballast = usize::try_from(room.saturating_sub(free)).unwrap();
        std::fs::write(self.ballast(), vec![0; ballast]).unwrap();
    }

    pub(crate) fn make_room(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a test that failed may still have its files open.
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}
