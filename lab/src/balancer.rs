//! HAProxy in front of the servers, reachable on a port of the host though it runs inside a namespace.

use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::addresses::{self, API_PORT, Net};
use crate::api::Api;
use crate::network::Network;
use crate::process::{Process, Program};
use crate::run::Run;

const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// A listening socket on the host's 127.0.0.1, to be handed to the balancer.
#[derive(Debug)]
pub struct HostPort {
    socket: Arc<OwnedFd>,
    address: SocketAddr,
}

impl HostPort {
    /// Binds `port`; 0 picks a free one.
    ///
    /// # Errors
    /// When the port is taken, saying so.
    pub fn bind(port: u16) -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|error| match error.kind() {
                ErrorKind::AddrInUse => {
                    anyhow!("port {port} of 127.0.0.1 is in use; choose another one with --port")
                }
                _ => anyhow!("listen on 127.0.0.1 port {port}: {error}"),
            })?;
        let address = listener.local_addr().context("read the listener's address")?;
        Ok(Self { socket: Arc::new(listener.into()), address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// The running HAProxy.
#[derive(Debug)]
pub struct Balancer {
    /// The process.
    pub process: Process,
    address: SocketAddr,
}

impl Balancer {
    /// Starts it on `port` in front of all servers of `network`, and waits until one is ready behind it.
    ///
    /// # Errors
    /// With its last log lines.
    pub fn start(run: &Run, network: &Network, port: &HostPort) -> Result<Self> {
        let mut servers = String::new();
        for index in 0..network.servers.len() {
            let address = Net::Management.v4(addresses::server(index));
            _ = writeln!(servers, "  server srv{} {address}:{API_PORT}", index + 1);
        }
        let config = run.directory().join("haproxy.cfg");
        fs::write(
            &config,
            format!(
                "global\n  nbthread 1\n  maxconn 2000\n\
                 defaults\n  mode http\n  timeout connect 1s\n  timeout client 60s\n  timeout server 60s\n  timeout tunnel 1h\n  retries 2\n  option redispatch\n\
                 frontend api\n  bind fd@{fd}\n  default_backend servers\n\
                 backend servers\n  balance roundrobin\n  option httpchk GET /readyz\n  http-check expect status 200\n\
                 \x20 default-server check inter 300ms fall 2 rise 1\n{servers}",
                fd = port.socket.as_raw_fd()
            ),
        )
        .with_context(|| format!("write {}", config.display()))?;
        let program = Program::new("haproxy", "/usr/sbin/haproxy", &network.balancer, run.directory())
            .arguments(["-db".into(), "-f".into(), config.into_os_string()])
            .inherit(Arc::clone(&port.socket));
        let mut process = Process::start(program)?;
        let api = Api::new(port.address, "")?;
        process.wait_ready(READY_TIMEOUT, || Ok(api.get_text("/readyz").map(drop)?))?;
        Ok(Self { process, address: port.address })
    }

    /// Where it listens on the host.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
