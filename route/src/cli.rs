//! The command line, and which of the agent's four jobs it asks for.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::agent;
use crate::settings::{FileSettings, Settings};

/// Sends all public address space of this host to an OutputGuard gateway. Needs CAP_NET_ADMIN, and CAP_NET_RAW to
/// probe several gateways. Ends without touching routes unless told to clean up.
#[derive(Debug, Parser)]
#[command(name = "outputguard-route", version)]
pub struct Cli {
    /// YAML file with `gateways`, `table`, `rule_priority`, `probe_interval_ms`, `prefer_first`, `main_table`,
    /// `cleanup_on_exit`; flags override it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address of a gateway, v4 or v6, `ADDRESS` or `ADDRESS%DEVICE`; repeat in order of preference.
    #[arg(
        long = "gateway",
        value_name = "ADDRESS",
        env = "OUTPUTGUARD_ROUTE_GATEWAYS",
        value_delimiter = ','
    )]
    gateways: Vec<String>,
    /// Routing table of our own.
    #[arg(long, value_name = "NUMBER")]
    table: Option<u32>,
    /// Preference of the first of our two rules; the second has the next number.
    #[arg(long, value_name = "NUMBER")]
    rule_priority: Option<u32>,
    /// Milliseconds between two probes of a gateway.
    #[arg(long, value_name = "MS")]
    probe_interval_ms: Option<u64>,
    /// Go back to a preferred gateway once it is alive again.
    #[arg(long)]
    prefer_first: bool,
    /// Put public address space into the main table instead of a table of our own.
    #[arg(long)]
    main_table: bool,
    /// Remove our routes and rules when the agent is stopped.
    #[arg(long)]
    cleanup_on_exit: bool,
    /// Set routes and rules once and end.
    #[arg(long, conflicts_with_all = ["cleanup", "dry_run"])]
    once: bool,
    /// Remove our rules and routes, and end.
    #[arg(long, conflicts_with = "dry_run")]
    cleanup: bool,
    /// Print the routes and rules as `ip` commands and end; needs no privilege.
    #[arg(long)]
    dry_run: bool,
}

impl Cli {
    /// Does what the command line asks for.
    ///
    /// # Errors
    /// Whatever stops the agent from doing so, settings first.
    pub async fn run(self) -> anyhow::Result<()> {
        if self.cleanup {
            return agent::cleanup().await;
        }
        let (once, dry_run) = (self.once, self.dry_run);
        let settings = self.settings()?;
        if dry_run {
            let plan = agent::dry_run(&settings).await?;
            return std::io::stdout().write_all(plan.as_bytes()).context("write the plan");
        }
        if once {
            return agent::once(settings).await;
        }
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        agent::run(settings, async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await
    }

    fn settings(self) -> anyhow::Result<Settings> {
        let mut file = match &self.config {
            Some(path) => FileSettings::read(path)?,
            None => FileSettings::default(),
        };
        if !self.gateways.is_empty() {
            file.gateways = self.gateways;
        }
        file.table = self.table.or(file.table);
        file.rule_priority = self.rule_priority.or(file.rule_priority);
        file.probe_interval_ms = self.probe_interval_ms.or(file.probe_interval_ms);
        file.prefer_first |= self.prefer_first;
        file.main_table |= self.main_table;
        file.cleanup_on_exit |= self.cleanup_on_exit;
        Ok(file.check()?)
    }
}
