//! `outputguard-bench`: the replicated store and the gateway, each beside its peers.
//!
//! - [`raft`] puts, reads, imports, opens, and weighs memory and disk (`make bench-raft`).
//! - [`failover`] kills, cuts off and stops leaders (`make bench-failover`).
//! - [`dataplane`] sends packets through gateways of every [`layout`] (`make bench-dataplane`): each stands in a row of
//!   three machines ([`path`]), and the [`packets`] are written by hand and sent by a thread that is [`alone`].
//! - [`apply`] brings frames to the kernel (`make bench-apply`); the real process ([`daemon`]) shows what it takes.
//! - [`propagation`] goes the whole way, from a call to a packet (`make bench-propagation`).
//! - [`scrape`] is what a scrape of a gateway costs (`make bench-scrape`).
//! - [`resolver`] keeps 100,000 names beside other programs that ask DNS (`make bench-resolver`).
//! - [`outputguard`] and [`etcd`] are the two contenders, three processes each in a [`seat`]; what they have in common is
//!   a [`contender`]. Their clients ([`http`], [`grpc`]) do as little as they can, over the same [`tls`].
//! - [`load`] lets clients work and takes the time; [`report`] says what came out.
//!
//! Errors are `anyhow` chains, since their only reader is a person in front of a failed run.

mod alone;
mod apply;
mod contender;
mod daemon;
mod dataplane;
mod etcd;
mod failover;
mod grpc;
mod http;
mod layout;
mod load;
mod offloads;
mod outputguard;
mod packets;
mod path;
mod propagation;
mod raft;
mod report;
mod resolver;
mod scrape;
mod seat;
mod shell;
mod tls;
mod usage;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Side-by-side benchmarks of OutputGuard, etcd, and other ways to filter
#[derive(Debug, Parser)]
struct Arguments {
    /// Where the JSON goes
    #[arg(long, global = true, default_value = "target/bench")]
    output: PathBuf,
    /// Small numbers, to try the bench itself: done in two minutes, proves nothing
    #[arg(long, global = true)]
    quick: bool,
    /// Build profile of the binaries, for the report
    #[arg(long, global = true, default_value = "unknown")]
    profile: String,
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Puts, reads, imports, start, memory and disk beside etcd
    Raft(raft::Options),
    /// How long nobody can write when the leader is lost
    Failover(failover::Options),
    /// What a packet costs on its way through the gateway
    Dataplane(dataplane::Options),
    /// How long changes and whole sets take to the kernel
    Apply(apply::Options),
    /// From a call of the API to the first packet that passes
    Propagation(propagation::Options),
    /// Time and memory of a scrape of a gateway with 100,000 addresses
    Scrape(scrape::Options),
    /// What 100,000 names cost to keep, and how long a change in DNS takes to the kernel
    Resolver(resolver::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Arguments { output, quick, profile, bench } = &arguments;
    let done = match bench {
        Bench::Raft(options) => raft::run(options, output, *quick, profile),
        Bench::Failover(options) => failover::run(options, output, *quick, profile),
        Bench::Dataplane(options) => dataplane::run(options, output, *quick, profile),
        Bench::Apply(options) => apply::run(options, output, *quick, profile),
        Bench::Propagation(options) => propagation::run(options, output, *quick, profile),
        Bench::Scrape(options) => scrape::run(options, output, *quick, profile),
        Bench::Resolver(options) => resolver::run(options, output, *quick, profile),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::progress(&format!("outputguard-bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
