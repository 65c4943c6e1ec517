//! Names with public and refused answers at once.

use super::super::*;
use super::{Case, given, nothing};

fn mixed(status: &NameStatus) -> &str {
    match status {
        NameStatus::Mixed { reason } => reason,
        other => panic!("expected mixed, got {other:?}"),
    }
}

/// One upstream answers with these, the other one with 1.1.1.1 alone.
fn second_says(case: &mut Case, seconds: u64, addresses: &[&str]) -> Verdict {
    let (v4, v6) = (given(addresses, false), given(addresses, true));
    case.after(seconds, &[given(&["1.1.1.1"], false), v4], &[nothing(), v6])
}

#[test]
fn the_public_ones_are_published_and_it_is_told_who_gave_the_others() {
    let mut case = Case::new();
    second_says(&mut case, 0, &["1.1.1.1", "10.0.0.1", "fd00::1"]);
    assert_eq!(case.published(), ["1.1.1.1"]);
    let reason = mixed(&case.stored.status);
    for part in
        ["192.0.2.2:53 gave 10.0.0.1 lies in 10.0.0.0/8", "192.0.2.2:53 gave fd00::1 lies in fc00::/7"]
    {
        assert!(reason.contains(part), "{reason}");
    }
    assert!(!reason.contains("192.0.2.1:53"), "{reason}");
}

#[test]
fn the_same_answer_costs_one_write_and_another_upstream_one_more() {
    let mut case = Case::new();
    second_says(&mut case, 0, &["10.0.0.1"]);
    for last in 2..100 {
        assert_eq!(second_says(&mut case, 30, &[&format!("10.0.0.{last}")]).update, None, "the same range");
    }
    let both = given(&["1.1.1.1", "10.0.0.1"], false);
    case.after(30, &[both.clone(), both], &[nothing(), nothing()]).update.expect("the other one too");
    assert!(mixed(&case.stored.status).contains("192.0.2.1:53 gave 10.0.0.1"));
    assert!(mixed(&case.stored.status).contains("192.0.2.2:53 gave 10.0.0.1"));
}

#[test]
fn a_pool_that_gives_a_private_address_now_and_then_stays_mixed() {
    let mut case = Case::new();
    second_says(&mut case, 0, &["1.1.1.1", "10.0.0.1"]);
    for round in 1..200 {
        let addresses = if round % 10 == 0 { ["10.0.0.1"] } else { ["1.1.1.1"] };
        assert_eq!(second_says(&mut case, 50, &addresses).update, None, "round {round}");
    }
}

#[test]
fn it_is_ok_again_ten_minutes_after_the_last_refused_answer() {
    let mut case = Case::new();
    second_says(&mut case, 0, &["1.1.1.1", "10.0.0.1"]);
    for _ in 0..9 {
        assert_eq!(second_says(&mut case, 60, &["1.1.1.1"]).update, None);
    }
    let update = second_says(&mut case, 60, &["1.1.1.1"]).update.expect("ten minutes are over");
    assert_eq!(update.status, NameStatus::Ok);
}

#[test]
fn a_new_leader_neither_tells_it_again_nor_forgets_it_at_once() {
    let mut case = Case::new();
    second_says(&mut case, 0, &["1.1.1.1", "10.0.0.1"]);
    case.memory = Memory::default();
    assert_eq!(second_says(&mut case, 30, &["1.1.1.1"]).update, None, "it may come back");
    assert_eq!(second_says(&mut case, 30, &["10.0.0.1"]).update, None, "that is told already");
    case.memory = Memory::default();
    for _ in 0..10 {
        assert_eq!(second_says(&mut case, 60, &["1.1.1.1"]).update, None);
    }
    let update =
        second_says(&mut case, 60, &["1.1.1.1"]).update.expect("this leader saw none for ten minutes");
    assert_eq!(update.status, NameStatus::Ok);
}

#[test]
fn a_text_names_so_many_refusals_and_counts_the_rest() {
    let mut case = Case::new();
    let ranges = [
        "0.1.1.1",
        "10.0.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
    ];
    second_says(&mut case, 0, &ranges);
    let reason = mixed(&case.stored.status);
    assert_eq!(reason.matches(" gave ").count(), 8, "{reason}");
    assert!(reason.ends_with("and 2 more"), "{reason}");
    assert_eq!(second_says(&mut case, 30, &ranges).update, None);
}

#[test]
fn while_an_older_release_is_in_the_cluster_such_a_name_is_ok() {
    let mut case = Case::new();
    case.rules.tells_mixed = false;
    second_says(&mut case, 0, &["10.0.0.1"]);
    assert_eq!(case.stored.status, NameStatus::Ok);
    case.rules.tells_mixed = true;
    second_says(&mut case, 30, &["10.0.0.1"]).update.expect("now it can be told");
    mixed(&case.stored.status);
}
