//! Whether this process may do what it is about to do, asked before it does it (`capabilities(7)`).

use anyhow::{Context as _, bail};

/// A capability's number and name.
pub(super) type Capability = (u32, &'static str);

/// Changing routes and rules.
pub(super) const NET_ADMIN: Capability = (12, "CAP_NET_ADMIN");

pub(super) fn check((number, name): Capability) -> anyhow::Result<()> {
    const STATUS: &str = "/proc/thread-self/status";
    let status = std::fs::read_to_string(STATUS).with_context(|| format!("read {STATUS}"))?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .with_context(|| format!("find CapEff in {STATUS}"))?;
    if effective & (1 << number) == 0 {
        bail!(
            "{name} is missing: run as root, or give it with `AmbientCapabilities={name}` (systemd) or \
             `securityContext.capabilities.add` (Kubernetes)"
        );
    }
    Ok(())
}
