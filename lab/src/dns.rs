//! DNS of the lab: knot as the authority for `example.test`, unbound as the caching resolver in front of it.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::addresses::{self, Net};
use crate::client::Client;
use crate::namespace::output;
use crate::network::Network;
use crate::process::{Process, Program};
use crate::run::Run;

/// The zone the authority serves.
pub const ZONE: &str = "example.test";
/// Where the authority listens, behind the resolver.
const AUTHORITY: &str = "127.0.0.1@5300";
/// How long the two daemons may take to answer.
const READY_TIMEOUT: Duration = Duration::from_secs(15);

/// Kinds of records [`Dns::set`] writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordType {
    /// v4 addresses.
    A,
    /// v6 addresses.
    Aaaa,
    /// Another name, with its final dot.
    Cname,
}

impl RecordType {
    const fn name(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::Aaaa => "AAAA",
            Self::Cname => "CNAME",
        }
    }
}

/// The running authority and resolver.
#[derive(Debug)]
pub struct Dns {
    /// Resolver (unbound), on management network and LAN.
    pub resolver: Process,
    /// Authority (knot).
    pub authority: Process,
    socket: PathBuf,
}

impl Dns {
    /// Starts both and waits until the zone is served through the resolver.
    ///
    /// # Errors
    /// When a program is missing or does not come up.
    pub fn start(run: &Run, network: &Network) -> Result<Self> {
        let directory = run.directory().join("dns");
        fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let write = |name: &str, text: String| -> Result<PathBuf> {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            Ok(path)
        };
        let socket = directory.join("knot.sock");
        let base = directory.display();
        write(
            &format!("{ZONE}.zone"),
            // The last SOA field is how long "no such name" is remembered: one second, so that tests see a new name soon.
            format!(
                "{ZONE}. 60 SOA ns.{ZONE}. admin.{ZONE}. 1 60 60 86400 1\n{ZONE}. 60 NS ns.{ZONE}.\nns.{ZONE}. 60 A 127.0.0.1\n"
            ),
        )?;
        let knot = write(
            "knot.conf",
            format!(
                "server:\n    rundir: \"{base}\"\n    listen: {AUTHORITY}\n    udp-workers: 1\n    tcp-workers: 1\n    background-workers: 1\n\
                 control:\n    listen: \"{socket}\"\n\
                 database:\n    storage: \"{base}/knot-db\"\n\
                 log:\n  - target: stderr\n    any: info\n\
                 template:\n  - id: default\n    storage: \"{base}\"\n    file: \"%s.zone\"\n    zonefile-sync: -1\n    zonefile-load: whole\n    journal-content: none\n\
                 zone:\n  - domain: {ZONE}\n",
                socket = socket.display()
            ),
        )?;
        let unbound = write(
            "unbound.conf",
            format!(
                "server:\n  do-daemonize: no\n  username: \"\"\n  chroot: \"\"\n  directory: \"{base}\"\n  pidfile: \"\"\n  use-syslog: no\n  logfile: \"\"\n  verbosity: 1\n  num-threads: 1\n\
                 {interfaces}  port: 53\n  access-control: 0.0.0.0/0 allow\n  access-control: ::/0 allow\n\
                 \x20 module-config: \"iterator\"\n  do-not-query-localhost: no\n\
                 # TTLs as the authority gives them, nothing stale, nothing ahead of time; \"no such name\" briefly.\n\
                 \x20 cache-min-ttl: 0\n  cache-max-ttl: 86400\n  cache-max-negative-ttl: 1\n  serve-expired: no\n  prefetch: no\n\
                 # The built-in answers know \"test.\" as a name that does not exist; and nothing else is to be had here.\n\
                 \x20 local-zone: \".\" static\n  local-zone: \"{ZONE}.\" transparent\n\
                 stub-zone:\n  name: \"{ZONE}\"\n  stub-addr: {AUTHORITY}\n  stub-no-cache: no\n\
                 remote-control:\n  control-enable: no\n",
                interfaces = ["127.0.0.1".to_owned()]
                    .into_iter()
                    .chain([Net::Management, Net::Lan].into_iter().flat_map(|net| {
                        let number = addresses::resolver();
                        [net.v4(number).to_string(), net.v6(number).to_string()]
                    }))
                    .map(|address| format!("  interface: {address}\n"))
                    .collect::<String>()
            ),
        )?;
        let mut authority = Process::start(
            Program::new("knot", "/usr/sbin/knotd", &network.dns, run.directory())
                .arguments(["-c".into(), knot.into_os_string()]),
        )?;
        let control = socket.clone();
        authority.wait_ready(READY_TIMEOUT, || {
            output(Command::new("knotc").arg("-s").arg(&control).args(["zone-read", ZONE, "@", "SOA"]))
        })?;
        // Debian's AppArmor profile lets /usr/sbin/unbound read only its own directories. It goes by the path of the
        // program, so a copy beside its configuration may read that. Copied by another process: a file this one had
        // open for writing could be inherited by a fork and then not be executed ("text file busy").
        let program = directory.join("unbound");
        output(Command::new("cp").arg("/usr/sbin/unbound").arg(&program))
            .context("copy /usr/sbin/unbound")?;
        let mut resolver =
            Process::start(Program::new("unbound", program, &network.dns, run.directory()).arguments([
                "-d".into(),
                "-c".into(),
                unbound.into_os_string(),
            ]))?;
        let inside = Client::new(&network.dns);
        let upstream = network.resolver();
        resolver.wait_ready(READY_TIMEOUT, || {
            let answers = inside.resolve(upstream, &format!("ns.{ZONE}"), RecordType::A)?;
            anyhow::ensure!(!answers.is_empty(), "the resolver does not know the zone yet");
            Ok(())
        })?;
        Ok(Self { resolver, authority, socket })
    }

    /// Makes `name` (relative to the zone: `api` for `api.example.test`) have exactly these addresses of the type.
    /// Caches see the change when the former TTL ends.
    ///
    /// # Errors
    /// With what knot said.
    pub fn set(&self, name: &str, kind: RecordType, ttl_s: u32, values: &[IpAddr]) -> Result<()> {
        self.set_text(name, kind, ttl_s, &values.iter().map(IpAddr::to_string).collect::<Vec<_>>())
    }

    /// Makes `name` an alias of `target`, a full name without final dot.
    ///
    /// # Errors
    /// With what knot said.
    pub fn set_alias(&self, name: &str, ttl_s: u32, target: &str) -> Result<()> {
        self.set_text(name, RecordType::Cname, ttl_s, &[format!("{target}.")])
    }

    /// Removes all of a name's records of one type.
    ///
    /// # Errors
    /// With what knot said.
    pub fn remove(&self, name: &str, kind: RecordType) -> Result<()> {
        self.set_text(name, kind, 1, &[])
    }

    fn set_text(&self, name: &str, kind: RecordType, ttl_s: u32, values: &[String]) -> Result<()> {
        let kind = kind.name();
        self.knotc(&["zone-begin", ZONE])?;
        // Fails when there was none, which is as good.
        let _ = self.knotc(&["zone-unset", ZONE, name, kind]);
        let change = || -> Result<()> {
            for value in values {
                self.knotc(&["zone-set", ZONE, name, &ttl_s.to_string(), kind, value])?;
            }
            self.knotc(&["zone-commit", ZONE])
        };
        change().inspect_err(|_| {
            let _ = self.knotc(&["zone-abort", ZONE]);
        })
    }

    fn knotc(&self, arguments: &[&str]) -> Result<()> {
        output(Command::new("knotc").arg("--blocking").arg("-s").arg(&self.socket).args(arguments))
            .map(drop)
            .with_context(|| format!("knotc {}", arguments.join(" ")))
    }

    /// The resolver as hosts on `net` see it.
    pub fn address_on(net: Net) -> SocketAddr {
        (net.v4(addresses::resolver()), 53).into()
    }
}
