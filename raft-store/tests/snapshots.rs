//! Snapshots between nodes.
#![allow(clippy::unwrap_used, reason = "a test may panic, also in what its functions share")]

mod common;

use std::fs;
use std::sync::Arc;

use common::*;
use openraft::storage::{RaftLogStorage, RaftStateMachine};
use openraft::vote::{RaftLeaderId, RaftVote};
use openraft::{RaftLogReader, RaftSnapshotBuilder};
use raft_store::types::{Snapshot, Vote};
use raft_store::{SnapshotFile, SpaceLimits, Store, StoreOptions};

async fn leader(dir: &std::path::Path, entries: u64) -> (Store, Snapshot) {
    let mut store = open(dir).await;
    append(&mut store.log, (0..entries).map(entry)).await;
    apply(&mut store.machine, (0..entries).map(entry)).await;
    let snapshot = store.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    (store, snapshot)
}

/// As the network does it: ranges from one side, appended on the other.
fn transfer(from: &SnapshotFile, to: &Store) -> std::io::Result<Snapshot> {
    let mut incoming = to.snapshots.receive(&to.reader)?;
    while incoming.len() < from.len() {
        incoming.write(&from.read_at(incoming.len(), 1_000)?)?;
    }
    incoming.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_not_ahead_of_the_checkpoint_which_is_kept_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    // Long before the checkpoint would follow by itself.
    let (_leader, snapshot) = leader(dir.path(), 100).await;
    let copy = image(dir.path());
    let again = open(copy.path()).await;
    assert_eq!(again.reader.state().revision(), snapshot.meta.last_log_id.unwrap().index);
    let generations: Vec<_> =
        fs::read_dir(copy.path().join("db")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(generations, ["0000000001"], "the checkpoint was written anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installed_snapshot_is_the_state_at_once_and_after_a_restart() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (leader, snapshot) = leader(from.path(), 100).await;
    let mut follower = open(to.path()).await;
    append(&mut follower.log, (0..10).map(entry)).await;
    apply(&mut follower.machine, (0..10).map(entry)).await;
    let revisions = follower.reader.revisions();

    let arrived = transfer(&snapshot.snapshot, &follower).unwrap();
    assert_eq!(arrived.meta, snapshot.meta);
    follower.machine.install_snapshot(&arrived.meta, arrived.snapshot).await.unwrap();
    assert_eq!(*follower.reader.state(), *leader.reader.state());
    assert_eq!(*revisions.borrow(), 99);
    // The history starts anew: who was behind has to take a snapshot too.
    follower.reader.after(9, 10).unwrap_err();
    assert!(follower.reader.after(99, 10).unwrap().is_empty());

    // Killed before openraft purged the log.
    let copy = image(to.path());
    let mut again = open(copy.path()).await;
    assert_eq!(*again.reader.state(), *leader.reader.state());
    assert_eq!(again.machine.get_current_snapshot().await.unwrap().unwrap().meta, snapshot.meta);

    follower.log.purge(log_id(99)).await.unwrap();
    append(&mut follower.log, [entry(100)]).await;
    apply(&mut follower.machine, [entry(100)]).await;
    drop(follower);
    let follower = open(to.path()).await;
    assert_eq!(follower.reader.state().entries().len(), 101);
    assert_eq!(fs::read_dir(to.path().join("db")).unwrap().count(), 1, "the old generation is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_damaged_on_the_way_is_refused_before_anything_is_replaced() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_leader, snapshot) = leader(from.path(), 20).await;
    let follower = open(to.path()).await;
    let mut bytes = snapshot.snapshot.read_at(0, usize::MAX).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let mut incoming = follower.snapshots.receive(&follower.reader).unwrap();
    incoming.write(&bytes).unwrap();
    assert_eq!(incoming.finish().unwrap_err().kind(), std::io::ErrorKind::InvalidData);
    assert_eq!(fs::read_dir(to.path().join("snapshots")).unwrap().count(), 0, "nothing is left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unused_snapshot_leaves_no_file_behind() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_leader, snapshot) = leader(from.path(), 20).await;
    let follower = open(to.path()).await;
    drop(transfer(&snapshot.snapshot, &follower).unwrap());
    assert_eq!(fs::read_dir(to.path().join("snapshots")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_snapshots_are_kept_and_a_damaged_newest_one_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).await;
    for index in 0..4 {
        append(&mut store.log, [entry(index)]).await;
        apply(&mut store.machine, [entry(index)]).await;
        store.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    }
    let newest = store.snapshots.newest().unwrap();
    let path = newest.snapshot.path().to_owned();
    drop((store, newest));
    assert_eq!(fs::read_dir(dir.path().join("snapshots")).unwrap().count(), 2);
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let store = open(dir.path()).await;
    assert_eq!(store.snapshots.newest().unwrap().meta.last_log_id, Some(log_id(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_built_while_writes_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = leader(dir.path(), 10).await;
    let mut builder = store.machine.get_snapshot_builder().await;
    let at_that_time: Arc<_> = store.reader.state();
    apply(&mut store.machine, (10..20).map(entry)).await;
    let snapshot = builder.build_snapshot().await.unwrap();
    assert_eq!(snapshot.meta.last_log_id, Some(log_id(9)));
    assert_eq!((at_that_time.entries().len(), store.reader.state().entries().len()), (10, 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_was_overtaken_while_it_was_built_does_not_replace_the_newer_one() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_leader, newer) = leader(from.path(), 30).await;
    let mut follower = open(to.path()).await;
    append(&mut follower.log, (0..10).map(entry)).await;
    apply(&mut follower.machine, (0..10).map(entry)).await;
    // The builder holds the state of ten entries; the leader's snapshot arrives before it writes them.
    let mut builder = follower.machine.get_snapshot_builder().await;
    let arrived = transfer(&newer.snapshot, &follower).unwrap();
    follower.machine.install_snapshot(&arrived.meta, arrived.snapshot).await.unwrap();
    let built = builder.build_snapshot().await.unwrap();
    assert_eq!(built.meta, newer.meta);
    assert_eq!(follower.snapshots.newest().unwrap().meta, newer.meta);
    assert_eq!(fs::read_dir(to.path().join("snapshots")).unwrap().count(), 1, "the overtaken one is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_beyond_the_reserve_nothing_is_taken_in_and_no_snapshot_is_begun() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut leader, snapshot) = leader(from.path(), 20).await;
    assert!(leader.machine.try_create_snapshot_builder(false).await.is_some());
    leader.snapshots.room_to_build().unwrap();
    // A reserve as large as the disk can never be there, and keeps everything for itself.
    let limits =
        SpaceLimits { low_percent: 100, low_bytes: 0, reserve_percent: 100, reserve_bytes: u64::MAX };
    let mut follower = Store::open(to.path(), StoreOptions { space: limits, ..options() }).await.unwrap();
    let error = transfer(&snapshot.snapshot, &follower).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
    let mut backup = follower.snapshots.receive_backup().unwrap();
    assert_eq!(backup.write(&[1]).unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    drop(backup);
    assert_eq!(fs::read_dir(to.path().join("snapshots")).unwrap().count(), 0, "nothing is left behind");
    assert!(follower.snapshots.room_to_build().is_err());
    assert!(follower.machine.try_create_snapshot_builder(false).await.is_none());
    assert!(follower.machine.try_create_snapshot_builder(true).await.is_some(), "raft may insist");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_keeps_no_more_than_what_is_needed_and_two_segments() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).await;
    let bound = 2 * 17 * 1024 * 1024 + 40 * 257 * 1024;
    for round in 0..12_u64 {
        let start = round * 40;
        append(&mut store.log, (start..start + 40).map(|index| large(index, 256 * 1024))).await;
        store.log.purge(log_id(start + 20)).await.unwrap();
        // The vote is answered after the segments of the purge before it are gone.
        store.log.save_vote(&Vote::new(round + 1, 1)).await.unwrap();
        let files =
            fs::read_dir(dir.path().join("log")).unwrap().map(|file| file.unwrap().metadata().unwrap().len());
        let bytes: u64 = files.sum();
        assert!(bytes <= bound && store.log.size().bytes <= bound, "{bytes} bytes after round {round}");
    }
    let vote = store.log.get_log_reader().await.read_vote().await.unwrap();
    assert_eq!(vote, Some(Vote::from_leader_id(RaftLeaderId::new(12, 1), false)));
    assert_eq!(store.log.size().entries, 19);
    assert!(store.log.sync_times().snapshot().count >= 36);
}
