//! Everything together: started in order, removed whatever happens.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::api::{Api, Status};
use crate::balancer::{Balancer, HostPort};
use crate::binaries::Binaries;
use crate::client::Client;
use crate::dns::Dns;
use crate::gateway::Gateway;
use crate::internet::Internet;
use crate::network::Network;
use crate::process::Process;
use crate::route_agent::RouteAgent;
use crate::run::Run;
use crate::server::{Server, SharedFiles};
use crate::wait;

/// How long an election may take.
const LEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long after readiness the first start may take to write the administrator's token.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long gateways may take to hold what the servers published.
const SYNC_TIMEOUT: Duration = Duration::from_secs(60);
/// Lines of each log shown when something failed.
const TAIL_LINES: usize = 25;

/// What to build.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// Number of servers.
    pub servers: usize,
    /// Number of gateways.
    pub gateways: usize,
    /// Port on the host's 127.0.0.1 for the balancer; 0 picks a free one.
    pub port: u16,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self { servers: 3, gateways: 2, port: 0 }
    }
}

/// A running lab. Fields are dropped in this order: processes before the namespaces they run in.
#[derive(Debug)]
pub struct Lab {
    /// The started servers.
    pub servers: Vec<Server>,
    /// The started gateways.
    pub gateways: Vec<Gateway>,
    /// The route agent on the client.
    pub route: Option<RouteAgent>,
    /// HAProxy on the host's port.
    pub balancer: Option<Balancer>,
    /// DNS.
    pub dns: Dns,
    /// The internet.
    pub internet: Internet,
    /// The namespaces.
    pub network: Network,
    host_port: HostPort,
    binaries: Binaries,
    run: Run,
}

impl Lab {
    /// Builds all of it: when this returns, both gateways hold what the servers published and the client is routed.
    ///
    /// # Errors
    /// With the last log lines of what did not come up. What was made until then is removed.
    pub fn start(options: &LabOptions) -> Result<Self> {
        let mut lab = Self::bare(options)?;
        lab.start_servers()?;
        lab.start_balancer()?;
        lab.start_gateways()?;
        lab.start_route_agent()?;
        lab.wait_in_sync()?;
        Ok(lab)
    }

    /// Networks, DNS and internet only; start the rest step by step.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn bare(options: &LabOptions) -> Result<Self> {
        // First, so that a taken port is said at once.
        let host_port = HostPort::bind(options.port)?;
        let binaries = Binaries::find()?;
        let run = Run::begin()?;
        let network = Network::build(&run, options.servers, options.gateways)?;
        let dns = Dns::start(&run, &network)?;
        let internet = Internet::start(&run, &network, &binaries)?;
        Ok(Self {
            servers: Vec::new(),
            gateways: Vec::new(),
            route: None,
            balancer: None,
            dns,
            internet,
            network,
            host_port,
            binaries,
            run,
        })
    }

    /// Starts all servers for the first time and waits until each is ready.
    ///
    /// # Errors
    /// With the last log lines of the one that is not.
    pub fn start_servers(&mut self) -> Result<()> {
        for index in self.servers.len()..self.network.servers.len() {
            self.servers.push(Server::start(&self.run, &self.network, index, &self.binaries)?);
        }
        self.wait_servers_ready()?;
        // The first thing a person does: take the token that the first start wrote, and see that it opens the API.
        let Some(first) = self.servers.first() else { return Ok(()) };
        wait::until("the administrator's token opens the API", TOKEN_TIMEOUT, || -> Result<()> {
            first.api()?.entries()?;
            Ok(())
        })
    }

    /// Starts those servers again that do not run, and waits until each is ready.
    ///
    /// # Errors
    /// As [`Self::start_servers`].
    pub fn revive_servers(&mut self) -> Result<()> {
        for server in &mut self.servers {
            server.process.start_again()?;
        }
        self.wait_servers_ready()
    }

    fn wait_servers_ready(&mut self) -> Result<()> {
        self.servers.iter_mut().try_for_each(Server::wait_ready)
    }

    /// Starts HAProxy in front of the servers.
    ///
    /// # Errors
    /// With its last log lines.
    pub fn start_balancer(&mut self) -> Result<()> {
        self.balancer = Some(Balancer::start(&self.run, &self.network, &self.host_port)?);
        Ok(())
    }

    /// Makes a token for each gateway by the API, starts them, and waits until their firewalls stand.
    ///
    /// # Errors
    /// Needs running servers; otherwise with the last log lines.
    pub fn start_gateways(&mut self) -> Result<()> {
        let api = self.server_api()?;
        for index in self.gateways.len()..self.network.gateways.len() {
            let token = api.create_token(&format!("gw{}", index + 1), "gateway")?;
            self.gateways.push(Gateway::start(&self.run, &self.network, index, &self.binaries, &token)?);
        }
        self.gateways.iter_mut().try_for_each(Gateway::wait_live)
    }

    /// Starts the route agent on the client and waits for its routes.
    ///
    /// # Errors
    /// With its last log lines.
    pub fn start_route_agent(&mut self) -> Result<()> {
        self.route = Some(RouteAgent::start(&self.run, &self.network, &self.binaries)?);
        Ok(())
    }

    /// The API through the balancer, as administrator.
    ///
    /// # Errors
    /// Before servers and balancer are started.
    pub fn api(&self) -> Result<Api> {
        let balancer = self.balancer.as_ref().context("the balancer is not started")?;
        Api::new(balancer.address(), &self.admin_token()?)
    }

    /// The administrator's token.
    ///
    /// # Errors
    /// Before a server is started.
    pub fn admin_token(&self) -> Result<String> {
        self.servers.first().context("no server is started")?.admin_token()
    }

    /// The file with the administrator's token.
    pub fn admin_token_file(&self) -> PathBuf {
        SharedFiles::of(&self.run).admin_token
    }

    /// Where the balancer listens on the host.
    pub fn host_address(&self) -> SocketAddr {
        self.host_port.address()
    }

    /// Logs, configs and data of this lab.
    pub fn directory(&self) -> &Path {
        self.run.directory()
    }

    /// The client host.
    pub fn client(&self) -> Client {
        Client::new(&self.network.client)
    }

    /// Index of the server that leads; waits for an election to end.
    ///
    /// # Errors
    /// When there is none in time.
    pub fn leader(&mut self) -> Result<usize> {
        wait::until("the cluster has a leader", LEADER_TIMEOUT, || {
            let status = self.any_status()?;
            let name = status.leader.context("no leader")?;
            let index = self.servers.iter().position(|server| server.name() == name);
            let index = index.with_context(|| format!("{name} is none of ours"))?;
            ensure!(self.servers[index].process.is_running(), "{name} led and is dead");
            Ok(index)
        })
    }

    /// Index of a running server that does not lead.
    ///
    /// # Errors
    /// When there is none.
    pub fn follower(&mut self) -> Result<usize> {
        let leader = self.leader()?;
        let follower = |(index, server): (usize, &mut Server)| {
            (index != leader && server.process.is_running()).then_some(index)
        };
        self.servers.iter_mut().enumerate().find_map(follower).context("no follower runs")
    }

    /// Waits until every running gateway holds the newest revision with the right digest.
    ///
    /// # Errors
    /// When it does not come to that in time.
    pub fn wait_in_sync(&mut self) -> Result<()> {
        wait::until("all gateways are in sync", SYNC_TIMEOUT, || {
            // Each server knows the sessions it holds, at least.
            let statuses = self.statuses();
            let newest = statuses.iter().map(|status| status.revision).max().context("no server answers")?;
            for gateway in &mut self.gateways {
                if !gateway.process.is_running() {
                    continue;
                }
                let name = gateway.name();
                let lines: Vec<_> = statuses
                    .iter()
                    .flat_map(|status| &status.gateways)
                    .filter(|line| line.name == name)
                    .collect();
                ensure!(
                    lines.iter().any(|line| line.in_sync && line.applied >= newest),
                    "{name} is not at revision {newest}: {lines:?}"
                );
            }
            Ok(())
        })
    }

    /// What each running server says of the cluster; those that do not answer are left out.
    pub fn statuses(&mut self) -> Vec<Status> {
        self.servers
            .iter_mut()
            .filter_map(|server| {
                server.process.is_running().then(|| server.api().ok()?.status().ok()).flatten()
            })
            .collect()
    }

    fn any_status(&mut self) -> Result<Status> {
        self.statuses().pop().context("no server answers")
    }

    /// The API of a running server.
    fn server_api(&mut self) -> Result<Api> {
        let server =
            self.servers.iter_mut().find_map(|server| server.process.is_running().then_some(&*server));
        server.context("no server runs")?.api()
    }

    /// All processes, for logs and stopping.
    pub fn processes(&mut self) -> Vec<&mut Process> {
        let mut all: Vec<&mut Process> = Vec::new();
        all.extend(self.route.as_mut().map(|route| &mut route.process));
        all.extend(self.gateways.iter_mut().map(|gateway| &mut gateway.process));
        all.extend(self.balancer.as_mut().map(|balancer| &mut balancer.process));
        all.extend(self.servers.iter_mut().map(|server| &mut server.process));
        all.extend([&mut self.dns.resolver, &mut self.dns.authority, &mut self.internet.process]);
        all
    }

    /// Ends every process the polite way, all at once, and removes everything.
    ///
    /// # Errors
    /// Names those that had to be killed.
    pub fn stop(mut self) -> Result<()> {
        let mut processes = self.processes();
        for process in processes.iter_mut().filter(|process| process.pid().is_some()) {
            let _ = process.signal(Signal::SIGTERM);
        }
        let stubborn: Vec<String> = processes
            .iter_mut()
            .filter_map(|process| process.stop().err().map(|error| error.to_string()))
            .collect();
        if !stubborn.is_empty() {
            bail!("{}", stubborn.join("\n"));
        }
        Ok(())
    }

    /// The ends of all logs.
    pub fn log_tails(&mut self) -> String {
        self.processes()
            .iter()
            .map(|process| {
                format!("--- {} ---\n{}\n", process.log_path().display(), process.log_tail(TAIL_LINES))
            })
            .collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[allow(
                clippy::print_stderr,
                reason = "the logs are removed next; a failed test's reader needs them"
            )]
            {
                eprintln!("{}", self.log_tails());
            }
        }
    }
}
