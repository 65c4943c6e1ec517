//! Disks without room.

use std::fs;

use openraft::RaftSnapshotBuilder;
use openraft::storage::{RaftLogStorage, RaftStateMachine};

use super::{Ext4, IMAGE_BYTES, SmallDisk, in_own_namespace, listening, no_reserve, run, with_limits};
use crate::disk::Disk;
use crate::driving::{append, apply, catch_up, entry, large, log_id, options, wait_until};
use crate::space::{SpaceLimits, SpaceState};
use crate::{OpenError, Store, StoreOptions};

/// Entries of 20 KB that surely do not fit on the disk.
const MANY: u64 = 10_000;

/// True when the entry was acknowledged.
async fn appended(store: &mut Store, index: u64) -> bool {
    let (sender, flushed) = <crate::TypeConfig as openraft::type_config::TypeConfigExt>::oneshot();
    let callback = openraft::storage::IOFlushed::signal(sender);
    store.log.append([large(index, 20_000)], callback).await.is_ok() && flushed.await.unwrap().is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_neither_acknowledged_entries_nor_the_node_and_heals_by_itself() {
    const TEST: &str =
        "full::a_full_disk_costs_neither_acknowledged_entries_nor_the_node_and_heals_by_itself";
    if !in_own_namespace(TEST) {
        return;
    }
    let disk = SmallDisk::new();
    let dir = disk.data();
    let (on_fatal, fatal) = listening();
    let mut store = Store::open(&dir, StoreOptions { on_fatal, ..options() }).await.unwrap();
    assert_eq!(store.space.check(), SpaceState::Ok);
    append(&mut store.log, (0..10).map(entry)).await;
    apply(&mut store.machine, (0..10).map(entry)).await;

    // Full to the last block: the reserve is given up, and what comes is written all the same.
    let ballast = disk.fill("ballast");
    assert!(matches!(store.space.check(), SpaceState::Low { .. }));
    let mut next = 10;
    while dir.join("reserve").exists() {
        assert!(next < MANY && appended(&mut store, next).await, "entry {next} before the reserve is used");
        apply(&mut store.machine, [entry(next)]).await;
        next += 1;
    }
    assert!(fatal.try_recv().is_err());

    // And again: now nothing is left, a write fails, and the node says so.
    let more = disk.fill("more");
    while next < MANY && appended(&mut store, next).await {
        next += 1;
    }
    let acknowledged = next - 1;
    assert!(!appended(&mut store, next + 1).await, "nothing is acknowledged after a failure");
    assert!(next < MANY, "the disk is full and everything was acknowledged");
    let reason = fatal.recv().unwrap();
    assert!(reason.contains("write the raft log"), "{reason}");
    drop(store);
    fs::remove_file(&more).unwrap();
    let mut store = Store::open(&dir, options()).await.unwrap();
    assert!(store.log.get_log_state().await.unwrap().last_log_id >= Some(log_id(acknowledged)));
    assert!(matches!(store.space.check(), SpaceState::Low { .. }));
    fs::remove_file(&ballast).unwrap();
    assert_eq!(store.space.check(), SpaceState::Ok);
    assert!(dir.join("reserve").exists(), "there is a reserve again");
    catch_up(&mut store).await;
    assert!(store.reader.state().entries().len() as u64 > acknowledged);
    drop(store);
    wait_until("the store is closed", async || !Store::is_open(&dir)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_installed_on_a_full_disk_counts_and_the_checkpoint_follows_when_there_is_room() {
    const TEST: &str =
        "full::a_snapshot_installed_on_a_full_disk_counts_and_the_checkpoint_follows_when_there_is_room";
    if !in_own_namespace(TEST) {
        return;
    }
    let disk = SmallDisk::new();
    let dir = disk.data();
    let mut leader = Store::open(&disk.elsewhere(), with_limits(no_reserve())).await.unwrap();
    append(&mut leader.log, (0..30).map(entry)).await;
    apply(&mut leader.machine, (0..30).map(entry)).await;
    let built = leader.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();

    let (on_fatal, fatal) = listening();
    let options = StoreOptions { on_fatal, ..with_limits(no_reserve()) };
    let mut store = Store::open(&dir, options).await.unwrap();
    // With it the log has room for the purge, too.
    append(&mut store.log, [entry(0)]).await;
    let mut incoming = store.snapshots.receive(&store.reader).unwrap();
    incoming.write(&built.snapshot.read_at(0, usize::MAX).unwrap()).unwrap();
    let arrived = incoming.finish().unwrap();
    let ballast = disk.fill("ballast");
    store.machine.install_snapshot(&arrived.meta, arrived.snapshot).await.unwrap();
    assert_eq!(store.reader.state().entries().len(), 30);
    store.log.purge(log_id(29)).await.unwrap();
    assert!(fatal.try_recv().is_err() && dir.join("db/0000000001").exists());

    fs::remove_file(&ballast).unwrap();
    wait_until("the checkpoint is written", async || !dir.join("db/0000000001").exists()).await;
    drop(store);
    wait_until("the store is closed", async || !Store::is_open(&dir)).await;
    let store = Store::open(&dir, with_limits(no_reserve())).await.unwrap();
    assert_eq!(store.reader.state().entries().len(), 30);
    drop(store);
    wait_until("the store is closed", async || !Store::is_open(&dir)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_that_cannot_reserve_room_is_not_low_for_the_lack_of_a_reserve() {
    const TEST: &str = "full::a_file_system_that_cannot_reserve_room_is_not_low_for_the_lack_of_a_reserve";
    if !in_own_namespace(TEST) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let image = work.path().join("image");
    fs::File::create(&image).unwrap().set_len(IMAGE_BYTES).unwrap();
    run("mkfs.ext2", &["-q", "-F", "-m", "0", image.to_str().unwrap()]);
    let mounted = Ext4::mount(&image, &work.path().join("mount"));
    let limits = SpaceLimits { low_percent: 40, reserve_percent: 59, ..SpaceLimits::default() };
    let space = crate::Space::open(&Disk::default(), &mounted.mount, limits).unwrap();
    assert_eq!(space.check(), SpaceState::Ok);
    assert!(!mounted.mount.join("reserve").exists());
    fs::write(mounted.mount.join("some"), vec![1; 16 * 1024 * 1024]).unwrap();
    assert_eq!(space.check(), SpaceState::Ok, "what cannot be there is not asked for");
}

/// A store of 30 entries with a snapshot and no checkpoint, on a disk with neither room nor reserve; and what fills it.
async fn without_checkpoint_and_room(disk: &SmallDisk) -> std::path::PathBuf {
    let dir = disk.data();
    let mut store = Store::open(&dir, with_limits(no_reserve())).await.unwrap();
    append(&mut store.log, (0..20).map(entry)).await;
    apply(&mut store.machine, (0..20).map(entry)).await;
    store.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    store.log.purge(log_id(10)).await.unwrap();
    append(&mut store.log, (20..30).map(entry)).await;
    store.log.save_committed(Some(log_id(29))).await.unwrap();
    closed(store, &dir).await;
    fs::remove_dir_all(dir.join("db")).unwrap();
    disk.fill("ballast")
}

async fn closed(store: Store, dir: &std::path::Path) {
    drop(store);
    wait_until("the store is closed", async || !Store::is_open(dir)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_room_for_its_checkpoint_opens_from_snapshot_and_log_and_writes_it_later() {
    const TEST: &str =
        "full::a_store_without_room_for_its_checkpoint_opens_from_snapshot_and_log_and_writes_it_later";
    if !in_own_namespace(TEST) {
        return;
    }
    let disk = SmallDisk::new();
    let dir = disk.data();
    let ballast = without_checkpoint_and_room(&disk).await;
    let (on_fatal, fatal) = listening();
    let low = SpaceLimits { low_bytes: 32 * 1024 * 1024, reserve_bytes: 0, ..SpaceLimits::default() };
    // Twice: what was begun in vain the first time is in nobody's way.
    for _ in 0..2 {
        let options = StoreOptions { on_fatal: on_fatal.clone(), ..with_limits(low) };
        let mut store = Store::open(&dir, options).await.unwrap();
        catch_up(&mut store).await;
        assert_eq!(store.reader.state().entries().len(), 30);
        assert!(matches!(store.space.check(), SpaceState::Low { .. }), "it must not take what makes it grow");
        closed(store, &dir).await;
    }
    let mut store = Store::open(&dir, with_limits(low)).await.unwrap();
    catch_up(&mut store).await;
    fs::remove_file(&ballast).unwrap();
    wait_until("the checkpoint is written", async || dir.join("db/0000000001/complete").exists()).await;
    assert!(fatal.try_recv().is_err());
    closed(store, &dir).await;
    // Without the snapshots only the checkpoint can hold what the log does not reach back to.
    fs::remove_dir_all(dir.join("snapshots")).unwrap();
    let mut store = Store::open(&dir, with_limits(low)).await.unwrap();
    catch_up(&mut store).await;
    assert_eq!(store.reader.state().entries().len(), 30);
    closed(store, &dir).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_even_begin_says_how_much_to_free() {
    const TEST: &str = "full::a_store_that_cannot_even_begin_says_how_much_to_free";
    if !in_own_namespace(TEST) {
        return;
    }
    let disk = SmallDisk::new();
    let dir = disk.data();
    let ballast = disk.fill("ballast");
    let error = Store::open(&dir, with_limits(no_reserve())).await.unwrap_err();
    let OpenError::Full { free, needed, .. } = error else { panic!("{error}") };
    assert!(free < needed && !error.needs_rejoin());
    let told = format!("free at least {} bytes", needed - free);
    assert!(error.to_string().contains(&told), "{error}");
    // Not one byte more than was asked for.
    let file = fs::File::options().write(true).open(&ballast).unwrap();
    file.set_len(file.metadata().unwrap().len() - (needed - free)).unwrap();
    file.sync_all().unwrap();
    let store = Store::open(&dir, with_limits(no_reserve())).await.unwrap();
    closed(store, &dir).await;
}
