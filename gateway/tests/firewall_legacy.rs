//! The tests of `firewall.rs` on the legacy backend of iptables: `iptables` and its relatives are that backend's for this
//! process and what it starts.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "outside test functions too, a test stops where it fails"
)]

use std::os::unix::fs::symlink;
use std::sync::OnceLock;

#[path = "firewall/counting.rs"]
mod counting;
#[path = "firewall/cutting.rs"]
mod cutting;
#[path = "firewall/denying.rs"]
mod denying;
#[path = "firewall/draining.rs"]
mod draining;
#[path = "firewall/modes.rs"]
mod modes;
#[path = "firewall/net.rs"]
mod net;
#[path = "firewall/opening.rs"]
mod opening;
#[path = "firewall/passing.rs"]
mod passing;
#[path = "firewall/tools.rs"]
mod tools;
#[path = "firewall/upkeep.rs"]
mod upkeep;
#[path = "firewall/ways.rs"]
mod ways;

/// Puts the legacy programs in front of the others.
fn choose_backend() {
    static PROGRAMS: OnceLock<tempfile::TempDir> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let programs = tempfile::tempdir().unwrap();
        for name in ["iptables", "ip6tables"] {
            for ending in ["", "-restore", "-save"] {
                let legacy = format!("/usr/sbin/{name}-legacy{ending}");
                symlink(legacy, programs.path().join(format!("{name}{ending}"))).unwrap();
            }
        }
        let path = format!("{}:{}", programs.path().display(), std::env::var("PATH").unwrap());
        // SAFETY: the first thing a test does; other threads of this process start programs only behind this call.
        unsafe { std::env::set_var("PATH", path) };
        programs
    });
}

#[test]
fn these_tests_run_on_the_legacy_backend() {
    choose_backend();
    assert!(net::command("iptables", &["--version"]).contains("legacy"));
    assert!(net::command("ip6tables-restore", &["--version"]).contains("legacy"));
}
