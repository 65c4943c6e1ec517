//! The routes and rules the kernel should hold, as data. Printed, they are `ip` commands.
//!
//! In a table of our own (the default):
//! - a rule looks into the main table first but passes over its default route, so that every network the host is
//!   connected to or has a route for stays as it was (container networks, public-looking ones included);
//! - the next rule looks into our table, where special-purpose space is thrown back to the main table and
//!   everything else goes to the gateway.
//!
//! In the main table (on request): one route for each public block, no rules.
//!
//! Either way a route to the gateway has an `unreachable` one with the worst metric under it: when the kernel drops
//! the first (a link goes down), traffic stops instead of finding another way out. A family without a gateway is
//! closed in the same way.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use allowlist::class;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::settings::Settings;

/// Marks every route and rule of ours (`rtm_protocol`, `FRA_PROTOCOL`); no routing daemon uses it
/// (`/etc/iproute2/rt_protos`).
pub const PROTOCOL: u8 = 77;
/// The kernel's main table.
pub const MAIN_TABLE: u32 = 254;
/// Metric of routes that decide.
pub const METRIC: u32 = 77;
/// Metric of the routes under them that close the way: the worst there is.
pub const LAST_METRIC: u32 = u32::MAX;

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of `address`.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// All addresses of the family.
    pub fn everything(self) -> IpNet {
        match self {
            Self::V4 => IpNet::V4(Ipv4Net::default()),
            Self::V6 => IpNet::V6(Ipv6Net::default()),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// What names a route in the kernel: two routes with the same key cannot stand beside each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// The table.
    pub table: u32,
    /// The destination.
    pub prefix: IpNet,
    /// Lower ones win.
    pub metric: u32,
}

/// What happens to packets for the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// No answer, and an error to the sender.
    Unreachable,
    /// On to the next rule.
    Throw,
    /// To a gateway.
    Via(Hop),
}

/// The way to a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hop {
    /// Its address.
    pub gateway: IpAddr,
    /// Index of the device it is behind.
    pub device: u32,
}

/// A policy rule of ours: look into `table`, and pass over its default route when `not_default`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// The family.
    pub family: Family,
    /// Lower ones are asked first.
    pub priority: u32,
    /// The table to look into.
    pub table: u32,
    /// `suppress_prefixlength 0`.
    pub not_default: bool,
}

/// Everything the kernel should hold of ours.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// Routes.
    pub routes: BTreeMap<RouteKey, RouteKind>,
    /// Rules, in the order of their priority.
    pub rules: Vec<Rule>,
}

impl Desired {
    /// What to hold for `families`, with the chosen way out of each; a family without one is closed.
    pub fn new(settings: &Settings, families: &[Family], hops: &BTreeMap<Family, Hop>) -> Self {
        let mut desired = Self::default();
        for &family in families {
            let hop = hops.get(&family).copied();
            if settings.main_table {
                for prefix in public(family) {
                    desired.send(MAIN_TABLE, prefix, hop);
                }
                continue;
            }
            let table = settings.table;
            desired.send(table, family.everything(), hop);
            for prefix in special(family) {
                desired.routes.insert(RouteKey { table, prefix, metric: METRIC }, RouteKind::Throw);
            }
            for prefix in public_inside_special(family) {
                desired.send(table, prefix, hop);
            }
            let priority = settings.rule_priority;
            desired.rules.push(Rule { family, priority, table: MAIN_TABLE, not_default: true });
            desired.rules.push(Rule { family, priority: priority + 1, table, not_default: false });
        }
        desired
    }

    fn send(&mut self, table: u32, prefix: IpNet, hop: Option<Hop>) {
        if let Some(hop) = hop {
            self.routes.insert(RouteKey { table, prefix, metric: METRIC }, RouteKind::Via(hop));
        }
        self.routes.insert(RouteKey { table, prefix, metric: LAST_METRIC }, RouteKind::Unreachable);
    }
}

fn special(family: Family) -> Vec<IpNet> {
    match family {
        Family::V4 => class::special_v4().into_iter().map(IpNet::V4).collect(),
        Family::V6 => class::special_v6().into_iter().map(IpNet::V6).collect(),
    }
}

fn public(family: Family) -> Vec<IpNet> {
    match family {
        Family::V4 => class::public_v4().into_iter().map(IpNet::V4).collect(),
        Family::V6 => class::public_v6().into_iter().chain([class::NAT64_PREFIX]).map(IpNet::V6).collect(),
    }
}

/// Blocks inside special ones whose addresses embed public v4 addresses: whether one may pass is the gateway's to say.
fn public_inside_special(family: Family) -> Vec<IpNet> {
    match family {
        Family::V4 => Vec::new(),
        Family::V6 => vec![IpNet::V6(class::TEREDO_PREFIX), IpNet::V6(class::NAT64_PREFIX)],
    }
}

/// A route in the words of `ip route`, without its table.
pub fn route_text(key: &RouteKey, kind: &RouteKind, device_name: &dyn Fn(u32) -> String) -> String {
    let prefix = match key.prefix.prefix_len() {
        0 => "default".to_owned(),
        _ => key.prefix.to_string(),
    };
    let head = match kind {
        RouteKind::Unreachable => format!("unreachable {prefix}"),
        RouteKind::Throw => format!("throw {prefix}"),
        RouteKind::Via(hop) => format!("{prefix} via {} dev {}", hop.gateway, device_name(hop.device)),
    };
    format!("{head} proto {PROTOCOL} metric {}", key.metric)
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pref {} lookup {}", self.priority, table_text(self.table))?;
        if self.not_default {
            f.write_str(" suppress_prefixlength 0")?;
        }
        write!(f, " protocol {PROTOCOL}")
    }
}

/// `ip`'s switch for a family.
pub fn family_switch(family: Family) -> &'static str {
    match family {
        Family::V4 => "-4",
        Family::V6 => "-6",
    }
}

/// A table's number, or the name of the main one.
pub fn table_text(table: u32) -> String {
    if table == MAIN_TABLE { "main".to_owned() } else { table.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::FileSettings;

    fn settings(main_table: bool) -> Settings {
        FileSettings { gateways: vec!["10.2.0.1".to_owned()], main_table, ..FileSettings::default() }
            .check()
            .unwrap()
    }

    fn hops() -> BTreeMap<Family, Hop> {
        BTreeMap::from([(Family::V4, Hop { gateway: "10.2.0.1".parse().unwrap(), device: 2 })])
    }

    #[test]
    fn our_table_throws_the_special_blocks_and_sends_the_rest_to_the_gateway() {
        let desired = Desired::new(&settings(false), &[Family::V4], &hops());
        let count =
            |wanted: fn(&RouteKind) -> bool| desired.routes.values().filter(|kind| wanted(kind)).count();
        assert_eq!(count(|kind| matches!(kind, RouteKind::Throw)), 15);
        assert_eq!(count(|kind| matches!(kind, RouteKind::Via(_))), 1);
        assert_eq!(count(|kind| matches!(kind, RouteKind::Unreachable)), 1);
        assert_eq!(desired.rules.len(), 2);
    }

    #[test]
    fn the_main_table_gets_116_blocks_each_with_a_closed_way_under_it() {
        let desired = Desired::new(&settings(true), &[Family::V4], &hops());
        assert_eq!(desired.routes.len(), 2 * 116);
        assert!(desired.rules.is_empty());
    }

    #[test]
    fn a_family_without_a_gateway_is_closed() {
        for main_table in [false, true] {
            let desired = Desired::new(&settings(main_table), &Family::ALL, &hops());
            let v6 = desired.routes.iter().filter(|(key, _)| matches!(key.prefix, IpNet::V6(_)));
            assert!(v6.clone().all(|(_, kind)| !matches!(kind, RouteKind::Via(_))));
            assert!(v6.clone().any(|(_, kind)| *kind == RouteKind::Unreachable));
        }
    }
}
