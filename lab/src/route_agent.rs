//! The route agent on the client.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::addresses::{self, Net};
use crate::binaries::Binaries;
use crate::namespace::output;
use crate::network::Network;
use crate::process::{Process, Program};
use crate::run::Run;

/// How long the agent may take until public addresses are routed to a gateway.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// The agent's process in the client's namespace.
#[derive(Debug)]
pub struct RouteAgent {
    /// The process.
    pub process: Process,
}

impl RouteAgent {
    /// Starts it with all gateways of `network`, v4 and v6, and waits until it has made its routes.
    ///
    /// # Errors
    /// With its last log lines.
    pub fn start(run: &Run, network: &Network, binaries: &Binaries) -> Result<Self> {
        let gateways: Vec<String> = (0..network.gateways.len())
            .map(addresses::gateway)
            .flat_map(|number| [IpAddr::from(Net::Lan.v4(number)), IpAddr::from(Net::Lan.v6(number))])
            .map(|address| format!("\"{address}\""))
            .collect();
        let config = run.directory().join("route.yaml");
        fs::write(&config, format!("gateways: [{}]\ntable: 7700\n", gateways.join(", ")))
            .with_context(|| format!("write {}", config.display()))?;
        let program =
            Program::new("route", binaries.path("outputguard-route")?, &network.client, run.directory())
                .arguments(["--config".into(), config.into_os_string()]);
        let mut process = Process::start(program)?;
        process.wait_ready(READY_TIMEOUT, || {
            for (family, address) in [("-4", "93.184.216.34"), ("-6", "2606:4700::1111")] {
                let route = output(network.client.command("ip").args([family, "route", "get", address]))?;
                ensure!(route.contains(" via "), "{address} has no gateway yet: {route}");
            }
            Ok(())
        })?;
        Ok(Self { process })
    }
}
