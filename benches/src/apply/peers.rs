//! How the same is done without us: the `ipset` program, and the original's six `iptables` calls for an address.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use lab::{Namespace, Run};

use crate::layout::{Layout, Row};
use crate::path::listed;
use crate::shell;

/// Like ours: one set looked at on the way out, one for replies.
const SETS: [&str; 2] = ["peero", "peeri"];

/// A machine whose sets are filled by the `ipset` program.
pub(super) struct Ipset {
    namespace: Arc<Namespace>,
}

impl Ipset {
    /// Makes and fills both sets, and says how long the program took for that.
    pub(super) fn fill(run: &Run, name: &str, count: usize) -> Result<(Self, Duration)> {
        let namespace = Namespace::create(&run.namespace_name(name))?;
        let mut script = String::new();
        // Presized, as ours are.
        let size = count.next_power_of_two().max(1 << 16);
        for set in SETS {
            writeln!(script, "create {set} hash:net family inet counters maxelem {size} hashsize {size}")?;
        }
        for address in listed(count) {
            for set in SETS {
                writeln!(script, "add {set} {address}")?;
            }
        }
        let start = Instant::now();
        shell::run(namespace.command("ipset").arg("restore"), &script)?;
        Ok((Self { namespace }, start.elapsed()))
    }

    /// Adds one address to both sets.
    pub(super) fn add(&self, address: Ipv4Addr) -> Result<Duration> {
        self.call("add", address)
    }

    /// Takes one address out of both sets.
    pub(super) fn remove(&self, address: Ipv4Addr) -> Result<Duration> {
        self.call("del", address)
    }

    /// Reads the counters of both sets.
    pub(super) fn dump(&self) -> Result<Duration> {
        let start = Instant::now();
        for set in SETS {
            shell::run(self.namespace.command("ipset").args(["save", set]), "")?;
        }
        Ok(start.elapsed())
    }

    fn call(&self, verb: &str, address: Ipv4Addr) -> Result<Duration> {
        let start = Instant::now();
        for set in SETS {
            shell::run(self.namespace.command("ipset").args([verb, set, &address.to_string()]), "")?;
        }
        Ok(start.elapsed())
    }
}

/// A machine with one rule pair for each address.
pub(super) struct Original(Row);

impl Original {
    pub(super) fn fill(run: &Run, count: usize) -> Result<Self> {
        Ok(Self(Row::build(run, Layout::Rules(count))?))
    }

    /// Adds one address: for each rule it looks whether it is there and inserts it as the first.
    pub(super) fn add(&self, address: Ipv4Addr) -> Result<Duration> {
        let address = address.to_string();
        let start = Instant::now();
        for (table, chain, side, target) in [
            ("filter", "FORWARD", "-s", "ACCEPT"),
            ("filter", "FORWARD", "-d", "ACCEPT"),
            ("nat", "POSTROUTING", "-d", "MASQUERADE"),
        ] {
            let call = |verb: &[&str]| {
                let mut command = self.0.path.gateway.command("iptables");
                command.args(["-t", table]).args(verb).args([side, address.as_str(), "-j", target, "-w"]);
                shell::run(&mut command, "")
            };
            // It is not there: the program says so by failing.
            if call(&["-C", chain]).is_err() {
                call(&["-I", chain, "1"])?;
            }
        }
        Ok(start.elapsed())
    }
}
