//! The kernel driver with real packets in private network namespaces: client — gateway — internet.
//!
//! Needs root. Each test has namespaces of its own and leaves none behind.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "outside test functions too, a test stops where it fails"
)]

mod common;

#[path = "firewall/backends.rs"]
mod backends;
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
#[path = "firewall/restarts.rs"]
mod restarts;
#[path = "firewall/sources.rs"]
mod sources;
#[path = "firewall/tools.rs"]
mod tools;
#[path = "firewall/upkeep.rs"]
mod upkeep;
#[path = "firewall/ways.rs"]
mod ways;

/// The system's default backend of iptables.
fn choose_backend() {}
