//! The API and the feed, through the real router over loopback TCP.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod audit;
mod auth;
mod backup;
mod bulk;
mod denied;
mod entries;
mod errors;
mod feed;
mod feed_faults;
mod gateway;
mod harness;
mod lifetimes;
mod names;
mod no_quorum;
mod once;
mod pages;
mod traffic;
