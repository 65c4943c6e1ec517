use std::io::Write;

use allowlist::Digest;
use uuid::Uuid;

use super::*;

const CLUSTER: Uuid = Uuid::from_u128(7);

fn element(last: u8) -> Element {
    Element::host(std::net::IpAddr::from([1, 1, 1, last]), Some("tcp/443".parse().unwrap()))
}

fn set(lasts: &[u8]) -> BTreeSet<Element> {
    lasts.iter().map(|last| element(*last)).collect()
}

fn held(revision: u64, lasts: &[u8]) -> Held {
    Held::published(CLUSTER, revision, set(lasts))
}

fn added(revision: u64, last: u8) -> Change {
    Change { revision, added: vec![element(last)], ..Change::default() }
}

/// A gateway's life: loads, makes steps, closes.
fn live(dir: &Path, steps: impl FnOnce(&mut StateStore)) {
    let mut state = StateDir::open(dir).unwrap();
    state.load().unwrap();
    let mut store = state.store(&Registry::new()).unwrap();
    steps(&mut store);
    store.close();
}

fn load(dir: &Path) -> Loaded {
    StateDir::open(dir).unwrap().load().unwrap()
}

fn loaded(dir: &Path) -> Held {
    match load(dir) {
        Loaded::State(held) => held,
        other => panic!("expected a state, got {other:?}"),
    }
}

fn unusable(dir: &Path) -> (String, Vec<PathBuf>) {
    match load(dir) {
        Loaded::Unusable { reason, aside } => (reason, aside),
        other => panic!("expected an unusable state, got {other:?}"),
    }
}

/// One whole set at revision 5, then 1.1.1.9 at revision 8.
fn two_records(dir: &Path) {
    live(dir, |store| {
        store.append_whole(held(5, &[1, 2]).point().unwrap(), &set(&[1, 2]));
        store.append(held(8, &[1, 2, 9]).point().unwrap(), &added(8, 9));
    });
}

fn checkpointed(dir: &Path) {
    two_records(dir);
    live(dir, |store| store.checkpoint(held(8, &[1, 2, 9])));
}

fn flip_bit(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_new_directory_holds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(load(&dir.path().join("made/here")), Loaded::Nothing));
}

#[test]
fn records_lead_to_the_last_state_without_any_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    two_records(dir.path());
    assert_eq!(loaded(dir.path()), held(8, &[1, 2, 9]));
}

#[test]
fn a_process_that_dies_without_closing_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = StateDir::open(dir.path()).unwrap();
    state.load().unwrap();
    let mut store = state.store(&Registry::new()).unwrap();
    store.append_whole(held(5, &[1]).point().unwrap(), &set(&[1]));
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    assert_eq!(loaded(copy.path()), held(5, &[1]));
    store.close();
}

#[test]
fn a_checkpoint_takes_the_place_of_the_logs_and_later_records_follow_it() {
    let dir = tempfile::tempdir().unwrap();
    two_records(dir.path());
    live(dir.path(), |store| {
        assert!(store.wants_checkpoint(), "logs of a former process are folded");
        store.checkpoint(held(8, &[1, 2, 9]));
        store.append(held(11, &[1, 2, 9, 10]).point().unwrap(), &added(11, 10));
    });
    assert_eq!(log::list(dir.path()).unwrap().len(), 1);
    assert_eq!(loaded(dir.path()), held(11, &[1, 2, 9, 10]));
}

#[test]
fn a_checkpoint_whose_logs_were_not_removed_yet_reads_the_same() {
    let dir = tempfile::tempdir().unwrap();
    two_records(dir.path());
    let logs: Vec<_> = log::list(dir.path())
        .unwrap()
        .into_iter()
        .map(|(_, path)| (fs::read(&path).unwrap(), path))
        .collect();
    live(dir.path(), |store| store.checkpoint(held(8, &[1, 2, 9])));
    for (bytes, path) in logs {
        fs::write(path, bytes).unwrap();
    }
    assert_eq!(loaded(dir.path()), held(8, &[1, 2, 9]));
}

#[test]
fn a_torn_record_at_the_end_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    two_records(dir.path());
    let (_, path) = log::list(dir.path()).unwrap().remove(0);
    let whole = fs::read(&path).unwrap();
    for cut in 1..40 {
        fs::write(&path, &whole[..whole.len() - cut]).unwrap();
        assert_eq!(loaded(dir.path()), held(5, &[1, 2]), "cut by {cut}");
    }
    // A page that was allocated and never written.
    fs::write(&path, &whole).unwrap();
    File::options().append(true).open(&path).unwrap().write_all(&[0; 4096]).unwrap();
    assert_eq!(loaded(dir.path()), held(8, &[1, 2, 9]));
}

#[test]
fn every_flipped_bit_in_a_checkpoint_is_found_and_the_file_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    checkpointed(dir.path());
    let path = dir.path().join(CHECKPOINT);
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        fs::write(&path, &whole).unwrap();
        flip_bit(&path, at);
        let (_, aside) = unusable(dir.path());
        assert!(aside.iter().any(|path| path.to_str().unwrap().contains("/state.")), "{aside:?}");
        assert!(!path.exists());
    }
}

#[test]
fn a_flipped_bit_within_a_log_is_corruption_not_a_torn_end() {
    let dir = tempfile::tempdir().unwrap();
    two_records(dir.path());
    let (_, path) = log::list(dir.path()).unwrap().remove(0);
    flip_bit(&path, 40);
    let (reason, aside) = unusable(dir.path());
    assert!(reason.contains("checksum"), "{reason}");
    assert!(aside[0].to_str().unwrap().contains("corrupt-"), "{aside:?}");
    assert!(matches!(load(dir.path()), Loaded::Nothing), "the next start is a first start");
}

#[test]
fn a_lost_log_between_two_others_is_found() {
    let dir = tempfile::tempdir().unwrap();
    checkpointed(dir.path());
    for revision in [9, 10] {
        let mut lasts = vec![1, 2, 9];
        lasts.extend(20..=(11 + revision as u8));
        live(dir.path(), |store| {
            store.append(held(revision, &lasts).point().unwrap(), &added(revision, 11 + revision as u8));
        });
    }
    let logs = log::list(dir.path()).unwrap();
    fs::remove_file(&logs[logs.len() - 2].1).unwrap();
    let (reason, _) = unusable(dir.path());
    assert!(reason.contains("does not follow"), "{reason}");
}

#[test]
fn a_state_of_a_newer_version_is_kept_for_the_newer_program() {
    let dir = tempfile::tempdir().unwrap();
    checkpointed(dir.path());
    let path = dir.path().join(CHECKPOINT);
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 2;
    fs::write(&path, &bytes).unwrap();
    let (reason, aside) = unusable(dir.path());
    assert!(reason.contains("format version 2, this build reads version 1"), "{reason}");
    assert_eq!(fs::read(&aside[0]).unwrap(), bytes);
    assert!(aside[0].to_str().unwrap().contains("version-2"), "{aside:?}");
}

#[test]
fn a_set_that_does_not_match_its_digest_is_corrupt() {
    let dir = tempfile::tempdir().unwrap();
    live(dir.path(), |store| {
        let mut point = held(5, &[1]).point().unwrap();
        point.digest = Digest::default();
        store.append_whole(point, &set(&[1]));
    });
    assert!(unusable(dir.path()).0.contains("digest"));
}

#[test]
fn a_second_process_is_refused_while_the_first_runs() {
    let dir = tempfile::tempdir().unwrap();
    let first = StateDir::open(dir.path()).unwrap();
    let error = StateDir::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("another gateway process is running"), "{error}");
    drop(first);
    StateDir::open(dir.path()).unwrap();
}
