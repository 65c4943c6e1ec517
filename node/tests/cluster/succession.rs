//! A leader that is gone, and who follows it. Raft's own timeouts are set so long that they cannot be what helps.

use node::cluster::Tuning;

use crate::harness::{Nodes, eventually, sees, write};

fn patient() -> Tuning {
    // The first election of a cluster waits for nothing; every later one by timeout would take longer than a test has.
    Tuning { election_min_ms: 60_000, election_max_ms: 70_000, ..Tuning::default() }
}

async fn goes_on(nodes: &Nodes, lost: usize) {
    let survivor = nodes.running().next().unwrap().0;
    eventually("a write on a survivor", async || write(nodes.node(survivor), "meanwhile").await.is_ok())
        .await;
    for (index, cluster) in nodes.running() {
        assert!(sees(cluster, "before").await && sees(cluster, "meanwhile").await, "node {index}");
    }
    assert_ne!(nodes.leader().await, lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_process_is_gone_is_replaced_without_waiting_for_timeouts() {
    let mut nodes = Nodes::start(3, patient()).await;
    write(nodes.node(0), "before").await.unwrap();
    let leader = nodes.leader().await;
    nodes.kill(leader).await;
    goes_on(&nodes, leader).await;
    // And again, when it is back.
    nodes.start_node(leader).await;
    nodes.founded().await;
    let next = nodes.leader().await;
    nodes.kill(next).await;
    goes_on(&nodes, next).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_not_heard_any_more_is_replaced() {
    let mut nodes = Nodes::start(3, patient()).await;
    write(nodes.node(0), "before").await.unwrap();
    let leader = nodes.leader().await;
    nodes.silence(leader).await;
    goes_on(&nodes, leader).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_successor_has_the_longest_log() {
    let mut nodes = Nodes::start(3, patient()).await;
    let leader = nodes.leader().await;
    let behind = nodes.follower().await;
    let heir = 3 - leader - behind;
    // A node that missed writes comes back and meets the end of the leader.
    nodes.kill(behind).await;
    for n in 0..50 {
        write(nodes.node(leader), &format!("mark-{n}")).await.unwrap();
    }
    write(nodes.node(leader), "before").await.unwrap();
    nodes.start_node(behind).await;
    nodes.kill(leader).await;
    goes_on(&nodes, leader).await;
    assert!(sees(nodes.node(heir), "mark-49").await && sees(nodes.node(behind), "mark-49").await);
}
