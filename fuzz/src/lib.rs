//! Fuzz targets: what reads bytes that come from servers, kernels and disks.
//!
//! Map: [`TARGETS`] lists them; [`frames`] are the feed's frames, [`session`] a whole session of them, [`planted`] proves
//! that the harness finds what it should; the parsers of the gateway and what is to be true of them stand behind
//! `gateway::fuzzing`, since they are private. [`allocation`] holds decoders to memory in proportion to their input.
//!
//! A target returns when all is well and panics when it is not. `seeds/<target>` are where the search begins, `crashes/<target>` are
//! inputs that once broke something; `tests/replay.rs` runs both. The fuzzer itself is `main.rs`, run by `scripts/fuzz`.

pub mod allocation;
pub mod frames;
pub mod planted;
pub mod session;

/// Names the target of the fuzzer's run.
pub const TARGET_VARIABLE: &str = "OUTPUTGUARD_FUZZ_TARGET";

/// What is done with the bytes.
pub type Target = fn(&[u8]);

/// Every target with its name.
pub const TARGETS: &[(&str, Target)] = &[
    ("frame_to_gateway", frames::to_gateway),
    ("frame_to_server", frames::to_server),
    ("session", session::follow),
    ("netlink", gateway::fuzzing::netlink),
    ("ipset", gateway::fuzzing::ipset),
    ("conntrack", gateway::fuzzing::conntrack),
    ("denials", gateway::fuzzing::denials),
    ("iptables", gateway::fuzzing::iptables),
    ("state", gateway::fuzzing::state),
];

/// The names of all targets that look for real bugs.
pub fn names() -> Vec<&'static str> {
    TARGETS.iter().map(|(name, _)| *name).collect()
}

/// The target of that name, [`planted`] included.
pub fn target(name: &str) -> Option<fn(&[u8])> {
    if name == planted::NAME {
        return Some(planted::find_me);
    }
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, target)| *target)
}
