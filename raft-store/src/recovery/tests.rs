//! Crashes at every step.

use openraft::entry::RaftEntry as _;
use openraft::storage::RaftLogStorageExt as _;

use super::*;
use crate::command::{Batch, Command, Operation, Origin, Role, Token};
use crate::store::{Store, StoreOptions};
use crate::types::Entry;

const OLD: NodeId = 7;

fn recovery() -> Recovery {
    Recovery {
        lost: Uuid::from_u128(1),
        cluster: Uuid::from_u128(2),
        id: 9,
        node: NodeInfo { name: "server-1".to_owned(), raft_address: "10.1.0.1:8081".to_owned() },
    }
}

fn entry(index: u64, command: Command) -> Entry {
    let leader = <TypeConfig as openraft::RaftTypeConfig>::LeaderId::new(3, OLD);
    let batch = Batch { at_ms: 5, operations: vec![Operation { origin: Origin::default(), command }] };
    Entry::new(LogId::new(leader.to_committed(), index), EntryPayload::Normal(batch))
}

fn token(name: &str) -> Command {
    let (name, role) = (name.to_owned(), Role::Admin);
    Command::AddToken(Token { name, role, sha256: [7; 32], created_at_ms: 1 })
}

async fn open(dir: &Path) -> Result<Store, OpenError> {
    let options = StoreOptions {
        new_id: OLD,
        on_fatal: FatalHook::new(|reason| panic!("{reason}")),
        ..StoreOptions::default()
    };
    Store::open(dir, options).await
}

/// A node whose log has entries that it never knew to be committed.
async fn old_node(dir: &Path) {
    let mut store = open(dir).await.unwrap();
    assert_eq!(store.id, OLD);
    store.log.save_vote(&Vote::new_committed(4, OLD)).await.unwrap();
    let entries = [
        entry(0, Command::InitCluster { cluster: Uuid::from_u128(1) }),
        entry(1, token("a")),
        entry(2, token("b")),
    ];
    store.log.blocking_append(entries).await.unwrap();
    drop(store);
    closed(dir).await;
}

async fn closed(dir: &Path) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while Store::is_open(dir) {
        assert!(std::time::Instant::now() < deadline, "still open");
        tokio::task::yield_now().await;
    }
}

async fn is_the_new_one(dir: &Path) {
    let mut store = open(dir).await.unwrap();
    assert_eq!(store.id, 9);
    assert!(!store.pristine);
    assert_eq!(store.superseded, [Uuid::from_u128(1)]);
    let state = store.reader.state();
    assert_eq!(state.cluster(), Some(Uuid::from_u128(2)));
    assert_eq!(state.revision(), 3, "the recovery itself is a revision");
    assert_eq!(state.tokens().keys().collect::<Vec<_>>(), ["a", "b"], "all of the log counts");
    let vote = store.log.get_log_reader().await.read_vote().await.unwrap().unwrap();
    assert_eq!((vote.leader_id.term, vote.leader_id.node_id), (5, 9));
    assert!(!dir.join(MARKER).exists() && !dir.join(SIDE_DIR).exists());
    assert_eq!(identity::read(&dir.join("lost-1")).unwrap(), Some(OLD), "the old data is kept");
    drop(store);
    closed(dir).await;
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let target = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            copy(&file.path(), &target);
        } else {
            fs::copy(file.path(), target).unwrap();
        }
    }
}

#[test]
fn the_marker_has_these_exact_bytes() {
    let text = format_marker(&recovery(), &Phase::SetAside(3));
    assert_eq!(
        text,
        "outputguard-recovery 1\nphase set-aside 3\nlost 00000000-0000-0000-0000-000000000001\n\
         cluster 00000000-0000-0000-0000-000000000002\nnode 9\nname server-1\naddress 10.1.0.1:8081\n"
    );
    for phase in [Phase::Build, Phase::SetAside(3), Phase::Install] {
        assert_eq!(parse_marker(&format_marker(&recovery(), &phase)), Some((recovery(), phase)));
    }
    for damaged in ["", "outputguard-recovery 2\n", &text[..text.len() - 1], &format!("{text}more\n")] {
        assert_eq!(parse_marker(damaged), None, "{damaged:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_goes_on_under_new_ids_and_the_old_data_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    old_node(dir.path()).await;
    fs::write(dir.path().join("admin.token"), "secret").unwrap();
    request(dir.path(), &recovery()).unwrap();
    is_the_new_one(dir.path()).await;
    is_the_new_one(dir.path()).await;
    assert!(dir.path().join("admin.token").exists(), "what is not of the cluster stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_any_two_steps_is_made_good_at_the_next_start() {
    let begun = tempfile::tempdir().unwrap();
    old_node(begun.path()).await;
    request(begun.path(), &recovery()).unwrap();

    // While the new data is written: what is half there is written again.
    let dir = tempfile::tempdir().unwrap();
    copy(begun.path(), dir.path());
    fs::create_dir_all(dir.path().join(SIDE_DIR).join("snapshots")).unwrap();
    fs::write(dir.path().join(SIDE_DIR).join("identity"), "half").unwrap();
    is_the_new_one(dir.path()).await;

    let lock = Arc::new(DataDir::lock(begun.path()).unwrap());
    let path = begun.path().to_owned();
    let of_thread = Arc::clone(&lock);
    tokio::task::spawn_blocking(move || build(&path, &recovery(), &of_thread).unwrap()).await.unwrap();
    drop(lock);
    closed(begun.path()).await;
    write_marker(begun.path(), &recovery(), &Phase::SetAside(1)).unwrap();

    // After each single move, of the old data and of the new.
    let built = begun.path();
    for moved in 0..=OF_THE_CLUSTER.len() {
        let dir = tempfile::tempdir().unwrap();
        copy(built, dir.path());
        fs::create_dir(dir.path().join("lost-1")).unwrap();
        for name in &OF_THE_CLUSTER[..moved] {
            // Not every name is there.
            let _ = fs::rename(dir.path().join(name), dir.path().join("lost-1").join(name));
        }
        is_the_new_one(dir.path()).await;
    }
    let new: Vec<_> =
        fs::read_dir(built.join(SIDE_DIR)).unwrap().map(|file| file.unwrap().file_name()).collect();
    for moved in 0..=new.len() {
        let dir = tempfile::tempdir().unwrap();
        copy(built, dir.path());
        let lost = dir.path().join("lost-1");
        fs::create_dir(&lost).unwrap();
        move_names(dir.path(), &lost, OF_THE_CLUSTER.iter().map(PathBuf::from)).unwrap();
        write_marker(dir.path(), &recovery(), &Phase::Install).unwrap();
        for name in &new[..moved] {
            fs::rename(dir.path().join(SIDE_DIR).join(name), dir.path().join(name)).unwrap();
        }
        is_the_new_one(dir.path()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_another_cluster_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    old_node(dir.path()).await;
    // The checkpoint must know the cluster; opening again brings nothing there, so take the state through a snapshot.
    request(dir.path(), &Recovery { lost: Uuid::from_u128(1), ..recovery() }).unwrap();
    is_the_new_one(dir.path()).await;
    request(dir.path(), &Recovery { lost: Uuid::from_u128(1), id: 10, ..recovery() }).unwrap();
    let refused = open(dir.path()).await.unwrap_err().to_string();
    assert!(refused.contains("is not of cluster") && refused.contains(MARKER), "{refused}");
    fs::remove_file(dir.path().join(MARKER)).unwrap();
    is_the_new_one(dir.path()).await;
}
