//! One gateway.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::addresses::{self, METRICS_PORT, Net};
use crate::api::Api;
use crate::binaries::Binaries;
use crate::client::Client;
use crate::forward::Forward;
use crate::metrics::Metrics;
use crate::namespace::Namespace;
use crate::network::Network;
use crate::process::{Process, Program};
use crate::run::Run;
use crate::server::{Server, SharedFiles};

/// How long a gateway may take until its firewall stands.
const LIVE_TIMEOUT: Duration = Duration::from_secs(30);

/// A gateway process in its namespace.
#[derive(Debug)]
pub struct Gateway {
    /// The process; kill, pause, restart it here.
    pub process: Process,
    /// Where it keeps its last published set.
    pub state: PathBuf,
    name: String,
    index: usize,
    namespace: Arc<Namespace>,
    metrics: Api,
    _forward: Forward,
}

impl Gateway {
    /// Writes the configuration of gateway `index` of `network` and starts it with `token`, without waiting.
    ///
    /// # Errors
    /// When files cannot be written or the binary is missing.
    pub fn start(
        run: &Run,
        network: &Network,
        index: usize,
        binaries: &Binaries,
        token: &str,
    ) -> Result<Self> {
        let name = format!("gw{}", index + 1);
        let namespace = network.gateways.get(index).with_context(|| format!("the lab has no {name}"))?;
        let state = run.directory().join(&name);
        fs::create_dir_all(&state).with_context(|| format!("create {}", state.display()))?;
        let write = |path: PathBuf, text: &str| -> Result<PathBuf> {
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            Ok(path)
        };
        let token = write(run.directory().join(format!("{name}.token")), token)?;
        make_private(&token)?;
        let servers: Vec<String> = (0..network.servers.len())
            .map(|server| {
                format!("\"{}\"", Server::feed_url(Net::Management.v4(addresses::server(server)).into()))
            })
            .collect();
        let config = write(
            run.directory().join(format!("{name}.yaml")),
            &format!(
                "name: {name}\nservers: [{}]\ntoken_file: {}\nca_file: {}\nstate_dir: {}\nmetrics: \"[::]:{METRICS_PORT}\"\nfirewall: kernel\ndeny: drop\n",
                servers.join(", "),
                token.display(),
                SharedFiles::of(run).ca().display(),
                state.display()
            ),
        )?;
        let program = Program::new(&name, binaries.path("outputguard-gateway")?, namespace, run.directory())
            .arguments(["--config".into(), config.into_os_string()]);
        let process = Process::start(program)?;
        let forward =
            Forward::new(namespace, (Net::Management.v4(addresses::gateway(index)), METRICS_PORT).into())?;
        let metrics = Api::new(forward.address(), "")?;
        let namespace = Arc::clone(namespace);
        Ok(Self { process, state, name, index, namespace, metrics, _forward: forward })
    }

    /// Its name, `gw1` …
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Arc<Namespace> {
        &self.namespace
    }

    /// The gateway itself as a client: its own traffic is not filtered, so it can show that the internet answers.
    pub fn client(&self) -> Client {
        Client::new(&self.namespace)
    }

    /// Its two addresses on the public side.
    pub fn public_addresses(&self) -> [IpAddr; 2] {
        addresses::gateway_public(self.index)
    }

    /// Its metrics page.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics::parse(&self.metrics_text()?))
    }

    /// Its metrics page as text.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics_text(&self) -> Result<String> {
        self.metrics.get_text("/metrics").with_context(|| format!("read the metrics of {}", self.name))
    }

    /// Waits until its HTTP server answers, which is after its firewall stands; needs no server in reach.
    ///
    /// # Errors
    /// With its last log lines.
    pub fn wait_live(&mut self) -> Result<()> {
        let metrics = self.metrics.clone();
        self.process.wait_ready(LIVE_TIMEOUT, || Ok(metrics.get_text("/livez").map(drop)?))
    }
}

fn make_private(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("protect {}", path.display()))
}
