//! The internet: answers on every address of its prefixes, and counts what should never have left.

mod serve;

use std::time::Duration;

use anyhow::{Context, Result};

use crate::addresses;
use crate::addresses::Net;
use crate::binaries::Binaries;
use crate::client::Client;
use crate::namespace::output;
use crate::network::Network;
use crate::process::{Process, Program};
use crate::run::Run;

pub use serve::serve;

/// TCP ports that speak HTTP: `GET /` says who asked, `GET /stream?bytes=N&rate=N` sends bytes at a rate.
pub const HTTP_PORTS: [u16; 3] = [80, 443, 8080];
/// TCP and UDP port that sends back what it gets.
pub const ECHO_PORT: u16 = 7;
/// UDP port that answers every datagram with who asked.
pub const WHO_PORT: u16 = 70;

const READY_TIMEOUT: Duration = Duration::from_secs(15);

/// Sources that must never arrive on a public network. Link-local v6 is not among them: neighbours talk with it.
const PRIVATE_SOURCES: [(&str, &str); 5] = [
    ("iptables", "10.0.0.0/8"),
    ("iptables", "172.16.0.0/12"),
    ("iptables", "192.168.0.0/16"),
    ("iptables", "100.64.0.0/10"),
    ("ip6tables", "fc00::/7"),
];

/// The internet's process and counters.
#[derive(Debug)]
pub struct Internet {
    /// `outputguard-lab internet`.
    pub process: Process,
    network: std::sync::Arc<crate::namespace::Namespace>,
}

impl Internet {
    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// When our binary or iptables is missing, or it does not come up.
    pub fn start(run: &Run, network: &Network, binaries: &Binaries) -> Result<Self> {
        let namespace = &network.internet;
        for (program, source) in PRIVATE_SOURCES {
            // A rule without a target counts and lets pass.
            output(namespace.command(program).args([
                "-w",
                "-t",
                "raw",
                "-A",
                "PREROUTING",
                "-i",
                Net::Public.interface(),
                "-s",
                source,
            ]))
            .with_context(|| format!("count packets from {source}"))?;
        }
        let program = Program::new("internet", binaries.path("outputguard-lab")?, namespace, run.directory());
        let mut process = Process::start(program.arguments(["internet"]))?;
        let inside = Client::new(namespace);
        process.wait_ready(READY_TIMEOUT, || {
            inside.who((Net::Public.v4(addresses::internet()), HTTP_PORTS[0]).into()).answer()
        })?;
        Ok(Self { process, network: std::sync::Arc::clone(namespace) })
    }

    /// How many packets with a private source address arrived from the gateways: proof of NAT when zero.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn private_source_packets(&self) -> Result<u64> {
        let mut packets = 0;
        for program in ["iptables", "ip6tables"] {
            let rules =
                output(self.network.command(program).args(["-w", "-t", "raw", "-nvxL", "PREROUTING"]))?;
            // Two lines of head; the first column of a rule is its packets.
            for line in rules.lines().skip(2) {
                let count = line.split_whitespace().next().context("an empty line among the rules")?;
                packets += count.parse::<u64>().with_context(|| format!("read the packets of: {line}"))?;
            }
        }
        Ok(packets)
    }
}
