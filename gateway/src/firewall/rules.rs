//! The text of our chains: a constant number of rules, whatever the length of the list.
//!
//! - `--ctdir` needs no interface names, skips the useless lookup, and a packet without a connection (INVALID) matches
//!   neither direction, so that it falls to the drop.
//! - ESTABLISHED on replies forbids connections inwards.
//! - A set match counts even when a later match of its rule fails, hence it stands last; NAT must not count again.

use ipnet::IpNet;

use super::layout::{Family, PAIRS, PairLayout, Scope};

/// Our chain in `filter`, reached from FORWARD.
pub(super) const FORWARD_CHAIN: &str = "OG-FORWARD";
/// Our chain in `nat`, reached from POSTROUTING.
pub(super) const NAT_CHAIN: &str = "OG-NAT";

/// One of the two chains we own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chain {
    Forward,
    Nat,
}

impl Chain {
    /// In the order of installing: the drop first.
    pub(super) const BOTH: [Self; 2] = [Self::Forward, Self::Nat];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Forward => FORWARD_CHAIN,
            Self::Nat => NAT_CHAIN,
        }
    }

    pub(super) const fn table(self) -> &'static str {
        match self {
            Self::Forward => "filter",
            Self::Nat => "nat",
        }
    }

    /// The built-in chain that jumps to it.
    pub(super) const fn parent(self) -> &'static str {
        match self {
            Self::Forward => "FORWARD",
            Self::Nat => "POSTROUTING",
        }
    }

    /// The rules of the chain, each as `iptables -S` prints it after `-A <chain> `.
    pub(super) fn body(self, family: Family) -> Vec<String> {
        match self {
            Self::Forward => forward_body(family),
            Self::Nat => nat_body(family),
        }
    }

    /// The rules of the chain while its sets are not usable: nothing passes.
    pub(super) fn closed_body(self) -> Vec<String> {
        match self {
            Self::Forward => vec!["-j DROP".into()],
            Self::Nat => Vec::new(),
        }
    }

    /// The rules that lead into the chain, in their order at the head of [`Self::parent`].
    pub(super) fn jumps(self, family: Family, internal_cidrs: &[IpNet]) -> Vec<String> {
        let name = self.name();
        let cidrs = internal_cidrs.iter().filter(|cidr| Family::of(cidr) == family).map(IpNet::trunc);
        let mut jumps: Vec<String> = cidrs
            .flat_map(|cidr| match self {
                // Replies have lost their NAT before FORWARD, hence they carry the client's address there.
                Self::Forward => vec![format!("-s {cidr} -j {name}"), format!("-d {cidr} -j {name}")],
                Self::Nat => vec![format!("-s {cidr} -j {name}")],
            })
            .collect();
        if jumps.is_empty() {
            jumps.push(format!("-j {name}"));
        }
        jumps
    }
}

/// Input of `iptables-restore --noflush` that replaces the chain's body in one transaction.
pub(super) fn restore_script(chain: Chain, body: &[String]) -> String {
    let name = chain.name();
    let mut script = format!("*{}\n:{name} - [0:0]\n-F {name}\n", chain.table());
    for rule in body {
        script.push_str("-A ");
        script.push_str(name);
        script.push(' ');
        script.push_str(rule);
        script.push('\n');
    }
    script.push_str("COMMIT\n");
    script
}

fn forward_body(family: Family) -> Vec<String> {
    let mut body = Vec::new();
    for pair in pairs_in_front_first(family) {
        let PairLayout { out, .. } = pair;
        let sides = sides(pair.scope, "dst");
        body.push(format!("-m conntrack --ctdir ORIGINAL -m set --match-set {out} {sides} -j ACCEPT"));
    }
    for pair in pairs_in_front_first(family) {
        let PairLayout { back, .. } = pair;
        let sides = sides(pair.scope, "src");
        body.push(format!(
            "-m conntrack --ctstate ESTABLISHED --ctdir REPLY -m set --match-set {back} {sides} -j ACCEPT"
        ));
    }
    // Errors about a flow come from routers on the path, which no list names; without them path MTU discovery breaks.
    let icmp = match family {
        Family::V4 => "icmp",
        Family::V6 => "ipv6-icmp",
    };
    body.push(format!("-p {icmp} -m conntrack --ctstate RELATED -j ACCEPT"));
    // The log of denied packets belongs here: everything below is denied.
    body.push("-j DROP".into());
    body
}

fn nat_body(family: Family) -> Vec<String> {
    pairs_in_front_first(family)
        .map(|pair| {
            let PairLayout { out, .. } = pair;
            let sides = sides(pair.scope, "dst");
            format!(
                "-m conntrack --ctdir ORIGINAL -m set --match-set {out} {sides} ! --update-counters -j MASQUERADE"
            )
        })
        .collect()
}

/// Port-scoped first, so that traffic of a narrow element is counted on it and not on a wide one beside it.
fn pairs_in_front_first(family: Family) -> impl Iterator<Item = &'static PairLayout> {
    PAIRS.iter().rev().filter(move |pair| pair.family == family)
}

fn sides(scope: Scope, side: &str) -> String {
    match scope {
        Scope::Prefix => side.to_owned(),
        Scope::Port => format!("{side},{side}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forward_chain_ends_in_the_drop_and_accepts_only_by_set_or_related_icmp() {
        for family in Family::BOTH {
            let body = Chain::Forward.body(family);
            assert_eq!(body.len(), 6);
            assert_eq!(body.last().unwrap(), "-j DROP");
            for rule in &body[..4] {
                assert!(rule.contains("--ctdir"), "{rule}");
                let after_set = rule.split("--match-set ").nth(1).unwrap();
                assert_eq!(after_set.split(' ').nth(2), Some("-j"), "the set match stands last: {rule}");
            }
        }
    }

    #[test]
    fn the_v4_scripts_are_exactly_these() {
        assert_eq!(
            restore_script(Chain::Forward, &Chain::Forward.body(Family::V4)),
            "*filter\n\
             :OG-FORWARD - [0:0]\n\
             -F OG-FORWARD\n\
             -A OG-FORWARD -m conntrack --ctdir ORIGINAL -m set --match-set og4op dst,dst -j ACCEPT\n\
             -A OG-FORWARD -m conntrack --ctdir ORIGINAL -m set --match-set og4o dst -j ACCEPT\n\
             -A OG-FORWARD -m conntrack --ctstate ESTABLISHED --ctdir REPLY -m set --match-set og4ip src,src -j ACCEPT\n\
             -A OG-FORWARD -m conntrack --ctstate ESTABLISHED --ctdir REPLY -m set --match-set og4i src -j ACCEPT\n\
             -A OG-FORWARD -p icmp -m conntrack --ctstate RELATED -j ACCEPT\n\
             -A OG-FORWARD -j DROP\n\
             COMMIT\n"
        );
        assert_eq!(
            restore_script(Chain::Nat, &Chain::Nat.body(Family::V4)),
            "*nat\n\
             :OG-NAT - [0:0]\n\
             -F OG-NAT\n\
             -A OG-NAT -m conntrack --ctdir ORIGINAL -m set --match-set og4op dst,dst ! --update-counters -j MASQUERADE\n\
             -A OG-NAT -m conntrack --ctdir ORIGINAL -m set --match-set og4o dst ! --update-counters -j MASQUERADE\n\
             COMMIT\n"
        );
    }

    #[test]
    fn jumps_narrow_to_the_internal_networks_of_the_family_and_never_vanish() {
        let cidrs = ["10.0.0.0/8".parse().unwrap()];
        assert_eq!(
            Chain::Forward.jumps(Family::V4, &cidrs),
            ["-s 10.0.0.0/8 -j OG-FORWARD", "-d 10.0.0.0/8 -j OG-FORWARD"]
        );
        assert_eq!(Chain::Nat.jumps(Family::V4, &cidrs), ["-s 10.0.0.0/8 -j OG-NAT"]);
        assert_eq!(Chain::Forward.jumps(Family::V6, &cidrs), ["-j OG-FORWARD"]);
        assert_eq!(Chain::Nat.jumps(Family::V4, &[]), ["-j OG-NAT"]);
    }
}
