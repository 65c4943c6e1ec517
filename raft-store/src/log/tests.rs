//! Power cuts at every moment of a log's life.

use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::vote::{RaftLeaderId, RaftVote};
use openraft::{EntryPayload, RaftLogReader};

use super::*;
use crate::command::Batch;
use crate::disk::watch::{Event, Fault, Random, Watch};

/// Images in one run; the environment may ask for more.
const IMAGES: u64 = 504;
const IMAGES_VARIABLE: &str = "OUTPUTGUARD_POWER_CUTS";
/// Images built from one recorded life.
const IMAGES_PER_LIFE: u64 = 12;
const REQUESTS_PER_LIFE: u64 = 60;
/// Small, so that segments come and go.
const SMALL_SEGMENT_BYTES: u64 = 6 * 1024;

/// What a log should hold.
#[derive(Debug, Clone, PartialEq, Default)]
struct Expected {
    vote: Option<Vote>,
    purged: Option<LogId>,
    last: Option<LogId>,
    entries: VecDeque<Entry>,
}

/// What is asked of the log.
#[derive(Debug)]
enum Ask {
    Vote(Vote),
    Append(Vec<Entry>),
    Truncate(Option<LogId>),
    Purge(LogId),
    Committed(LogId),
}

impl Expected {
    /// Something that openraft could ask now.
    fn ask(&self, random: &mut Random, number: u64) -> Ask {
        let next = self.last.map_or(0, |id| id.index + 1);
        match (random.below(12), self.last) {
            (0, _) => Ask::Vote(Vote::from_leader_id(RaftLeaderId::new(number + 1, 1), random.chance(2))),
            (1, Some(last)) if !self.entries.is_empty() => {
                let kept = random.below(self.entries.len());
                let left = self.entries.get(kept).map(|entry| entry.log_id);
                Ask::Truncate(left.filter(|id| *id < last).or(self.purged))
            }
            (2, Some(_)) if !self.entries.is_empty() => {
                Ask::Purge(self.entries[random.below(self.entries.len())].log_id)
            }
            (3, Some(last)) if random.chance(4) => {
                // A snapshot's, of a leader before or after the one whose entries end here.
                let before = self.purged.map_or(1, |id| id.leader_id.term);
                let term = if random.chance(2) { before } else { number + 1 };
                Ask::Purge(LogId::new(RaftLeaderId::new(term, 1), last.index + 7))
            }
            (4 | 5, Some(last)) => Ask::Committed(last),
            _ => {
                let count = 1 + random.below(3) as u64;
                let entries = (next..next + count).map(|index| Entry {
                    log_id: LogId::new(RaftLeaderId::new(number + 1, 1), index),
                    payload: payload(random, number),
                });
                Ask::Append(entries.collect())
            }
        }
    }

    fn note(&mut self, ask: &Ask) {
        match ask {
            Ask::Vote(vote) => self.vote = Some(*vote),
            Ask::Append(entries) => {
                self.last = entries.last().map(|entry| entry.log_id);
                self.entries.extend(entries.iter().cloned());
            }
            Ask::Truncate(last) => {
                self.last = *last;
                self.entries.retain(|entry| Some(entry.log_id) <= *last);
            }
            Ask::Purge(upto) => {
                self.purged = Some(*upto);
                if self.last.map(|last| last.index) < Some(upto.index) {
                    self.last = self.purged;
                }
                self.entries.retain(|entry| entry.log_id.index > upto.index);
            }
            Ask::Committed(_) => {}
        }
    }

    async fn of(log: &mut LogStore) -> Self {
        let LogState { last_purged_log_id: purged, last_log_id: last } = log.get_log_state().await.unwrap();
        let mut reader = log.get_log_reader().await;
        let vote = reader.read_vote().await.unwrap();
        let entries = reader.try_get_log_entries(0..).await.unwrap().into();
        Self { vote, purged, last, entries }
    }
}

fn payload(random: &mut Random, number: u64) -> openraft::type_config::alias::PayloadOf<TypeConfig> {
    let operation = crate::command::Operation {
        origin: crate::command::Origin {
            request_id: "x".repeat(random.below(3_000)),
            ..crate::command::Origin::default()
        },
        command: crate::command::Command::RemoveToken { name: "t".to_owned() },
    };
    EntryPayload::Normal(Batch { at_ms: number, operations: vec![operation] })
}

/// The power is cut in the model; real syncs would only cost time.
fn memory_dir() -> tempfile::TempDir {
    let shared_memory = Path::new("/dev/shm");
    match shared_memory.is_dir() {
        true => tempfile::tempdir_in(shared_memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

fn no_limits() -> crate::space::SpaceLimits {
    crate::space::SpaceLimits { low_bytes: 0, reserve_bytes: 0, ..crate::space::SpaceLimits::default() }
}

fn open(disk: &Disk, data_dir: &Path, known: bool) -> Result<LogStore, OpenError> {
    let dir = data_dir.join(DIR_NAME);
    disk.create_dir(&dir).unwrap();
    let space = Space::open(&Disk::default(), data_dir, no_limits()).unwrap();
    let (mut files, memory) = opening::open(disk, &dir, &space, known)?;
    files.segment_bytes = SMALL_SEGMENT_BYTES;
    let lock = Arc::new(DataDir::lock(data_dir)?);
    Ok(LogStore::start(&dir, files, memory, lock, FatalHook::new(|_| {})).unwrap())
}

/// Asks the log a number of things, often without waiting for the answer to the one before. Answers with what the log
/// should hold after each of them; the watch's history tells which were acknowledged when.
async fn live(
    log: &mut LogStore,
    watch: &Arc<Watch>,
    start: Expected,
    first: u64,
    random: &mut Random,
) -> Vec<Expected> {
    let mut states = vec![start.clone()];
    let mut now = start;
    let mut pending = Vec::new();
    for number in first..first + REQUESTS_PER_LIFE {
        let ask = now.ask(random, number);
        now.note(&ask);
        states.push(now.clone());
        watch.note(Event::Begun(number));
        let acknowledged = {
            let watch = Arc::clone(watch);
            move || watch.note(Event::Acknowledged(number))
        };
        match ask {
            Ask::Append(entries) => {
                let (sender, flushed) = TypeConfig::oneshot();
                log.append(entries, IOFlushed::signal(sender)).await.unwrap();
                pending.push(tokio::spawn(async move {
                    flushed.await.unwrap().unwrap();
                    acknowledged();
                }));
            }
            // Rides along: not acknowledged as being on disk.
            Ask::Committed(id) => log.save_committed(Some(id)).await.unwrap(),
            Ask::Vote(vote) => {
                log.save_vote(&vote).await.unwrap();
                acknowledged();
            }
            Ask::Truncate(last) => {
                log.truncate_after(last).await.unwrap();
                acknowledged();
            }
            Ask::Purge(upto) => {
                log.purge(upto).await.unwrap();
                acknowledged();
            }
        }
        if random.chance(3) {
            for task in pending.drain(..) {
                task.await.unwrap();
            }
        }
    }
    for task in pending {
        task.await.unwrap();
    }
    states
}

/// What came to light in an image.
#[derive(Debug, Default)]
struct Verdict {
    images: u64,
    refused: u64,
    lost: u64,
}

/// Lives from `seed` on, cuts the power at random moments and judges each image.
async fn judge(seed: u64, images: u64, pretend_syncs: bool) -> Verdict {
    let mut random = Random::new(seed);
    let dir = memory_dir();
    let mut watch = Arc::new(Watch::new(dir.path()));
    let disk = Disk::watched(Arc::clone(&watch));
    let mut log = open(&disk, dir.path(), false).unwrap();
    let begun = watch.history().len();
    if pretend_syncs {
        watch.pretend_syncs();
    }
    let mut states = live(&mut log, &watch, Expected::default(), 1, &mut random).await;
    let mut start = 0;
    let mut killed = None;
    if !pretend_syncs && random.chance(2) {
        // A second life after a kill: what the first one wrote may not be on disk yet.
        drop(log);
        let (image, then) = kill(dir.path(), &watch, begun, &mut random);
        watch = Arc::new(then);
        log = open(&Disk::watched(Arc::clone(&watch)), image.path(), true).unwrap();
        let found = Expected::of(&mut log).await;
        let number =
            resumed(&watch, &states, &found).unwrap_or_else(|| panic!("seed {seed}: lost by a kill"));
        start = watch.history().len();
        states.truncate(number as usize + 1);
        states.extend(live(&mut log, &watch, found, number + 1, &mut random).await.split_off(1));
        killed = Some(image);
    } else if random.chance(2) {
        // A second life, after a clean end: the first one's traces are older than what is judged.
        drop(log);
        log = open(&disk, dir.path(), true).unwrap();
        start = watch.history().len();
        let then = states.last().unwrap().clone();
        assert_eq!(Expected::of(&mut log).await, then);
        states.extend(live(&mut log, &watch, then, 1 + REQUESTS_PER_LIFE, &mut random).await.split_off(1));
    }
    drop(log);
    let root = killed.as_ref().map_or(dir.path(), tempfile::TempDir::path);
    let history = watch.history();
    let mut verdict = Verdict::default();
    for _ in 0..images {
        let from = start.max(begun);
        let history = &history[..from + random.below(history.len() - from + 1)];
        let image = memory_dir();
        watch.cut_power(history, root, image.path(), &mut random);
        verdict.images += 1;
        match still_holds(image.path(), history, &states, &mut random).await {
            Ok(true) => {}
            Ok(false) => verdict.lost += 1,
            Err(error) if pretend_syncs => {
                verdict.refused += 1;
                drop(error);
            }
            Err(error) => panic!("seed {seed}: refused for a power cut: {error}"),
        }
    }
    verdict
}

/// What a process that was killed at some moment left behind; often when it had sealed a segment and not synced that.
fn kill(root: &Path, watch: &Watch, begun: usize, random: &mut Random) -> (tempfile::TempDir, Watch) {
    let mut history = watch.history();
    let seals: Vec<usize> = (begun..history.len())
        .filter(|at| matches!(&history[at - 1..=*at], [Event::SyncDir(_), Event::Write { .. }]))
        .collect();
    let last = match random.chance(2) && !seals.is_empty() {
        true => seals[random.below(seals.len())],
        false => begun + random.below(history.len() - begun),
    };
    history.truncate(last + 1);
    let image = memory_dir();
    let then = watch.kill(&history, root, image.path());
    (image, then)
}

/// The number of the request up to which a killed log held everything. It has said so, and numbers go on from there.
fn resumed(watch: &Watch, states: &[Expected], found: &Expected) -> Option<u64> {
    let history = watch.history();
    let number =
        |pick: fn(&Event) -> Option<u64>| history.iter().filter_map(pick).max().unwrap_or(0) as usize;
    let begun = number(|event| if let Event::Begun(number) = event { Some(*number) } else { None });
    let acknowledged =
        number(|event| if let Event::Acknowledged(number) = event { Some(*number) } else { None });
    let at = (acknowledged..=begun).rev().find(|at| states[*at] == *found)? as u64;
    watch.forget(|event| matches!(event, Event::Begun(number) if *number > at));
    watch.note(Event::Acknowledged(at));
    Some(at)
}

/// True when an image holds a state that was asked for, no older than what was acknowledged; and when it can be
/// written, cut again while it is opened, and still holds it.
async fn still_holds(
    image: &Path,
    history: &[Event],
    states: &[Expected],
    random: &mut Random,
) -> Result<bool, OpenError> {
    let last = |pick: fn(&Event) -> Option<u64>| history.iter().filter_map(pick).max().unwrap_or(0) as usize;
    let begun = last(|event| if let Event::Begun(number) = event { Some(*number) } else { None });
    let acknowledged =
        last(|event| if let Event::Acknowledged(number) = event { Some(*number) } else { None });
    let again = Arc::new(Watch::new(image));
    let mut log = open(&Disk::watched(Arc::clone(&again)), image, true)?;
    let found = Expected::of(&mut log).await;
    drop(log);
    let Some(at) = (acknowledged..=begun).rev().find(|at| states[*at] == found) else { return Ok(false) };
    let opening = again.history();
    let second = memory_dir();
    let cut = random.below(opening.len() + 1);
    again.cut_power(&opening[..cut], image, second.path(), random);
    let mut log = open(&Disk::default(), second.path(), true)?;
    let found = Expected::of(&mut log).await;
    if found != states[at] {
        return Ok(false);
    }
    let next = found.last.map_or(0, |id| id.index + 1);
    let entry =
        Entry { log_id: LogId::new(RaftLeaderId::new(u64::MAX, 1), next), payload: EntryPayload::Blank };
    let (sender, flushed) = TypeConfig::oneshot();
    log.append([entry.clone()], IOFlushed::signal(sender)).await.unwrap();
    flushed.await.unwrap().unwrap();
    drop(log);
    let mut log = open(&Disk::default(), second.path(), true)?;
    Ok(Expected::of(&mut log).await.entries.back() == Some(&entry))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_at_any_moment_loses_nothing_acknowledged_and_is_never_refused() {
    let images = std::env::var(IMAGES_VARIABLE).ok().and_then(|images| images.parse().ok()).unwrap_or(IMAGES);
    for seed in 1..=images.div_ceil(IMAGES_PER_LIFE) {
        let verdict = judge(seed, IMAGES_PER_LIFE, false).await;
        assert_eq!(verdict.lost, 0, "seed {seed}: {verdict:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_power_cuts_find_a_build_that_acknowledges_before_it_syncs() {
    let mut found = Verdict::default();
    for seed in 1..=4 {
        let verdict = judge(seed, IMAGES_PER_LIFE, true).await;
        found.images += verdict.images;
        found.lost += verdict.lost + verdict.refused;
    }
    assert!(found.lost * 2 > found.images, "only {} of {} images show it", found.lost, found.images);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_before_the_last_batch_is_refused_wherever_it_is() {
    let dir = memory_dir();
    let mut log = open(&Disk::default(), dir.path(), false).unwrap();
    let mut random = Random::new(7);
    let watch = Arc::new(Watch::new(dir.path()));
    let start = Expected::default();
    live(&mut log, &watch, start, 1, &mut random).await;
    log.save_vote(&Vote::from_leader_id(RaftLeaderId::new(u64::MAX - 1, 1), true)).await.unwrap();
    drop(log);
    let (_, newest) = segment::files(&dir.path().join(DIR_NAME)).unwrap().pop().unwrap();
    let good = fs::read(&newest).unwrap();
    // The vote is the last batch: a header and 18 bytes.
    let covered = good.len() - frame::HEADER_BYTES - 18;
    for _ in 0..300 {
        let bit = random.below(covered * 8);
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&newest, &bytes).unwrap();
        let error = open(&Disk::default(), dir.path(), true).unwrap_err();
        assert!(error.needs_rejoin(), "bit {bit}: {error}");
    }
    fs::write(&newest, &good).unwrap();
    open(&Disk::default(), dir.path(), true).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failed_write_or_sync_nothing_is_acknowledged_and_nothing_acknowledged_is_lost() {
    for after in 0..12 {
        let dir = memory_dir();
        let watch = Arc::new(Watch::new(dir.path()));
        let mut log = open(&Disk::watched(Arc::clone(&watch)), dir.path(), false).unwrap();
        watch.fail(Fault { after, times: 1, kind: io::ErrorKind::Other, short: 40 });
        let mut acknowledged = Vec::new();
        let mut failed = false;
        for index in 0..20 {
            let log_id = LogId::new(RaftLeaderId::new(1, 1), index);
            let (sender, flushed) = TypeConfig::oneshot();
            let entry = Entry { log_id, payload: EntryPayload::Blank };
            let appended = log.append([entry], IOFlushed::signal(sender)).await;
            let written = match appended {
                Ok(()) => flushed.await.unwrap(),
                Err(error) => Err(error),
            };
            assert!(!(failed && written.is_ok()), "acknowledged after a failure");
            failed |= written.is_err();
            if written.is_ok() {
                acknowledged.push(log_id);
            }
        }
        assert!(failed && log.save_vote(&Vote::new(9, 9)).await.is_err());
        drop(log);
        let mut log = open(&Disk::watched(Arc::clone(&watch)), dir.path(), true).unwrap();
        let found = Expected::of(&mut log).await;
        // What it read after the failure it holds from now on, also when the failed sync left it in memory only.
        let image = memory_dir();
        watch.cut_power(&watch.history(), dir.path(), image.path(), &mut Random::new(after + 1));
        let mut cut = open(&Disk::default(), image.path(), true).unwrap();
        assert_eq!(Expected::of(&mut cut).await, found, "after {after}");
        let ids: Vec<_> = found.entries.iter().map(|entry| entry.log_id).collect();
        assert!(
            ids.starts_with(&acknowledged) && ids.len() <= acknowledged.len() + 1,
            "after {after}: {ids:?}"
        );
    }
}
