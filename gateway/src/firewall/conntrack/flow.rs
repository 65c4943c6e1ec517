//! One flow as conntrack tells it. Whatever arrives, reading it ends and does not panic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::firewall::covering::Place;
use crate::firewall::ipset::Counters;
use crate::firewall::netlink::attribute::{Attribute, Attributes};

// `CTA_*`.
pub(super) const TUPLE_ORIG: u16 = 1;
pub(super) const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
pub(super) const COUNTERS_ORIG: u16 = 9;
pub(super) const COUNTERS_REPLY: u16 = 10;
pub(super) const ID: u16 = 12;
pub(super) const ZONE: u16 = 18;
// `CTA_TUPLE_*`.
pub(super) const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
// `CTA_IP_*`.
pub(super) const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
pub(super) const IP_V6_SRC: u16 = 3;
const IP_V6_DST: u16 = 4;
// `CTA_PROTO_*`.
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
// `CTA_COUNTERS_*`.
const COUNTERS_PACKETS: u16 = 1;
const COUNTERS_BYTES: u16 = 2;
/// `IPS_DYING` of `linux/netfilter/nf_conntrack_common.h`: it is being taken out of the table, and its end was told.
const STATUS_DYING: u32 = 1 << 9;

/// A flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::firewall) struct Flow {
    /// Who began it.
    pub(in crate::firewall) source: IpAddr,
    /// Where it really goes, after any translation of the destination: what rules in FORWARD see.
    pub(in crate::firewall) destination: IpAddr,
    /// IP protocol number.
    pub(in crate::firewall) protocol: u8,
    /// Destination port; 0 where the protocol has none.
    pub(in crate::firewall) port: u16,
    /// True when replies go to another address than the one it began from: the source is hidden.
    pub(in crate::firewall) hides_source: bool,
    /// Counted towards the destination and back; `None` when the kernel did not count this flow.
    pub(in crate::firewall) counted: Option<(Counters, Counters)>,
    /// Its end was told already, although it is still listed.
    pub(in crate::firewall) dying: bool,
    /// What the kernel knows it by, as it wrote it.
    pub(super) key: Key,
}

/// What a deletion names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::firewall) struct Key {
    pub(super) tuple: Vec<u8>,
    /// Tells it from a later flow with the same addresses.
    pub(super) id: Vec<u8>,
    pub(super) zone: Option<Vec<u8>>,
}

/// One direction of a flow.
struct Tuple {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    source_port: u16,
}

impl Flow {
    /// True for one that is tracked apart from the traffic of this machine.
    pub(in crate::firewall) fn in_other_zone(&self) -> bool {
        self.key.zone.as_ref().is_some_and(|zone| zone.iter().any(|byte| *byte != 0))
    }

    /// Tells it from every other flow, earlier and later ones included.
    pub(in crate::firewall) const fn identity(&self) -> &Key {
        &self.key
    }

    /// Where it goes.
    pub(in crate::firewall) fn place(&self) -> Place {
        Place { address: self.destination, protocol: self.protocol, port: self.port }
    }

    /// Reads a message of a dump; `None` for one without both directions.
    pub(super) fn read(attributes: Attributes<'_>) -> Option<Self> {
        let key = attributes.find(TUPLE_ORIG)?;
        let there = read_tuple(&key)?;
        let back = read_tuple(&attributes.find(TUPLE_REPLY)?)?;
        let counted = (attributes.find(COUNTERS_ORIG).and_then(|counters| read_counters(&counters)))
            .zip(attributes.find(COUNTERS_REPLY).and_then(|counters| read_counters(&counters)));
        Some(Self {
            source: there.source,
            destination: back.source,
            protocol: there.protocol,
            port: back.source_port,
            hides_source: back.destination != there.source,
            counted,
            dying: (attributes.find(STATUS).and_then(|status| status.as_u32_network()))
                .is_some_and(|status| status & STATUS_DYING != 0),
            key: Key {
                tuple: key.value.to_vec(),
                id: attributes.find(ID)?.value.to_vec(),
                zone: attributes.find(ZONE).map(|zone| zone.value.to_vec()),
            },
        })
    }
}

#[cfg(test)]
impl Flow {
    /// A UDP flow to port 9, told from others by `number`.
    pub(in crate::firewall) fn for_tests(
        source: IpAddr,
        destination: IpAddr,
        number: u16,
        counted: Option<(Counters, Counters)>,
    ) -> Self {
        let key = Key { tuple: Vec::new(), id: number.to_be_bytes().to_vec(), zone: None };
        Self { source, destination, protocol: 17, port: 9, hides_source: true, counted, dying: false, key }
    }
}

fn read_tuple(attribute: &Attribute<'_>) -> Option<Tuple> {
    let ip = attribute.nested().find(TUPLE_IP)?.nested();
    let proto = attribute.nested().find(TUPLE_PROTO)?.nested();
    let (source, destination) = match (ip.find(IP_V4_SRC), ip.find(IP_V4_DST)) {
        (Some(source), Some(destination)) => (v4(&source)?, v4(&destination)?),
        _ => (v6(&ip.find(IP_V6_SRC)?)?, v6(&ip.find(IP_V6_DST)?)?),
    };
    Some(Tuple {
        source,
        destination,
        protocol: proto.find(PROTO_NUM)?.as_u8()?,
        source_port: proto.find(PROTO_SRC_PORT).and_then(|port| port.as_u16_network()).unwrap_or(0),
    })
}

fn read_counters(attribute: &Attribute<'_>) -> Option<Counters> {
    Some(Counters {
        packets: attribute.nested().find(COUNTERS_PACKETS)?.as_u64_network()?,
        bytes: attribute.nested().find(COUNTERS_BYTES)?.as_u64_network()?,
    })
}

fn v4(attribute: &Attribute<'_>) -> Option<IpAddr> {
    attribute.value.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets).into())
}

fn v6(attribute: &Attribute<'_>) -> Option<IpAddr> {
    attribute.value.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_flow_of_another_zone_is_told_from_one_of_this_machine() {
        let address = IpAddr::from([8, 8, 8, 8]);
        let of_zone = |zone: Option<[u8; 2]>| Flow {
            source: address,
            destination: address,
            protocol: 6,
            port: 443,
            hides_source: true,
            counted: None,
            dying: false,
            key: Key { tuple: Vec::new(), id: Vec::new(), zone: zone.map(Vec::from) },
        };
        assert!(!of_zone(None).in_other_zone() && !of_zone(Some([0, 0])).in_other_zone());
        assert!(of_zone(Some([0, 9])).in_other_zone());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Flow::read(Attributes(&bytes));
        }
    }
}
