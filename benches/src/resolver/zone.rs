//! The local authority: knot with every name of the bench, an address of each family for each.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::{Namespace, Process, Program, Run};

use crate::outputguard::target;
use crate::shell;

/// The names are below it.
pub(super) const ZONE: &str = "bench.test";
/// What DNS allows to keep an answer; as long as a name is left alone at most.
const TTL_S: u32 = 60;
const PORT: u16 = 5_353;
/// Of 100,000 names.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// The running authority.
#[derive(Debug)]
pub(super) struct Zone {
    pub(super) address: SocketAddr,
    pub(super) names: u32,
    /// Ends with this.
    _authority: Process,
}

/// The `number`th name.
pub(super) fn name(number: u32) -> String {
    format!("n{number}.{ZONE}")
}

impl Zone {
    /// Serves `names` names on the loopback of `namespace`.
    pub(super) fn start(run: &Run, namespace: &Arc<Namespace>, names: u32) -> Result<Self> {
        let directory = run.directory().join("knot");
        fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let mut zone =
            format!("{ZONE}. 60 SOA ns.{ZONE}. admin.{ZONE}. 1 60 60 86400 1\n{ZONE}. 60 NS ns.{ZONE}.\n");
        writeln!(zone, "ns.{ZONE}. 60 A 127.0.0.1")?;
        for number in 0..names {
            let (name, v6) = (name(number), v6(number));
            writeln!(zone, "{name}. {TTL_S} A {}\n{name}. {TTL_S} AAAA {v6}", target(number.into())?)?;
        }
        fs::write(directory.join(format!("{ZONE}.zone")), zone).context("write the zone")?;
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT);
        let (base, socket, config) =
            (directory.display(), directory.join("knot.sock"), directory.join("knot.conf"));
        let text = format!(
            "server:\n    rundir: \"{base}\"\n    listen: {ip}@{PORT}\n    udp-workers: 1\n    tcp-workers: 1\n    background-workers: 1\n\
             control:\n    listen: \"{socket}\"\n\
             database:\n    storage: \"{base}/db\"\n\
             log:\n  - target: stderr\n    any: info\n\
             template:\n  - id: default\n    storage: \"{base}\"\n    file: \"%s.zone\"\n    zonefile-sync: -1\n    zonefile-load: whole\n    journal-content: none\n\
             zone:\n  - domain: {ZONE}\n",
            ip = address.ip(),
            socket = socket.display(),
        );
        fs::write(&config, text).context("write the authority's settings")?;
        let program = Program::new("knot", "/usr/sbin/knotd", namespace, run.directory())
            .arguments(["-c".into(), config.into_os_string()]);
        let mut authority = Process::start(program)?;
        authority.wait_ready(READY_TIMEOUT, || {
            shell::run(Command::new("knotc").arg("-s").arg(&socket).args(["zone-read", ZONE, "@", "SOA"]), "")
        })?;
        Ok(Self { address, names, _authority: authority })
    }
}

fn v6(number: u32) -> Ipv6Addr {
    let [high, low] = [number >> 16, number & 0xffff].map(|half| u16::try_from(half).unwrap_or(u16::MAX));
    Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0, 0, high, low)
}
