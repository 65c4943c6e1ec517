//! An order-independent fingerprint of a published set, kept by servers and gateways alike.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::element::Element;

/// XOR of a 128-bit hash (XXH3) of every element. Adding and removing an element are the same operation, so the
/// digest costs one hash per changed element, and equal sets have equal digests whatever their history.
///
/// It finds accidents, not attackers: the feed's authenticity comes from TLS.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
pub struct Digest(u128);

impl Digest {
    /// Adds `element` when it is not in the set, removes it when it is.
    pub fn toggle(&mut self, element: &Element) {
        self.0 ^= xxh3_128(&canonical_bytes(element));
    }

    /// The digest of a whole set. Elements must be distinct.
    pub fn of<'a>(elements: impl IntoIterator<Item = &'a Element>) -> Self {
        let mut digest = Self::default();
        for element in elements {
            digest.toggle(element);
        }
        digest
    }
}

/// Family (4 or 6), prefix length, 16 address octets (v4 in the first four), protocol number (0 = all), first
/// and last port big-endian. Fixed for ever: both sides of a rolling upgrade must agree.
fn canonical_bytes(element: &Element) -> [u8; 23] {
    let mut bytes = [0_u8; 23];
    match element.prefix {
        IpNet::V4(net) => {
            bytes[0] = 4;
            bytes[2..6].copy_from_slice(&net.network().octets());
        }
        IpNet::V6(net) => {
            bytes[0] = 6;
            bytes[2..18].copy_from_slice(&net.network().octets());
        }
    }
    bytes[1] = element.prefix.prefix_len();
    if let Some(ports) = element.ports {
        bytes[18] = ports.protocol().number();
        bytes[19..21].copy_from_slice(&ports.first().to_be_bytes());
        bytes[21..23].copy_from_slice(&ports.last().to_be_bytes());
    }
    bytes
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn toggling_twice_gives_the_empty_digest() {
        let element = Element::host(IpAddr::from([1, 1, 1, 1]), None);
        let mut digest = Digest::default();
        digest.toggle(&element);
        assert_ne!(digest, Digest::default());
        digest.toggle(&element);
        assert_eq!(digest, Digest::default());
    }
}
