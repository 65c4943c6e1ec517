//! Lists and backups through the real program and a real server's API.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use node::api::{self, AppState, Settings, Transport};
use node::cluster::Cluster;
use node::feed::{Limits, Sessions};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A server with a cluster of its own.
struct Server {
    cluster: Cluster,
    address: SocketAddr,
    runtime: Option<Runtime>,
    dir: TempDir,
}

impl Server {
    fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        let (cluster, address) = runtime.block_on(async {
            let cluster = Cluster::single_for_tests(dir.path()).await.unwrap();
            let sessions = Sessions::new("server-1", Limits::default()).unwrap();
            let app = AppState::new(cluster.clone(), sessions, Settings::default()).unwrap();
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let service =
                api::router(app, Transport::Plain).into_make_service_with_connect_info::<SocketAddr>();
            tokio::spawn(async move { axum::serve(listener, service).await });
            (cluster, address)
        });
        Self { cluster, address, runtime: Some(runtime), dir }
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_outputguardctl"))
            .args(["--addr", &format!("http://{}", self.address), "--token-file"])
            .arg(self.dir.path().join("admin.token"))
            .args(args)
            .output()
            .unwrap()
    }

    /// What it prints; it must succeed.
    fn ctl(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it says when the server refuses.
    fn refused(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn digest(&self) -> String {
        self.cluster.reader().state().published().digest().to_string()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A node ends its process when its files vanish under it.
        self.runtime.take().unwrap().block_on(self.cluster.crash());
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_list_goes_out_to_a_file_and_in_again_elsewhere() {
    let (here, there) = (Server::start(), Server::start());
    here.ctl(&[
        "add",
        "api.example.com",
        "--port",
        "tcp/443",
        "--comment",
        "a \"quoted\"\nline",
        "--protected",
    ]);
    here.ctl(&["add", "9.9.9.0/24"]);
    for name in ["list.yaml", "list.ndjson", "list.csv"] {
        let file = here.file(name);
        assert_eq!(here.ctl(&["export", "-f", text(&file)]), "");
        assert!(there.ctl(&["import", text(&file), "--dry-run"]).contains("would be added"));
        there.ctl(&["import", text(&file)]);
        let (ours, theirs) = (here.ctl(&["export"]), there.ctl(&["export"]));
        assert!(ours == theirs && ours.contains("api.example.com"), "{ours}\n{theirs}");
    }
    assert!(
        there.ctl(&["import", text(&here.file("list.csv"))]).starts_with("0 added, 2 were there already")
    );

    let wrong = here.file("wrong.csv");
    std::fs::write(&wrong, "target\n8.8.8.8\n10.0.0.1\nx y\n").unwrap();
    let said = there.refused(&["import", text(&wrong)]);
    assert!(said.contains("\n  line 3: ") && said.contains("\n  line 4: "), "{said}");
    assert_eq!(there.cluster.reader().state().entries().len(), 2);
}

#[test]
fn a_backup_is_private_and_checked_and_makes_a_new_cluster() {
    let (old, new) = (Server::start(), Server::start());
    old.ctl(&["add", "9.9.9.9", "--comment", "resolver"]);
    let file = old.file("outputguard.backup");
    let said = old.ctl(&["backup", text(&file)]);
    let cluster = old.cluster.reader().state().cluster().unwrap().to_string();
    assert!(said.contains(&cluster) && said.contains("entries   1"), "{said}");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    let damaged = old.file("damaged.backup");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&damaged, &bytes).unwrap();
    let refusal = new.refused(&["restore", text(&damaged)]);
    assert!(refusal.contains("backup is damaged"), "{refusal}");

    let said = new.ctl(&["restore", text(&file)]);
    assert!(said.starts_with("1 entries and 0 tokens are in place") && said.contains("admin"), "{said}");
    assert_eq!(new.cluster.reader().state().entries(), old.cluster.reader().state().entries());
    assert_eq!(new.digest(), old.digest());

    let other = Server::start();
    other.ctl(&["add", "8.8.8.8"]);
    let refusal = other.refused(&["restore", text(&file)]);
    assert!(refusal.contains("make a new cluster"), "{refusal}");
}
