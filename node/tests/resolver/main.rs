//! The resolver against real DNS servers in this process, which answer as badly as servers do.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod authority;
mod daemon;
mod encrypted;
mod health;
mod hostile;
mod knot;
mod leader;
mod lookup;
mod names;
mod relay;
mod site;
mod unbound;
mod week;
mod zones;

use std::net::SocketAddr;
use std::time::Duration;

use node::resolver::lookup::{Bounds, Upstream};
use node::resolver::trust::Trust;

/// An upstream over UDP and TCP whose pace does not matter.
fn plain(address: SocketAddr, timeout: Duration) -> Upstream {
    let bounds = Bounds { timeout, questions_per_second: 100_000 };
    Upstream::new(address.into(), bounds, &Trust::nobody().expect("rustls can be set up"))
}
