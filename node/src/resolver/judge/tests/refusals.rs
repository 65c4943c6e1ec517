//! Answers that must not be published.

use super::super::*;
use super::{Case, failed, given, nothing};

#[test]
fn private_answers_are_refused_beside_public_ones() {
    let mut case = Case::new();
    let verdict = case.both_answer(0, &["10.0.0.1", "1.1.1.1"]);
    assert_eq!(verdict.refused, 1);
    assert!(verdict.newly_refused.is_some());
    assert_eq!(case.published(), ["1.1.1.1"]);
    let again = case.both_answer(30, &["10.0.0.1", "1.1.1.1"]);
    assert_eq!((again.refused, again.newly_refused), (1, None), "counted each time, told once");
}

#[test]
fn a_name_with_private_answers_only_is_refused_by_name_and_keeps_what_it_had() {
    let mut case = Case::new();
    case.both_answer(0, &["1.1.1.1"]);
    let update = case.both_answer(30, &["127.0.0.1"]).update.expect("refused");
    let NameStatus::Refused { reason } = &update.status else { panic!("expected refused, got {update:?}") };
    assert!(reason.contains("127.0.0.1"), "{reason}");
    assert_eq!(case.published(), ["1.1.1.1"]);
    assert_eq!(case.both_answer(30, &["127.0.0.2"]).update, None, "another text is no other status");
    for _ in 0..100 {
        case.both_answer(30, &["127.0.0.1"]);
    }
    assert_eq!(case.published(), ["1.1.1.1"], "a refused answer takes nothing back");
    let update = case.both_answer(30, &["8.8.8.8"]).update.expect("honest again");
    assert_eq!(update.retire, BTreeSet::new(), "the refused time was not time in vain");
}

#[test]
fn an_upstream_that_says_private_addresses_only_takes_nothing_back() {
    let mut case = Case::new();
    case.after(0, &[given(&["1.1.1.1"], false), given(&["8.8.8.8"], false)], &[nothing(), nothing()]);
    for other in [given(&["8.8.8.8"], false), nothing(), failed()] {
        for _ in 0..60 {
            case.after(60, &[given(&["10.0.0.1"], false), other.clone()], &[nothing(), nothing()]);
        }
        assert_eq!(case.published(), ["1.1.1.1", "8.8.8.8"], "{other:?}");
    }
}

#[test]
fn an_answer_too_large_to_take_removes_nothing() {
    let mut case = Case::new();
    case.both_answer(0, &["9.9.9.9"]);
    let flood: Vec<String> = (0..=1_000_u32).map(|n| format!("1.1.{}.{}", n / 256, n % 256)).collect();
    let flood: Vec<&str> = flood.iter().map(String::as_str).collect();
    for _ in 0..30 {
        case.both_answer(60, &flood);
    }
    assert_eq!(case.published(), ["9.9.9.9"]);
}

#[test]
fn a_name_that_moved_to_as_many_other_addresses_as_fit_follows_after_the_linger_time() {
    let mut case = Case::new();
    let pool = |third: u32| -> Vec<String> {
        (0..600_u32).map(|n| format!("1.{third}.{}.{}", n / 256, n % 256)).collect()
    };
    let (old, new) = (pool(1), pool(2));
    case.both_answer(0, &old.iter().map(String::as_str).collect::<Vec<_>>());
    for _ in 0..11 {
        case.both_answer(60, &new.iter().map(String::as_str).collect::<Vec<_>>());
    }
    assert_eq!(case.published().len(), 600);
    assert_eq!(case.stored.status, NameStatus::Ok);
    assert!(case.published().iter().all(|address| address.starts_with("1.2.")));
}

#[test]
fn more_than_a_thousand_addresses_are_refused_and_the_known_ones_stay() {
    let mut case = Case::new();
    case.both_answer(0, &["1.1.1.1"]);
    let flood: Vec<String> = (0..=1_000_u32).map(|n| format!("1.1.{}.{}", n / 256, n % 256)).collect();
    let flood: Vec<&str> = flood.iter().map(String::as_str).collect();
    let update = case.both_answer(30, &flood).update.expect("refused");
    assert!(
        matches!(&update.status, NameStatus::Refused { reason } if reason.contains("at most 1000")),
        "{update:?}"
    );
    assert_eq!(case.published(), ["1.1.1.1"]);
    case.both_answer(30, &flood[..1_000]);
    assert_eq!(case.published().len(), 1_000);
    assert_eq!(case.stored.status, NameStatus::Ok);
}
