//! Writes and reads while all is well.

use std::time::Duration;

use node::cluster::{Tuning, WriteError};
use raft_store::command::{Command, MAX_OPERATIONS_PER_BATCH, OnceCommand, Operation, Reply};

use crate::harness::{Nodes, PATIENCE, mark, sees, write};

#[tokio::test(flavor = "multi_thread")]
async fn a_write_on_a_follower_is_seen_by_the_next_read_on_every_node() {
    let nodes = Nodes::start(3, Tuning::default()).await;
    for round in 0..5 {
        for (writer, cluster) in nodes.running() {
            let name = format!("{writer}-{round}");
            let reply = write(cluster, &name).await.unwrap();
            assert_eq!(reply.replies, [Reply::Done]);
            assert!(cluster.reader().state().revision() >= reply.revision, "applied where it was written");
            for (reader, cluster) in nodes.running() {
                assert!(sees(cluster, &name).await, "{name} on node {reader}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writes_share_log_entries_and_each_gets_its_own_replies() {
    const WRITERS: usize = 200;
    let nodes = Nodes::start(3, Tuning::default()).await;
    let before = nodes.node(0).read_barrier(PATIENCE).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let cluster = nodes.node(writer % 3).clone();
        // Every other writer repeats a name, to be told so: replies must not be mixed up.
        let count = 1 + writer % 3;
        let operations: Vec<_> = (0..count).map(|part| mark(&format!("{writer}-{part}"))).collect();
        writers.spawn(async move { (count, cluster.propose(operations, PATIENCE).await.unwrap()) });
    }
    for (count, reply) in writers.join_all().await {
        assert_eq!(reply.replies, vec![Reply::Done; count]);
    }
    let after = nodes.node(0).read_barrier(PATIENCE).await.unwrap();
    assert!(after - before < WRITERS as u64 / 2, "{} log entries for {WRITERS} writes", after - before);
    let state = nodes.node(0).reader().state();
    for writer in 0..WRITERS {
        assert!(state.tokens().contains_key(&format!("{writer}-0")), "{writer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_too_large_is_refused_before_it_enters_the_log() {
    let nodes = Nodes::start(1, Tuning::default()).await;
    let many = (0..=MAX_OPERATIONS_PER_BATCH).map(|n| mark(&n.to_string())).collect();
    let refused = nodes.node(0).propose(many, PATIENCE).await.unwrap_err();
    assert!(
        matches!(&refused, WriteError::Unavailable(reason) if reason.contains("1001 operations")),
        "{refused}"
    );
    let large = vec![mark(&"x".repeat(2 * 1024 * 1024))];
    let refused = nodes.node(0).propose(large, PATIENCE).await.unwrap_err();
    assert!(matches!(&refused, WriteError::Unavailable(reason) if reason.contains("bytes")), "{refused}");
    write(nodes.node(0), "small").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_is_listed_with_what_it_says_of_itself() {
    let nodes = Nodes::start(3, Tuning::default()).await;
    write(nodes.node(1), "something").await.unwrap();
    let leader = nodes.leader().await;
    for (_, cluster) in nodes.running() {
        let members = cluster.members(Duration::from_secs(10)).await;
        let names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["server-1", "server-2", "server-3"]);
        for (index, member) in members.iter().enumerate() {
            let status = member.status.as_ref().unwrap();
            assert!(member.voter && status.name == member.name && status.id == member.id);
            assert_eq!(status.role, if index == leader { "leader" } else { "follower" }, "{}", member.name);
            assert_eq!(status.id, nodes.node(index).id());
        }
    }
}

/// [`mark`] under a key.
fn keyed_mark(name: &str) -> Operation {
    let Operation { origin, command } = mark(name);
    let once = OnceCommand { key: name.to_owned(), fingerprint: [1; 32], commands: vec![command] };
    Operation { origin, command: Command::Once(once) }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_with_a_key_have_their_outcome_though_the_leader_dies_under_them() {
    const WRITERS: usize = 16;
    const WRITES: usize = 12;
    let mut nodes = Nodes::start(3, Tuning::default()).await;
    let (leader, follower) = (nodes.leader().await, nodes.follower().await);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let cluster = nodes.node(follower).clone();
        writers.spawn(async move {
            for write in 0..WRITES {
                let operation = keyed_mark(&format!("{writer}-{write}"));
                let reply = cluster.propose(vec![operation], PATIENCE).await.unwrap();
                let [Reply::Once { replies, .. }] = &reply.replies[..] else { panic!("{reply:?}") };
                assert_eq!(replies, &[Reply::Done]);
            }
        });
    }
    // In the middle of it.
    let mut revisions = nodes.node(follower).reader().revisions();
    let begun = *revisions.borrow() + 3;
    tokio::time::timeout(PATIENCE, revisions.wait_for(|now| *now >= begun)).await.unwrap().unwrap();
    nodes.kill(leader).await;
    writers.join_all().await;
    let state = nodes.node(follower).reader().state();
    let marks = state.tokens().keys().filter(|name| name.contains('-')).count();
    assert_eq!(marks, WRITERS * WRITES);
}
