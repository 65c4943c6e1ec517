//! What a store holds after its process ended, one way or another.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic and print, also in what its functions share"
)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::*;
use openraft::storage::{RaftLogStorage, RaftStateMachine};
use openraft::vote::{RaftLeaderId, RaftVote};
use openraft::{RaftLogReader, RaftSnapshotBuilder};
use raft_store::types::Vote;
use raft_store::{CheckpointPace, OpenError, Store, StoreOptions};

fn log_files(dir: &Path) -> Vec<std::path::PathBuf> {
    let files = fs::read_dir(dir.join("log")).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|end| end == "segment")).collect();
    files.sort();
    files
}

fn generation(dir: &Path) -> std::path::PathBuf {
    let found = fs::read_dir(dir.join("db")).unwrap().map(|file| file.unwrap().path());
    found.filter(|path| path.extension().is_none()).max().unwrap()
}

async fn written(dir: &Path, count: u64) -> Store {
    let mut store = open(dir).await;
    append(&mut store.log, (0..count).map(entry)).await;
    apply(&mut store.machine, (0..count).map(entry)).await;
    store
}

/// True when the checkpoint alone, with no entry replayed, reaches `count` entries.
async fn checkpoint_reaches(dir: &Path, count: usize) -> bool {
    let copy = image(dir);
    open(copy.path()).await.reader.state().entries().len() == count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_directory_is_pristine_until_something_was_kept_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    assert!(store.pristine && store.id == NODE);
    drop(store);
    let mut store = open(dir.path()).await;
    assert!(store.pristine);
    let vote = Vote::from_leader_id(RaftLeaderId::new(3, NODE), false);
    store.log.save_vote(&vote).await.unwrap();
    drop(store);
    let mut store = open(dir.path()).await;
    assert!(!store.pristine && store.id == NODE);
    assert_eq!(store.log.get_log_reader().await.read_vote().await.unwrap(), Some(vote));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_in_use_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let _store = open(dir.path()).await;
    let error = open_error(dir.path()).await;
    assert!(matches!(error, OpenError::Locked { .. }) && !error.needs_rejoin(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_in_the_image_of_a_running_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = written(dir.path(), 50).await;
    store.log.save_committed(Some(log_id(49))).await.unwrap();
    let copy = image(dir.path());
    let mut again = open(copy.path()).await;
    catch_up(&mut again).await;
    assert_eq!(*again.reader.state(), *store.reader.state());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_tail_loses_only_what_was_torn() {
    let dir = tempfile::tempdir().unwrap();
    drop(written(dir.path(), 20).await);
    let file = log_files(dir.path()).pop().unwrap();
    // What a write that never finished leaves: half a record.
    let mut store = open(dir.path()).await;
    append(&mut store.log, [entry(20)]).await;
    drop(store);
    let len = fs::metadata(&file).unwrap().len();
    fs::File::options().write(true).open(&file).unwrap().set_len(len - 5).unwrap();
    let mut store = open(dir.path()).await;
    assert_eq!(store.log.get_log_state().await.unwrap().last_log_id, Some(log_id(19)));
    append(&mut store.log, [entry(20)]).await;
    catch_up(&mut store).await;
    assert_eq!(store.reader.state().entries().len(), 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_inside_the_log_is_refused_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).await;
    for index in 0..20 {
        append(&mut store.log, [entry(index)]).await;
    }
    drop(store);
    let file = log_files(dir.path()).pop().unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&file, bytes).unwrap();
    let error = open_error(dir.path()).await;
    assert!(matches!(error, OpenError::Log { .. }) && error.needs_rejoin(), "{error}");
    assert!(error.to_string().contains("joins with a new id"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_file_at_either_end_of_the_log_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).await;
    // Each entry about 256 KiB, so that 16 MiB files are begun.
    let big = |index| {
        let mut entry = entry(index);
        let openraft::EntryPayload::Normal(batch) = &mut entry.payload else { unreachable!() };
        batch.operations[0].origin.request_id = "x".repeat(256 * 1024);
        entry
    };
    for start in (0..160).step_by(16) {
        append(&mut store.log, (start..start + 16).map(big)).await;
    }
    assert!(store.log.size().entries == 160 && store.log.size().bytes > 32 * 1024 * 1024);
    drop(store);
    let files = log_files(dir.path());
    assert!(files.len() >= 3, "{files:?}");
    drop(open(dir.path()).await);
    for missing in [files.first().unwrap(), files.last().unwrap()] {
        let aside = dir.path().join("aside");
        fs::rename(missing, &aside).unwrap();
        let error = open_error(dir.path()).await;
        assert!(matches!(error, OpenError::Log { .. }) && error.to_string().contains("missing"), "{error}");
        fs::rename(&aside, missing).unwrap();
    }
    let mut store = open(dir.path()).await;
    // Purging frees whole files, and the log opens without them.
    store.log.purge(log_id(150)).await.unwrap();
    store.log.save_vote(&Vote::from_leader_id(RaftLeaderId::new(1, NODE), true)).await.unwrap();
    assert_eq!(store.log.size().entries, 9);
    drop(store);
    assert!(log_files(dir.path()).len() < files.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_log_directory_is_not_taken_for_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    drop(written(dir.path(), 5).await);
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    assert!(matches!(open_error(dir.path()).await, OpenError::Log { .. }));
    fs::create_dir(dir.path().join("log")).unwrap();
    assert!(matches!(open_error(dir.path()).await, OpenError::Log { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_in_the_old_format_is_refused_and_left_alone() {
    for name in ["log-end", "log/r-00_000_000_000_000_000_000.wal"] {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("log")).unwrap();
        fs::write(dir.path().join(name), b"old").unwrap();
        let error = open_error(dir.path()).await;
        assert!(matches!(error, OpenError::Log { .. }) && error.needs_rejoin(), "{error}");
        assert!(error.to_string().contains("unreleased version"), "{error}");
        assert_eq!(fs::read(dir.path().join(name)).unwrap(), b"old");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_identity_is_not_replaced_by_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    drop(written(dir.path(), 5).await);
    fs::remove_file(dir.path().join("identity")).unwrap();
    let error = open_error(dir.path()).await;
    assert!(matches!(error, OpenError::Identity { .. }) && error.needs_rejoin(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_checkpoint_follows_what_was_applied() {
    let dir = tempfile::tempdir().unwrap();
    let _store = written(dir.path(), 30).await;
    wait_until("the checkpoint holds everything", async || checkpoint_reaches(dir.path(), 30).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_checkpoint_never_passes_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = written(dir.path(), 10).await;
    wait_until("the checkpoint holds everything", async || checkpoint_reaches(dir.path(), 10).await).await;
    // Committed by the others, applied here, and not in this node's log yet: on a drop the last step is due at once.
    apply(&mut store.machine, (10..20).map(entry)).await;
    assert_eq!(store.reader.state().entries().len(), 20);
    drop(store);
    assert_eq!(open(dir.path()).await.reader.state().entries().len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_ahead_of_the_log_is_refused_because_the_log_has_lost_entries() {
    let dir = tempfile::tempdir().unwrap();
    let store = written(dir.path(), 10).await;
    let file = log_files(dir.path()).pop().unwrap();
    wait_until("the checkpoint holds everything", async || checkpoint_reaches(dir.path(), 10).await).await;
    drop(store);
    let len = fs::metadata(&file).unwrap().len();
    fs::File::options().write(true).open(&file).unwrap().set_len(len - 100).unwrap();
    let error = open_error(dir.path()).await;
    assert!(matches!(error, OpenError::State { .. }) && error.needs_rejoin(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_checkpoint_is_rebuilt_from_the_log() {
    let dir = tempfile::tempdir().unwrap();
    drop(written(dir.path(), 25).await);
    destroy(&generation(dir.path()));
    let mut store = open(dir.path()).await;
    assert_eq!(store.reader.state().entries().len(), 0);
    catch_up(&mut store).await;
    assert_eq!(store.reader.state().entries().len(), 25);
    assert!(dir.path().join("db").join("0000000001.damaged").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_checkpoint_is_rebuilt_from_snapshot_and_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = written(dir.path(), 25).await;
    let snapshot = store.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    assert_eq!(snapshot.meta.last_log_id, Some(log_id(24)));
    store.log.purge(log_id(20)).await.unwrap();
    append(&mut store.log, (25..30).map(entry)).await;
    apply(&mut store.machine, (25..30).map(entry)).await;
    let before = store.reader.state();
    drop(store);
    destroy(&generation(dir.path()));
    let mut store = open(dir.path()).await;
    assert_eq!(store.reader.state().entries().len(), 25);
    catch_up(&mut store).await;
    assert_eq!(*store.reader.state(), *before);
    // It is a checkpoint again, not only a state.
    wait_until("the new checkpoint holds everything", async || checkpoint_reaches(dir.path(), 30).await)
        .await;

    drop(store);
    destroy(&generation(dir.path()));
    for file in fs::read_dir(dir.path().join("snapshots")).unwrap() {
        fs::write(file.unwrap().path(), b"gone").unwrap();
    }
    let error = open_error(dir.path()).await;
    assert!(
        matches!(error, OpenError::State { .. }) && error.to_string().contains("after entry 20"),
        "{error}"
    );
}

/// Overwrites every file of a sled database.
fn destroy(database: &Path) {
    for file in fs::read_dir(database).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() && path.file_name().unwrap() != "complete" {
            let len = fs::metadata(&path).unwrap().len() as usize;
            fs::write(&path, vec![0x5a; len.max(64)]).unwrap();
        }
    }
}

const WRITER_DIR: &str = "RAFT_STORE_WRITER_DIR";

/// Not a test by itself: the process that [`acknowledged_entries_survive_kill_nine`] kills.
#[tokio::test(flavor = "multi_thread")]
async fn writer_process() {
    let Some(dir) = std::env::var_os(WRITER_DIR) else { return };
    // Short steps: many of them are cut.
    let checkpoint = CheckpointPace { interval: Duration::from_millis(20), ..CheckpointPace::default() };
    let options = StoreOptions { checkpoint, ..options() };
    let mut store = Store::open(Path::new(&dir), options).await.unwrap();
    catch_up(&mut store).await;
    let start = store.log.get_log_state().await.unwrap().last_log_id.map_or(0, |id| id.index + 1);
    for index in start.. {
        append(&mut store.log, [entry(index)]).await;
        apply(&mut store.machine, [entry(index)]).await;
        println!("ack {index}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_entries_survive_kill_nine() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 1..=4 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer_process", "--nocapture"])
            .env(WRITER_DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let enough = acknowledged + 40 * round;
        for line in lines.by_ref() {
            let line = line.unwrap();
            if let Some((_, index)) = line.split_once("ack ") {
                acknowledged = index.parse::<u64>().unwrap();
                if acknowledged >= enough {
                    break;
                }
            }
        }
        child.kill().unwrap();
        for line in lines.map_while(Result::ok) {
            if let Some((_, index)) = line.split_once("ack ") {
                acknowledged = index.parse().unwrap_or(acknowledged);
            }
        }
        child.wait().unwrap();
        let mut store = open(dir.path()).await;
        assert!(store.log.get_log_state().await.unwrap().last_log_id.unwrap().index >= acknowledged);
        catch_up(&mut store).await;
        assert!(store.reader.state().entries().len() as u64 > acknowledged);
    }
    assert!(acknowledged >= 160);
}
