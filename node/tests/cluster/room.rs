//! Disks that run full.

use std::time::Duration;

use node::cluster::{Cluster, Tuning, WriteError};
use raft_store::command::{Command, Operation, Origin};
use tokio::time::Instant;

use super::harness::{Nodes, PATIENCE, write};

/// Large enough for a node's files, small enough to fill.
const DISK_MIB: u64 = 64;
/// Enough to write a few log entries, below what counts as low (a tenth of the disk).
const NEARLY_FULL_BYTES: u64 = 3 * 1024 * 1024;

async fn until_room_is(cluster: &Cluster, wanted: bool) {
    let deadline = Instant::now() + PATIENCE;
    while cluster.room().is_ok() != wanted {
        assert!(Instant::now() < deadline, "room is {:?}", cluster.room());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_low_disk_removals_are_taken_and_additions_refused_until_there_is_room_again() {
    let mut nodes = Nodes::prepared(1, &Tuning::default());
    let disk = nodes.small_disk(0, DISK_MIB);
    nodes.start_node(0).await;
    nodes.founded().await;
    let cluster = nodes.node(0);
    write(cluster, "before").await.unwrap();

    disk.fill(NEARLY_FULL_BYTES);
    until_room_is(cluster, false).await;
    let refused = write(cluster, "refused").await.unwrap_err();
    let WriteError::NoRoom(reason) = &refused else { panic!("{refused:?}") };
    assert!(reason.contains("bytes free") && reason.contains("server-1"), "{reason}");
    let removal = Command::RemoveToken { name: "before".to_owned() };
    let removal = Operation { origin: Origin::default(), command: removal };
    cluster.propose(vec![removal], PATIENCE).await.unwrap();
    let state = cluster.reader().state();
    assert!(!state.tokens().contains_key("before") && !state.tokens().contains_key("refused"));

    disk.make_room();
    until_room_is(cluster, true).await;
    write(cluster, "after").await.unwrap();
    nodes.stop(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_on_a_low_disk_hands_over_and_additions_go_on() {
    let mut nodes = Nodes::prepared(3, &Tuning::default());
    let disks: Vec<_> = (0..3).map(|index| nodes.small_disk(index, DISK_MIB)).collect();
    for index in 0..3 {
        nodes.start_node(index).await;
    }
    nodes.founded().await;
    let first = nodes.leader().await;
    disks[first].fill(NEARLY_FULL_BYTES);
    until_room_is(nodes.node(first), false).await;

    // An attempt that failed is not made again at once.
    let deadline = Instant::now() + PATIENCE * 3;
    while nodes.leader().await == first {
        assert!(Instant::now() < deadline, "the leader stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Also through the node whose disk is low: it forwards.
    write(nodes.node(first), "forwarded").await.unwrap();
    for index in 0..3 {
        nodes.stop(index).await;
    }
}
