mod mixed;
mod properties;
mod quorum;
mod refusals;

use super::super::answer::Failure;
use super::*;

const LINGER: Duration = Duration::from_secs(600);

/// A name under judgement: keeps what a replicated state would keep.
struct Case {
    stored: Resolution,
    memory: Memory,
    rules: Rules,
    now: Duration,
}

impl Case {
    fn new() -> Self {
        let upstreams = vec!["192.0.2.1:53".to_owned(), "192.0.2.2:53".to_owned()];
        let rules = Rules {
            linger: LINGER,
            word_counts: LINGER,
            upstreams: upstreams.into(),
            tells_mixed: true,
            quorum: Quorum::Any,
        };
        Self { stored: Resolution::default(), memory: Memory::default(), rules, now: Duration::ZERO }
    }

    /// Lets `seconds` pass, judges, and stores the update as `apply` would.
    fn after(&mut self, seconds: u64, v4: &[Answer], v6: &[Answer]) -> Verdict {
        self.now += Duration::from_secs(seconds);
        let unix_ms = 1_700_000_000_000 + u64::try_from(self.now.as_millis()).expect("a short test");
        let at = Moment { elapsed: self.now, unix_ms };
        let round = Round { at, v4: v4.to_vec(), v6: v6.to_vec() };
        let verdict = judge(&round, &self.stored, &mut self.memory, &self.rules);
        if let Some(update) = &verdict.update {
            for address in &update.retire {
                assert!(
                    self.stored.addresses.remove(address).is_some(),
                    "{address} was retired but never stored"
                );
            }
            for (address, seen) in &update.seen {
                let before = self.stored.addresses.insert(*address, seen.clone());
                assert!(
                    before.is_none_or(|before| before.upstreams != seen.upstreams),
                    "{address} was stored already"
                );
            }
            self.stored.chain.clone_from(&update.chain);
            self.stored.status = update.status.clone();
        }
        verdict
    }

    fn both_answer(&mut self, seconds: u64, addresses: &[&str]) -> Verdict {
        let (v4, v6) = (given(addresses, false), given(addresses, true));
        self.after(seconds, &[v4.clone(), v4], &[v6.clone(), v6])
    }

    fn published(&self) -> Vec<String> {
        self.stored.addresses.keys().map(ToString::to_string).collect()
    }
}

fn given(addresses: &[&str], v6: bool) -> Answer {
    let addresses: BTreeMap<IpAddr, u32> = addresses
        .iter()
        .map(|text| (text.parse::<IpAddr>().expect("an address"), 30))
        .filter(|(address, _)| address.is_ipv6() == v6)
        .collect();
    if addresses.is_empty() { nothing() } else { Answer::Addresses { addresses, chain: Vec::new() } }
}

fn nothing() -> Answer {
    Answer::Nothing { chain: Vec::new() }
}

fn failed() -> Answer {
    Answer::Failed(Failure::Code("SERVFAIL".to_owned()))
}

fn with_chain(addresses: &[&str], chain: &[&str]) -> Answer {
    match given(addresses, false) {
        Answer::Addresses { addresses, .. } => Answer::Addresses {
            addresses,
            chain: chain.iter().map(|name| name.parse().expect("a name")).collect(),
        },
        other => other,
    }
}

#[test]
fn addresses_are_published_on_first_sight_with_who_said_so() {
    let mut case = Case::new();
    let verdict = case.after(
        0,
        &[given(&["1.1.1.1"], false), given(&["1.1.1.1", "8.8.8.8"], false)],
        &[given(&["2606:4700::1"], true), failed()],
    );
    let update = verdict.update.expect("first sight");
    assert_eq!(update.status, NameStatus::Ok);
    let said = |address: &str| &update.seen[&address.parse::<IpAddr>().expect("an address")].upstreams;
    assert_eq!(said("1.1.1.1").len(), 2);
    assert_eq!(said("8.8.8.8").iter().collect::<Vec<_>>(), ["192.0.2.2:53"]);
    assert_eq!(said("2606:4700::1").iter().collect::<Vec<_>>(), ["192.0.2.1:53"]);
}

#[test]
fn an_unchanged_name_costs_no_write() {
    let mut case = Case::new();
    case.both_answer(0, &["1.1.1.1", "2606:4700::1"]);
    for _ in 0..100 {
        assert_eq!(case.both_answer(30, &["1.1.1.1", "2606:4700::1"]).update, None);
    }
}

#[test]
fn the_next_lookup_is_due_at_the_shortest_ttl() {
    let mut case = Case::new();
    let addresses = BTreeMap::from([([1, 1, 1, 1].into(), 40), ([8, 8, 8, 8].into(), 12)]);
    let answer = Answer::Addresses { addresses, chain: Vec::new() };
    let verdict = case.after(0, &[answer], &[nothing()]);
    assert_eq!(verdict.again, AskAgain { ttl: Some(Duration::from_secs(12)), failures: 0 });
}

#[test]
fn an_address_that_left_dns_is_retired_after_the_linger_time_and_not_before() {
    let mut case = Case::new();
    case.both_answer(0, &["1.1.1.1"]);
    let verdict = case.both_answer(30, &["8.8.8.8"]);
    assert_eq!(verdict.update.expect("a new address").retire, BTreeSet::new());
    for _ in 0..19 {
        assert_eq!(case.both_answer(30, &["8.8.8.8"]).update, None);
    }
    let update = case.both_answer(30, &["8.8.8.8"]).update.expect("ten minutes are over");
    assert_eq!(update.retire.iter().map(ToString::to_string).collect::<Vec<_>>(), ["1.1.1.1"]);
    assert_eq!(case.published(), ["8.8.8.8"]);
}

#[test]
fn an_address_with_a_ttl_beyond_the_linger_time_stays_for_its_ttl() {
    let mut case = Case::new();
    let long =
        Answer::Addresses { addresses: BTreeMap::from([([1, 1, 1, 1].into(), 3_600)]), chain: Vec::new() };
    case.after(0, &[long.clone(), long], &[nothing(), nothing()]);
    for _ in 0..60 {
        case.both_answer(60, &["8.8.8.8"]);
    }
    assert_eq!(case.published(), ["1.1.1.1", "8.8.8.8"]);
    case.both_answer(60, &["8.8.8.8"]);
    assert_eq!(case.published(), ["8.8.8.8"]);
}

#[test]
fn rotating_subsets_of_a_pool_are_published_once_and_never_retired() {
    let mut case = Case::new();
    let pool = ["1.1.1.1", "8.8.8.8", "9.9.9.9"];
    let mut writes = 0;
    for round in 0..200 {
        writes += usize::from(case.both_answer(60, &[pool[round % 3]]).update.is_some());
    }
    assert_eq!(writes, 3);
    assert_eq!(case.published().len(), 3);
}

#[test]
fn a_new_leader_retires_nothing_it_has_not_missed_itself() {
    let mut case = Case::new();
    case.both_answer(0, &["1.1.1.1"]);
    for _ in 0..20 {
        case.both_answer(30, &["8.8.8.8"]);
    }
    assert_eq!(case.published(), ["1.1.1.1", "8.8.8.8"]);
    case.memory = Memory::default();
    for _ in 0..20 {
        assert_eq!(
            case.both_answer(30, &["8.8.8.8"]).update,
            None,
            "the new leader has not missed it long enough"
        );
    }
    case.both_answer(30, &["8.8.8.8"]);
    assert_eq!(case.published(), ["8.8.8.8"]);
}

#[test]
fn hours_of_failures_remove_nothing_and_do_not_count_as_missing() {
    let mut case = Case::new();
    case.both_answer(0, &["1.1.1.1", "2606:4700::1"]);
    for _ in 0..300 {
        case.after(60, &[failed(), failed()], &[failed(), failed()]);
    }
    assert_eq!(case.published(), ["1.1.1.1", "2606:4700::1"]);
    let update = case.both_answer(60, &["8.8.8.8", "2606:4700::1"]).update.expect("answers again");
    assert_eq!(update.retire, BTreeSet::new(), "the first answer after an outage retires nothing");
    assert_eq!(update.status, NameStatus::Ok);
}

#[test]
fn an_outage_between_two_misses_is_not_time_in_vain() {
    let mut case = Case::new();
    case.both_answer(0, &["1.1.1.1"]);
    case.both_answer(30, &["8.8.8.8"]);
    for _ in 0..60 {
        case.after(60, &[failed(), failed()], &[failed(), failed()]);
    }
    case.both_answer(60, &["8.8.8.8"]);
    assert_eq!(case.published(), ["1.1.1.1", "8.8.8.8"], "it was missed for an hour in which nobody looked");
}

#[test]
fn a_family_that_always_fails_and_never_had_addresses_is_no_fault_of_the_name() {
    let mut case = Case::new();
    let v4 = given(&["1.1.1.1"], false);
    case.after(0, &[v4.clone(), v4.clone()], &[failed(), failed()]);
    for _ in 0..20 {
        assert_eq!(case.after(30, &[v4.clone(), v4.clone()], &[failed(), failed()]).update, None);
    }
    assert_eq!(case.stored.status, NameStatus::Ok);
}

#[test]
fn a_blip_costs_no_write_and_a_lasting_failure_exactly_one() {
    let mut case = Case::new();
    case.both_answer(0, &["1.1.1.1"]);
    for _ in 0..2 {
        assert_eq!(case.after(30, &[failed(), failed()], &[failed(), failed()]).update, None);
    }
    assert_eq!(case.both_answer(5, &["1.1.1.1"]).update, None);

    let mut writes = Vec::new();
    for _ in 0..20 {
        let verdict = case.after(8, &[failed(), failed()], &[failed(), failed()]);
        writes.extend(verdict.update);
    }
    assert_eq!(writes.len(), 1);
    let NameStatus::Stale { since_ms, error } = &writes[0].status else {
        panic!("expected stale, got {:?}", writes[0].status)
    };
    assert_eq!(*since_ms, 1_700_000_000_000 + 73_000, "since the first failure");
    assert_eq!(error, "192.0.2.1:53: answered SERVFAIL");
}

#[test]
fn an_upstream_that_is_silent_cannot_take_back_what_it_gave() {
    let mut case = Case::new();
    case.after(0, &[given(&["1.1.1.1"], false), given(&["8.8.8.8"], false)], &[nothing(), nothing()]);
    for _ in 0..60 {
        case.after(60, &[given(&["1.1.1.1"], false), failed()], &[nothing(), nothing()]);
    }
    assert_eq!(case.published(), ["1.1.1.1", "8.8.8.8"]);
    for _ in 0..11 {
        case.both_answer(60, &["1.1.1.1"]);
    }
    assert_eq!(case.published(), ["1.1.1.1"]);
}

#[test]
fn an_upstream_that_fell_silent_is_remembered_while_another_still_gives_the_address() {
    let mut case = Case::new();
    let address = || given(&["1.1.1.1"], false);
    case.after(0, &[address(), address()], &[nothing(), nothing()]);
    case.after(60, &[address(), failed()], &[nothing(), nothing()]);
    for _ in 0..60 {
        case.after(60, &[given(&["8.8.8.8"], false), failed()], &[nothing(), nothing()]);
    }
    assert_eq!(case.published(), ["1.1.1.1", "8.8.8.8"], "the silent one has not taken it back");
    for _ in 0..11 {
        case.both_answer(60, &["8.8.8.8"]);
    }
    assert_eq!(case.published(), ["8.8.8.8"]);
}

#[test]
fn no_such_name_is_believed_only_after_three_answers_over_a_minute() {
    let mut case = Case::new();
    case.both_answer(0, &["1.1.1.1"]);
    for seconds in [10, 20, 20] {
        let verdict = case.both_answer(seconds, &[]);
        assert_eq!(verdict.update, None);
        assert_eq!(verdict.again.ttl, Some(Duration::from_secs(30)), "asked again soon while in doubt");
    }
    let update = case.both_answer(20, &[]).update.expect("believed");
    assert_eq!(update.status, NameStatus::NoSuchName);
    assert_eq!(update.retire, BTreeSet::new(), "its addresses linger");
    for _ in 0..9 {
        assert_eq!(case.both_answer(60, &[]).update, None);
    }
    case.both_answer(60, &[]);
    assert_eq!(case.published(), Vec::<String>::new());
}

#[test]
fn an_empty_zone_for_a_moment_changes_nothing() {
    let mut case = Case::new();
    case.both_answer(0, &["1.1.1.1"]);
    for _ in 0..50 {
        assert_eq!(case.both_answer(30, &[]).update, None);
        assert_eq!(case.both_answer(29, &[]).update, None);
        assert_eq!(case.both_answer(60, &["1.1.1.1"]).update, None);
    }
}

#[test]
fn a_name_with_one_family_only_is_ok_and_not_asked_more_often() {
    for address in ["1.1.1.1", "2606:4700::1"] {
        let mut case = Case::new();
        let verdict = case.both_answer(0, &[address]);
        assert_eq!(verdict.update.expect("first sight").status, NameStatus::Ok);
        assert_eq!(verdict.again.ttl, Some(Duration::from_secs(30)));
        assert_eq!(case.both_answer(30, &[address]).update, None);
    }
}

#[test]
fn one_family_that_fails_does_not_hold_back_the_other() {
    let mut case = Case::new();
    case.both_answer(0, &["1.1.1.1", "2606:4700::1"]);
    let v4 = given(&["8.8.8.8"], false);
    case.after(30, &[v4.clone(), v4.clone()], &[failed(), failed()]);
    assert_eq!(case.published(), ["1.1.1.1", "8.8.8.8", "2606:4700::1"]);
    for _ in 0..30 {
        case.after(60, &[v4.clone(), v4.clone()], &[failed(), failed()]);
    }
    assert_eq!(case.published(), ["8.8.8.8", "2606:4700::1"], "v4 moves on, v6 is kept");
    assert!(matches!(case.stored.status, NameStatus::Stale { .. }), "the kept v6 addresses are stale");
}

#[test]
fn a_rotating_chain_costs_no_write_and_a_settled_one_is_stored() {
    let mut case = Case::new();
    let a = with_chain(&["1.1.1.1"], &["x.test.com", "a.cdn.com"]);
    let b = with_chain(&["1.1.1.1"], &["x.test.com", "b.cdn.com"]);
    case.after(0, std::slice::from_ref(&a), &[nothing()]);
    assert_eq!(case.stored.chain.len(), 2);
    for _ in 0..10 {
        assert_eq!(case.after(60, std::slice::from_ref(&b), &[nothing()]).update, None);
        assert_eq!(case.after(60, std::slice::from_ref(&a), &[nothing()]).update, None);
    }
    for _ in 0..2 {
        assert_eq!(case.after(60, std::slice::from_ref(&b), &[nothing()]).update, None);
    }
    assert!(case.after(60, std::slice::from_ref(&b), &[nothing()]).update.is_some());
    assert_eq!(case.stored.chain[1].as_str(), "b.cdn.com");
}
