use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::command::{Batch, Command, CommandRefusal, OnceCommand, Operation, Origin, Role, Token};
use crate::state::State;

const HOUR_MS: u64 = 60 * 60 * 1_000;

fn answer(number: u64, replies: usize) -> KeptAnswer {
    KeptAnswer {
        name: name_of("ops", &number.to_string()),
        fingerprint: [7; 32],
        at_ms: number,
        revision: number,
        position: 0,
        replies: vec![Reply::Done; replies],
    }
}

fn once(actor: &str, key: &str, fingerprint: u8, token: &str) -> Operation {
    let token =
        Token { name: token.to_owned(), role: Role::Viewer, sha256: [fingerprint; 32], created_at_ms: 1 };
    Operation {
        origin: Origin { actor: actor.to_owned(), ..Origin::default() },
        command: Command::Once(OnceCommand {
            key: key.to_owned(),
            fingerprint: [fingerprint; 32],
            commands: vec![Command::AddToken(token)],
        }),
    }
}

fn run(state: &mut State, at_ms: u64, operation: Operation) -> (usize, Reply) {
    let revision = state.revision() + 1;
    run_at(state, revision, at_ms, operation)
}

fn run_at(state: &mut State, revision: u64, at_ms: u64, operation: Operation) -> (usize, Reply) {
    let (applied, mut reply) = state.apply(revision, &Batch { at_ms, operations: vec![operation] });
    (applied.events.len(), reply.replies.remove(0))
}

#[test]
fn kept_answer_has_these_exact_bytes() {
    let answer = KeptAnswer { position: 3, at_ms: 5, revision: 6, ..answer(1, 2) };
    let expected = [&[1, 5][..], b"ops\x001", &[7; 32], &[5, 6, 3, 2, 0, 0]].concat();
    let bytes = crate::codec::encode(&answer).unwrap();
    assert_eq!(bytes, expected);
    assert_eq!(crate::codec::decode::<KeptAnswer>(&bytes).unwrap(), answer);
}

#[test]
fn a_write_sent_again_is_answered_again_and_not_carried_out_again() {
    let mut state = State::default();
    let (events, first) = run(&mut state, 10, once("ops", "k", 1, "a"));
    let made = |replayed| Reply::Once { replayed, at_ms: 10, revision: 1, replies: vec![Reply::Done] };
    assert_eq!((events, first), (1, made(false)));
    let removal =
        Operation { origin: Origin::default(), command: Command::RemoveToken { name: "a".to_owned() } };
    run(&mut state, 11, removal);
    assert_eq!(run(&mut state, 12, once("ops", "k", 1, "a")), (0, made(true)));
    assert!(state.tokens().is_empty(), "the token was removed and must not come back");
}

#[test]
fn a_key_with_another_request_is_refused_and_another_tokens_key_is_another_key() {
    let mut state = State::default();
    run(&mut state, 10, once("ops", "k", 1, "a"));
    let refused = Reply::Refused(CommandRefusal::KeyReused("k".to_owned()));
    assert_eq!(run(&mut state, 11, once("ops", "k", 2, "b")), (0, refused));
    assert_eq!(run(&mut state, 12, once("dev", "k", 2, "b")).0, 1);
    assert_eq!(state.tokens().len(), 2);
}

#[test]
fn a_refusal_is_an_answer_too() {
    let mut state = State::default();
    let remove = || {
        let commands = vec![Command::RemoveToken { name: "a".to_owned() }];
        let command = OnceCommand { key: "k".to_owned(), fingerprint: [1; 32], commands };
        Operation { origin: Origin::default(), command: Command::Once(command) }
    };
    run(&mut state, 10, remove());
    run(&mut state, 11, once("ops", "other", 1, "a"));
    let (_, again) = run(&mut state, 12, remove());
    let Reply::Once { replayed: true, replies, .. } = again else { panic!("{again:?}") };
    assert_eq!(replies, [Reply::Refused(CommandRefusal::NoSuchToken("a".to_owned()))]);
    assert_eq!(state.tokens().len(), 1);
}

#[test]
fn a_key_within_a_key_does_nothing() {
    let mut state = State::default();
    let inner = once("ops", "inner", 1, "a").command;
    let outer = OnceCommand { key: "outer".to_owned(), fingerprint: [1; 32], commands: vec![inner] };
    let operation = Operation { origin: Origin::default(), command: Command::Once(outer) };
    assert_eq!(run(&mut state, 10, operation).0, 0);
    assert!(state.tokens().is_empty());
}

#[test]
fn an_answer_is_forgotten_after_its_time_and_the_key_is_free_again() {
    let mut state = State::default();
    run(&mut state, 10, once("ops", "k", 1, "a"));
    let later = 1 + KEPT_FOR_REVISIONS;
    assert_eq!(run_at(&mut state, later, 10 + KEPT_FOR_MS - 1, once("ops", "k", 1, "a")).0, 0);
    assert!(state.has_answer(&once("ops", "k", 1, "a")));
    assert!(!state.has_answer(&once("dev", "k", 1, "a")) && !state.has_answer(&once("ops", "j", 1, "a")));
    let (_, again) = run_at(&mut state, later, 10 + KEPT_FOR_MS, once("ops", "k", 9, "b"));
    assert!(matches!(again, Reply::Once { replayed: false, .. }), "{again:?}");
    assert_eq!((state.tokens().len(), state.kept.len()), (2, 1));
}

#[test]
fn a_leaders_clock_that_jumps_ahead_makes_no_answer_vanish() {
    let mut state = State::default();
    run(&mut state, 10, once("ops", "k", 1, "a"));
    let (mut far, ten_years_ms) = (10, 10 * 365 * 24 * HOUR_MS);
    for step in 0..100 {
        far += ten_years_ms;
        run(&mut state, far, once("ops", &format!("other-{step}"), 1, "b"));
    }
    let (_, again) = run_at(&mut state, KEPT_FOR_REVISIONS, far, once("ops", "k", 1, "a"));
    assert!(matches!(again, Reply::Once { replayed: true, at_ms: 10, .. }), "{again:?}");
}

#[test]
fn beyond_the_limit_the_oldest_go_and_their_names_are_told() {
    let mut kept = Kept::default();
    let mut changed = Vec::new();
    for number in 0..5 {
        kept.keep(answer(number, 2), 6, &mut changed);
    }
    let left: Vec<_> = kept.answers().map(|answer| answer.revision).collect();
    assert_eq!(left, [2, 3, 4]);
    assert_eq!(changed.len(), 5 + 2);
    // One that is over the limit alone is kept alone.
    kept.keep(answer(9, 50), 6, &mut changed);
    assert_eq!((kept.len(), kept.replies), (1, 50));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Against a list that is searched from its end.
    #[test]
    fn keys_are_what_a_naive_list_says(
        steps in vec((0..3_usize, 0..4_usize, 0..2_u8, 0..9_u64, 1..3_000_u64), 1..60)
    ) {
        let mut state = State::default();
        let mut list: Vec<(String, u8, u64, u64)> = Vec::new();
        let mut now_ms = 0;
        for (number, (actor, key, fingerprint, hours, entries)) in steps.into_iter().enumerate() {
            now_ms += hours * HOUR_MS;
            let (actor, key) = (["a", "b", "c"][actor], ["1", "2", "3", "4"][key]);
            let operation = once(actor, key, fingerprint, &format!("token-{number}"));
            let revision = state.revision() + entries;
            let (events, reply) = run_at(&mut state, revision, now_ms, operation);
            let lives = |at: u64, by: u64| at + KEPT_FOR_MS > now_ms || by + KEPT_FOR_REVISIONS > revision;
            let name = format!("{actor}/{key}");
            let known = list.iter().rev().find(|(of, _, at, by)| *of == name && lives(*at, *by));
            match (known, reply) {
                (None, Reply::Once { replayed: false, .. }) => {
                    prop_assert_eq!(events, 1);
                    list.push((name, fingerprint, now_ms, state.revision()));
                }
                (Some((_, first, at, by)), Reply::Once { replayed: true, at_ms, revision, .. }) => {
                    prop_assert_eq!((*first, *at, *by, events), (fingerprint, at_ms, revision, 0));
                }
                (Some((_, first, ..)), Reply::Refused(CommandRefusal::KeyReused(_))) => {
                    prop_assert!(*first != fingerprint && events == 0);
                }
                (known, reply) => prop_assert!(false, "{:?} {:?}", known, reply),
            }
            let live = list.iter().filter(|(_, _, at, by)| lives(*at, *by)).count();
            prop_assert_eq!(state.kept.len(), live);
        }
    }
}
