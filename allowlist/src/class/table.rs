//! The special-purpose registries as one table.
//!
//! Sources:
//! - IANA IPv4 Special-Purpose Address Registry, `https://www.iana.org/assignments/iana-ipv4-special-registry`
//! - IANA IPv6 Special-Purpose Address Registry, `https://www.iana.org/assignments/iana-ipv6-special-registry`
//! - IANA Multicast Address Space Registries (RFC 5771, RFC 4291 section 2.7), which those two leave out
//! - IANA Internet Protocol Version 6 Address Space, `https://www.iana.org/assignments/ipv6-address-space`: global
//!   unicast is assigned from 2000::/3 only
//!
//! What is refused: every row whose column "globally reachable" says False, all multicast, and everything outside
//! 2000::/3. A block that is refused stays refused as a whole, although the registry lists small reachable
//! exceptions inside 192.0.0.0/24 and 2001::/23 (anycast services such as PCP and TURN, AMT, ORCHIDv2, drone ids):
//! they are protocol machinery nobody sends application traffic to, and a refusal without holes is one a person can
//! predict. Blocks that are globally reachable in their own right (AS112, AMT relays) are ordinary public space. The
//! deprecated 6to4 relay anycast block is refused: its traffic ends at whoever announces it.
//!
//! Rows that embed a v4 address (v4-mapped, NAT64, 6to4, Teredo) stand in [`super::embedded`] instead, since they
//! are judged by what is inside.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::SpecialRange;

/// All refused rows: v4, then v6, each sorted by first address, wider blocks first. Blocks may lie inside others.
pub fn special_ranges() -> &'static [SpecialRange] {
    RANGES
}

const fn v4(octets: [u8; 4], prefix_len: u8, name: &'static str, source: &'static str) -> SpecialRange {
    let [a, b, c, d] = octets;
    let prefix = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix_len));
    SpecialRange { prefix, name, source }
}

/// `head` holds the first four 16-bit groups; the others are zero.
pub(super) const fn v6(
    head: [u16; 4],
    prefix_len: u8,
    name: &'static str,
    source: &'static str,
) -> SpecialRange {
    let [a, b, c, d] = head;
    let prefix = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0), prefix_len));
    SpecialRange { prefix, name, source }
}

const LOOPBACK_V6: SpecialRange = SpecialRange {
    prefix: IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
    name: "loopback address",
    source: "RFC 4291",
};

const TRANSLATED_V4: SpecialRange = SpecialRange {
    prefix: IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0), 96)),
    name: "IPv4-translated (SIIT)",
    source: "RFC 2765",
};

static RANGES: &[SpecialRange] = &[
    v4([0, 0, 0, 0], 8, "this network", "RFC 791"),
    v4([0, 0, 0, 0], 32, "this host on this network", "RFC 1122"),
    v4([10, 0, 0, 0], 8, "private use", "RFC 1918"),
    v4([100, 64, 0, 0], 10, "shared address space (carrier-grade NAT)", "RFC 6598"),
    v4([127, 0, 0, 0], 8, "loopback", "RFC 1122"),
    v4([169, 254, 0, 0], 16, "link local", "RFC 3927"),
    v4([172, 16, 0, 0], 12, "private use", "RFC 1918"),
    v4([192, 0, 0, 0], 24, "IETF protocol assignments", "RFC 6890"),
    v4([192, 0, 0, 0], 29, "IPv4 service continuity prefix", "RFC 7335"),
    v4([192, 0, 0, 8], 32, "IPv4 dummy address", "RFC 7600"),
    v4([192, 0, 0, 170], 32, "NAT64/DNS64 discovery", "RFC 7050"),
    v4([192, 0, 0, 171], 32, "NAT64/DNS64 discovery", "RFC 7050"),
    v4([192, 0, 2, 0], 24, "documentation (TEST-NET-1)", "RFC 5737"),
    v4([192, 88, 99, 0], 24, "deprecated 6to4 relay anycast", "RFC 7526"),
    v4([192, 88, 99, 2], 32, "6a44 relay anycast address", "RFC 6751"),
    v4([192, 168, 0, 0], 16, "private use", "RFC 1918"),
    v4([198, 18, 0, 0], 15, "benchmarking", "RFC 2544"),
    v4([198, 51, 100, 0], 24, "documentation (TEST-NET-2)", "RFC 5737"),
    v4([203, 0, 113, 0], 24, "documentation (TEST-NET-3)", "RFC 5737"),
    v4([224, 0, 0, 0], 4, "multicast", "RFC 5771"),
    v4([240, 0, 0, 0], 4, "reserved", "RFC 1112"),
    v4([255, 255, 255, 255], 32, "limited broadcast", "RFC 919"),
    v6([0, 0, 0, 0], 3, "outside of global unicast", "RFC 4291, IANA ipv6-address-space"),
    v6([0, 0, 0, 0], 96, "deprecated IPv4-compatible", "RFC 4291"),
    v6([0, 0, 0, 0], 128, "unspecified address", "RFC 4291"),
    LOOPBACK_V6,
    TRANSLATED_V4,
    v6([0x64, 0xff9b, 1, 0], 48, "local-use IPv4/IPv6 translation", "RFC 8215"),
    v6([0x100, 0, 0, 0], 64, "discard-only address block", "RFC 6666"),
    v6([0x100, 0, 0, 1], 64, "dummy IPv6 prefix", "RFC 9780"),
    v6([0x2001, 0, 0, 0], 23, "IETF protocol assignments", "RFC 2928"),
    v6([0x2001, 2, 0, 0], 48, "benchmarking", "RFC 5180"),
    v6([0x2001, 0x10, 0, 0], 28, "deprecated ORCHID", "RFC 4843"),
    v6([0x2001, 0xdb8, 0, 0], 32, "documentation", "RFC 3849"),
    v6([0x3fff, 0, 0, 0], 20, "documentation", "RFC 9637"),
    v6([0x4000, 0, 0, 0], 2, "outside of global unicast", "RFC 4291, IANA ipv6-address-space"),
    v6([0x5f00, 0, 0, 0], 16, "segment routing (SRv6) SIDs", "RFC 9602"),
    v6([0x8000, 0, 0, 0], 1, "outside of global unicast", "RFC 4291, IANA ipv6-address-space"),
    v6([0xfc00, 0, 0, 0], 7, "unique local", "RFC 4193"),
    v6([0xfe80, 0, 0, 0], 10, "link-local unicast", "RFC 4291"),
    v6([0xfec0, 0, 0, 0], 10, "deprecated site-local unicast", "RFC 3879"),
    v6([0xff00, 0, 0, 0], 8, "multicast", "RFC 4291"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn rows_are_sorted_distinct_and_have_no_host_bits() {
        let prefixes: Vec<IpNet> = special_ranges().iter().map(|row| row.prefix).collect();
        let sorted: Vec<IpNet> = prefixes.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        assert_eq!(prefixes, sorted);
        for prefix in prefixes {
            assert_eq!(prefix, prefix.trunc());
        }
    }
}
