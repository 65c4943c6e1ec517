//! Losing nodes, and what the rest does.

use std::time::Duration;

use node::cluster::{Tuning, WriteError};
use tokio::time::Instant;

use crate::harness::{Nodes, PATIENCE, eventually, mark, sees, write};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_replaced_and_catches_up_when_it_returns() {
    let mut nodes = Nodes::start(3, Tuning::default()).await;
    write(nodes.node(0), "before").await.unwrap();
    let killed = nodes.leader().await;
    nodes.kill(killed).await;
    let survivor = nodes.running().next().unwrap().0;
    // A write that meets the election may end with an unknown outcome; a new one goes through.
    eventually("a write on a survivor", async || write(nodes.node(survivor), "meanwhile").await.is_ok())
        .await;
    for (index, cluster) in nodes.running() {
        assert!(sees(cluster, "before").await && sees(cluster, "meanwhile").await, "node {index}");
    }
    nodes.start_node(killed).await;
    nodes.founded().await;
    assert!(sees(nodes.node(killed), "meanwhile").await);
    write(nodes.node(killed), "after").await.unwrap();
    assert!(sees(nodes.node(survivor), "after").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_writes_and_reads_are_refused_in_time_and_go_on_when_it_returns() {
    const TIMEOUT: Duration = Duration::from_millis(1500);
    // The time over TIMEOUT that a loaded machine may need to wake up.
    const SLACK: Duration = Duration::from_secs(2);
    let mut nodes = Nodes::start(3, Tuning::default()).await;
    let leader = nodes.leader().await;
    let followers: Vec<_> = (0..3).filter(|index| *index != leader).collect();
    for follower in &followers {
        nodes.kill(*follower).await;
    }
    // Once the silence is noticed, nothing enters the log any more.
    eventually("writes refused with certainty", async || {
        let asked = Instant::now();
        let refused = nodes.node(leader).propose(vec![mark("lost")], TIMEOUT).await.unwrap_err();
        assert!(asked.elapsed() < TIMEOUT + SLACK, "{refused} after {:?}", asked.elapsed());
        matches!(refused, WriteError::NoQuorum(_))
    })
    .await;
    let asked = Instant::now();
    let refused = nodes.node(leader).read_barrier(TIMEOUT).await;
    assert!(refused.is_err() && asked.elapsed() < TIMEOUT + SLACK, "{refused:?} after {:?}", asked.elapsed());

    // A lone node that does not lead either.
    nodes.kill(leader).await;
    nodes.start_node(followers[0]).await;
    let asked = Instant::now();
    let refused = nodes.node(followers[0]).propose(vec![mark("lost")], TIMEOUT).await.unwrap_err();
    assert!(matches!(refused, WriteError::NoQuorum(_)), "{refused}");
    assert!(nodes.node(followers[0]).read_barrier(TIMEOUT).await.is_err());
    assert!(asked.elapsed() < 2 * TIMEOUT + SLACK);

    nodes.start_node(followers[1]).await;
    write(nodes.node(followers[0]), "again").await.unwrap();
    assert!(sees(nodes.node(followers[1]), "again").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_hands_over_first() {
    let mut nodes =
        Nodes::start(3, Tuning { election_min_ms: 20_000, election_max_ms: 25_000, ..Tuning::default() })
            .await;
    let leader = nodes.leader().await;
    let started = Instant::now();
    nodes.stop(leader).await;
    let heir = nodes.leader().await;
    assert_ne!(heir, leader);
    write(nodes.node(heir), "after").await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(15), "an election would have taken longer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_node_takes_no_writes() {
    let mut nodes = Nodes::start(1, Tuning::default()).await;
    let cluster = nodes.node(0).clone();
    nodes.stop(0).await;
    let refused = cluster.propose(vec![mark("late")], PATIENCE).await.unwrap_err();
    assert!(matches!(refused, WriteError::Unavailable(_)), "{refused}");
    assert!(!*cluster.leadership().borrow());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_far_behind_gets_a_snapshot() {
    let tuning = Tuning { snapshot_after_entries: 100, entries_kept: 10, ..Tuning::default() };
    let mut nodes = Nodes::start(3, tuning).await;
    let behind = nodes.follower().await;
    nodes.kill(behind).await;
    let writer = nodes.leader().await;
    for n in 0..400 {
        write(nodes.node(writer), &format!("mark-{n}")).await.unwrap();
    }
    eventually("old entries dropped", async || nodes.node(writer).first_log_index() > 150).await;
    nodes.start_node(behind).await;
    for n in [0, 399] {
        assert!(sees(nodes.node(behind), &format!("mark-{n}")).await, "mark-{n}");
    }
    let state = nodes.node(behind).reader().state();
    assert_eq!(state.published().digest(), nodes.node(writer).reader().state().published().digest());
    // The history starts with the snapshot: what came before did not arrive as log entries.
    assert!(nodes.node(behind).reader().after(20, usize::MAX).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn large_entries_are_dropped_by_their_bytes_long_before_their_number() {
    const ENTRY_BYTES: usize = 100_000;
    const ENTRIES: u64 = 400;
    let tuning = Tuning { max_log_bytes: 12 * 1024 * 1024, ..Tuning::default() };
    let bound = tuning.max_log_bytes / ENTRY_BYTES as u64;
    assert!(tuning.entries_kept > ENTRIES && tuning.snapshot_after_entries > ENTRIES, "numbers drop nothing");
    let nodes = Nodes::start(1, tuning).await;
    for n in 0..ENTRIES {
        let mut large = mark(&format!("mark-{n}"));
        large.origin.request_id = "x".repeat(ENTRY_BYTES);
        nodes.node(0).propose(vec![large], PATIENCE).await.unwrap();
    }
    eventually("old entries dropped", async || nodes.node(0).first_log_index() > ENTRIES - bound).await;
    assert!(sees(nodes.node(0), "mark-0").await && sees(nodes.node(0), "mark-399").await);
}
