//! What the gateway of a row is made of.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::net::Ipv4Addr;

use allowlist::Element;
use anyhow::{Context, Result, ensure};
use gateway::firewall::{Firewall as _, KernelFirewall, KernelOptions};
use lab::Run;

use crate::path::{Path, WAN, listed};
use crate::shell;

/// How packets are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Layout {
    /// Forwarding, conntrack and one MASQUERADE rule: what a gateway that judges nothing can reach.
    Plain,
    /// Ours, with so many elements.
    Sets(usize),
    /// The original's: two FORWARD rules and one MASQUERADE rule for each of so many addresses, the newest first.
    Rules(usize),
}

impl Layout {
    /// How many addresses pass by name; where all pass, as many as the others have at most.
    pub(crate) const fn listed(self) -> usize {
        match self {
            Self::Plain => 1_000_000,
            Self::Sets(count) | Self::Rules(count) => count,
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => f.write_str("plain"),
            Self::Sets(count) => write!(f, "sets-{}", short(*count)),
            Self::Rules(count) => write!(f, "rules-{}", short(*count)),
        }
    }
}

/// 1k, 100k, 1m.
pub(crate) fn short(count: usize) -> String {
    match count {
        count if count >= 1_000_000 && count % 1_000_000 == 0 => format!("{}m", count / 1_000_000),
        count if count >= 1_000 && count % 1_000 == 0 => format!("{}k", count / 1_000),
        count => count.to_string(),
    }
}

/// A row whose gateway judges by a layout.
pub(crate) struct Row {
    pub(crate) path: Path,
    pub(crate) layout: Layout,
    /// Kept: its end would stop the threads that belong to it.
    _firewall: Option<KernelFirewall>,
}

impl Row {
    /// Builds the row and its gateway's rules.
    pub(crate) fn build(run: &Run, layout: Layout) -> Result<Self> {
        let path = Path::build(run, &layout.to_string())?;
        let firewall = match layout {
            Layout::Plain => {
                restore(&path, &format!("*nat\n-A POSTROUTING -o {WAN} -j MASQUERADE\nCOMMIT\n"))?;
                None
            }
            Layout::Rules(count) => {
                restore(&path, &rules_per_address(&listed(count))?)?;
                None
            }
            Layout::Sets(count) => Some(path.gateway.enter(|| {
                let mut firewall = KernelFirewall::new(&KernelOptions::default())?;
                firewall.install()?;
                let outcome = firewall.replace(&elements(count))?;
                ensure!(outcome.added == count, "the kernel took {} of {count} elements", outcome.added);
                Ok(firewall)
            })?),
        };
        path.set_forwarding()?;
        Ok(Self { path, layout, _firewall: firewall })
    }
}

/// The first `count` listed addresses as elements.
pub(crate) fn elements(count: usize) -> BTreeSet<Element> {
    listed(count).into_iter().map(|address| Element::host(address.into(), None)).collect()
}

/// What the original makes of its list.
fn rules_per_address(addresses: &[Ipv4Addr]) -> Result<String> {
    let mut script = String::from("*filter\n");
    for address in addresses {
        writeln!(script, "-A FORWARD -d {address} -j ACCEPT\n-A FORWARD -s {address} -j ACCEPT")?;
    }
    script.push_str("COMMIT\n*nat\n");
    for address in addresses {
        writeln!(script, "-A POSTROUTING -d {address} -j MASQUERADE")?;
    }
    script.push_str("COMMIT\n");
    Ok(script)
}

fn restore(path: &Path, script: &str) -> Result<()> {
    let mut command = path.gateway.command("iptables-restore");
    shell::run(command.args(["-w", "--noflush"]), script).context("load rules").map(drop)
}
