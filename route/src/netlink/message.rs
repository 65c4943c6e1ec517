//! Routes and rules to and from rtnetlink messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use crate::desired::{Family, Hop, PROTOCOL, RouteKey, RouteKind, Rule};
use crate::plan::HeldRoute;

/// `RT_TABLE_UNSPEC`: the table stands in an attribute.
const TABLE_IN_ATTRIBUTE: u8 = 0;
/// What the kernel says when a rule suppresses nothing.
const NOTHING_SUPPRESSED: u32 = u32::MAX;

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn family_of(prefix: &IpNet) -> Family {
    Family::of(prefix.addr())
}

fn named(key: &RouteKey) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family_of(&key.prefix));
    message.header.destination_prefix_length = key.prefix.prefix_len();
    message.header.table = TABLE_IN_ATTRIBUTE;
    message.attributes.push(RouteAttribute::Table(key.table));
    message.attributes.push(RouteAttribute::Priority(key.metric));
    if key.prefix.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(key.prefix.network().into()));
    }
    message
}

pub(super) fn route(key: &RouteKey, kind: &RouteKind) -> RouteMessage {
    let mut message = named(key);
    message.header.protocol = RouteProtocol::from(PROTOCOL);
    message.header.scope = RouteScope::Universe;
    message.header.kind = match kind {
        RouteKind::Throw => RouteType::Throw,
        RouteKind::Unreachable => RouteType::Unreachable,
        RouteKind::Via(hop) => {
            message.attributes.push(RouteAttribute::Gateway(hop.gateway.into()));
            message.attributes.push(RouteAttribute::Oif(hop.device));
            RouteType::Unicast
        }
    };
    message
}

pub(super) fn removal(held: &HeldRoute) -> RouteMessage {
    let mut message = named(&held.key);
    message.header.protocol = RouteProtocol::from(held.protocol);
    message.header.kind = RouteType::from(held.rtm_type);
    message.header.tos = held.tos;
    // Any scope, as `ip route del` has it.
    message.header.scope = RouteScope::NoWhere;
    message
}

/// A dump of the routes in `table` (all tables for `None`) that `protocol` set (0: anybody).
pub(super) fn dump_filter(family: Family, table: Option<u32>, protocol: u8) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.header.protocol = RouteProtocol::from(protocol);
    message.attributes.extend(table.map(RouteAttribute::Table));
    message
}

pub(super) fn lookup(address: IpAddr, device: Option<u32>) -> RouteMessage {
    let mut message = RouteMessage::default();
    let prefix = IpNet::from(address);
    message.header.address_family = address_family(family_of(&prefix));
    message.header.destination_prefix_length = prefix.prefix_len();
    message.attributes.push(RouteAttribute::Destination(address.into()));
    message.attributes.extend(device.map(RouteAttribute::Oif));
    message
}

/// `None` for what is no entry of a table: cached exceptions, and families we do not know.
pub(super) fn held_route(message: &RouteMessage) -> Option<HeldRoute> {
    let header = &message.header;
    if header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let unspecified: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut table = u32::from(header.table);
    let (mut destination, mut metric, mut gateway, mut device, mut foreign) =
        (unspecified, 0, None, None, false);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Gateway(address) => gateway = Some(ip(address)?),
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::MultiPath(_) | RouteAttribute::Via(_) | RouteAttribute::NhId(_) => foreign = true,
            _ => {}
        }
    }
    let kind = match (header.kind, gateway, device) {
        _ if foreign => None,
        (RouteType::Throw, ..) => Some(RouteKind::Throw),
        (RouteType::Unreachable, ..) => Some(RouteKind::Unreachable),
        (RouteType::Unicast, Some(gateway), Some(device)) => Some(RouteKind::Via(Hop { gateway, device })),
        _ => None,
    };
    Some(HeldRoute {
        key: RouteKey {
            table,
            prefix: IpNet::new(destination, header.destination_prefix_length).ok()?,
            metric,
        },
        kind,
        protocol: header.protocol.into(),
        tos: header.tos,
        rtm_type: header.kind.into(),
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

pub(super) fn rule(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(rule.family);
    message.header.action = RuleAction::ToTable;
    message.header.table = TABLE_IN_ATTRIBUTE;
    message.attributes.push(RuleAttribute::Priority(rule.priority));
    message.attributes.push(RuleAttribute::Table(rule.table));
    message.attributes.push(RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
    if rule.not_default {
        message.attributes.push(RuleAttribute::SuppressPrefixLen(0));
    }
    message
}

/// The rule, and whether it is ours; `None` for rules unlike any of ours.
pub(super) fn held_rule(message: &RuleMessage) -> Option<(Rule, bool)> {
    let header = &message.header;
    let family = match header.family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return None,
    };
    let everybody = header.src_len == 0 && header.dst_len == 0 && header.tos == 0;
    if !everybody || header.action != RuleAction::ToTable || header.flags.contains(RuleFlags::Invert) {
        return None;
    }
    let mut rule = Rule { family, priority: 0, table: u32::from(header.table), not_default: false };
    let mut ours = false;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => rule.priority = *number,
            RuleAttribute::Table(number) => rule.table = *number,
            RuleAttribute::SuppressPrefixLen(NOTHING_SUPPRESSED) => {}
            RuleAttribute::SuppressPrefixLen(0) => rule.not_default = true,
            RuleAttribute::SuppressIfGroup(NOTHING_SUPPRESSED) => {}
            RuleAttribute::Protocol(protocol) => ours = u8::from(*protocol) == PROTOCOL,
            RuleAttribute::Other(_) => {}
            // A selector: the rule is not for all packets.
            _ => return None,
        }
    }
    Some((rule, ours))
}
