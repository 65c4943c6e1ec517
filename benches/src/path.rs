//! Three machines in a row: one inside that sends, the gateway, and one outside that answers for the whole internet.
//!
//! Each layout under test has a row of its own, so that changing from one to the next costs nothing and what one leaves
//! in conntrack slows no other.

use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::{Context, Result};
use lab::{Namespace, Run};

use crate::shell;

/// Interface of the machine inside, and of the gateway towards it.
pub(crate) const LAN: &str = "lan0";
/// Interface of the gateway towards the internet, and of the machine there.
pub(crate) const WAN: &str = "wan0";
/// The machine inside.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const GATEWAY_INSIDE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
/// What the internet sees as the source.
pub(crate) const GATEWAY_OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 114, 11);
const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 114, 1);
/// Link addresses, so that frames can be written by hand and nobody has to ask for neighbours.
pub(crate) const CLIENT_LINK: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const GATEWAY_LINK: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub(crate) const GATEWAY_WAN_LINK: [u8; 6] = [2, 0, 0, 0, 0, 3];
pub(crate) const INTERNET_LINK: [u8; 6] = [2, 0, 0, 0, 0, 4];

/// UDP port whose packets the internet counts and drops at its door.
pub(crate) const COUNTED_PORT: u16 = 9;

/// Everything [`listed`] names lies in here, and the internet answers for all of it.
const LISTED_PREFIX: &str = "20.0.0.0/7";
const FIRST_LISTED: u32 = u32::from_be_bytes([20, 0, 0, 0]);
const LISTED_BITS: u32 = 25;
/// Odd, so that it meets every address once; large, so that neighbours in the list are none in the address space.
const STRIDE: u32 = 0x9E37_79B1;

/// Kernel parameters of the gateway. Flows must outlive the rounds; ended connections must not pile up.
const FORWARDING: [(&str, &str); 6] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/netfilter/nf_conntrack_udp_timeout", "3600"),
    ("net/netfilter/nf_conntrack_udp_timeout_stream", "3600"),
    ("net/netfilter/nf_conntrack_tcp_timeout_close", "1"),
];

/// The first `count` addresses of the list, all public.
pub(crate) fn listed(count: usize) -> Vec<Ipv4Addr> {
    let mask = (1 << LISTED_BITS) - 1;
    let address = |index: u32| Ipv4Addr::from_bits(FIRST_LISTED + (index.wrapping_mul(STRIDE) & mask));
    (0..count as u32).map(address).collect()
}

/// The three machines. Dropping it removes them.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) inside: Arc<Namespace>,
    pub(crate) gateway: Arc<Namespace>,
    pub(crate) outside: Arc<Namespace>,
}

impl Path {
    /// Makes the machines and lays the cables; the gateway has no rules yet.
    pub(crate) fn build(run: &Run, name: &str) -> Result<Self> {
        let make = |host: &str| Namespace::create(&run.namespace_name(&format!("{name}-{host}")));
        let path = Self { inside: make("in")?, gateway: make("gw")?, outside: make("out")? };
        let Self { inside, gateway, outside } = &path;
        let peer = |namespace: &Namespace| namespace.name().to_owned();
        gateway.ip(&format!(
            "link add {LAN} address {lan} type veth peer name {LAN} address {client} netns {inside}\n\
             link add {WAN} address {wan} type veth peer name {WAN} address {internet} netns {outside}\n\
             addr add {GATEWAY_INSIDE}/24 dev {LAN}\n\
             addr add {GATEWAY_OUTSIDE}/24 dev {WAN}\n\
             link set {LAN} up\n\
             link set {WAN} up\n\
             neigh replace {CLIENT} lladdr {client} dev {LAN} nud permanent\n\
             neigh replace {INTERNET} lladdr {internet} dev {WAN} nud permanent\n\
             route add default via {INTERNET}\n",
            lan = link(GATEWAY_LINK),
            wan = link(GATEWAY_WAN_LINK),
            client = link(CLIENT_LINK),
            internet = link(INTERNET_LINK),
            inside = peer(inside),
            outside = peer(outside),
        ))?;
        inside.ip(&format!(
            "addr add {CLIENT}/24 dev {LAN}\n\
             link set {LAN} up\n\
             neigh replace {GATEWAY_INSIDE} lladdr {} dev {LAN} nud permanent\n\
             route add default via {GATEWAY_INSIDE}\n",
            link(GATEWAY_LINK)
        ))?;
        outside.ip(&format!(
            "addr add {INTERNET}/24 dev {WAN}\n\
             link set {WAN} up\n\
             neigh replace {GATEWAY_OUTSIDE} lladdr {} dev {WAN} nud permanent\n\
             route add local {LISTED_PREFIX} dev lo\n",
            link(GATEWAY_WAN_LINK)
        ))?;
        outside.sysctls(&[("net/ipv4/ip_nonlocal_bind", "1")])?;
        count_at_the_door(outside, &["-i", WAN, "-s", &GATEWAY_OUTSIDE.to_string()], "--dport")?;
        count_at_the_door(inside, &["-i", LAN, "-d", &CLIENT.to_string()], "--sport")?;
        Ok(path)
    }

    /// To be called when conntrack looks at the gateway's packets: before that it has no parameters.
    pub(crate) fn set_forwarding(&self) -> Result<()> {
        self.gateway.sysctls(&FORWARDING)
    }

    /// Counted packets that arrived in the internet so far, with the gateway's address as their source.
    pub(crate) fn delivered(&self) -> Result<u64> {
        counted(&self.outside)
    }

    /// Answers to those that arrived inside so far, at the address that asked.
    pub(crate) fn returned(&self) -> Result<u64> {
        counted(&self.inside)
    }
}

/// Counts and drops packets from (or to) the counted port before anything else looks at them.
fn count_at_the_door(host: &Arc<Namespace>, which: &[&str], side: &str) -> Result<()> {
    let mut command = host.command("iptables");
    command.args(["-w", "-t", "raw", "-A", "PREROUTING", "-p", "udp"]).args(which);
    shell::run(command.args([side, &COUNTED_PORT.to_string(), "-j", "DROP"]), "").map(drop)
}

fn counted(host: &Arc<Namespace>) -> Result<u64> {
    let mut command = host.command("iptables");
    let rules = shell::run(command.args(["-w", "-t", "raw", "-nvxL", "PREROUTING"]), "")?;
    // Two lines of head; a rule begins with its packets.
    let count = rules.lines().nth(2).and_then(|rule| rule.split_whitespace().next());
    count.with_context(|| format!("no rule counts: {rules}"))?.parse().context("a packet count")
}

fn link(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_list_has_no_address_twice_and_none_that_is_not_public() {
        let all = listed(100_000);
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        assert!(all.iter().all(|address| (20..22).contains(&address.octets()[0])));
        assert_eq!(listed(10), all[..10]);
    }
}
