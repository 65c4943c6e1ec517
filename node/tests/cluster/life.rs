//! Founding, restarting, losing a disk.

use std::collections::BTreeSet;
use std::time::Duration;

use node::cluster::{Cluster, Tuning};
use raft_store::command::Role;

use crate::harness::{Nodes, PATIENCE, eventually, sees, write};

async fn voters(cluster: &Cluster) -> BTreeSet<u64> {
    let members = cluster.members(Duration::from_secs(10)).await;
    members.iter().filter(|member| member.voter).map(|member| member.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_founded_once_whatever_the_order_of_starts() {
    let mut nodes = Nodes::prepared(3, &Tuning::default());
    // The founder comes last; nobody may found without it, and it may not without the others.
    for index in [2, 1, 0] {
        assert!(nodes.running().all(|(_, cluster)| cluster.node_status().is_none()), "founded too early");
        nodes.start_node(index).await;
    }
    nodes.founded().await;
    let ids: BTreeSet<_> = nodes.running().map(|(_, cluster)| cluster.id()).collect();
    let mut clusters = BTreeSet::new();
    for (_, cluster) in nodes.running() {
        cluster.read_barrier(PATIENCE).await.unwrap();
        clusters.insert(cluster.reader().state().cluster().unwrap());
        assert_eq!(voters(cluster).await, ids);
    }
    assert_eq!(clusters.len(), 1);
    // One node wrote the token, and it is the one in the state.
    let files = nodes.admin_token_files();
    assert_eq!(files.len(), 1, "{files:?}");
    let text = std::fs::read_to_string(&files[0]).unwrap();
    let state = nodes.node(0).reader().state();
    let token = node::auth::token::find(state.tokens().values(), text.trim()).unwrap();
    assert_eq!((token.name.as_str(), token.role), ("admin", Role::Admin));
}

#[tokio::test(flavor = "multi_thread")]
async fn starting_again_changes_nothing() {
    let mut nodes = Nodes::start(3, Tuning::default()).await;
    write(nodes.node(0), "kept").await.unwrap();
    let ids: Vec<_> = nodes.running().map(|(_, cluster)| cluster.id()).collect();
    let cluster_id = nodes.node(0).reader().state().cluster();
    let token = std::fs::read(&nodes.admin_token_files()[0]).unwrap();
    for _round in 0..2 {
        for index in 0..3 {
            nodes.kill(index).await;
        }
        for index in 0..3 {
            nodes.start_node(index).await;
        }
        nodes.founded().await;
        for (index, cluster) in nodes.running() {
            assert!(sees(cluster, "kept").await);
            assert_eq!(cluster.id(), ids[index]);
            assert_eq!(cluster.reader().state().cluster(), cluster_id);
            assert_eq!(voters(cluster).await, ids.iter().copied().collect());
        }
        assert_eq!(std::fs::read(&nodes.admin_token_files()[0]).unwrap(), token);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_disk_joins_under_a_new_id_and_the_old_id_is_removed() {
    let mut nodes = Nodes::start(3, Tuning::default()).await;
    write(nodes.node(0), "kept").await.unwrap();
    // The founder: the one that must not found again.
    let old = nodes.node(0).id();
    nodes.kill(0).await;
    nodes.lose_disk(0);
    eventually("a write without it", async || write(nodes.node(1), "meanwhile").await.is_ok()).await;
    nodes.start_node(0).await;
    nodes.founded().await;
    let new = nodes.node(0).id();
    assert_ne!(new, old);
    assert!(sees(nodes.node(0), "kept").await && sees(nodes.node(0), "meanwhile").await);
    let ids: BTreeSet<_> = nodes.running().map(|(_, cluster)| cluster.id()).collect();
    for (_, cluster) in nodes.running() {
        eventually("the membership everywhere", async || voters(cluster).await == ids).await;
        assert_eq!(cluster.members(Duration::from_secs(10)).await.len(), 3, "the old id is gone altogether");
    }
    // It counts: with it and one other there is a quorum.
    nodes.kill(2).await;
    eventually("a write with the new one", async || write(nodes.node(0), "after").await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_file_that_was_there_before_is_used() {
    let mut nodes = Nodes::prepared(1, &Tuning::default());
    let file = nodes.admin_token_file(0);
    std::fs::write(&file, "the operator's own secret\n").unwrap();
    nodes.start_node(0).await;
    nodes.founded().await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "the operator's own secret\n");
    let state = nodes.node(0).reader().state();
    let token = node::auth::token::find(state.tokens().values(), "the operator's own secret").unwrap();
    assert_eq!(token.role, Role::Admin);
}
