//! The real binary: what it says when it cannot start, and three of them together.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod certificates;
mod harness;
mod processes;
mod recovery;
mod refusals;
mod rolling;
