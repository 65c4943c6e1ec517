//! The proof of the chaos run's proof: servers that break a promise are caught by it, and the same ones that keep it are
//! not.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy knows only the test functions")]

use std::collections::BTreeSet;
use std::fs;

use lab::chaos::{self, Fault, Keys, Kind, Options, Outcome, Plan, Reads, Summary, Syncs, ViolationKind};

#[allow(clippy::print_stdout, reason = "shown when the test fails")]
fn run(options: &Options) -> Summary {
    let summary = chaos::run(options).unwrap();
    println!("{summary}");
    summary
}

/// Kinds of broken promises. Removes what a broken one keeps for reading: here it is expected.
fn broken(options: &Options) -> BTreeSet<ViolationKind> {
    let summary = run(options);
    if let Some(kept) = &summary.kept {
        fs::remove_dir_all(kept).unwrap();
    }
    summary.violations.iter().map(|violation| violation.kind).collect()
}

#[test]
fn chaos_catches_reads_that_are_not_linearizable() {
    // A follower that does not hear its leader answers such reads from the past.
    let plan = Plan::Given(vec![Fault::IsolatedLeader, Fault::IsolatedLeader]);
    let options = Options { reads: Reads::StaleAsIfLinearizable, ..Options::new(11, plan) };
    let kinds = broken(&options);
    assert!(kinds.contains(&ViolationKind::NotLinearizable), "{kinds:?}");
}

#[test]
fn chaos_catches_acknowledgements_before_the_sync_when_all_lose_power() {
    let plan = Plan::Given(vec![Fault::PowerLossEverywhere]);
    let options = Options { syncs: Syncs::Ignored, ..Options::new(12, plan) };
    let kinds = broken(&options);
    // Which of the two shows it is a matter of what the clients added again afterwards.
    let lost = [ViolationKind::LostWrite, ViolationKind::NotLinearizable];
    assert!(lost.iter().any(|kind| kinds.contains(kind)), "{kinds:?}");
}

#[test]
fn chaos_catches_servers_that_forget_idempotency_keys() {
    let plan = Plan::Given(vec![Fault::ClockJump]);
    let kinds = broken(&Options { keys: Keys::Forgotten, ..Options::new(13, plan) });
    assert!(kinds.contains(&ViolationKind::Twice), "{kinds:?}");
}

#[test]
fn chaos_grows_and_shrinks_the_cluster_and_puts_a_backup_of_that_time_back() {
    let plan = Plan::Given(vec![Fault::Resize]);
    let summary = run(&Options::new(14, plan));
    assert_eq!(summary.violations, []);
    assert_eq!(summary.faults.get(&Fault::Resize), Some(&1));
    let tally = &summary.tally;
    assert!(tally.of(Kind::Import, Outcome::Ok) > 0 && tally.keyed().replayed > 0, "{tally}");
    assert!(tally.of(Kind::Backup, Outcome::Ok) > 0, "{tally}");
    assert!(summary.restored.is_some_and(|(_, entries)| entries > 0), "{:?}", summary.restored);
}

#[test]
fn chaos_finds_nothing_lost_when_all_lose_power_and_the_sync_is_real() {
    let plan = Plan::Given(vec![Fault::PowerLossEverywhere]);
    let summary = run(&Options::new(12, plan));
    assert_eq!(summary.violations, []);
    assert!(summary.tally.with(Outcome::Ok) > 0);
    assert_eq!(summary.faults.get(&Fault::PowerLossEverywhere), Some(&1));
}
