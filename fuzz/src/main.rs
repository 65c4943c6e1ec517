//! libFuzzer over the target named by `OUTPUTGUARD_FUZZ_TARGET`; `scripts/fuzz` runs it for each.
#![no_main]
#![allow(clippy::print_stderr, reason = "the output of a tool, between libFuzzer's own lines")]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var(fuzz::TARGET_VARIABLE).unwrap_or_default();
    fuzz::target(&name).unwrap_or_else(|| {
        eprintln!("set {} to one of the targets", fuzz::TARGET_VARIABLE);
        eprintln!("targets: {}", fuzz::names().join(" "));
        std::process::exit(2);
    })
});

fuzz_target!(init: { LazyLock::force(&TARGET); }, |bytes: &[u8]| (*TARGET)(bytes));
