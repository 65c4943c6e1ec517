//! A data directory whose cluster uses more than the program that opens it can apply.
#![allow(clippy::unwrap_used, reason = "a test may panic, also in what its functions share")]

mod common;

use std::path::Path;

use openraft::storage::{RaftLogStorage, RaftStateMachine};
use openraft::{EntryPayload, RaftSnapshotBuilder, Vote};
use raft_store::command::{Batch, Command, MemberAction, MemberEvent, Operation, Origin};
use raft_store::types::Entry;
use raft_store::{FeatureLevel, NodeInfo, OpenError, Store, StoreOptions};

use common::{NODE, append, apply, log_id, wait_until};

const OLD: FeatureLevel = FeatureLevel::FIRST;

fn entry(index: u64, command: Command) -> Entry {
    let operations = vec![Operation { origin: Origin::default(), command }];
    let batch = Batch { at_ms: index, operations };
    Entry { log_id: log_id(index), payload: EntryPayload::Normal(batch) }
}

fn raise(index: u64) -> Entry {
    entry(index, Command::RaiseFeatures(FeatureLevel::MEMBER_EVENTS))
}

/// What only a program of the new level can read.
fn guarded(index: u64) -> Entry {
    let event = MemberEvent { action: MemberAction::Added, id: 1, node: NodeInfo::default() };
    entry(index, Command::RecordMember(event))
}

async fn open(dir: &Path, features: FeatureLevel) -> Result<Store, OpenError> {
    wait_until("the directory is closed", async || !Store::is_open(dir)).await;
    Store::open(dir, StoreOptions { new_id: NODE, features, ..StoreOptions::default() }).await
}

/// The old program says which release is needed and changes nothing; the new one goes on.
async fn only_the_new_one_opens(dir: &Path, place: &str) {
    let refused = open(dir, OLD).await.unwrap_err();
    assert!(matches!(&refused, OpenError::TooNew { path, .. } if path.to_string_lossy().contains(place)));
    assert!(!refused.needs_rejoin());
    let text = refused.to_string();
    for part in ["needs feature level 2", "has 1", "newer than"] {
        assert!(text.contains(part), "{text}");
    }
    open(dir, FeatureLevel::NEWEST).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_raises_the_level_is_refused_by_a_program_that_is_too_old() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), FeatureLevel::NEWEST).await.unwrap();
    store.log.save_vote(&Vote::new_committed(1, NODE)).await.unwrap();
    append(&mut store.log, vec![raise(0), guarded(1)]).await;
    drop(store);
    only_the_new_one_opens(dir.path(), "log").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_higher_level_is_refused_by_a_program_that_is_too_old() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), FeatureLevel::NEWEST).await.unwrap();
    store.log.save_vote(&Vote::new_committed(1, NODE)).await.unwrap();
    append(&mut store.log, vec![raise(0), guarded(1)]).await;
    apply(&mut store.machine, vec![raise(0)]).await;
    assert_eq!(store.reader.state().features(), FeatureLevel::MEMBER_EVENTS);
    store.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    // The log alone says nothing of the level any more.
    store.log.purge(log_id(0)).await.unwrap();
    drop(store);
    std::fs::remove_dir_all(dir.path().join("db")).unwrap();
    only_the_new_one_opens(dir.path(), "snapshots").await;
    let store = open(dir.path(), FeatureLevel::NEWEST).await.unwrap();
    assert_eq!(store.reader.state().features(), FeatureLevel::MEMBER_EVENTS);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_level_is_in_the_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), FeatureLevel::NEWEST).await.unwrap();
    assert_eq!(store.reader.state().features(), FeatureLevel::FIRST);
    store.log.save_vote(&Vote::new_committed(1, NODE)).await.unwrap();
    append(&mut store.log, vec![raise(0)]).await;
    apply(&mut store.machine, vec![raise(0)]).await;
    drop(store);
    let mut store = open(dir.path(), FeatureLevel::NEWEST).await.unwrap();
    // Not from the log, of which nothing is applied before raft starts.
    assert_eq!(store.machine.applied_state().await.unwrap().0, Some(log_id(0)));
    assert_eq!(store.reader.state().features(), FeatureLevel::MEMBER_EVENTS);
    drop(store);
    only_the_new_one_opens(dir.path(), "db").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_level_is_raised_once_and_never_falls() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), FeatureLevel::NEWEST).await.unwrap();
    let lower = entry(2, Command::RaiseFeatures(OLD));
    let entries = vec![raise(0), raise(1), lower];
    append(&mut store.log, entries.clone()).await;
    apply(&mut store.machine, entries).await;
    assert_eq!(store.reader.state().features(), FeatureLevel::MEMBER_EVENTS);
    assert_eq!(store.reader.newest().unwrap().revision, 0, "only the first one is news");
}
