//! Driving a real store the way openraft does.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "shared by several test programs, each using a part"
)]

mod fixtures;

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use openraft::storage::{IOFlushed, RaftLogStorage, RaftStateMachine};
use openraft::type_config::TypeConfigExt;
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, RaftLogReader};
use raft_store::command::{Batch, Command, NewEntry, Operation, Origin};
use raft_store::types::{Entry, LogId, NodeId};
use raft_store::{LogStore, OpenError, StateMachine, Store, StoreOptions, TypeConfig};

pub(crate) use fixtures::*;

pub const NODE: NodeId = 11;

pub fn options() -> StoreOptions {
    StoreOptions { new_id: NODE, ..StoreOptions::default() }
}

pub async fn open(dir: &Path) -> Store {
    Store::open(dir, options()).await.unwrap()
}

pub async fn open_error(dir: &Path) -> OpenError {
    Store::open(dir, options()).await.unwrap_err()
}

pub fn log_id(index: u64) -> LogId {
    LogId::new(RaftLeaderId::new(1, NODE), index)
}

/// A log entry that adds `8.0.0.0 + index`.
pub fn entry(index: u64) -> Entry {
    let address = Ipv4Addr::from(0x0800_0000 + index as u32).to_string();
    let new = NewEntry { comment: "x".repeat(200).into(), ..new_entry(index.into(), &address) };
    let command = Command::AddEntry(new);
    let operations = vec![Operation { origin: Origin::default(), command }];
    Entry { log_id: log_id(index), payload: EntryPayload::Normal(Batch { at_ms: index, operations }) }
}

/// As [`entry`], with so many bytes that say nothing.
pub fn large(index: u64, bytes: usize) -> Entry {
    let mut entry = entry(index);
    if let EntryPayload::Normal(batch) = &mut entry.payload {
        batch.operations[0].origin.request_id = "x".repeat(bytes);
    }
    entry
}

/// Returns when the entries are synced.
pub async fn append(log: &mut LogStore, entries: impl IntoIterator<Item = Entry>) {
    let (sender, flushed) = TypeConfig::oneshot();
    let entries: Vec<Entry> = entries.into_iter().collect();
    log.append(entries, IOFlushed::signal(sender)).await.unwrap();
    flushed.await.unwrap().unwrap();
}

pub async fn apply(machine: &mut StateMachine, entries: impl IntoIterator<Item = Entry>) {
    let items: Vec<_> = entries.into_iter().map(|entry| Ok((entry, None))).collect();
    machine.apply(futures_util::stream::iter(items)).await.unwrap();
}

/// Applies what the log holds beyond the state, as openraft does at its start.
pub async fn catch_up(store: &mut Store) {
    let (applied, _) = store.machine.applied_state().await.unwrap();
    let start = applied.map_or(0, |id| id.index + 1);
    let entries = store.log.get_log_reader().await.try_get_log_entries(start..).await.unwrap();
    apply(&mut store.machine, entries).await;
}

/// A copy of the directory as a killed process would leave it. The checkpoint first: nothing can pass the log then.
pub fn image(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in ["db", "snapshots", "log", "identity"] {
        copy_tree(&dir.join(name), &copy.path().join(name));
    }
    copy
}

fn copy_tree(from: &Path, to: &Path) {
    if from.is_dir() {
        std::fs::create_dir(to).unwrap();
        for file in std::fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            copy_tree(&file.path(), &to.join(file.file_name()));
        }
    } else {
        std::fs::copy(from, to).unwrap();
    }
}

pub async fn wait_until(what: &str, mut reached: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !reached().await {
        assert!(Instant::now() < deadline, "not reached: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
