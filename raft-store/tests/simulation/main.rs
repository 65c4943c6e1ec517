//! A deterministic simulation of the replicated state: the real commands, [`raft_store::State::apply`] and openraft with
//! the server's settings, on a simulated network, simulated disks that forget what was not synced, and virtual time.
//! One number, the seed, decides everything; the same seed runs the same way to the last message.
//!
//! `OUTPUTGUARD_SIM_SEEDS=5000` runs more seeds (`make simulate SEEDS=5000`), from `OUTPUTGUARD_SIM_FIRST` on;
//! `OUTPUTGUARD_SIM_SEED=n` runs one and prints what happens.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic, also in what its functions share")]
#![allow(clippy::print_stderr, reason = "the trace of a seed is for the person who replays it")]

#[path = "../common/fixtures.rs"]
mod fixtures;

mod clients;
mod commands;
mod disk;
mod faults;
mod history;
mod log;
mod machine;
mod network;
mod nodes;
mod plan;
mod process;
mod rng;
mod run;
mod types;
mod wire;
mod world;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use run::{Report, run};
use world::Bug;

/// What a normal test run takes time for.
const SEEDS: u64 = 24;
const SEEDS_VARIABLE: &str = "OUTPUTGUARD_SIM_SEEDS";
const FIRST_VARIABLE: &str = "OUTPUTGUARD_SIM_FIRST";
const SEED_VARIABLE: &str = "OUTPUTGUARD_SIM_SEED";
/// A broken store or read must be found within so many seeds.
const SEEDS_FOR_A_BUG: u64 = 100;
const SEEDS_TWICE: u64 = 5;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}: a number is expected")))
}

#[test]
fn no_seed_breaks_a_promise() {
    if let Some(seed) = number(SEED_VARIABLE) {
        let report = run(seed, None, true);
        assert!(report.wrong.is_empty(), "seed {seed}: {:#?}", report.wrong);
        return;
    }
    let (seeds, threads) = match number(SEEDS_VARIABLE) {
        Some(seeds) => (seeds, std::thread::available_parallelism().map_or(1, usize::from)),
        None => (SEEDS, 1),
    };
    let first = number(FIRST_VARIABLE).unwrap_or(0);
    let next = AtomicU64::new(first);
    let total: Mutex<BTreeMap<String, u64>> = Mutex::default();
    let failed: Mutex<BTreeMap<u64, Vec<String>>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        return;
                    }
                    let Report { wrong, counts, .. } = run(seed, None, false);
                    let mut total = total.lock().unwrap();
                    counts.into_iter().for_each(|(what, count)| *total.entry(what).or_default() += count);
                    if !wrong.is_empty() {
                        eprintln!("seed {seed}: {wrong:#?}");
                        failed.lock().unwrap().insert(seed, wrong);
                    }
                }
            });
        }
    });
    let total = total.into_inner().unwrap();
    eprintln!("{seeds} seeds: {total:#?}");
    let failed = failed.into_inner().unwrap();
    let which: Vec<_> = failed.keys().collect();
    assert!(failed.is_empty(), "{} of {seeds} seeds failed: {which:?}; see above", failed.len());
    // A simulation in which nothing happens proves nothing.
    for what in
        ["wrote", "read", "fault Kill", "fault IsolateLeader", "snapshots installed", "members changed"]
    {
        assert!(total.get(what).copied().unwrap_or(0) > 0, "{what}: never in {seeds} seeds");
    }
}

#[test]
fn a_seed_always_runs_the_same_way() {
    for seed in 0..SEEDS_TWICE {
        assert_eq!(run(seed, None, false), run(seed, None, false), "seed {seed}");
    }
    assert_ne!(run(0, None, false).trace, run(1, None, false).trace);
}

/// The first seed that finds `bug`.
fn finder_of(bug: Bug) -> Option<(u64, Vec<String>)> {
    let found = |seed| Some((seed, run(seed, Some(bug), false).wrong)).filter(|(_, wrong)| !wrong.is_empty());
    (0..SEEDS_FOR_A_BUG).find_map(found)
}

#[test]
fn a_log_that_acknowledges_before_it_has_synced_is_found_out() {
    let (seed, wrong) = finder_of(Bug::AcknowledgesBeforeSync).unwrap();
    eprintln!("seed {seed}: {wrong:#?}");
}

#[test]
fn reads_that_ask_nobody_are_found_out() {
    let (seed, wrong) = finder_of(Bug::ReadsLocally).unwrap();
    assert!(wrong.iter().all(|one| one.starts_with("read ")), "seed {seed}: {wrong:#?}");
}
