//! `outputguard-server`: see [`node::run`].

use std::process::ExitCode;

use clap::Parser as _;
use node::config::{Config, Flags, normalise};
use node::run::{Ended, Listeners, run};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// A request makes dozens of short-lived allocations, some freed by another thread than the one that made them: what glibc's
/// allocator is slowest at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is logged unless `OUTPUTGUARD_LOG` says otherwise. openraft warns twenty times a second while a peer is away,
/// which this program says once.
const DEFAULT_LOG: &str = "info,openraft=error";

fn main() -> ExitCode {
    let flags = Flags::parse_from(normalise(std::env::args_os()));
    start_tracing();
    // An error means that a provider is there already, and there is only this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match serve(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn serve(flags: &Flags) -> anyhow::Result<()> {
    // A new runtime each time: nothing of the node before works on.
    while serve_once(flags.clone())? == Ended::Again {
        tracing::info!("the node starts again");
    }
    Ok(())
}

fn serve_once(flags: Flags) -> anyhow::Result<Ended> {
    let config = Config::load(flags)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = shutdown_signal()?;
        let listeners = Listeners::bind(&config).await?;
        run(config, listeners, shutdown).await
    })
}

/// Cancelled by SIGTERM or SIGINT.
fn shutdown_signal() -> std::io::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = CancellationToken::new();
    let cancelled = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancelled.cancel();
    });
    Ok(shutdown)
}

fn start_tracing() {
    let filter = EnvFilter::try_from_env("OUTPUTGUARD_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

#[allow(
    clippy::print_stderr,
    reason = "the last words of a process belong on stderr, whatever the log filter"
)]
fn complain(error: &anyhow::Error) {
    eprintln!("outputguard-server: {}", chain(error));
}

/// The error and its causes on one line. Many messages carry their cause already; it is not said twice.
fn chain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_the_message_carries_is_not_said_twice() {
        let error = anyhow::anyhow!("disk full").context("write /x: disk full").context("start node");
        assert_eq!(chain(&error), "start node: write /x: disk full");
    }
}
