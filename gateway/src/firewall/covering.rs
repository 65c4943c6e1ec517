//! Which element lets a packet pass: the one whose counters count it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use allowlist::{Element, PortRange, Protocol};
use ipnet::IpNet;

/// Where a flow goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// Its destination.
    pub address: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; 0 where the protocol has none.
    pub port: u16,
}

/// The element of `elements` that lets packets to `place` pass. As in our rules those with ports stand in front, and
/// among each kind the longest prefix counts.
///
/// Steps from candidate to candidate, so that it costs a few look-ups however long the list: whatever covers the
/// address and is not the element before it in order, covers that element's address too.
pub fn most_specific(elements: &BTreeSet<Element>, place: Place) -> Option<Element> {
    let mut whole = None;
    let mut before = (Element::new(place.address.into(), last_ports()), true);
    loop {
        let (bound, inclusive) = before;
        let found = if inclusive {
            elements.range(..=bound).next_back()
        } else {
            elements.range(..bound).next_back()
        };
        let Some(element) = found.filter(|element| is_v4(&element.prefix) == place.address.is_ipv4()) else {
            return whole;
        };
        if element.prefix.contains(&place.address) {
            match element.ports {
                None => whole = whole.or(Some(*element)),
                ports if covers_port(ports, place) => return Some(*element),
                Some(_) => {}
            }
            before = (*element, false);
        } else {
            let length = common_length(element.prefix.addr(), place.address);
            let Ok(shorter) = IpNet::new(place.address, length) else { return whole };
            before = (Element::new(shorter, last_ports()), true);
        }
    }
}

/// True when `ports` let packets to the place's port pass; without ports every one.
pub(super) fn covers_port(ports: Option<PortRange>, place: Place) -> bool {
    ports.is_none_or(|ports| ports.contains(place.protocol, place.port))
}

/// No element with the same prefix comes after one with these.
fn last_ports() -> Option<PortRange> {
    PortRange::new(Protocol::Udp, u16::MAX, u16::MAX).ok()
}

const fn is_v4(prefix: &IpNet) -> bool {
    matches!(prefix, IpNet::V4(_))
}

/// How many bits two addresses of one family begin with in common.
fn common_length(one: IpAddr, other: IpAddr) -> u8 {
    let bits = match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        (IpAddr::V6(one), IpAddr::V6(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        _ => 0,
    };
    // At most 128.
    bits as u8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn element(prefix: &str, ports: Option<&str>) -> Element {
        Element::new(prefix.parse().unwrap(), ports.map(|ports| ports.parse().unwrap()))
    }

    fn place(address: &str, protocol: u8, port: u16) -> Place {
        Place { address: address.parse().unwrap(), protocol, port }
    }

    #[test]
    fn ports_stand_in_front_and_the_longest_prefix_counts() {
        let whole = element("8.8.8.8/32", None);
        let network = element("8.8.0.0/16", None);
        let web = element("8.8.8.0/24", Some("tcp/443"));
        let v6 = element("2a01:4f8::/32", None);
        let elements = BTreeSet::from([whole, network, web, v6, element("8.8.8.9/32", Some("udp/1-9"))]);
        assert_eq!(most_specific(&elements, place("8.8.8.8", 6, 443)), Some(web));
        assert_eq!(most_specific(&elements, place("8.8.8.8", 6, 80)), Some(whole));
        assert_eq!(most_specific(&elements, place("8.8.8.9", 17, 10)), Some(network));
        assert_eq!(most_specific(&elements, place("8.9.0.0", 6, 443)), None);
        assert_eq!(most_specific(&elements, place("2a01:4f8::5", 1, 0)), Some(v6));
        assert_eq!(most_specific(&elements, place("2a01:4f9::5", 1, 0)), None);
    }

    proptest! {
        /// The same as asking every element.
        #[test]
        fn stepping_finds_what_looking_at_all_finds(
            list in prop::collection::vec((0_u32..64, 24_u8..=32, 0_u16..4), 0..40),
            last in 0_u32..64, port in 1_u16..4,
        ) {
            let base = 0x0808_0800_u32;
            let elements: BTreeSet<Element> = list
                .into_iter()
                .map(|(last, length, port)| {
                    let prefix = IpNet::new(IpAddr::V4((base + last).into()), length).unwrap();
                    Element::new(prefix, PortRange::new(Protocol::Tcp, port, port).ok())
                })
                .collect();
            let place = Place { address: IpAddr::V4((base + last).into()), protocol: 6, port };
            let covering = elements.iter().filter(|element| element.prefix.contains(&place.address));
            let covering: Vec<_> =
                covering.filter(|element| covers_port(element.ports, place)).collect();
            let best = covering.into_iter().max_by_key(|e| (e.ports.is_some(), e.prefix.prefix_len()));
            prop_assert_eq!(most_specific(&elements, place), best.copied());
        }
    }
}
