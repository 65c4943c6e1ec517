//! The OutputGuard gateway: enforces what the servers publish, counts it, and reports back.
//!
//! Map, the way of a change: [`feed`] keeps a session with one of the servers; what it receives becomes what we
//! should hold ([`held`]); [`enforce`] brings that into the state files ([`state`]) and into the kernel
//! ([`firewall`]) and reports what was applied; [`metrics`] serves counters and readiness. [`run`] wires it and
//! decides the order of start and stop; [`config`] is read before anything is touched, and [`single`] makes sure that there
//! is no other gateway.
//!
//! What never happens: the end of this process, of a session or of every server changes what passes.

pub mod config;
pub mod enforce;
pub mod feed;
pub mod firewall;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod held;
pub mod metrics;
pub mod run;
pub mod secret;
pub mod single;
pub mod state;
