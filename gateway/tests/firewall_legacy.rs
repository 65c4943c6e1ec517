//! The tests of `firewall.rs` on the legacy backend of iptables: `iptables` and its relatives are that backend's for this
//! process and what it starts.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "outside test functions too, a test stops where it fails"
)]

use std::fs::File;
use std::os::unix::fs::symlink;
use std::sync::OnceLock;

use allowlist::Change;
use gateway::firewall::Firewall;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

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

/// What every user of this backend locks.
const LOCK: &str = "/run/xtables.lock";

/// The lock, held by somebody else, for the calling thread and what it starts only.
fn held_lock() -> Flock<File> {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
    File::options().create(true).append(true).open(LOCK).unwrap();
    let own = tempfile::NamedTempFile::new().unwrap();
    mount(Some(own.path()), LOCK, nothing, MsFlags::MS_BIND, nothing).unwrap();
    Flock::lock(File::open(LOCK).unwrap(), FlockArg::LockExclusiveNonblock).unwrap()
}

#[test]
fn a_revocation_does_not_wait_for_ever_for_whoever_holds_the_lock() {
    let net = net::Net::new();
    let mut firewall = upkeep::installed();
    firewall.replace(&net::elements(&["8.8.8.8/32", "8.8.4.4/32"])).unwrap();
    let beacon = net.internet.udp("8.8.8.8", 7);
    let (old, new) = (net.internet.udp("8.8.4.4", 9), net.internet.udp("9.9.9.9", 53));
    let change = Change {
        added: vec![net::element("9.9.9.9/32 udp/53")],
        revoked: vec![net::element("8.8.4.4/32")],
        ..Change::default()
    };
    let lock = held_lock();
    let error = firewall.apply(&change).unwrap_err();
    assert!(error.to_string().contains("xtables lock"), "{error}");
    assert!(net.passes(&old, &beacon).is_none());
    assert!(net.passes(&new, &beacon).is_none());
    drop(lock);
    firewall.apply(&change).unwrap();
    assert!(net.passes(&new, &beacon).is_some());
}
