use openraft::vote::RaftLeaderId;
use proptest::prelude::*;

use super::*;
use crate::apply::model::batches;

fn apply(content: &mut Content, batch: &crate::command::Batch) -> Dirty {
    let revision = content.state.revision() + 1;
    let (applied, _) = content.state.apply(revision, batch);
    content.applied = Some(LogId::new(RaftLeaderId::new(1, 1), revision));
    let mut dirty = Dirty::default();
    dirty.note(&applied);
    dirty
}

fn answers(count: u64) -> Kept {
    Kept::from_answers((0..count).map(|number| KeptAnswer {
        name: format!("ops\0{number}").into(),
        fingerprint: [1; 32],
        at_ms: 1,
        revision: number,
        position: 0,
        replies: vec![crate::Reply::Done],
    }))
}

#[test]
fn meta_record_has_these_exact_bytes() {
    let meta = Meta {
        applied: Some(LogId::new(RaftLeaderId::new(1, 2), 3)),
        membership: StoredMembership::default(),
        cluster: None,
        published: Digest::default(),
    };
    assert_eq!(codec::encode(&meta).unwrap(), [1, 1, 1, 2, 3, 0, 0, 0, 0, 0]);
}

#[test]
fn a_generation_without_its_mark_does_not_count() {
    let root = tempfile::tempdir().unwrap();
    let database = Database::create(root.path(), &Content::default()).unwrap();
    assert!(is_complete(database.dir()).unwrap());
    fs::remove_file(database.dir().join(MARK)).unwrap();
    assert!(!is_complete(database.dir()).unwrap());
    assert_eq!(generations(root.path()).unwrap().len(), 1);
}

#[test]
fn a_newer_feature_level_is_told_from_damage() {
    let root = tempfile::tempdir().unwrap();
    let database = Database::create(root.path(), &Content::default()).unwrap();
    let dir = database.dir().to_owned();
    database.db.insert(VERSION_KEY, &99_u32.to_be_bytes()).unwrap();
    database.sync().unwrap();
    drop(database);
    let Err(LoadError::TooNew(refusal)) = Database::load(&dir, FeatureLevel::NEWEST) else { panic!() };
    assert_eq!(refusal.found, FeatureLevel(99));
}

#[test]
fn kept_answers_count_as_content() {
    let root = tempfile::tempdir().unwrap();
    let mut content = Content::default();
    content.state.kept = answers(1_000);
    let database = Database::create(root.path(), &content).unwrap();
    let bytes = database.live_bytes(&content);
    content.state.kept = Kept::default();
    assert!(bytes > 100 * database.live_bytes(&content));
}

#[test]
fn what_is_given_up_while_it_is_written_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let mut content = Content::default();
    content.state.kept = answers(3 * WHOLE_STEP_KEYS as u64);
    let asked = std::cell::Cell::new(0);
    let given_up = || {
        asked.set(asked.get() + 1);
        asked.get() == 2
    };
    assert_eq!(Database::create_unless(root.path(), &content, &given_up).unwrap_err(), GIVEN_UP);
    assert_eq!(asked.get(), 2, "the third step was not begun");
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Whatever was applied between two steps, the names its events gave are enough to bring the checkpoint along.
    #[test]
    fn steps_bring_the_checkpoint_to_exactly_the_applied_state(history in batches(), together in 1..4_usize) {
        let root = tempfile::tempdir().unwrap();
        let mut content = Content::default();
        let database = Database::create(root.path(), &content).unwrap();
        for batches in history.chunks(together) {
            let mut dirty = Dirty::default();
            for batch in batches {
                dirty.merge(apply(&mut content, batch));
            }
            database.step(&content, &dirty).unwrap();
            prop_assert_eq!(&database.read().unwrap(), &content);
        }
        let dir = database.dir().to_owned();
        drop(database);
        prop_assert_eq!(Database::load(&dir, FeatureLevel::NEWEST).unwrap().1, content);
    }
}
