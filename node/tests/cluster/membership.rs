//! Adding, replacing and removing nodes; nodes that do not belong any more.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use node::cluster::{ChangeError, Cluster, MemberChange, MemberChanged, RefusalKind, Tuning, WriteError};
use raft_store::command::Origin;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::harness::{Nodes, PATIENCE, eventually, mark, sees, write};

async fn change(asked: &Cluster, change: MemberChange) -> Result<MemberChanged, ChangeError> {
    let deadline = Instant::now() + PATIENCE;
    let origin = Origin { actor: "test".to_owned(), ..Origin::default() };
    loop {
        match asked.change_members(change.clone(), &origin, PATIENCE).await {
            // What a caller that goes on would be told in the end.
            Ok(MemberChanged::CatchingUp { .. })
            | Err(ChangeError::NoLeader(_) | ChangeError::Unknown(_))
                if Instant::now() < deadline => {}
            Err(ChangeError::Refused(refusal))
                if refusal.kind == RefusalKind::Busy && Instant::now() < deadline => {}
            other => return other,
        }
    }
}

async fn add(asked: &Cluster, address: String) -> Result<MemberChanged, ChangeError> {
    change(asked, MemberChange::Add { address, replaces: None, force: false }).await
}

async fn replace(asked: &Cluster, old: &str, address: String) -> Result<MemberChanged, ChangeError> {
    change(asked, MemberChange::Add { address, replaces: Some(old.to_owned()), force: false }).await
}

async fn remove(asked: &Cluster, member: &str) -> Result<MemberChanged, ChangeError> {
    change(asked, MemberChange::Remove { member: member.to_owned(), force: false }).await
}

#[track_caller]
fn refused(result: Result<MemberChanged, ChangeError>, kind: RefusalKind, parts: &[&str]) {
    let Err(ChangeError::Refused(refusal)) = result else { panic!("{result:?}") };
    assert_eq!(refusal.kind, kind, "{refusal}");
    for part in parts {
        assert!(refusal.message.contains(part), "{part:?} is missing in: {refusal}");
    }
}

async fn voters(cluster: &Cluster) -> BTreeSet<String> {
    let members = cluster.members(Duration::from_secs(10)).await;
    members.iter().filter(|member| member.voter).map(|member| member.name.clone()).collect()
}

async fn voters_become(cluster: &Cluster, names: &[&str]) {
    let names: BTreeSet<_> = names.iter().map(|name| (*name).to_owned()).collect();
    eventually(&format!("voters {names:?}"), async || voters(cluster).await == names).await;
}

async fn becomes_fenced(cluster: &Cluster, part: &str) {
    eventually("closed to clients", async || cluster.fenced().is_some()).await;
    let reason = cluster.fenced().unwrap();
    assert!(reason.contains(part) && reason.contains("empty its data directory"), "{reason}");
    let refused = cluster.propose(vec![mark("late")], PATIENCE).await.unwrap_err();
    assert!(matches!(&refused, WriteError::Unavailable(_)), "{refused}");
    assert!(cluster.read_barrier(PATIENCE).await.is_err());
}

/// Writers on several nodes that go to another node, once, when theirs takes no work.
struct Load {
    stop: Arc<AtomicBool>,
    nodes: Arc<std::sync::Mutex<Vec<Cluster>>>,
    acknowledged: Arc<AtomicUsize>,
    writers: JoinSet<Vec<String>>,
}

impl Load {
    fn start(nodes: Vec<Cluster>) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            nodes: Arc::new(std::sync::Mutex::new(nodes)),
            acknowledged: Arc::default(),
            writers: JoinSet::new(),
        };
        for writer in 0..6 {
            let (stop, nodes, acknowledged) =
                (load.stop.clone(), load.nodes.clone(), load.acknowledged.clone());
            load.writers.spawn(async move {
                let mut written = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let name = format!("{writer}-{}", written.len());
                    let (first, second) = {
                        let nodes = nodes.lock().unwrap();
                        let at = (writer + written.len()) % nodes.len();
                        (nodes[at].clone(), nodes[(at + 1) % nodes.len()].clone())
                    };
                    let mut answer = write(&first, &name).await;
                    if matches!(answer, Err(WriteError::Unavailable(_) | WriteError::NoQuorum(_))) {
                        answer = write(&second, &name).await;
                    }
                    answer.unwrap_or_else(|error| panic!("{name}: {error}"));
                    written.push(name);
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                written
            });
        }
        load
    }

    fn use_nodes(&self, nodes: Vec<Cluster>) {
        *self.nodes.lock().unwrap() = nodes;
    }

    /// Waits until some more writes were acknowledged.
    async fn goes_on(&self) {
        let before = self.acknowledged.load(Ordering::Relaxed);
        eventually("more writes", async || self.acknowledged.load(Ordering::Relaxed) >= before + 20).await;
    }

    async fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.writers.join_all().await.into_iter().flatten().collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_become_five_and_three_again_under_load_and_no_request_fails() {
    let mut nodes = Nodes::start(3, Tuning::default()).await;
    let handles = |nodes: &Nodes, which: &[usize]| which.iter().map(|n| nodes.node(*n).clone()).collect();
    let load = Load::start(handles(&nodes, &[0, 1, 2]));
    load.goes_on().await;
    for name in ["server-4", "server-5"] {
        let new = nodes.start_waiting(name).await;
        let added = add(nodes.node(new % 3), nodes.raft_address(new)).await.unwrap();
        assert!(matches!(added, MemberChanged::Added { id, .. } if id == nodes.node(new).id()));
    }
    nodes.founded().await;
    load.use_nodes(handles(&nodes, &[0, 1, 2, 3, 4]));
    load.goes_on().await;
    // The leader among them, and asked on the one that goes.
    let leader = nodes.leader().await;
    let gone = [leader, (leader + 1) % 5];
    let left: Vec<_> = (0..5).filter(|node| !gone.contains(node)).collect();
    for (removed, node) in gone.into_iter().enumerate() {
        remove(nodes.node(left[0]), nodes.node(node).name()).await.unwrap();
        load.goes_on().await;
        // The balancer has noticed.
        let there: Vec<_> = (0..5).filter(|node| !gone[..=removed].contains(node)).collect();
        load.use_nodes(handles(&nodes, &there));
    }
    load.use_nodes(handles(&nodes, &left));
    load.goes_on().await;
    let written = load.end().await;
    for node in &left {
        nodes.node(*node).read_barrier(PATIENCE).await.unwrap();
        let state = nodes.node(*node).reader().state();
        let lost: Vec<_> = written.iter().filter(|name| !state.tokens().contains_key(*name)).collect();
        assert!(lost.is_empty(), "node {node} lost {lost:?} of {}", written.len());
    }
    for node in gone {
        becomes_fenced(nodes.node(node), "was removed from the cluster").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_and_a_live_one_are_replaced_and_asking_again_changes_nothing() {
    let mut nodes = Nodes::start(3, Tuning::default()).await;
    write(nodes.node(0), "kept").await.unwrap();
    nodes.kill(2).await;
    let fourth = nodes.start_waiting("server-4").await;
    for _again in 0..2 {
        replace(nodes.node(0), "server-3", nodes.raft_address(fourth)).await.unwrap();
        voters_become(nodes.node(0), &["server-1", "server-2", "server-4"]).await;
    }
    assert!(sees(nodes.node(fourth), "kept").await);
    // Alive, and the leader.
    let old = nodes.leader().await;
    let name = nodes.node(old).name().to_owned();
    let fifth = nodes.start_waiting("server-5").await;
    let asked = if old == fourth { 0 } else { fourth };
    replace(nodes.node(asked), &name, nodes.raft_address(fifth)).await.unwrap();
    becomes_fenced(nodes.node(old), "was removed from the cluster").await;
    assert!(sees(nodes.node(fifth), "kept").await);
    assert!(!voters(nodes.node(fifth)).await.contains(&name));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_replaces_the_node_whose_name_it_has_and_asking_again_changes_nothing() {
    let mut nodes = Nodes::start(3, Tuning::default()).await;
    let gone = nodes.follower().await;
    let (name, old) = (nodes.node(gone).name().to_owned(), nodes.node(gone).id());
    nodes.kill(gone).await;
    let asked = nodes.leader().await;
    let newcomer = nodes.start_waiting(&name).await;
    for _again in 0..2 {
        replace(nodes.node(asked), &name, nodes.raft_address(newcomer)).await.unwrap();
        let members = nodes.node(asked).members(PATIENCE).await;
        let ids: Vec<_> = members.iter().map(|member| member.id).collect();
        assert_eq!(members.len(), 3, "{members:?}");
        assert!(ids.contains(&nodes.node(newcomer).id()) && !ids.contains(&old), "{members:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_would_leave_no_quorum_is_refused_and_names_the_missing() {
    let mut nodes = Nodes::start(3, Tuning::default()).await;
    let leader = nodes.leader().await;
    let (dead, alive) = ((leader + 1) % 3, (leader + 2) % 3);
    let (dead_name, alive_name) = (nodes.node(dead).name().to_owned(), nodes.node(alive).name().to_owned());
    nodes.kill(dead).await;
    refused(
        remove(nodes.node(alive), &alive_name).await,
        RefusalKind::NoQuorumLeft,
        &[&dead_name, "--force"],
    );
    refused(remove(nodes.node(alive), "nobody").await, RefusalKind::NoSuchMember, &["nobody", &alive_name]);
    assert_eq!(voters(nodes.node(alive)).await.len(), 3);
    // The dead one may go; it is the only one then that is no loss.
    remove(nodes.node(alive), &dead_name).await.unwrap();
    // Of two that are both there, one may go, and the last one may not.
    remove(nodes.node(leader), &alive_name).await.unwrap();
    let last = nodes.node(leader).name().to_owned();
    refused(remove(nodes.node(leader), &last).await, RefusalKind::NoQuorumLeft, &["only voter"]);
    write(nodes.node(leader), "alone").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_that_comes_back_is_told_disturbs_nobody_and_may_join_with_an_empty_disk() {
    let mut nodes = Nodes::start(3, Tuning::default()).await;
    let gone = nodes.follower().await;
    let name = nodes.node(gone).name().to_owned();
    // It was down when it was removed, so it still takes itself for a voter.
    nodes.kill(gone).await;
    let leader = nodes.leader().await;
    remove(nodes.node(leader), &name).await.unwrap();
    let term = nodes.node(leader).node_status().unwrap().term;
    nodes.start_node(gone).await;
    becomes_fenced(nodes.node(gone), "was removed from the cluster").await;
    write(nodes.node(leader), "undisturbed").await.unwrap();
    assert_eq!(nodes.node(leader).node_status().unwrap().term, term, "it caused an election");
    let old = nodes.node(gone).id();
    refused(
        add(nodes.node(leader), nodes.raft_address(gone)).await,
        RefusalKind::Unfit,
        &["was removed from this cluster", "empty"],
    );
    nodes.kill(gone).await;
    nodes.lose_disk(gone);
    nodes.start_node(gone).await;
    nodes.founded().await;
    assert_ne!(nodes.node(gone).id(), old);
    assert!(sees(nodes.node(gone), "undisturbed").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_goes_to_the_node_that_is_named() {
    let nodes = Nodes::start(3, Tuning::default()).await;
    let leader = nodes.leader().await;
    let (to, asked) = ((leader + 1) % 3, (leader + 2) % 3);
    let name = nodes.node(to).name().to_owned();
    let step_down = MemberChange::StepDown { to: Some(name.clone()) };
    let changed = change(nodes.node(asked), step_down).await.unwrap();
    assert!(matches!(&changed, MemberChanged::Leads { node, .. } if node.name == name), "{changed:?}");
    eventually("it leads", async || nodes.leader().await == to).await;
    change(nodes.node(asked), MemberChange::StepDown { to: None }).await.unwrap();
    eventually("another leads", async || nodes.leader().await != to).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_data_directory_is_refused_and_stands_for_no_election() {
    let mut nodes = Nodes::start(3, Tuning::default()).await;
    let original = nodes.follower().await;
    let copy = nodes.start_waiting("server-4").await;
    nodes.kill(copy).await;
    nodes.kill(original).await;
    nodes.copy_disk(original, copy);
    nodes.start_node(original).await;
    nodes.start_node(copy).await;
    assert_eq!(nodes.node(copy).id(), nodes.node(original).id());
    becomes_fenced(nodes.node(copy), "is a copy").await;
    let leader = nodes.leader().await;
    refused(
        add(nodes.node(leader), nodes.raft_address(copy)).await,
        RefusalKind::Unfit,
        &["is a copy", "empty its data directory"],
    );
    write(nodes.node(original), "undisturbed").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_address_changed_says_why_it_stands_for_no_election() {
    let mut nodes = Nodes::start(3, Tuning::default()).await;
    let moved = nodes.follower().await;
    let old = nodes.raft_address(moved);
    nodes.kill(moved).await;
    nodes.move_address(moved);
    nodes.start_node(moved).await;
    eventually("it tells the trouble", async || {
        let troubles = nodes.node(moved).troubles();
        let parts = [old.as_str(), &nodes.raft_address(moved), "no election", "cluster.advertise"];
        troubles.iter().any(|trouble| parts.iter().all(|part| trouble.contains(part)))
    })
    .await;
    assert_eq!(nodes.node(moved).fenced(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_cluster_a_namesake_and_a_missing_one_are_refused() {
    let mut nodes = Nodes::start(1, Tuning::default()).await;
    let others = Nodes::start(1, Tuning::default()).await;
    // With a certificate of another CA nobody would even answer; that is a message, too.
    refused(
        add(nodes.node(0), others.raft_address(0)).await,
        RefusalKind::Unreachable,
        &[&others.raft_address(0), "certificate"],
    );
    let namesake = nodes.start_waiting("server-1").await;
    refused(
        add(nodes.node(0), nodes.raft_address(namesake)).await,
        RefusalKind::Unfit,
        &["is alive and has the same name"],
    );
    let own_cluster = nodes.start_founding("server-9").await;
    refused(
        add(nodes.node(0), nodes.raft_address(own_cluster)).await,
        RefusalKind::Unfit,
        &["belongs to another cluster", "cluster.join: wait"],
    );
}
