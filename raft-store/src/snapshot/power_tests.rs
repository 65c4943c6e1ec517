//! Power cuts while snapshots are written, come in and are removed, from the record of what was done to the disk: what was
//! acknowledged is found again, whole, and what was not finished is in nobody's way. The checkpoint's files are sled's,
//! which the record does not see; real file systems are cut for those (`power/cuts.rs`).

use std::path::Path;
use std::sync::Arc;

use openraft::EntryPayload;

use super::*;
use crate::disk::watch::{Event, Random, Watch};
use crate::driving::{entry, log_id};
use crate::identity;

const LIVES: u64 = 6;
const IMAGES_PER_LIFE: u64 = 60;
/// Snapshots of a life: more than are kept.
const SNAPSHOTS: u64 = 5;
const NODE: u64 = 11;

/// The state with entries up to this one.
fn content(last: u64) -> Content {
    let mut content = Content::default();
    for index in 0..=last {
        if let EntryPayload::Normal(batch) = entry(index).payload {
            content.state.apply(index, &batch);
        }
    }
    content.applied = Some(log_id(last));
    content
}

/// Identity first, then snapshots of ever more entries: some built here, some as they come from a leader.
fn live(
    disk: &Disk,
    watch: &Watch,
    dir: &Path,
    leader: &Snapshots,
    random: &mut Random,
    pretend_syncs: bool,
) {
    identity::write(disk, dir, NODE).unwrap();
    watch.note(Event::Acknowledged(0));
    if pretend_syncs {
        watch.pretend_syncs();
    }
    let space = Space::without_limits(dir).unwrap();
    let (_publisher, reader) = crate::reader::channel(State::default());
    let snapshots = Snapshots::open(disk, dir, &space, FeatureLevel::NEWEST).unwrap();
    for number in 1..=SNAPSHOTS {
        let content = content(number * 10);
        watch.note(Event::Begun(number));
        if random.chance(2) {
            snapshots.build(&content).unwrap();
        } else {
            let sent = leader.build(&content).unwrap().snapshot;
            let mut incoming = snapshots.receive(&reader).unwrap();
            incoming.write(&sent.read_at(0, usize::MAX).unwrap()).unwrap();
            let arrived = incoming.finish().unwrap();
            snapshots.adopt(arrived.snapshot.path(), arrived.meta).unwrap();
        }
        watch.note(Event::Acknowledged(number));
    }
}

/// What is wrong with an image.
fn wrong(image: &Path, history: &[Event]) -> Option<String> {
    let acknowledged = history.iter().rev().find_map(|event| match event {
        Event::Acknowledged(number) => Some(*number),
        _ => None,
    });
    match identity::read(image) {
        Ok(Some(NODE)) => {}
        Ok(None) if acknowledged.is_none() => return None,
        other => return Some(format!("the identity is {other:?}")),
    }
    let space = Space::without_limits(image).unwrap();
    let opened = match Snapshots::open(&Disk::default(), image, &space, FeatureLevel::NEWEST) {
        Ok(opened) => opened,
        Err(error) => return Some(error.to_string()),
    };
    let found = match opened.newest() {
        None if acknowledged.unwrap_or(0) == 0 => return None,
        None => return Some(format!("no snapshot, acknowledged was {acknowledged:?}")),
        Some(found) => found,
    };
    let last = found.meta.last_log_id.map_or(0, |id| id.index);
    if last < acknowledged.unwrap_or(0) * 10 {
        return Some(format!("the newest snapshot is of {last}, acknowledged was {acknowledged:?}"));
    }
    let damaged = sorted_files(image.join(DIR_NAME).as_path(), ".damaged").unwrap();
    if !damaged.is_empty() {
        return Some(format!("a name was given to what was not on the disk: {damaged:?}"));
    }
    match format::read(found.snapshot.file()) {
        Ok(read) if read == content(last) => None,
        Ok(_) => Some(format!("the snapshot of {last} holds something else")),
        Err(error) => Some(format!("the snapshot of {last}: {error}")),
    }
}

/// What was found wrong in images of so many lives.
fn cut_often(pretend_syncs: bool) -> Vec<String> {
    let mut found = Vec::new();
    for seed in 1..=LIVES {
        let mut random = Random::new(seed);
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let watch = Arc::new(Watch::new(dir.path()));
        let disk = Disk::watched(Arc::clone(&watch));
        let space = Space::without_limits(elsewhere.path()).unwrap();
        let leader =
            Snapshots::open(&Disk::default(), elsewhere.path(), &space, FeatureLevel::NEWEST).unwrap();
        live(&disk, &watch, dir.path(), &leader, &mut random, pretend_syncs);
        let history = watch.history();
        for _ in 0..IMAGES_PER_LIFE {
            let history = &history[..=random.below(history.len())];
            let image = tempfile::tempdir().unwrap();
            watch.cut_power(history, dir.path(), image.path(), &mut random);
            found.extend(wrong(image.path(), history).map(|what| format!("seed {seed}: {what}")));
        }
    }
    found
}

#[test]
fn a_power_cut_costs_no_identity_and_no_snapshot_that_was_acknowledged() {
    let found = cut_often(false);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_power_cuts_find_snapshots_that_are_named_before_they_are_synced() {
    let found = cut_often(true);
    assert!(
        found.iter().any(|what| what.contains("snapshot") || what.contains("a name was given")),
        "{found:#?}"
    );
}
