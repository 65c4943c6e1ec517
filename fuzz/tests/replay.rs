//! Committed inputs through their targets: where the fuzzer begins, and what once broke something.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

/// The inputs for `target` below one of the directories of the crate.
fn inputs(kind: &str, target: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(target);
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn every_target_takes_its_seeds_and_what_once_broke_it() {
    for (name, target) in fuzz::TARGETS {
        let seeds = inputs("seeds", name);
        assert!(
            !seeds.is_empty(),
            "{name} has no seeds; OUTPUTGUARD_RECORD_SEEDS=1 cargo test -p fuzz --test seeds makes them"
        );
        for path in seeds.into_iter().chain(inputs("crashes", name)) {
            println!("{name} {}", path.display());
            target(&fs::read(path).unwrap());
        }
    }
}

#[test]
fn every_directory_of_inputs_belongs_to_a_target() {
    for kind in ["seeds", "crashes"] {
        let Ok(entries) = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(kind)) else { continue };
        for entry in entries {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(fuzz::names().contains(&name.as_str()), "{kind}/{name} is of no target");
        }
    }
}

#[test]
fn seeds_cut_short_or_with_a_flipped_bit_break_nothing() {
    for (name, target) in fuzz::TARGETS {
        for path in inputs("seeds", name) {
            let seed = fs::read(path).unwrap();
            // Enough to meet every field of the small ones.
            for at in (0..seed.len()).step_by(1 + seed.len() / 64) {
                target(&seed[..at]);
                let mut flipped = seed.clone();
                flipped[at] ^= 1 << (at % 8);
                target(&flipped);
            }
        }
    }
}

#[test]
#[should_panic(expected = "the planted bug was found")]
fn the_planted_bug_is_there_to_be_found() {
    let target = fuzz::target(fuzz::planted::NAME).unwrap();
    target(&[fuzz::planted::MAGIC, b" and more"].concat());
}

#[test]
fn memory_beyond_what_an_input_deserves_is_noticed() {
    let ((), most) = fuzz::allocation::peak(|| {
        drop(std::hint::black_box(vec![0_u8; 3000]));
        drop(std::hint::black_box(vec![0_u8; 2000]));
    });
    assert!((3000..4000).contains(&most), "{most}");
}
