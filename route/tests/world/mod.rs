//! A client, two gateways on one bridge, and a way past them: real namespaces, real links, real packets.
//!
//! `client` (10.2.0.10, fd00:2::10) shares a bridge with `gw1` (…1) and `gw2` (…2), and has a default route of its own
//! through `isp` on another link. Gateways and isp answer for public addresses themselves: 9.9.9.1 and 2620:fe::1
//! only on gw1, …2 only on gw2, …3 only on isp, so whoever answers shows which way the packet went.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    dead_code,
    reason = "tests, each using a part"
)]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_outputguard-route");
const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct World {
    prefix: String,
}

pub(crate) struct Agent {
    child: Child,
}

impl World {
    pub(crate) fn new() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let world =
            Self { prefix: format!("ogr{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)) };
        for name in ["client", "lan", "gw1", "gw2", "isp"] {
            sh(&format!("ip netns add {0} && ip -n {0} link set lo up", world.ns(name)));
            world.ip(name, "link set lo up");
        }
        world.ip("lan", "link add br0 type bridge forward_delay 0");
        world.ip("lan", "link set br0 up");
        for (name, host) in [("client", "10"), ("gw1", "1"), ("gw2", "2")] {
            let lan = world.ns("lan");
            world.ip(name, &format!("link add eth0 type veth peer name {name} netns {lan}"));
            world.ip("lan", &format!("link set {name} master br0 up"));
            world.ip(name, &format!("addr add 10.2.0.{host}/24 dev eth0"));
            world.ip(name, &format!("addr add fd00:2::{host}/64 dev eth0 nodad"));
            world.ip(name, "link set eth0 up");
        }
        world.ip("client", &format!("link add eth1 type veth peer name eth0 netns {}", world.ns("isp")));
        for (name, device, host) in [("client", "eth1", "10"), ("isp", "eth0", "1")] {
            // A network of our own that looks public.
            world.ip(name, &format!("addr add 20.30.40.{host}/24 dev {device}"));
            world.ip(name, &format!("addr add 2001:db8:30::{host}/64 dev {device} nodad"));
            world.ip(name, &format!("link set {device} up"));
        }
        world.ip("client", "route add default via 20.30.40.1");
        world.ip("client", "-6 route add default via 2001:db8:30::1");
        for (name, host, back) in [("gw1", "1", "eth0"), ("gw2", "2", "eth0"), ("isp", "3", "eth0")] {
            world.ip(name, &format!("addr add 9.9.9.{host}/32 dev lo"));
            world.ip(name, &format!("addr add 2620:fe::{host}/128 dev lo nodad"));
            // Whatever source address the client uses, the answer finds back.
            let client =
                if name == "isp" { ["20.30.40.10", "2001:db8:30::10"] } else { ["10.2.0.10", "fd00:2::10"] };
            for (family, address) in ["-4", "-6"].into_iter().zip(client) {
                world.ip(name, &format!("{family} route replace default via {address} dev {back}"));
            }
        }
        world
    }

    pub(crate) fn ns(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// `ip` in one of the namespaces; panics when it fails.
    pub(crate) fn ip(&self, name: &str, arguments: &str) -> String {
        sh(&format!("ip -n {} {arguments}", self.ns(name)))
    }

    /// Routes and rules of the client, without what ages by itself.
    pub(crate) fn picture(&self) -> String {
        ["-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all"]
            .map(|what| self.ip("client", what))
            .join("\n")
    }

    /// The routes of our table as `route_text` writes them.
    pub(crate) fn table(&self, family: &str, table: &str) -> Vec<String> {
        let shown = self.ip("client", &format!("{family} route show table {table} proto 77"));
        let mut routes: Vec<String> = shown
            .lines()
            .map(|line| {
                let line = if line.starts_with("throw") || line.starts_with("unreachable") {
                    line.replace(" dev lo", "")
                } else {
                    line.to_owned()
                };
                let line = line.trim_end().trim_end_matches(" pref medium");
                // `ip route show proto 77` leaves the protocol out.
                line.replace(" metric", " proto 77 metric")
            })
            .collect();
        routes.sort_unstable();
        routes
    }

    /// True when `address` answers one ping from the client.
    pub(crate) fn reaches(&self, address: &str) -> bool {
        let ns = self.ns("client");
        Command::new("ip")
            .args(["netns", "exec", &ns, "ping", "-n", "-c1", "-W1", address])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    }

    /// A command line of the agent, inside the client.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.ns("client"), BINARY]).args(arguments);
        command.env_remove("OUTPUTGUARD_ROUTE_GATEWAYS").env_remove("RUST_LOG");
        command
    }

    /// Runs the agent to its end.
    pub(crate) fn agent(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs the agent to its end, which must be a good one.
    pub(crate) fn agent_ok(&self, arguments: &[&str]) -> String {
        let output = self.agent(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts the agent and waits until its table is there.
    pub(crate) fn start(&self, arguments: &[&str]) -> Agent {
        let child = self.command(arguments).spawn().unwrap();
        let agent = Agent { child };
        self.wait("the agent sets its last rule", || self.ip("client", "-6 rule").contains("lookup 7700"));
        agent
    }

    pub(crate) fn wait(&self, what: &str, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < DEADLINE, "in vain: {what}\n{}", self.picture());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for name in ["client", "lan", "gw1", "gw2", "isp"] {
            let _ = Command::new("ip").args(["netns", "del", &self.ns(name)]).stderr(Stdio::null()).status();
        }
    }
}

impl Agent {
    /// SIGTERM, then the end it makes of it.
    pub(crate) fn terminate(mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }

    /// SIGKILL: no last words.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The agent outside of any namespace of ours, as nobody: it can read, and must not be able to change.
pub(crate) fn agent_as_nobody(arguments: &[&str]) -> Output {
    const NOBODY: u32 = 65_534;
    // The build directory may be closed to others; a copy in a directory of its own is not. `cp` makes it, so that no
    // fork of ours holds it open for writing.
    let open = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap();
    let copy = open.path().join("outputguard-route");
    sh(&format!("cp {BINARY} {}", copy.display()));
    let mut command = Command::new(copy);
    command.args(arguments).uid(NOBODY).gid(NOBODY).env_remove("OUTPUTGUARD_ROUTE_GATEWAYS");
    command.output().unwrap()
}

pub(crate) fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
