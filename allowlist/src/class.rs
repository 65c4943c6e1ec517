//! Which addresses may enter the allowlist: globally reachable unicast, judged by the IANA special-purpose registries.

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

mod complement;
mod embedded;
mod quick;
mod table;

pub use embedded::{NAT64_PREFIX, TEREDO_PREFIX};
pub use table::special_ranges;

/// One row of a registry of address space that must not be allowed.
#[derive(Debug, PartialEq, Eq)]
pub struct SpecialRange {
    /// The block.
    pub prefix: IpNet,
    /// Its name in the registry.
    pub name: &'static str,
    /// The RFC (or registry) that reserves it.
    pub source: &'static str,
}

/// The judgement on one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressClass {
    /// Globally reachable unicast.
    Public,
    /// Inside a special-purpose block, by itself or by the address embedded in it.
    Special(&'static SpecialRange),
}

/// Address space that may not be allowed, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Refusal {
    /// What was asked for.
    pub asked: IpNet,
    /// The first special-purpose block it lies in or overlaps.
    pub range: &'static SpecialRange,
    /// The v4 address or block embedded in `asked` that was judged, if it was not `asked` itself.
    pub embedded: Option<IpNet>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; only globally reachable unicast can be allowed", self.finding())
    }
}

impl Refusal {
    /// What it is and where it lies, without what follows from that.
    pub fn finding(&self) -> impl fmt::Display {
        fmt::from_fn(|f| {
            let SpecialRange { prefix, name, source } = self.range;
            let host = self.asked.prefix_len() == self.asked.max_prefix_len();
            if host {
                write!(f, "{}", self.asked.addr())?;
            } else {
                write!(f, "{}", self.asked)?;
            }
            match self.embedded {
                Some(inside) if inside.prefix_len() == inside.max_prefix_len() => {
                    write!(f, " (which embeds {})", inside.addr())?;
                }
                Some(inside) => write!(f, " (which embeds {inside})")?,
                None => {}
            }
            let verb =
                if prefix.contains(&self.embedded.unwrap_or(self.asked)) { "lies in" } else { "overlaps" };
            write!(f, " {verb} {prefix}, {name} ({source})")
        })
    }
}

/// Judges one address; embedded forms by the address inside.
pub fn classify(address: IpAddr) -> AddressClass {
    match check_network(IpNet::from(address)) {
        Ok(()) => AddressClass::Public,
        Err(refusal) => AddressClass::Special(refusal.range),
    }
}

/// Ok when `address` is globally reachable unicast.
///
/// # Errors
/// [`Refusal`] naming the block.
pub fn check_address(address: IpAddr) -> Result<(), Refusal> {
    if quick::is_plainly_public(address) {
        return Ok(());
    }
    check_network(IpNet::from(address))
}

/// Ok when nothing in `network` is special. A block that merely overlaps a special one is refused, and so is one
/// that is wider than a form of embedding.
///
/// # Errors
/// [`Refusal`] naming the narrowest block it lies in, or else the first one it overlaps.
pub fn check_network(network: IpNet) -> Result<(), Refusal> {
    let network = network.trunc();
    let refuse = |range, embedded| Err(Refusal { asked: network, range, embedded });
    if let IpNet::V6(v6) = network
        && let Some(inside) = embedded::embedded_v4(v6)
    {
        for block in inside.into_iter().map(IpNet::V4) {
            if let Some(range) = overlapping(block) {
                return refuse(range, Some(block));
            }
        }
        return Ok(());
    }
    match overlapping(network) {
        Some(range) => refuse(range, None),
        None => Ok(()),
    }
}

/// The v4 blocks that are globally reachable unicast, smallest list, sorted: the complement of the table.
pub fn public_v4() -> Vec<Ipv4Net> {
    complement::v4()
}

/// The v6 blocks that can be globally reachable unicast, smallest list, sorted: the complement of the table inside
/// 2000::/3. 6to4 and Teredo belong to it, since most of what they embed is public: each address of theirs is judged
/// by itself. [`NAT64_PREFIX`], the one such block outside of 2000::/3, does not stand in the list.
pub fn public_v6() -> Vec<Ipv6Net> {
    complement::v6()
}

/// The special v4 blocks, sorted and disjoint: [`special_ranges`] without the blocks inside other blocks.
pub fn special_v4() -> Vec<Ipv4Net> {
    complement::special_v4()
}

/// The special v6 blocks, sorted and disjoint. [`NAT64_PREFIX`] and [`TEREDO_PREFIX`] lie inside of some.
pub fn special_v6() -> Vec<Ipv6Net> {
    complement::special_v6()
}

fn overlapping(network: IpNet) -> Option<&'static SpecialRange> {
    let narrowest = special_ranges()
        .iter()
        .filter(|range| range.prefix.contains(&network))
        .max_by_key(|range| range.prefix.prefix_len());
    narrowest.or_else(|| {
        let embedding = embedded::forms().iter().map(|form| &form.range);
        special_ranges().iter().chain(embedding).find(|range| network.contains(&range.prefix))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        let network = text.parse().or_else(|_| text.parse().map(|ip: IpAddr| IpNet::from(ip))).unwrap();
        match check_network(network) {
            Ok(()) => "public".to_owned(),
            Err(refusal) => refusal.to_string(),
        }
    }

    #[test]
    fn a_refusal_names_the_narrowest_block_and_its_source() {
        assert_eq!(
            refusal("10.1.2.3"),
            "10.1.2.3 lies in 10.0.0.0/8, private use (RFC 1918); only globally reachable unicast can be allowed"
        );
        assert!(refusal("255.255.255.255").contains("limited broadcast"));
        assert!(refusal("fe80::1").contains("link-local"));
        assert!(refusal("0.0.0.0/0").starts_with("0.0.0.0/0 overlaps 0.0.0.0/8"));
        assert!(refusal("::/0").starts_with("::/0 overlaps ::/3"));
        assert!(refusal("172.0.0.0/8").starts_with("172.0.0.0/8 overlaps 172.16.0.0/12"));
    }

    #[test]
    fn reachable_exceptions_share_the_fate_of_the_block_around_them() {
        // Globally reachable by the registry, inside a refused block.
        for address in
            ["192.0.0.9", "192.0.0.10", "2001:1::1", "2001:3::1", "2001:4:112::1", "2001:20::1", "2001:30::1"]
        {
            assert!(refusal(address).contains("IETF protocol assignments"), "{address}");
        }
        // Globally reachable by the registry, in blocks of their own.
        for address in ["192.31.196.1", "192.52.193.1", "192.175.48.1", "2620:4f:8000::1"] {
            assert_eq!(refusal(address), "public", "{address}");
        }
    }

    #[test]
    fn embedded_forms_are_judged_by_the_address_inside() {
        for public in [
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2002:808:808::1",
            "2002:808::/32",
            "64:ff9b::8.8.0.0/112",
            // Server 8.8.8.8, client 1.1.1.1.
            "2001:0:808:808::fefe:fefe",
        ] {
            assert_eq!(refusal(public), "public", "{public}");
        }
        for (special, inside) in [
            ("::ffff:10.0.0.1", "embeds 10.0.0.1) lies in 10.0.0.0/8"),
            ("64:ff9b::169.254.169.254", "embeds 169.254.169.254) lies in 169.254.0.0/16"),
            ("2002:7f00:1::1", "embeds 127.0.0.1) lies in 127.0.0.0/8"),
            ("2002::/16", "embeds 0.0.0.0/0) overlaps 0.0.0.0/8"),
            ("2002:c000::/20", "embeds 192.0.0.0/4) overlaps 192.0.0.0/24"),
            // Teredo: a private server, then a private client.
            ("2001:0:a00:1::fefe:fefe", "embeds 10.0.0.1) lies in 10.0.0.0/8"),
            ("2001:0:808:808::f5ff:fffe", "embeds 10.0.0.1) lies in 10.0.0.0/8"),
            ("2001:0:808:808::/64", "embeds 0.0.0.0/0) overlaps"),
        ] {
            assert!(refusal(special).contains(inside), "{special}: {}", refusal(special));
        }
    }

    #[test]
    fn a_block_wider_than_a_form_of_embedding_is_refused() {
        assert!(refusal("2002::/15").contains("overlaps 2002::/16, 6to4"));
        assert!(refusal("64:ff9b::/64").contains("outside of global unicast"));
    }
}
