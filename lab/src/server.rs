//! One server node.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::addresses::{self, API_PORT, FEED_PORT, Net, RAFT_PORT};
use crate::api::Api;
use crate::binaries::Binaries;
use crate::forward::Forward;
use crate::namespace::Namespace;
use crate::network::Network;
use crate::process::{Process, Program};
use crate::run::Run;

/// How long a node may take until it is ready, election included.
pub(crate) const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Files all servers of a run share.
#[derive(Debug, Clone)]
pub struct SharedFiles {
    /// The development CA and the nodes' certificates.
    pub tls: PathBuf,
    /// Written by the node that bootstraps.
    pub admin_token: PathBuf,
}

impl SharedFiles {
    pub(crate) fn of(run: &Run) -> Self {
        Self { tls: run.directory().join("tls"), admin_token: run.directory().join("admin.token") }
    }

    /// Certificate of the CA.
    pub fn ca(&self) -> PathBuf {
        self.tls.join("ca.pem")
    }
}

/// What a server is to its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// One of the first so many, which found it.
    Founder {
        /// How many.
        of: usize,
    },
    /// Waits to be added to the cluster of the first so many.
    Newcomer {
        /// How many.
        to: usize,
    },
    /// A cluster by itself, with a token of its own.
    Alone,
}

/// A server process in its namespace.
#[derive(Debug)]
pub struct Server {
    /// The process; kill, pause, restart it here.
    pub process: Process,
    /// Its configuration file.
    pub config: PathBuf,
    name: String,
    address: IpAddr,
    namespace: Arc<Namespace>,
    forward: Forward,
    files: SharedFiles,
}

impl Server {
    /// Writes the configuration of server `index` of `network` and starts it, without waiting for anything.
    ///
    /// # Errors
    /// When files cannot be written or the binary is missing.
    pub fn start(run: &Run, network: &Network, index: usize, binaries: &Binaries) -> Result<Self> {
        Self::start_as(Part::Founder { of: network.servers.len() }, run, network, index, binaries, &[])
    }

    /// As [`Self::start`], as any part of a cluster, and with `environment` beside ours.
    pub(crate) fn start_as(
        part: Part,
        run: &Run,
        network: &Network,
        index: usize,
        binaries: &Binaries,
        environment: &[(String, String)],
    ) -> Result<Self> {
        let name = format!("srv{}", index + 1);
        let namespace = network.servers.get(index).with_context(|| format!("the lab has no {name}"))?;
        let address = |index| Net::Management.v4(addresses::server(index));
        let mut files = SharedFiles::of(run);
        let data = run.directory().join(&name);
        fs::create_dir_all(&data).with_context(|| format!("create {}", data.display()))?;
        let (peers, join): (Vec<usize>, &str) = match part {
            Part::Founder { of } => ((0..of).collect(), "auto"),
            Part::Newcomer { to } => ((0..to).chain([index]).collect(), "wait"),
            Part::Alone => {
                // Its bootstrap makes a token of its own.
                files.admin_token = run.directory().join(format!("{name}.admin.token"));
                (vec![index], "auto")
            }
        };
        let peers: Vec<String> =
            peers.into_iter().map(|peer| format!("\"{}:{RAFT_PORT}\"", address(peer))).collect();
        let own = address(index);
        let config = run.directory().join(format!("{name}.yaml"));
        fs::write(
            &config,
            format!(
                "node: {{ name: {name}, data_dir: {data} }}\n\
                 listen: {{ api: \"0.0.0.0:{API_PORT}\", feed: \"0.0.0.0:{FEED_PORT}\", raft: \"0.0.0.0:{RAFT_PORT}\" }}\n\
                 cluster: {{ advertise: \"{own}:{RAFT_PORT}\", peers: [{peers}], join: {join} }}\n\
                 tls: {{ dir: {tls} }}\n\
                 auth: {{ admin_token_file: {token} }}\n\
                 resolver: {{ upstreams: [\"{resolver}\"] }}\n",
                data = data.join("data").display(),
                peers = peers.join(", "),
                tls = files.tls.display(),
                token = files.admin_token.display(),
                resolver = network.resolver(),
            ),
        )
        .with_context(|| format!("write {}", config.display()))?;
        let mut program =
            Program::new(&name, binaries.path("outputguard-server")?, namespace, run.directory())
                .arguments(["--config".into(), config.clone().into_os_string()]);
        program.environment.extend_from_slice(environment);
        Ok(Self {
            process: Process::start(program)?,
            config,
            name,
            address: own.into(),
            namespace: Arc::clone(namespace),
            forward: Forward::new(namespace, (own, API_PORT).into())?,
            files,
        })
    }

    /// Its name in the cluster, `srv1` …
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the management network.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Arc<Namespace> {
        &self.namespace
    }

    /// Its API as seen from the host.
    pub fn host_address(&self) -> SocketAddr {
        self.forward.address()
    }

    /// The URL of its gateway feed on the management network.
    pub fn feed_url(address: IpAddr) -> String {
        format!("wss://{}/ws", SocketAddr::new(address, FEED_PORT))
    }

    /// Its own API (not the balancer's), as administrator.
    ///
    /// # Errors
    /// Before the bootstrap has written the administrator's token.
    pub fn api(&self) -> Result<Api> {
        Api::new(self.host_address(), &self.admin_token()?)
    }

    /// The administrator's token.
    ///
    /// # Errors
    /// Before the bootstrap has written it.
    pub fn admin_token(&self) -> Result<String> {
        let path = &self.files.admin_token;
        let text = fs::read_to_string(path).with_context(|| format!("read the token {}", path.display()))?;
        Ok(text.trim().to_owned())
    }

    /// Waits until `/readyz` says it takes part in a cluster with a leader.
    ///
    /// # Errors
    /// With its last log lines.
    pub fn wait_ready(&mut self) -> Result<()> {
        let api = Api::new(self.host_address(), "")?;
        self.process.wait_ready(READY_TIMEOUT, || Ok(api.get_text("/readyz").map(drop)?))
    }
}
