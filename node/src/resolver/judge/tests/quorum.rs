//! How many upstreams must give an address, and who is told to give it.

use super::*;

impl Case {
    fn with_majority_of(upstreams: usize) -> Self {
        let mut case = Self::new();
        case.rules.upstreams = (1..=upstreams).map(|n| format!("192.0.2.{n}:53")).collect();
        case.rules.quorum = Quorum::Majority;
        case
    }

    /// One round in which each upstream gives some IPv4 addresses, or fails.
    fn each_says(&mut self, seconds: u64, said: &[Option<&[&str]>]) -> Verdict {
        let v4: Vec<Answer> =
            said.iter().map(|said| said.map_or_else(failed, |addresses| given(addresses, false))).collect();
        let v6 = vec![nothing(); said.len()];
        self.after(seconds, &v4, &v6)
    }

    fn givers(&self, address: &str) -> Vec<String> {
        let seen = &self.stored.addresses[&address.parse::<IpAddr>().expect("an address")];
        seen.upstreams.iter().cloned().collect()
    }
}

#[test]
fn a_majority_publishes_what_most_of_those_that_answer_give() {
    let mut case = Case::with_majority_of(3);
    let verdict = case
        .each_says(0, &[Some(&["1.1.1.1", "9.9.9.9"]), Some(&["1.1.1.1"]), Some(&["1.1.1.1", "8.8.8.8"])]);
    assert_eq!(case.published(), ["1.1.1.1"]);
    assert_eq!(verdict.waiting, 2);
}

#[test]
fn a_failing_upstream_has_no_vote_but_one_alone_opens_nothing() {
    let mut case = Case::with_majority_of(3);
    case.each_says(0, &[Some(&["1.1.1.1"]), Some(&["1.1.1.1"]), None]);
    assert_eq!(case.published(), ["1.1.1.1"]);
    for _ in 0..100 {
        case.each_says(30, &[None, None, Some(&["6.6.6.6"])]);
    }
    assert_eq!(case.published(), ["1.1.1.1"], "whoever silences the others cannot open anything");
}

#[test]
fn of_two_upstreams_both_must_give_a_new_address_and_either_keeps_it() {
    let mut case = Case::with_majority_of(2);
    case.each_says(0, &[Some(&["1.1.1.1"]), Some(&[])]);
    case.each_says(30, &[Some(&["1.1.1.1"]), None]);
    assert!(case.published().is_empty());
    case.each_says(30, &[Some(&["1.1.1.1"]), Some(&["1.1.1.1"])]);
    assert_eq!(case.published(), ["1.1.1.1"]);
    for _ in 0..100 {
        case.each_says(30, &[Some(&["1.1.1.1"]), Some(&["8.8.8.8"])]);
    }
    assert_eq!(case.published(), ["1.1.1.1"], "one still gives it, and nobody else gives the other one");
}

#[test]
fn a_single_upstream_is_its_own_majority() {
    let mut case = Case::with_majority_of(1);
    case.each_says(0, &[Some(&["1.1.1.1"])]);
    assert_eq!(case.published(), ["1.1.1.1"]);
}

#[test]
fn upstreams_that_hold_other_parts_of_a_rotating_pool_agree_over_rounds() {
    let mut case = Case::with_majority_of(2);
    case.each_says(0, &[Some(&["1.1.1.1"]), Some(&["8.8.8.8"])]);
    assert!(case.published().is_empty());
    case.each_says(30, &[Some(&["8.8.8.8"]), Some(&["1.1.1.1"])]);
    assert_eq!(case.published(), ["1.1.1.1", "8.8.8.8"]);
}

#[test]
fn what_an_upstream_gave_counts_no_longer_than_an_address_lingers() {
    let mut case = Case::with_majority_of(2);
    case.each_says(0, &[Some(&["1.1.1.1", "9.9.9.9"]), Some(&["1.1.1.1"])]);
    for _ in 0..21 {
        case.each_says(30, &[Some(&["1.1.1.1"]), Some(&["1.1.1.1"])]);
    }
    case.each_says(30, &[Some(&["1.1.1.1"]), Some(&["1.1.1.1", "9.9.9.9"])]);
    assert_eq!(case.published(), ["1.1.1.1"], "more than ten minutes apart");
    case.each_says(30, &[Some(&["1.1.1.1", "9.9.9.9"]), Some(&["1.1.1.1"])]);
    assert_eq!(case.published(), ["1.1.1.1", "9.9.9.9"]);
}

#[test]
fn a_name_that_has_nothing_but_addresses_that_wait_says_so_after_some_rounds() {
    let mut case = Case::with_majority_of(2);
    for _ in 0..2 {
        assert_eq!(case.each_says(30, &[Some(&["1.1.1.1"]), Some(&["8.8.8.8"])]).update, None);
    }
    let update = case.each_says(30, &[Some(&["1.1.1.1"]), Some(&["8.8.8.8"])]).update.expect("it is told");
    let NameStatus::Refused { reason } = &update.status else { panic!("{:?}", update.status) };
    assert!(reason.contains("no majority") && reason.contains("1.1.1.1 only from 192.0.2.1:53"), "{reason}");
    assert_eq!(case.each_says(30, &[Some(&["1.1.1.1"]), Some(&["8.8.8.8"])]).update, None, "once");
    case.each_says(30, &[Some(&["1.1.1.1"]), Some(&["1.1.1.1"])]);
    assert_eq!((case.published(), &case.stored.status), (vec!["1.1.1.1".to_owned()], &NameStatus::Ok));
}

#[test]
fn more_givers_are_told_after_a_while_with_one_write() {
    let mut case = Case::new();
    case.each_says(0, &[Some(&["1.1.1.1", "8.8.8.8"]), None]);
    assert_eq!(case.givers("1.1.1.1"), ["192.0.2.1:53"]);
    let mut writes = 0;
    for _ in 0..100 {
        let verdict = case.each_says(30, &[Some(&["1.1.1.1", "8.8.8.8"]), Some(&["1.1.1.1", "8.8.8.8"])]);
        writes += usize::from(verdict.update.is_some());
    }
    assert_eq!(writes, 1);
    for address in ["1.1.1.1", "8.8.8.8"] {
        assert_eq!(case.givers(address).len(), 2, "{address}");
    }
}

#[test]
fn an_address_that_only_one_upstream_still_gives_is_told_so_unless_the_other_is_silent() {
    let mut case = Case::new();
    case.each_says(0, &[Some(&["1.1.1.1"]), Some(&["1.1.1.1"])]);
    for _ in 0..100 {
        assert_eq!(case.each_says(30, &[Some(&["1.1.1.1"]), None]).update, None);
    }
    for _ in 0..24 {
        case.each_says(30, &[Some(&["1.1.1.1"]), Some(&[])]);
    }
    assert_eq!(case.givers("1.1.1.1"), ["192.0.2.1:53"]);
    assert_eq!(case.published(), ["1.1.1.1"]);
}

#[test]
fn a_rotating_pool_costs_a_write_in_ten_minutes_at_most_once_it_is_known() {
    let mut case = Case::new();
    let pool: Vec<String> = (1..=12).map(|n| format!("1.1.1.{n}")).collect();
    let mut writes = 0;
    for round in 0..240_usize {
        let part = |step: usize| -> Vec<&str> {
            (0..3).map(|n| pool[(round * step + n * 4) % pool.len()].as_str()).collect()
        };
        let (one, two) = (part(1), part(5));
        let verdict = case.each_says(30, &[Some(&one), Some(&two)]);
        let settled = round >= 40;
        writes += usize::from(settled && verdict.update.is_some());
    }
    assert!(writes <= 10, "{writes} writes in 100 minutes");
}

#[test]
fn a_private_answer_beside_one_that_waits_is_told_once_and_not_each_round() {
    let mut case = Case::with_majority_of(2);
    let says: [Option<&[&str]>; 2] = [Some(&["1.2.3.4"]), Some(&["10.0.0.5"])];
    for _ in 0..5 {
        case.each_says(30, &says);
    }
    let NameStatus::Refused { reason } = &case.stored.status else { panic!("{:?}", case.stored.status) };
    assert!(reason.contains("1.2.3.4 only from 192.0.2.1:53") && reason.contains("10.0.0.5"), "{reason}");
    for _ in 0..50 {
        assert_eq!(case.each_says(30, &says).update, None);
    }
}

#[test]
fn a_write_that_fails_loses_nobodys_word() {
    let mut case = Case::with_majority_of(2);
    case.each_says(0, &[Some(&["1.1.1.1"]), Some(&[])]);
    let before = case.stored.clone();
    case.each_says(30, &[Some(&[]), Some(&["1.1.1.1"])]);
    assert_eq!(case.published(), ["1.1.1.1"]);
    case.stored = before;
    case.each_says(30, &[Some(&[]), Some(&[])]);
    case.each_says(30, &[Some(&["1.1.1.1"]), Some(&[])]);
    assert_eq!(case.published(), ["1.1.1.1"], "the other one's word stands");
}

#[test]
fn a_flood_from_one_keeps_nothing_out_that_the_others_agree_on() {
    let mut case = Case::with_majority_of(3);
    let flood: Vec<String> = (0..=1_000_u32).map(|n| format!("1.7.{}.{}", n / 256, n % 256)).collect();
    let flood: Vec<&str> = flood.iter().map(String::as_str).collect();
    case.each_says(0, &[Some(&["1.1.1.1"]), Some(&["1.1.1.1"]), Some(&flood)]);
    assert_eq!(case.published(), ["1.1.1.1"]);
}
