//! Data directories that earlier releases left, in `recorded/`: this release opens each and finds what was written.
//!
//! To record one for a release: `OUTPUTGUARD_RECORD=<file>.tar.gz cargo test -p raft-store --test recorded`, then put
//! the file into `recorded/` under the release's number. What is there is never written anew.
#![allow(clippy::unwrap_used, reason = "a test may panic, also in what its functions share")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use allowlist::{EntryId, Ports};
use common::*;
use openraft::storage::{RaftLogStorage, RaftStateMachine};
use openraft::{EntryPayload, RaftLogReader, RaftSnapshotBuilder};
use raft_store::command::*;
use raft_store::types::{Entry, Vote};
use raft_store::{SpaceLimits, State, Store, StoreOptions};
use uuid::Uuid;

/// Entries below this one are in the snapshot, and purged from the log.
const SNAPSHOT_AT: u64 = 4;
/// Entries below this one are applied; the rest is in the log only.
const APPLIED: u64 = 7;

fn add(number: u128, target: &str, ports: &[&str]) -> Command {
    let ports = ports.iter().map(|range| range.parse().unwrap()).collect();
    Command::AddEntry(new_entry(number, target, Ports::new(ports).unwrap()))
}

fn new_entry(number: u128, target: &str, ports: Ports) -> NewEntry {
    NewEntry {
        ports,
        protected: number == 2,
        comment: format!("comment {number}, \"quoted\" and 中文").into(),
        owner: "platform".into(),
        ticket: format!("OPS-{number}").into(),
        labels: BTreeMap::from([("team".to_owned(), "payments".to_owned())]).into(),
        ..common::new_entry(number, target)
    }
}

fn token(name: &str, role: Role) -> Command {
    Command::AddToken(Token { name: name.to_owned(), role, sha256: [0xab; 32], created_at_ms: 5 })
}

fn resolved(domain: &str, seen: &[&str], retire: &[&str], status: NameStatus) -> Command {
    let address =
        SeenAddress { first_seen_ms: 9, ttl_s: 30, upstreams: BTreeSet::from(["10.0.0.53:53".to_owned()]) };
    let resolution = ResolutionUpdate {
        seen: seen.iter().map(|text| (text.parse().unwrap(), address.clone())).collect(),
        retire: retire.iter().map(|text| text.parse().unwrap()).collect(),
        chain: vec![domain.parse().unwrap(), "edge.example.net".parse().unwrap()],
        status,
    };
    Command::SetResolution { domain: domain.parse().unwrap(), resolution }
}

/// Every command, in an order in which each changes something.
fn batches() -> Vec<Batch> {
    let update = EntryUpdate { comment: Some("new".into()), protected: Some(true), ..EntryUpdate::default() };
    let once = OnceCommand {
        key: "retry-1".to_owned(),
        fingerprint: [7; 32],
        commands: vec![add(6, "2606:4700::/32", &[])],
    };
    let many = (10..40).map(|n| new_entry(n, &format!("8.8.{n}.0/24"), Ports::all())).collect();
    let steps = vec![
        vec![Command::InitCluster { cluster: Uuid::from_u128(1) }, token("admin", Role::Admin)],
        vec![add(1, "api.example.com", &["tcp/443"]), add(2, "1.1.1.1", &["udp/53", "tcp/8000-8010"])],
        vec![add(3, "9.9.9.0/24", &[]), token("ci", Role::Editor), token("old", Role::Viewer)],
        vec![resolved("api.example.com", &["93.184.216.34", "93.184.216.35"], &[], NameStatus::Ok)],
        vec![Command::UpdateEntry { id: EntryId(Uuid::from_u128(1)), update }, Command::Once(once)],
        vec![resolved("api.example.com", &[], &["93.184.216.35"], NameStatus::NoSuchName)],
        vec![Command::AddEntries(many), Command::RemoveToken { name: "old".to_owned() }],
        vec![Command::RemoveEntry { id: EntryId(Uuid::from_u128(3)) }, add(4, "8.8.4.4", &[])],
    ];
    let origin =
        Origin { actor: "admin".to_owned(), remote: "10.0.0.1".to_owned(), request_id: "r-1".to_owned() };
    let operations = |commands: Vec<Command>| {
        commands.into_iter().map(|command| Operation { origin: origin.clone(), command }).collect()
    };
    (1_700_000_000_000..)
        .zip(steps)
        .map(|(at_ms, step)| Batch { at_ms, operations: operations(step) })
        .collect()
}

fn entries(range: impl Iterator<Item = u64>) -> Vec<Entry> {
    let batches = batches();
    range
        .map(|index| {
            let batch = batches[usize::try_from(index).unwrap()].clone();
            Entry { log_id: log_id(index), payload: EntryPayload::Normal(batch) }
        })
        .collect()
}

/// What a correct reader finds, as far as `applied` entries go.
fn expected(applied: u64) -> State {
    let mut state = State::default();
    for (index, batch) in (0..applied).zip(batches()) {
        state.apply(index, &batch);
    }
    state
}

async fn open_small(dir: &Path) -> Store {
    // Without a reserve, which would be the largest part of the directory.
    let space = SpaceLimits { reserve_bytes: 0, ..SpaceLimits::default() };
    Store::open(dir, StoreOptions { new_id: NODE, space, ..StoreOptions::default() }).await.unwrap()
}

async fn write(dir: &Path) {
    let end = u64::try_from(batches().len()).unwrap();
    let mut store = open_small(dir).await;
    store.log.save_vote(&Vote::new_committed(1, NODE)).await.unwrap();
    append(&mut store.log, entries(0..end)).await;
    apply(&mut store.machine, entries(0..SNAPSHOT_AT)).await;
    store.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    store.log.purge(log_id(SNAPSHOT_AT - 1)).await.unwrap();
    apply(&mut store.machine, entries(SNAPSHOT_AT..APPLIED)).await;
    store.log.save_committed(Some(log_id(APPLIED - 1))).await.unwrap();
}

async fn check(dir: &Path) {
    let end = u64::try_from(batches().len()).unwrap();
    let mut store = open_small(dir).await;
    assert_eq!(store.id, NODE);
    assert!(!store.pristine);
    let mut reader = store.log.get_log_reader().await;
    assert_eq!(reader.read_vote().await.unwrap(), Some(Vote::new_committed(1, NODE)));
    let logged = reader.try_get_log_entries(SNAPSHOT_AT..).await.unwrap();
    assert_eq!(logged, entries(SNAPSHOT_AT..end));
    let snapshot = store.machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(snapshot.meta.last_log_id, Some(log_id(SNAPSHOT_AT - 1)));
    catch_up(&mut store).await;
    let state = store.reader.state();
    assert_eq!(*state, expected(end));
    assert!(state.entries().len() > 30 && state.published().len() > 30 && state.tokens().len() == 2);
}

/// Every thread of a store that was dropped has ended.
async fn closed(dir: &Path) {
    wait_until("the directory is closed", async || !Store::is_open(dir)).await;
}

fn tar(arguments: &[&str]) {
    let output = Process::new("tar").args(arguments).output().unwrap();
    assert!(output.status.success(), "tar {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn this_release_finds_what_it_wrote() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path()).await;
    closed(dir.path()).await;
    if let Some(file) = std::env::var_os("OUTPUTGUARD_RECORD").map(PathBuf::from) {
        tar(&["-czf", file.to_str().unwrap(), "--exclude=./lock", "-C", dir.path().to_str().unwrap(), "."]);
    }
    check(dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_recorded_release_can_be_opened() {
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded");
    let mut releases = Vec::new();
    for file in std::fs::read_dir(recorded).unwrap() {
        let file = file.unwrap().path();
        let dir = tempfile::tempdir().unwrap();
        tar(&["-xzf", file.to_str().unwrap(), "-C", dir.path().to_str().unwrap()]);
        check(dir.path()).await;
        releases.push(file);
    }
    assert!(!releases.is_empty());
}
