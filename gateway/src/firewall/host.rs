//! What the machine must bring along before the kernel driver can work, and how to give it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;

use super::FirewallError;
use super::conntrack::{FlowTable, Scan};
use super::ipset::Client;

/// An address without flows (RFC 5737).
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// `CAP_NET_ADMIN` of capabilities(7).
const CAP_NET_ADMIN: u32 = 12;

/// Checks capability, programs, kernel support and forwarding. It changes nothing: switching on forwarding belongs to
/// whoever runs the machine.
///
/// # Errors
/// [`FirewallError::Missing`] with everything that is missing and the command that gives it.
pub fn check_host() -> Result<(), FirewallError> {
    let mut missing = Vec::new();
    if !has_net_admin() {
        missing.push(
            "the capability CAP_NET_ADMIN is missing; run as root or set AmbientCapabilities=CAP_NET_ADMIN"
                .into(),
        );
    }
    for program in ["iptables", "ip6tables", "iptables-restore", "ip6tables-restore"] {
        if Command::new(program).arg("--version").output().is_err() {
            missing.push(format!("the program {program} is missing; install the package iptables"));
        }
    }
    if let Err(error) = Client::connect() {
        missing.push(format!(
            "{error}; install a kernel with ipset and run `modprobe -a ip_set_hash_net ip_set_hash_netport xt_set`"
        ));
    }
    if let Err(error) = FlowTable::connect().and_then(|mut table| table.list(Scan::To(NOWHERE), |_| true)) {
        missing.push(format!(
            "{error}; install a kernel with conntrack over netlink and run `modprobe -a nf_conntrack nf_conntrack_netlink`"
        ));
    }
    for key in forwarding_off(Path::new("/proc/sys/net")) {
        missing.push(format!("forwarding is off; run `sysctl -w {key}=1` and keep it in /etc/sysctl.d/"));
    }
    if missing.is_empty() { Ok(()) } else { Err(FirewallError::Missing(missing.join("; "))) }
}

/// The switches below `settings` that should be on. A kernel without IPv6 has none for it, and forwards none of it.
fn forwarding_off(settings: &Path) -> Vec<&'static str> {
    let is_off = |path: &str| fs::read_to_string(settings.join(path)).unwrap_or_default().trim() != "1";
    let mut off = Vec::new();
    if is_off("ipv4/ip_forward") {
        off.push("net.ipv4.ip_forward");
    }
    if settings.join("ipv6").exists() && is_off("ipv6/conf/all/forwarding") {
        off.push("net.ipv6.conf.all.forwarding");
    }
    off
}

/// Reads the thread's effective capabilities.
fn has_net_admin() -> bool {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    effective_capabilities(&status).is_some_and(|bits| bits >> CAP_NET_ADMIN & 1 == 1)
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effective_capabilities_are_read_from_the_status_file() {
        let status = "Name:\tx\nCapInh:\t0000000000000000\nCapEff:\t0000000000001000\n";
        assert_eq!(effective_capabilities(status), Some(1 << CAP_NET_ADMIN));
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
    }

    #[test]
    fn a_kernel_without_ipv6_is_not_asked_to_forward_it() {
        let settings = tempfile::tempdir().unwrap();
        let write = |path: &str, value: &str| {
            let path = settings.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        };
        assert_eq!(forwarding_off(settings.path()), ["net.ipv4.ip_forward"]);
        write("ipv4/ip_forward", "1\n");
        assert!(forwarding_off(settings.path()).is_empty());
        write("ipv6/conf/all/forwarding", "0\n");
        assert_eq!(forwarding_off(settings.path()), ["net.ipv6.conf.all.forwarding"]);
    }
}
