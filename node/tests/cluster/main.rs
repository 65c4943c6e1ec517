//! Several nodes in one process, with real TLS on loopback and real disks: founding, failing, coming back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod denied;
mod features;
mod harness;
mod life;
mod membership;
mod quorum;
mod room;
mod succession;
mod writes;
