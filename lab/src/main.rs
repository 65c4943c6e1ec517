//! `outputguard-lab`: a small internet on one machine, to try OutputGuard or to check it.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use lab::chaos::{self, Options, Plan};
use lab::{demo, internet, wait};
use tokio::signal::unix::{SignalKind, signal};

/// A small internet in network namespaces. Needs root; never touches the host's own rules, routes or interfaces.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start servers, gateways, a client, DNS and an internet; show how to use them until Ctrl-C.
    Demo {
        /// Port on 127.0.0.1 for API and UI.
        #[arg(long, default_value_t = 8080)]
        port: u16,
        /// Walk through the main job and prove each step with packets instead.
        #[arg(long)]
        check: bool,
    },
    /// Fault after fault under concurrent clients, and a proof that every answer was true.
    Chaos {
        /// How long faults are made.
        #[arg(long, default_value_t = 2)]
        minutes: u64,
        /// Chooses calls and faults; drawn when left out.
        #[arg(long)]
        seed: Option<u64>,
        /// Number of servers.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=9))]
        servers: u8,
    },
    /// The process behind the public addresses; the demo starts it.
    #[command(hide = true)]
    Internet,
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    match run(&Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[allow(clippy::print_stderr, reason = "the program's last word to its user")]
            {
                eprintln!("outputguard-lab: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<()> {
    match *command {
        Command::Internet => runtime()?.block_on(internet::serve()),
        Command::Demo { port, check } => {
            ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root; run it with sudo");
            interrupt_on_signals()?;
            demo::run(port, check, &mut io::stdout())
        }
        Command::Chaos { minutes, seed, servers } => {
            ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root; run it with sudo");
            interrupt_on_signals()?;
            let seed = seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
            let plan = Plan::Drawn(Duration::from_secs(minutes * 60));
            writeln!(io::stdout(), "{servers} servers, {minutes} minutes of faults, seed {seed} …")?;
            let summary = chaos::run(&Options { servers: servers.into(), ..Options::new(seed, plan) })?;
            write!(io::stdout(), "{summary}")?;
            let broken = summary.violations.len();
            ensure!(
                broken == 0,
                "{broken} promises were broken; the same seed: --minutes {minutes} --seed {seed}"
            );
            Ok(())
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start a runtime")
}

/// Lets Ctrl-C, SIGTERM and a closed terminal end all waiting, so that everything is removed on the way out. Further
/// signals change nothing: removal takes a second or two and must not be cut short.
fn interrupt_on_signals() -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().context("start a runtime")?;
    let mut signals = {
        let _inside = runtime.enter();
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
            .map(|kind| signal(kind).context("listen for signals"))
            .into_iter()
            .collect::<Result<Vec<_>>>()?
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            loop {
                let any = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
                futures_util::future::select_all(any).await;
                wait::interrupt();
            }
        });
    })?;
    Ok(())
}
