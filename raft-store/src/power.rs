//! Power cuts of whole stores on a real ext4, and disks that are full. Needs root, mkfs.ext4 and loop devices.
//!
//! A writer process works on a file system in an image file. It is stopped at a random moment and the image copied: what
//! the kernel still holds for the mounted file system is not in the copy, and that is the power cut. The copy is mounted
//! (its journal is replayed), the store opened and compared with what the writer had acknowledged. Everything runs in a
//! mount namespace of its own, so that mounts and loop devices go with the process, however it ends.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use openraft::storage::{RaftLogStorage, RaftStateMachine};
use openraft::vote::{RaftLeaderId, RaftVote};
use openraft::{EntryPayload, RaftLogReader, RaftSnapshotBuilder};

use crate::disk::Disk;
use crate::disk::watch::{Random, Watch};
use crate::driving::{append, apply, catch_up, entry, log_id, options, wait_until};
use crate::space::{SpaceLimits, SpaceState};
use crate::types::Vote;
use crate::{Store, StoreOptions};

const ROUNDS: u64 = 10;
/// Entries of 20 KB that surely do not fit on the disk.
const MANY: u64 = 10_000;
const BROKEN_ROUNDS: u64 = 3;
const IMAGE_BYTES: u64 = 128 * 1024 * 1024;
/// Set for the processes a test starts from its own program: `judge` or a directory to write in.
const ROLE: &str = "RAFT_STORE_POWER_ROLE";
const PRETEND: &str = "RAFT_STORE_POWER_PRETEND";
/// Entries between two snapshots with a purge of what is in them.
const SNAPSHOT_ENTRIES: u64 = 37;

fn with_limits(space: SpaceLimits) -> StoreOptions {
    StoreOptions { space, ..options() }
}

fn no_reserve() -> SpaceLimits {
    SpaceLimits { low_bytes: 0, reserve_bytes: 0, ..SpaceLimits::default() }
}

/// This test program again, with only `test` in it.
fn again(test: &str, role: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("power::{test}"), "--nocapture"]).env(ROLE, role);
    command
}

/// True in the process that has a mount namespace of its own; else starts it and waits for it.
fn in_own_namespace(test: &str) -> bool {
    if std::env::var_os(ROLE).is_some() {
        return true;
    }
    let output = again(test, Path::new("judge")).output().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", said(&output.stdout), said(&output.stderr));
    false
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A file system in a file. Unmounted when dropped, or with the namespace.
struct Ext4 {
    mount: PathBuf,
}

impl Ext4 {
    fn make(image: &Path, bytes: u64) {
        fs::File::create(image).unwrap().set_len(bytes).unwrap();
        run("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0", image.to_str().unwrap()]);
    }

    fn mount(image: &Path, mount: &Path) -> Self {
        fs::create_dir_all(mount).unwrap();
        run("mount", &["-o", "loop", image.to_str().unwrap(), mount.to_str().unwrap()]);
        Self { mount: mount.to_owned() }
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        // In use by a writer that was killed a moment ago: it goes when the last of it does.
        drop(Command::new("umount").arg("--lazy").arg(&self.mount).output());
    }
}

struct Writer {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

/// The largest numbers that were acknowledged: an entry and the term of a vote.
#[derive(Debug, Clone, Copy, Default)]
struct Acknowledged {
    entry: Option<u64>,
    term: Option<u64>,
}

impl Acknowledged {
    fn note(&mut self, line: &str) {
        if let Some((_, number)) = line.split_once("entry ") {
            self.entry = self.entry.max(number.trim().parse().ok());
        } else if let Some((_, number)) = line.split_once("vote ") {
            self.term = self.term.max(number.trim().parse().ok());
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Writer {
    fn start(test: &str, dir: &Path, pretend: bool) -> Self {
        let mut command = again(test, dir);
        if pretend {
            command.env(PRETEND, "1");
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Lets it acknowledge so many things, stops it in the midst of the next and copies the image.
    fn cut_power(mut self, count: usize, image: &Path, copy: &Path, known: &mut Acknowledged) {
        for _ in 0..count {
            let line = self.lines.next().expect("the writer goes on").unwrap();
            known.note(&line);
        }
        let pid = Pid::from_raw(self.child.id() as i32);
        kill(pid, Signal::SIGSTOP).unwrap();
        run("cp", &["--sparse=always", image.to_str().unwrap(), copy.to_str().unwrap()]);
        // SIGKILL also ends a stopped process; what it had said before it was stopped is still in the pipe.
        self.child.kill().unwrap();
        for line in self.lines.by_ref().map_while(Result::ok) {
            known.note(&line);
        }
    }
}

/// Appends, applies, votes, snapshots and purges until it is killed.
async fn write_for_ever(dir: &Path) {
    let disk = match std::env::var_os(PRETEND) {
        Some(_) => {
            let watch = Arc::new(Watch::new(tempfile::tempdir().unwrap().path()));
            watch.pretend_syncs();
            Disk::watched(watch)
        }
        None => Disk::default(),
    };
    let mut store = Store::open_on(disk, dir, with_limits(no_reserve())).await.unwrap();
    catch_up(&mut store).await;
    let start = store.log.get_log_state().await.unwrap().last_log_id.map_or(0, |id| id.index + 1);
    let mut random = Random::new(start + 1);
    for index in start.. {
        if random.chance(5) {
            store.log.save_vote(&Vote::new(index + 1, 7)).await.unwrap();
            say(&format!("vote {}", index + 1));
        }
        let mut next = entry(index);
        if let EntryPayload::Normal(batch) = &mut next.payload {
            batch.operations[0].origin.request_id = "x".repeat(random.below(20_000));
        }
        append(&mut store.log, [next]).await;
        say(&format!("entry {index}"));
        apply(&mut store.machine, [entry(index)]).await;
        store.log.save_committed(Some(log_id(index))).await.unwrap();
        if index % SNAPSHOT_ENTRIES == SNAPSHOT_ENTRIES - 1 {
            store.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
            store.log.purge(log_id(index - SNAPSHOT_ENTRIES / 2)).await.unwrap();
        }
    }
}

#[allow(clippy::print_stdout, reason = "the pipe to the judge")]
fn say(line: &str) {
    println!("\n{line}");
}

/// What is missing in the store at `dir`, in words.
async fn missing(dir: &Path, known: Acknowledged) -> Option<String> {
    let mut store = match Store::open(dir, with_limits(no_reserve())).await {
        Ok(store) => store,
        Err(error) => return Some(error.to_string()),
    };
    let last = store.log.get_log_state().await.unwrap().last_log_id.map(|id| id.index);
    let vote = store.log.get_log_reader().await.read_vote().await.unwrap();
    catch_up(&mut store).await;
    if last < known.entry {
        return Some(format!("entries after {last:?}, acknowledged were {:?}", known.entry));
    }
    if vote.map(|vote| vote.leader_id.term) < known.term {
        return Some(format!("the vote is {vote:?}, acknowledged was {:?}", known.term));
    }
    let state = store.reader.state();
    let expected = (0..last.map_or(0, |last| last + 1)).map(|index| uuid::Uuid::from_u128(index.into()));
    let whole = state.entries().keys().map(|id| id.0).eq(expected);
    (!whole).then(|| {
        format!("{} entries are in the state, {last:?} is the last in the log", state.entries().len())
    })
}

async fn cut_power_often(test: &str, rounds: u64, pretend: bool) -> Vec<String> {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    let mut image = at("image-0");
    Ext4::make(&image, IMAGE_BYTES);
    let mut random = Random::new(11);
    let mut known = Acknowledged::default();
    let mut found = Vec::new();
    for round in 1..=rounds {
        let copy = at(&format!("image-{round}"));
        {
            let mounted = Ext4::mount(&image, &at(&format!("writer-{round}")));
            let writer = Writer::start(test, &mounted.mount.join("data"), pretend);
            // Two lines each; the test harness says a few of its own.
            writer.cut_power(60 + random.below(160), &image, &copy, &mut known);
        }
        let mounted = Ext4::mount(&copy, &at(&format!("judge-{round}")));
        found.extend(missing(&mounted.mount.join("data"), known).await);
        drop(mounted);
        fs::remove_file(&image).unwrap();
        image = copy;
        if pretend {
            // What was lost stays lost: begin again.
            Ext4::make(&image, IMAGE_BYTES);
            known = Acknowledged::default();
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_on_ext4_loses_nothing_acknowledged_in_power_cuts() {
    const TEST: &str = "a_store_on_ext4_loses_nothing_acknowledged_in_power_cuts";
    match std::env::var_os(ROLE) {
        Some(role) if role != "judge" => write_for_ever(Path::new(&role)).await,
        _ if in_own_namespace(TEST) => {
            let found = cut_power_often(TEST, ROUNDS, false).await;
            assert!(found.is_empty(), "{found:#?}");
        }
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cuts_on_ext4_find_a_store_that_acknowledges_before_it_syncs() {
    const TEST: &str = "power_cuts_on_ext4_find_a_store_that_acknowledges_before_it_syncs";
    match std::env::var_os(ROLE) {
        Some(role) if role != "judge" => write_for_ever(Path::new(&role)).await,
        _ if in_own_namespace(TEST) => {
            let found = cut_power_often(TEST, BROKEN_ROUNDS, true).await;
            assert!(!found.is_empty(), "every round looks as if the syncs had been made");
        }
        _ => {}
    }
}

/// Takes all the room there is on the file system at `dir`.
fn fill(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    let file = fs::File::create(&path).unwrap();
    let mut offset = 0;
    for step in [1024 * 1024, 4096] {
        let bytes = vec![1; step];
        while file.write_all_at(&bytes, offset).is_ok() {
            offset += step as u64;
        }
    }
    file.sync_all().unwrap();
    path
}

fn large(index: u64, bytes: usize) -> crate::types::Entry {
    let mut entry = entry(index);
    if let EntryPayload::Normal(batch) = &mut entry.payload {
        batch.operations[0].origin.request_id = "x".repeat(bytes);
    }
    entry
}

/// True when the entry was acknowledged.
async fn appended(store: &mut Store, index: u64) -> bool {
    let (sender, flushed) = <crate::TypeConfig as openraft::type_config::TypeConfigExt>::oneshot();
    let callback = openraft::storage::IOFlushed::signal(sender);
    store.log.append([large(index, 20_000)], callback).await.is_ok() && flushed.await.unwrap().is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_neither_acknowledged_entries_nor_the_node_and_heals_by_itself() {
    const TEST: &str = "a_full_disk_costs_neither_acknowledged_entries_nor_the_node_and_heals_by_itself";
    if !in_own_namespace(TEST) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let image = work.path().join("image");
    Ext4::make(&image, IMAGE_BYTES);
    let mounted = Ext4::mount(&image, &work.path().join("mount"));
    let dir = mounted.mount.join("data");
    let (sender, fatal) = std::sync::mpsc::channel();
    let on_fatal = crate::FatalHook::new(move |reason| drop(sender.send(reason.to_owned())));
    let mut store = Store::open(&dir, StoreOptions { on_fatal, ..options() }).await.unwrap();
    assert_eq!(store.space.check(), SpaceState::Ok);
    append(&mut store.log, (0..10).map(entry)).await;
    apply(&mut store.machine, (0..10).map(entry)).await;

    // Full to the last block: the reserve is given up, and what comes is written all the same.
    let ballast = fill(&mounted.mount, "ballast");
    assert!(matches!(store.space.check(), SpaceState::Low { .. }));
    let mut next = 10;
    while dir.join("reserve").exists() {
        assert!(next < MANY && appended(&mut store, next).await, "entry {next} before the reserve is used");
        apply(&mut store.machine, [entry(next)]).await;
        next += 1;
    }
    assert!(fatal.try_recv().is_err());

    // And again: now nothing is left, a write fails, and the node says so.
    let more = fill(&mounted.mount, "more");
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
async fn the_log_keeps_no_more_than_what_is_needed_and_two_segments() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), with_limits(no_reserve())).await.unwrap();
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

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_installed_on_a_full_disk_counts_and_the_checkpoint_follows_when_there_is_room() {
    const TEST: &str =
        "a_snapshot_installed_on_a_full_disk_counts_and_the_checkpoint_follows_when_there_is_room";
    if !in_own_namespace(TEST) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let mut leader = Store::open(&work.path().join("leader"), with_limits(no_reserve())).await.unwrap();
    append(&mut leader.log, (0..30).map(entry)).await;
    apply(&mut leader.machine, (0..30).map(entry)).await;
    let built = leader.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();

    let image = work.path().join("image");
    Ext4::make(&image, IMAGE_BYTES);
    let mounted = Ext4::mount(&image, &work.path().join("mount"));
    let dir = mounted.mount.join("data");
    let (sender, fatal) = std::sync::mpsc::channel();
    let on_fatal = crate::FatalHook::new(move |reason| drop(sender.send(reason.to_owned())));
    let options = StoreOptions { on_fatal, ..with_limits(no_reserve()) };
    let mut store = Store::open(&dir, options).await.unwrap();
    // With it the log has room for the purge, too.
    append(&mut store.log, [entry(0)]).await;
    let mut incoming = store.snapshots.receive(&store.reader).unwrap();
    incoming.write(&built.snapshot.read_at(0, usize::MAX).unwrap()).unwrap();
    let arrived = incoming.finish().unwrap();
    let ballast = fill(&mounted.mount, "ballast");
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
    const TEST: &str = "a_file_system_that_cannot_reserve_room_is_not_low_for_the_lack_of_a_reserve";
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
