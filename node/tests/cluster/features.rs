//! Nodes of different releases in one cluster.

use node::cluster::{ChangeError, MemberChange, RefusalKind, Tuning, WriteError};
use raft_store::command::{Command, MemberAction, MemberEvent, Operation, Origin};
use raft_store::{FeatureLevel, NodeInfo};

use crate::harness::{Nodes, PATIENCE, eventually, sees, write};

const OLD: FeatureLevel = FeatureLevel::FIRST;

/// A write that the first release could not read.
fn guarded() -> Vec<Operation> {
    let event = MemberEvent { action: MemberAction::Added, id: 1, node: NodeInfo::default() };
    vec![Operation { origin: Origin::default(), command: Command::RecordMember(event) }]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_cluster_begins_with_all_that_its_nodes_know() {
    let nodes = Nodes::start(3, Tuning::default()).await;
    for (_, cluster) in nodes.running() {
        cluster.propose(guarded(), PATIENCE).await.unwrap();
        let standing = cluster.features().await;
        assert_eq!((standing.active, standing.supported), (FeatureLevel::NEWEST, FeatureLevel::NEWEST));
        assert!(standing.held_back_by.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_upgrade_uses_new_commands_once_the_last_node_has_it() {
    let mut nodes = Nodes::prepared(3, &Tuning::default());
    for index in 0..3 {
        nodes.set_features(index, OLD);
        nodes.start_node(index).await;
    }
    nodes.founded().await;
    for index in [1, 2, 0] {
        for (_, cluster) in nodes.running() {
            let refused = cluster.propose(guarded(), PATIENCE).await.unwrap_err();
            let WriteError::FeatureNotActive(inactive) = &refused else { panic!("{refused}") };
            assert_eq!((inactive.needs, inactive.active), (FeatureLevel::MEMBER_EVENTS, OLD));
            // Whoever asks a node that knows the command is told who does not.
            let knows = cluster.supported_features() > OLD;
            let names_last = inactive.held_back_by.iter().any(|text| text.contains("server-1"));
            assert_eq!(knows, names_last, "{refused}");
            write(cluster, &format!("before-{index}")).await.unwrap();
        }
        nodes.stop(index).await;
        nodes.set_features(index, FeatureLevel::NEWEST);
        nodes.start_node(index).await;
        nodes.founded().await;
    }
    eventually("the level is raised", async || {
        nodes.running().all(|(_, cluster)| cluster.reader().state().features() == FeatureLevel::NEWEST)
    })
    .await;
    for (_, cluster) in nodes.running() {
        cluster.propose(guarded(), PATIENCE).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_went_back_to_an_old_release_is_refused_when_it_opens() {
    let mut nodes = Nodes::start(3, Tuning::default()).await;
    let old = nodes.follower().await;
    eventually("it has the level", async || {
        nodes.node(old).reader().state().features() == FeatureLevel::NEWEST
    })
    .await;
    nodes.stop(old).await;
    nodes.set_features(old, OLD);
    let refused = nodes.try_start_node(old).await.unwrap_err().to_string();
    for part in ["needs feature level 4", "has 1", "newer than"] {
        assert!(refused.contains(part), "{refused}");
    }
    nodes.set_features(old, FeatureLevel::NEWEST);
    nodes.start_node(old).await;
    write(nodes.node(old), "again").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_an_old_release_is_not_let_into_a_newer_cluster() {
    let mut nodes = Nodes::start(1, Tuning::default()).await;
    nodes.next_features(OLD);
    let old = nodes.start_waiting("server-2").await;
    let add = MemberChange::Add { address: nodes.raft_address(old), replaces: None, force: false };
    let refused = nodes.node(0).change_members(add, &Origin::default(), PATIENCE).await.unwrap_err();
    let ChangeError::Refused(refusal) = refused else { panic!("{refused}") };
    assert_eq!(refusal.kind, RefusalKind::Unfit);
    for part in ["server-2", "feature level 1", "uses 4", "install the release"] {
        assert!(refusal.message.contains(part), "{refusal}");
    }
}

/// Between the answer of a node and the entry that raises the level, somebody may put an old release in its place.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_release_takes_nothing_into_its_log_that_it_cannot_apply() {
    let mut nodes = Nodes::prepared(3, &Tuning::default());
    for index in 0..3 {
        nodes.set_features(index, OLD);
        nodes.start_node(index).await;
    }
    nodes.founded().await;
    let old = nodes.follower().await;
    let leader = nodes.leader().await;
    // What a leader that was told something else would write.
    let operation =
        Operation { origin: Origin::default(), command: Command::RaiseFeatures(FeatureLevel::MEMBER_EVENTS) };
    let others: Vec<_> = (0..3).filter(|index| *index != old).collect();
    for index in others.iter().copied().filter(|index| *index != leader).chain([leader]) {
        nodes.stop(index).await;
        nodes.set_features(index, FeatureLevel::NEWEST);
        nodes.start_node(index).await;
    }
    nodes.founded().await;
    let to = Some(nodes.node(others[0]).name().to_owned());
    let lead = MemberChange::StepDown { to };
    nodes.node(others[0]).change_members(lead, &Origin::default(), PATIENCE).await.unwrap();
    nodes.node(others[0]).propose(vec![operation], PATIENCE).await.unwrap();
    eventually("it says so", async || {
        nodes.node(old).troubles().iter().any(|trouble| trouble.contains("needs feature level 2"))
    })
    .await;
    assert_eq!(nodes.node(old).reader().state().features(), OLD);
    // With the newer release it goes on where it was.
    nodes.stop(old).await;
    nodes.set_features(old, FeatureLevel::NEWEST);
    nodes.start_node(old).await;
    write(nodes.node(others[0]), "after").await.unwrap();
    assert!(sees(nodes.node(old), "after").await);
    assert!(nodes.node(old).reader().state().features() >= FeatureLevel::MEMBER_EVENTS);
}
