//! Guarding the gateway's own host: who may speak to it, and whom it may speak to.
//!
//! What is let in are answers, the networks it is managed from, and what IP itself needs; what is let out are answers, those
//! networks, and what the servers published. Everything else ends here. A packet that is let through goes back to whatever
//! rules the machine has besides.

use ipnet::IpNet;

use super::layout::{Family, PAIRS};
use super::rules::{Deny, sides};

/// Who the host may speak with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostGuard {
    /// Networks it is managed from, and in which its servers, name servers and monitoring are.
    pub management: Vec<IpNet>,
}

impl HostGuard {
    pub(super) fn input(&self, family: Family) -> Vec<String> {
        let mut body =
            vec!["-i lo -j RETURN".into(), "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN".into()];
        body.extend(self.management_of(family).map(|network| format!("-s {network} -j RETURN")));
        if family == Family::V4 {
            // Route agents ask in this way whether the gateway is alive.
            body.push("-p icmp -m icmp --icmp-type 8 -j RETURN".into());
        }
        if family == Family::V6 {
            // Without it there are no neighbours and no routers.
            body.push("-p ipv6-icmp -j RETURN".into());
            body.push("-p udp -m udp --sport 547 --dport 546 -j RETURN".into());
        }
        body.push("-j DROP".into());
        body
    }

    pub(super) fn output(&self, family: Family, deny: Deny) -> Vec<String> {
        let mut body = self.always_out(family);
        for pair in PAIRS.iter().rev().filter(|pair| pair.family == family) {
            let sides = sides(pair.scope, "dst");
            // The counters are those of the clients.
            body.push(format!("-m set --match-set {} {sides} ! --update-counters -j RETURN", pair.out));
        }
        body.push(match (deny, family) {
            (Deny::Drop, _) => "-j DROP".into(),
            (Deny::Reject, Family::V4) => "-j REJECT --reject-with icmp-admin-prohibited".into(),
            (Deny::Reject, Family::V6) => "-j REJECT --reject-with icmp6-adm-prohibited".into(),
        });
        body
    }

    /// The way out while the sets are not usable.
    pub(super) fn closed_output(&self, family: Family) -> Vec<String> {
        let mut body = self.always_out(family);
        body.push("-j DROP".into());
        body
    }

    /// What is let out whatever is published.
    fn always_out(&self, family: Family) -> Vec<String> {
        let mut body = vec![
            "-o lo -j RETURN".to_owned(),
            // Not what this host began itself: a revocation has to bite here too.
            "-m conntrack --ctstate ESTABLISHED --ctdir REPLY -j RETURN".into(),
            "-m conntrack --ctstate RELATED -j RETURN".into(),
        ];
        body.extend(self.management_of(family).map(|network| format!("-d {network} -j RETURN")));
        match family {
            Family::V4 => body.push("-p udp -m udp --sport 68 --dport 67 -j RETURN".into()),
            Family::V6 => {
                body.push("-p ipv6-icmp -j RETURN".into());
                body.push("-p udp -m udp --sport 546 --dport 547 -j RETURN".into());
            }
        }
        body
    }

    fn management_of(&self, family: Family) -> impl Iterator<Item = IpNet> {
        self.management.iter().filter(move |network| Family::of(network) == family).map(IpNet::trunc)
    }
}
