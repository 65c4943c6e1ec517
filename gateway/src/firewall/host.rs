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

/// Checks capability, programs and kernel support. It changes nothing.
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
    missing.extend(missing_tables());
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
    all_there(&missing)
}

/// Checks that the machine forwards, which only enforcement needs: switching it on belongs to whoever runs the machine.
///
/// # Errors
/// [`FirewallError::Missing`] with the commands that switch it on.
pub fn check_forwarding() -> Result<(), FirewallError> {
    let off = forwarding_off(Path::new("/proc/sys/net"));
    let missing: Vec<String> = (off.iter())
        .map(|key| format!("forwarding is off; run `sysctl -w {key}=1` and keep it in /etc/sysctl.d/"))
        .collect();
    all_there(&missing)
}

fn all_there(missing: &[String]) -> Result<(), FirewallError> {
    if missing.is_empty() { Ok(()) } else { Err(FirewallError::Missing(missing.join("; "))) }
}

/// Tables that a program of iptables is there for and the kernel is not.
fn missing_tables() -> Option<String> {
    let ask = |program: &str, arguments: &[&str]| Command::new(program).args(arguments).output().ok();
    for program in ["iptables", "ip6tables"] {
        for table in ["filter", "nat"] {
            let Some(listed) = ask(program, &["-w", "-t", table, "-S"]) else { continue };
            let complaint = String::from_utf8_lossy(&listed.stderr);
            if listed.status.success() || !complaint.contains("do you need to insmod") {
                continue;
            }
            let version = ask(program, &["--version"]).map(|output| output.stdout).unwrap_or_default();
            return Some(table_remedy(program, table, String::from_utf8_lossy(&version).contains("legacy")));
        }
    }
    None
}

fn table_remedy(program: &str, table: &str, is_legacy: bool) -> String {
    let family = program.trim_end_matches("tables");
    if is_legacy {
        format!(
            "{program} is the legacy backend, and the kernel has no legacy table {table}; run `modprobe -a \
             {program_module} {family}table_filter {family}table_nat`, or `update-alternatives --set {program} \
             /usr/sbin/{program}-nft` to change to the nft backend",
            program_module = program.replace("tables", "_tables"),
        )
    } else {
        format!(
            "{program} is the nft backend, and the kernel gives it no table {table}; run `modprobe -a nf_tables \
             nft_compat nft_chain_nat`, or `update-alternatives --set {program} /usr/sbin/{program}-legacy` to change \
             to the legacy backend"
        )
    }
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
    fn a_backend_without_its_tables_is_told_the_command() {
        let legacy = table_remedy("ip6tables", "nat", true);
        assert!(legacy.contains("no legacy table nat"), "{legacy}");
        assert!(legacy.contains("`modprobe -a ip6_tables ip6table_filter ip6table_nat`"), "{legacy}");
        let nft = table_remedy("iptables", "filter", false);
        assert!(nft.contains("`update-alternatives --set iptables /usr/sbin/iptables-legacy`"), "{nft}");
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
