//! A writer is stopped in the midst of its work, again and again.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use openraft::storage::{RaftLogStorage, RaftStateMachine};
use openraft::{EntryPayload, RaftLogReader, RaftSnapshotBuilder};

use super::{Ext4, IMAGE_BYTES, ROLE, again, in_own_namespace, no_reserve, run, with_limits};
use crate::disk::Disk;
use crate::disk::watch::{Random, Watch};
use crate::driving::{append, apply, catch_up, entry, log_id};
use crate::types::Vote;
use crate::{CheckpointPace, Store, StoreOptions};

const ROUNDS: u64 = 10;
const BROKEN_ROUNDS: u64 = 3;
const PRETEND: &str = "RAFT_STORE_POWER_PRETEND";
/// Entries between two snapshots with a purge of what is in them.
const SNAPSHOT_ENTRIES: u64 = 37;
/// One in so many of them is put in the place of the state, as if it had come from a leader: a new generation of the
/// checkpoint is written and takes the place of the old one.
const INSTALLED: u64 = 2;
/// What the writer says before.
const INSTALLING: &str = "installing";

/// When a writer is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// After so many lines.
    Any(usize),
    /// … and when it next puts a snapshot in the place of its state.
    Install(usize),
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

    /// Stops it in the midst of what comes at the moment, and copies the image.
    fn cut_power(mut self, moment: Moment, image: &Path, copy: &Path, known: &mut Acknowledged) {
        let (Moment::Any(count) | Moment::Install(count)) = moment;
        let mut lines = 0;
        loop {
            let line = self.lines.next().expect("the writer goes on").unwrap();
            known.note(&line);
            lines += 1;
            if lines >= count && (moment == Moment::Any(count) || line == INSTALLING) {
                break;
            }
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
    // Short steps: many of them are cut.
    let checkpoint = CheckpointPace { interval: Duration::from_millis(20), ..CheckpointPace::default() };
    let options = StoreOptions { checkpoint, ..with_limits(no_reserve()) };
    let mut store = Store::open_on(disk, dir, options).await.unwrap();
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
            let built = store.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
            if (index / SNAPSHOT_ENTRIES).is_multiple_of(INSTALLED) {
                say(INSTALLING);
                store.machine.install_snapshot(&built.meta, built.snapshot).await.unwrap();
            }
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
            let count = 60 + random.below(160);
            let moment = if round % 2 == 0 { Moment::Install(count) } else { Moment::Any(count) };
            writer.cut_power(moment, &image, &copy, &mut known);
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
    const TEST: &str = "cuts::a_store_on_ext4_loses_nothing_acknowledged_in_power_cuts";
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
    const TEST: &str = "cuts::power_cuts_on_ext4_find_a_store_that_acknowledges_before_it_syncs";
    match std::env::var_os(ROLE) {
        Some(role) if role != "judge" => write_for_ever(Path::new(&role)).await,
        _ if in_own_namespace(TEST) => {
            let found = cut_power_often(TEST, BROKEN_ROUNDS, true).await;
            assert!(!found.is_empty(), "every round looks as if the syncs had been made");
        }
        _ => {}
    }
}
