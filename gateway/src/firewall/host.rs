//! What the machine must bring along before the kernel driver can work, and how to give it.

use std::fs;
use std::process::Command;

use super::FirewallError;
use super::ipset::Client;

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
    for (path, key) in [
        ("/proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward"),
        ("/proc/sys/net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"),
    ] {
        let value = fs::read_to_string(path).unwrap_or_default();
        if value.trim() != "1" {
            missing.push(format!("forwarding is off; run `sysctl -w {key}=1` and keep it in /etc/sysctl.d/"));
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(FirewallError::Missing(missing.join("; "))) }
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
}
