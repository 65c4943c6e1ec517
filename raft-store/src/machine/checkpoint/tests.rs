use std::sync::atomic::{AtomicBool, Ordering};

use allowlist::EntryId;
use openraft::vote::RaftLeaderId;
use uuid::Uuid;

use super::*;
use crate::command::{Batch, Command, EntryUpdate, Operation, Origin, Role, Token};
use crate::disk::Disk;
use crate::driving;
use crate::space::SpaceLimits;
use crate::types::LogId;

fn step(content: &mut Content, operations: Vec<Operation>) -> Dirty {
    let revision = content.state.revision() + 1;
    let (applied, _) = content.state.apply(revision, &Batch { at_ms: revision, operations });
    content.applied = Some(LogId::new(RaftLeaderId::new(1, 1), revision));
    let mut dirty = Dirty::default();
    dirty.note(&applied);
    dirty
}

#[test]
fn a_checkpoint_that_has_grown_is_written_anew_and_holds_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut content = Content::default();
    let database = Database::create(dir.path(), &content).unwrap();
    let flushed = Arc::new(Flushed::default());
    flushed.reach(u64::MAX);
    let failed = Arc::new(AtomicBool::new(false));
    let fatal = {
        let failed = Arc::clone(&failed);
        FatalHook::new(move |_| failed.store(true, Ordering::Relaxed))
    };
    let limit = GrowthLimit { times: 4, slack_bytes: 2 * 1024 * 1024 };
    let checkpointer = Checkpointer::start(
        dir.path(),
        (Generation::Open(database), &content),
        flushed,
        CheckpointPace::default(),
        limit,
        Space::without_limits(dir.path()).unwrap(),
        fatal,
    )
    .unwrap();
    let adds = (0..200).filter_map(|index| match driving::entry(index).payload {
        openraft::EntryPayload::Normal(batch) => Some(batch.operations),
        _ => None,
    });
    let dirty = step(&mut content, adds.flatten().collect());
    checkpointer.note(content.clone(), dirty);
    let deadline = Instant::now() + Duration::from_secs(120);
    let number = || super::database::generations(dir.path()).unwrap().last().unwrap().0;
    let mut round = 0;
    while number() < 4 {
        assert!(Instant::now() < deadline && !failed.load(Ordering::Relaxed), "generation {}", number());
        round += 1;
        let updates = (0..200).map(|index| Operation {
            origin: Origin::default(),
            command: Command::UpdateEntry {
                id: EntryId(Uuid::from_u128(index)),
                update: EntryUpdate {
                    comment: Some(format!("{round} {}", "y".repeat(1_000)).into()),
                    ..EntryUpdate::default()
                },
            },
        });
        let dirty = step(&mut content, updates.collect());
        checkpointer.note(content.clone(), dirty);
        // Its step is taken at once.
        checkpointer.catching_up().wait();
    }
    drop(checkpointer);
    let generations = super::database::generations(dir.path()).unwrap();
    assert_eq!(generations.len(), 1, "the old ones are gone: {generations:?}");
    assert_eq!(Database::load(&generations[0].1, FeatureLevel::NEWEST).unwrap().1, content);
}

#[test]
fn a_checkpoint_that_has_grown_is_left_as_it_is_while_the_disk_has_no_room_for_another() {
    let dir = tempfile::tempdir().unwrap();
    let mut content = Content::default();
    let database = Database::create(dir.path(), &content).unwrap();
    let flushed = Arc::new(Flushed::default());
    flushed.reach(u64::MAX);
    let nothing_is_small = GrowthLimit { times: 0, slack_bytes: 0 };
    let all = SpaceLimits { low_percent: 100, low_bytes: 0, reserve_percent: 100, reserve_bytes: u64::MAX };
    let space = Space::open(&Disk::default(), dir.path(), all).unwrap();
    let failed = FatalHook::new(|reason| panic!("{reason}"));
    let checkpointer = Checkpointer::start(
        dir.path(),
        (Generation::Open(database), &content),
        flushed,
        CheckpointPace::default(),
        nothing_is_small,
        space,
        failed,
    )
    .unwrap();
    if let openraft::EntryPayload::Normal(batch) = driving::entry(1).payload {
        let dirty = step(&mut content, batch.operations);
        checkpointer.note(content.clone(), dirty);
        checkpointer.catching_up().wait();
    }
    drop(checkpointer);
    let generations = super::database::generations(dir.path()).unwrap();
    assert_eq!(generations.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1]);
    assert_eq!(Database::load(&generations[0].1, FeatureLevel::NEWEST).unwrap().1, content);
}

#[test]
fn a_store_that_is_closed_leaves_a_large_step_to_the_log() {
    for (keys, written) in [(MAX_LAST_STEP_KEYS, true), (MAX_LAST_STEP_KEYS + 1, false)] {
        let dir = tempfile::tempdir().unwrap();
        let mut content = Content::default();
        let database = Database::create(dir.path(), &content).unwrap();
        let generation = database.dir().to_owned();
        let flushed = Arc::new(Flushed::default());
        flushed.reach(u64::MAX);
        let checkpointer = Checkpointer::start(
            dir.path(),
            (Generation::Open(database), &content),
            flushed,
            CheckpointPace::default(),
            GrowthLimit::default(),
            Space::without_limits(dir.path()).unwrap(),
            FatalHook::new(|reason| panic!("{reason}")),
        )
        .unwrap();
        let adds = (0..keys as u128)
            .map(|index| Operation { origin: Origin::default(), command: Command::AddToken(token(index)) });
        let dirty = step(&mut content, adds.collect());
        checkpointer.note(content.clone(), dirty);
        drop(checkpointer);
        let (_, found) = Database::load(&generation, FeatureLevel::NEWEST).unwrap();
        assert_eq!(found.state == content.state, written, "{keys} keys");
    }
}

fn token(index: u128) -> Token {
    Token { name: format!("t{index}"), role: Role::Viewer, sha256: [1; 32], created_at_ms: 1 }
}
