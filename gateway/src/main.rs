//! The gateway daemon: arguments, log, signals, exit code. The rest is in the library.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use gateway::config::{Config, FirewallKind, Flags, LogFormat, Unlisted};
use gateway::feed::Timings;
use gateway::firewall::{
    DrainLimits, DryRunFirewall, Firewall, FirewallError, KernelFirewall, KernelOptions, Mode, SourceOptions,
    check_forwarding, check_host, close_forwarding, close_unguarded,
};
use gateway::run::{Parts, run};
use gateway::single::{OnlyGateway, OnlyGatewayError};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// File in the state directory that says until when what left DNS may drain.
const DRAINING: &str = "draining";

fn main() -> ExitCode {
    let flags = match Flags::from_arguments(std::env::args_os()) {
        Ok(flags) => flags,
        Err(error) => error.exit(),
    };
    start_log(flags.log_format);
    match start(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[allow(clippy::print_stderr, reason = "the one message a person at the terminal waits for")]
            {
                eprintln!("outputguard-gateway: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn start(flags: &Flags) -> anyhow::Result<()> {
    if flags.cleanup {
        let (kind, internal_cidrs, state_dir) = Config::load_for_cleanup(flags)?;
        let options = KernelOptions { internal_cidrs, ..KernelOptions::default() };
        // A gateway that runs would take what is removed for somebody's mistake, and repair it.
        let _only = only_gateway(kind, &state_dir)?;
        return driver(kind, options)?.cleanup().context("clean up");
    }
    let config = Config::load(flags)?;
    // Whether or not this is the only gateway: whoever else it is may do nothing.
    let only = only_gateway(config.firewall, &config.state_dir);
    let beside_another = matches!(only, Err(OnlyGatewayError::Taken(_)));
    let closed = close(&config, beside_another);
    let _only = only?;
    closed?;
    if config.firewall == FirewallKind::Kernel {
        check_forwarding()?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the async runtime")?;
    runtime.block_on(async {
        let listener = TcpListener::bind(config.metrics).await.with_context(|| {
            format!("listen on {} for metrics (set `metrics` to a free address)", config.metrics)
        })?;
        let firewall = driver(config.firewall, options(&config))?;
        let parts = Parts { firewall, listener, timings: Timings::default() };
        Box::pin(run(config, parts, stop_signal()?)).await
    })
}

/// A dry run may go on beside a gateway.
fn only_gateway(kind: FirewallKind, state_dir: &Path) -> Result<Option<OnlyGateway>, OnlyGatewayError> {
    (kind == FirewallKind::Kernel).then(|| OnlyGateway::become_it(state_dir)).transpose()
}

/// The first touch of the kernel: whatever fails from here on, nothing passes that did not pass before. Beside another
/// gateway what stands is that one's.
fn close(config: &Config, beside_another: bool) -> Result<(), FirewallError> {
    if config.firewall == FirewallKind::DryRun {
        return Ok(());
    }
    if config.unlisted.policy.mode == Mode::Audit {
        tracing::warn!("audit: nothing is blocked; what is not listed passes and is counted");
    }
    let closed =
        if beside_another { close_unguarded(&options(config)) } else { close_forwarding(&options(config)) };
    // What is missing explains best why it could not be closed.
    check_host()?;
    closed
}

fn options(config: &Config) -> KernelOptions {
    let Unlisted { policy, drain_idle, drain_limit } = config.unlisted;
    KernelOptions {
        internal_cidrs: config.internal_cidrs.clone(),
        drain: DrainLimits {
            idle: drain_idle,
            limit: drain_limit,
            record: Some(config.state_dir.join(DRAINING)),
        },
        policy,
        egress: config.ways.egress.clone(),
        guard: config.ways.guard.clone(),
        sources: SourceOptions { top: config.metering.top_sources, ..SourceOptions::default() },
        ..KernelOptions::default()
    }
}

fn driver(kind: FirewallKind, options: KernelOptions) -> anyhow::Result<Box<dyn Firewall>> {
    Ok(match kind {
        FirewallKind::Kernel => {
            check_host()?;
            let kernel = KernelFirewall::new(&options)?;
            for leftover in kernel.leftovers() {
                tracing::warn!(leftover, "the other iptables backend is not empty");
            }
            Box::new(kernel)
        }
        FirewallKind::DryRun => Box::new(DryRunFirewall::new(options, std::io::stdout())),
    })
}

/// Cancelled by SIGTERM or SIGINT; as process 1 of a container both would be ignored without a handler.
fn stop_signal() -> anyhow::Result<CancellationToken> {
    let token = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signal = signal(kind).context("install a signal handler")?;
        let token = token.clone();
        tokio::spawn(async move {
            signal.recv().await;
            token.cancel();
        });
    }
    Ok(token)
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}
