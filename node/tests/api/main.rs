//! The API and the feed, through the real router over loopback TCP.

mod auth;
mod entries;
mod errors;
mod feed;
mod feed_faults;
mod gateway;
mod harness;
mod pages;
