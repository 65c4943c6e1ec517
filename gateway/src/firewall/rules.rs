//! The text of our chains: a constant number of rules, whatever the length of the list, and none for pairs of sets that
//! hold nothing ([`InUse`]).
//!
//! - `--ctdir` needs no interface names, skips the useless lookup, and a packet without a connection (INVALID) matches
//!   neither direction, so that it falls to the drop.
//! - ESTABLISHED on replies forbids connections inwards.
//! - A set match counts even when a later match of its rule fails, hence it stands last; NAT must not count again.
//! - NAT asks the replies' sets, which keep a member until every packet that FORWARD let through on its behalf is gone,
//!   and the others behind them, for the case that somebody took it out of the replies' sets.
//! - A part of what is denied is logged for people, before its end: so many packets in all, and so many for each source.
//! - A packet that is denied is answered: whoever is behind a gateway of their own company is told at once, instead of
//!   waiting for time-outs. The limit keeps a scan from being answered at its own pace.

use allowlist::class;
use clap::ValueEnum;
use ipnet::IpNet;
use serde::Deserialize;

use super::denial_log::{COPIED_BYTES, DEFAULT_LOG_GROUP, PREFIX};
use super::egress::Egress;
use super::in_use::InUse;
use super::layout::{CUT_SETS, DENY_SETS, Family, KernelOptions, PairLayout, Scope};

/// Answers to denied packets, per second and at once, for each family.
const REJECT_LIMIT: &str = "--limit 200/sec --limit-burst 400";

/// Denied packets that are logged, per second and at once, for each family: what reading them may cost.
const LOG_LIMIT: &str = "--limit 200/sec --limit-burst 400";
/// … and of these for each source, so that one that scans does not hide the others.
const LOG_LIMIT_PER_SOURCE: &str = "--hashlimit-upto 10/sec --hashlimit-burst 40 --hashlimit-mode srcip";
/// Sources that the kernel tells apart, and how long it remembers a silent one, milliseconds. Packets of sources beyond
/// them are dropped by the match itself.
const LOG_SOURCES: &str =
    "--hashlimit-name og-deny --hashlimit-htable-max 65536 --hashlimit-htable-expire 10000";
/// Packets in the middle of unlisted connections that an audit logs, per second and at once, for each family: connections
/// from before it are seen, and long ones do not hide new ones.
const LOG_LIMIT_UNDER_WAY: &str = "--limit 20/sec --limit-burst 40";

/// Whether what is not listed is kept from passing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It is.
    #[default]
    Enforce,
    /// It passes, and is counted.
    Audit,
}

/// What becomes of a packet that is not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deny {
    /// It is dropped, and its sender told that this is administratively prohibited (ICMP type 3 code 13, RFC 1812; ICMPv6
    /// type 1 code 1, RFC 4443), as long as not too many are.
    #[default]
    Reject,
    /// It is dropped.
    Drop,
}

/// What the rules do with what is not listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Whether it passes.
    pub mode: Mode,
    /// What becomes of it when it does not.
    pub deny: Deny,
    /// The kernel's log group that a part of it goes to; none without a log.
    pub log_group: Option<u16>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { mode: Mode::default(), deny: Deny::default(), log_group: Some(DEFAULT_LOG_GROUP) }
    }
}

/// Our chain in `filter`, reached from FORWARD.
pub(super) const FORWARD_CHAIN: &str = "OG-FORWARD";
/// Our chain in `nat`, reached from POSTROUTING.
pub(super) const NAT_CHAIN: &str = "OG-NAT";

/// Our chains that guard the machine itself, reached from INPUT and OUTPUT.
pub(super) const INPUT_CHAIN: &str = "OG-INPUT";
/// See [`INPUT_CHAIN`].
pub(super) const OUTPUT_CHAIN: &str = "OG-OUTPUT";

/// One of the chains we own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chain {
    Forward,
    Nat,
    Input,
    Output,
}

impl Chain {
    /// In the order of installing: the drop first.
    pub(super) const BOTH: [Self; 2] = [Self::Forward, Self::Nat];
    /// Those that guard the machine itself.
    pub(super) const HOST: [Self; 2] = [Self::Input, Self::Output];
    /// All of them, in the order of removing.
    pub(super) const ALL: [Self; 4] = [Self::Input, Self::Output, Self::Forward, Self::Nat];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Forward => FORWARD_CHAIN,
            Self::Nat => NAT_CHAIN,
            Self::Input => INPUT_CHAIN,
            Self::Output => OUTPUT_CHAIN,
        }
    }

    pub(super) const fn table(self) -> &'static str {
        match self {
            Self::Forward | Self::Input | Self::Output => "filter",
            Self::Nat => "nat",
        }
    }

    /// The built-in chain that jumps to it.
    pub(super) const fn parent(self) -> &'static str {
        match self {
            Self::Forward => "FORWARD",
            Self::Nat => "POSTROUTING",
            Self::Input => "INPUT",
            Self::Output => "OUTPUT",
        }
    }

    /// The rules of the chain, each as `iptables -S` prints it after `-A <chain> `.
    pub(super) fn body(self, family: Family, options: &KernelOptions, in_use: InUse) -> Vec<String> {
        let KernelOptions { policy, egress, guard, .. } = options;
        match (self, guard) {
            (Self::Forward, _) => forward_body(family, *policy, egress, in_use),
            (Self::Nat, _) => nat_body(family, policy.mode, egress, in_use),
            (Self::Input, Some(guard)) => guard.input(family),
            (Self::Output, Some(guard)) => guard.output(family, policy.deny),
            (Self::Input | Self::Output, None) => Vec::new(),
        }
    }

    /// The rules of the chain while its sets are not usable: nothing passes, except where nothing is ever blocked.
    pub(super) fn closed_body(self, family: Family, options: &KernelOptions) -> Vec<String> {
        match (self, &options.guard) {
            (Self::Forward, _) => closed_forward_body(options.policy.mode),
            (Self::Input, Some(guard)) => guard.input(family),
            (Self::Output, Some(guard)) => guard.closed_output(family),
            _ => Vec::new(),
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
                Self::Input | Self::Output => Vec::new(),
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

/// The rules of [`Chain::Forward`] while its sets are not usable.
pub(super) fn closed_forward_body(mode: Mode) -> Vec<String> {
    match mode {
        Mode::Enforce => vec!["-j DROP".into()],
        Mode::Audit => Vec::new(),
    }
}

fn forward_body(family: Family, policy: Policy, egress: &Egress, in_use: InUse) -> Vec<String> {
    let way_out = egress.out();
    let mut body = Vec::new();
    if policy.mode == Mode::Enforce {
        // Only looked up for what would begin a connection in its middle. It is denied, and counted as such; people are told
        // of the cut itself.
        let (cut, deny) = (CUT_SETS[family as usize], DENY_SETS[family as usize]);
        body.push(format!(
            "-p tcp -m conntrack --ctstate NEW -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN \
             -m set --match-set {cut} dst -m set --match-set {deny} dst -j DROP"
        ));
    }
    for PairLayout { scope, out, .. } in in_use.passing_of(family) {
        let sides = sides(*scope, "dst");
        body.push(format!(
            "{way_out}-m conntrack --ctdir ORIGINAL -m set --match-set {out} {sides} -j ACCEPT"
        ));
    }
    body.extend(replies(in_use.passing_of(family), egress));
    for PairLayout { scope, out, .. } in in_use.draining_of(family) {
        let sides = sides(*scope, "dst");
        body.push(format!(
            "{way_out}-m conntrack --ctstate ESTABLISHED --ctdir ORIGINAL -m set --match-set {out} {sides} -j ACCEPT"
        ));
    }
    body.extend(replies(in_use.draining_of(family), egress));
    // Errors about a flow come from routers on the path, which no list names; without them path MTU discovery breaks.
    let (icmp, prohibited) = match family {
        Family::V4 => ("icmp", "icmp-admin-prohibited"),
        Family::V6 => ("ipv6-icmp", "icmp6-adm-prohibited"),
    };
    body.push(format!("-p {icmp} -m conntrack --ctstate RELATED -j ACCEPT"));
    // Everything below is denied. It is counted first, by a set of every address.
    body.push(format!("-m set --match-set {} dst", DENY_SETS[family as usize]));
    body.extend(policy.log_group.into_iter().flat_map(|group| log(policy.mode, group)));
    match policy {
        Policy { mode: Mode::Audit, .. } => body.push("-j RETURN".into()),
        Policy { mode: Mode::Enforce, deny, .. } => {
            // Not for packets without a connection: an answer could end one that is none of theirs.
            if deny == Deny::Reject {
                body.push(format!(
                    "-m conntrack --ctdir ORIGINAL -m limit {REJECT_LIMIT} -j REJECT --reject-with {prohibited}"
                ));
            }
            body.push("-j DROP".into());
        }
    }
    body
}

/// Rules that log what comes to them, within bounds. Answers are left out: they show the same flow the wrong way round.
fn log(mode: Mode, group: u16) -> Vec<String> {
    let target =
        format!("-j NFLOG --nflog-prefix {PREFIX} --nflog-group {group} --nflog-size {COPIED_BYTES}");
    match mode {
        Mode::Enforce => vec![format!(
            "-m conntrack --ctdir ORIGINAL -m hashlimit {LOG_LIMIT_PER_SOURCE} {LOG_SOURCES} -m limit {LOG_LIMIT} {target}"
        )],
        // Without the limit for each source, which drops packets once it knows too many of them.
        Mode::Audit => vec![
            format!("-m conntrack --ctstate NEW -m limit {LOG_LIMIT} {target}"),
            format!(
                "-m conntrack --ctstate RELATED,ESTABLISHED --ctdir ORIGINAL -m limit {LOG_LIMIT_UNDER_WAY} {target}"
            ),
        ],
    }
}

fn replies(
    pairs: impl Iterator<Item = &'static PairLayout>,
    egress: &Egress,
) -> impl Iterator<Item = String> {
    let way_back = egress.back();
    pairs.map(move |PairLayout { scope, back, .. }| {
        let sides = sides(*scope, "src");
        format!(
            "{way_back}-m conntrack --ctstate ESTABLISHED --ctdir REPLY -m set --match-set {back} {sides} -j ACCEPT"
        )
    })
}

fn nat_body(family: Family, mode: Mode, egress: &Egress, in_use: InUse) -> Vec<String> {
    let (way_out, hide) = (egress.out(), egress.hide(family));
    let back = in_use.passing_of(family).map(|pair| (pair.scope, pair.back));
    let out = in_use.passing_of(family).map(|pair| (pair.scope, pair.out));
    let mut body: Vec<String> = back
        .chain(out)
        .map(|(scope, set)| {
            let sides = sides(scope, "dst");
            format!(
                "{way_out}-m conntrack --ctdir ORIGINAL -m set --match-set {set} {sides} ! --update-counters -j {hide}"
            )
        })
        .collect();
    if mode == Mode::Audit {
        // What is not listed passes, and would not work with its private source. Neither networks inside nor this
        // machine's own traffic need that.
        let special: Vec<IpNet> = match family {
            Family::V4 => class::special_v4().into_iter().map(IpNet::from).collect(),
            Family::V6 => class::special_v6().into_iter().map(IpNet::from).collect(),
        };
        body.extend(special.iter().map(|range| format!("-d {range} -j RETURN")));
        body.push(format!("{way_out}-m addrtype ! --src-type LOCAL -j {hide}"));
    }
    body
}

pub(super) fn sides(scope: Scope, side: &str) -> String {
    match scope {
        Scope::Prefix => side.to_owned(),
        Scope::Port => format!("{side},{side}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::HostGuard;

    const ENFORCE: Policy =
        Policy { mode: Mode::Enforce, deny: Deny::Reject, log_group: Some(DEFAULT_LOG_GROUP) };

    fn with(policy: Policy) -> KernelOptions {
        KernelOptions { policy, ..KernelOptions::default() }
    }

    #[test]
    fn nothing_passes_or_is_hidden_but_through_the_interface_that_leads_out() {
        let snat = vec!["203.0.114.7-203.0.114.9".parse().unwrap()];
        let egress = Egress { interface: Some("eth1".parse().unwrap()), snat };
        let options = KernelOptions { egress, ..with(ENFORCE) };
        for family in Family::BOTH {
            for rule in Chain::Forward.body(family, &options, InUse::ALL) {
                let accepts_by_set = rule.contains("--match-set") && rule.ends_with("ACCEPT");
                let way = if rule.contains("REPLY") { "-i eth1 " } else { "-o eth1 " };
                assert_eq!(accepts_by_set, rule.starts_with(way), "{rule}");
            }
        }
        assert!(Chain::Nat.body(Family::V4, &options, InUse::ALL).iter().all(|rule| {
            rule.starts_with("-o eth1 ") && rule.ends_with("-j SNAT --to-source 203.0.114.7-203.0.114.9")
        }));
        assert!(
            Chain::Nat
                .body(Family::V6, &options, InUse::ALL)
                .iter()
                .all(|rule| rule.ends_with("-j MASQUERADE"))
        );
    }

    #[test]
    fn a_guarded_host_lets_nobody_in_but_answers_and_those_who_manage_it() {
        let management = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let options = KernelOptions { guard: Some(HostGuard { management }), ..with(ENFORCE) };
        let input = Chain::Input.body(Family::V4, &options, InUse::ALL);
        assert_eq!(input[2], "-s 10.0.0.0/8 -j RETURN");
        assert_eq!(input.last().unwrap(), "-j DROP");
        let output = Chain::Output.body(Family::V6, &options, InUse::ALL);
        assert!(
            output.contains(&"-d fd00::/8 -j RETURN".to_owned()) && output.last().unwrap().contains("REJECT")
        );
        let closed = Chain::Output.closed_body(Family::V6, &options);
        assert!(
            closed.iter().all(|rule| !rule.contains("--match-set")) && closed.last().unwrap() == "-j DROP"
        );
    }

    #[test]
    fn the_forward_chain_ends_in_the_drop_and_accepts_only_by_set_or_related_icmp() {
        for family in Family::BOTH {
            for deny in [Deny::Reject, Deny::Drop] {
                let body = Chain::Forward.body(family, &with(Policy { deny, ..ENFORCE }), InUse::ALL);
                assert_eq!(body.last().unwrap(), "-j DROP");
                assert_eq!(body.iter().any(|rule| rule.contains("REJECT")), deny == Deny::Reject);
                for rule in body.iter().filter(|rule| rule.ends_with("ACCEPT") && !rule.contains("RELATED")) {
                    assert!(rule.contains("--ctdir"), "{rule}");
                    let after_set = rule.split("--match-set ").nth(1).unwrap();
                    assert_eq!(after_set.split(' ').nth(2), Some("-j"), "the set match stands last: {rule}");
                }
            }
        }
    }

    #[test]
    fn an_audit_blocks_nothing() {
        for family in Family::BOTH {
            let policy = Policy { mode: Mode::Audit, ..ENFORCE };
            let rules = Chain::Forward.body(family, &with(policy), InUse::ALL);
            assert!(rules.iter().all(|rule| !rule.contains("DROP") && !rule.contains("REJECT")), "{rules:?}");
            assert_eq!(rules.last().unwrap(), "-j RETURN");
        }
    }

    #[test]
    fn what_is_logged_is_bounded_and_goes_to_the_group_or_nowhere() {
        for family in Family::BOTH {
            for mode in [Mode::Enforce, Mode::Audit] {
                let policy = |log_group| Policy { mode, deny: Deny::Reject, log_group };
                let logs: Vec<_> = Chain::Forward.body(family, &with(policy(Some(7))), InUse::ALL);
                let logs: Vec<_> = logs.iter().filter(|rule| rule.contains("NFLOG")).collect();
                assert!(!logs.is_empty());
                for rule in logs {
                    assert!(rule.contains("-m limit ") && rule.contains("--nflog-group 7 "), "{rule}");
                    // A full table drops packets, which an audit must not.
                    assert_eq!(rule.contains("hashlimit"), mode == Mode::Enforce, "{rule}");
                }
                let silent = Chain::Forward.body(family, &with(policy(None)), InUse::ALL);
                assert!(!silent.iter().any(|rule| rule.contains("NFLOG") || rule.contains("hashlimit")));
            }
        }
    }

    #[test]
    fn the_v4_scripts_are_exactly_these() {
        let script =
            |chain: Chain| restore_script(chain, &chain.body(Family::V4, &with(ENFORCE), InUse::ALL));
        assert_eq!(script(Chain::Forward), include_str!("rules_forward.golden"));
        assert_eq!(script(Chain::Nat), include_str!("rules_nat.golden"));
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
