//! A node that moved and a copy of its data directory look alike, except to the process at the old address.

use std::path::Path;
use std::time::Duration;

use raft_store::FatalHook;
use tokio::net::TcpListener;

use super::membership::metrics;
use super::standing::elsewhere;
use crate::cluster::{Cluster, ClusterSettings, Join, Tuning};
use crate::tls::NodeTls;

const PATIENCE: Duration = Duration::from_secs(30);

/// A node that listens at `listen`, whatever it says its address is.
async fn start(dir: &Path, data: &str, listen: &str, advertise: Option<&str>) -> (Cluster, String) {
    let listener = TcpListener::bind(listen).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let settings = ClusterSettings {
        name: "server-1".to_owned(),
        data_dir: dir.join(data),
        advertise: advertise.unwrap_or(&address).to_owned(),
        peers: Vec::new(),
        join: Join::Auto,
        admin_token_file: dir.join("admin.token"),
        tls: NodeTls::prepare(&dir.join("tls"), "server-1", &["127.0.0.1"]).unwrap(),
        tuning: Tuning::default(),
    };
    let cluster = Cluster::start_with(settings, listener, FatalHook::new(|_| {})).await.unwrap();
    // The members are known once its own log is read; a copy never gets further.
    let member =
        |metrics: &super::Metrics| metrics.membership_config.membership().get_node(&cluster.id()).is_some();
    cluster.raft().wait(Some(PATIENCE)).metrics(member, "the log tells the members").await.unwrap();
    (cluster, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_another_process_at_the_old_address_makes_a_node_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let (first, address) = start(dir.path(), "data", "127.0.0.1:0", None).await;
    first.stop().await;
    std::fs::create_dir(dir.path().join("copy")).unwrap();
    for file in std::fs::read_dir(dir.path().join("data")).unwrap() {
        let file = file.unwrap();
        copy(&file.path(), &dir.path().join("copy").join(file.file_name()));
    }
    // The node has another address now, and the old one still leads to it.
    let (moved, _) = start(dir.path(), "data", &address, Some("127.0.0.1:1")).await;
    assert_eq!(elsewhere(&moved, &metrics(&moved)).await, None);
    assert_eq!(moved.fence().away(), None);

    let (copy, _) = start(dir.path(), "copy", "127.0.0.1:0", None).await;
    assert_eq!(copy.id(), moved.id());
    assert_eq!(elsewhere(&copy, &metrics(&copy)).await, Some(address));
    copy.stop().await;
    moved.stop().await;
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        std::fs::create_dir(to).unwrap();
        for file in std::fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            copy(&file.path(), &to.join(file.file_name()));
        }
    } else {
        std::fs::copy(from, to).unwrap();
    }
}
