//! The resolver against real DNS servers in this process, which answer as badly as servers do.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod authority;
mod leader;
mod lookup;
mod names;
mod week;
