//! Every special-purpose block is refused, in whatever form it comes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use allowlist::class::{self, check_address, public_v4, public_v6, special_ranges};
use ipnet::{IpNet, Ipv4Net};
use proptest::prelude::*;

/// The v6 forms that embed `v4`.
fn embedded(v4: Ipv4Addr) -> Vec<Ipv6Addr> {
    let inside = u128::from(u32::from(v4));
    let public = u128::from(u32::from(Ipv4Addr::new(8, 8, 8, 8)));
    let teredo = 0x2001_0000_u128 << 96;
    let inverted = |address: u128| address ^ u128::from(u32::MAX);
    vec![
        v4.to_ipv6_mapped(),
        Ipv6Addr::from((0x0064_ff9b_u128 << 96) | inside),
        Ipv6Addr::from((0x2002_u128 << 112) | (inside << 80) | 1),
        Ipv6Addr::from(teredo | (inside << 64) | inverted(public)),
        Ipv6Addr::from(teredo | (public << 64) | inverted(inside)),
    ]
}

/// First, last and one address in between.
fn samples(prefix: IpNet, random: u128) -> [IpAddr; 3] {
    let middle = match prefix {
        IpNet::V4(net) => {
            let host = u32::from(net.hostmask()) & random as u32;
            IpAddr::from(Ipv4Addr::from(u32::from(net.network()) | host))
        }
        IpNet::V6(net) => {
            let host = u128::from(net.hostmask()) & random;
            IpAddr::from(Ipv6Addr::from(u128::from(net.network()) | host))
        }
    };
    [prefix.network(), prefix.broadcast(), middle]
}

/// `::/3` and 2001::/23 hold NAT64, v4-mapped and Teredo addresses, which have a test of their own.
fn judged_by_the_inside(address: IpAddr) -> bool {
    let IpAddr::V6(v6) = address else { return false };
    v6.to_ipv4_mapped().is_some() || class::NAT64_PREFIX.contains(&v6) || class::TEREDO_PREFIX.contains(&v6)
}

proptest! {
    #[test]
    fn every_special_block_is_refused_in_every_form(random: u128) {
        for range in special_ranges() {
            for address in samples(range.prefix, random).into_iter().filter(|&address| !judged_by_the_inside(address)) {
                prop_assert!(check_address(address).is_err(), "{} of {:?}", address, range);
                if let IpAddr::V4(v4) = address {
                    for form in embedded(v4) {
                        prop_assert!(check_address(form.into()).is_err(), "{} embeds {}", form, v4);
                    }
                }
            }
            prop_assert!(class::check_network(range.prefix).is_err());
        }
    }

    #[test]
    fn an_address_is_public_exactly_when_the_complement_covers_it(bits: u32) {
        let v4 = Ipv4Addr::from(bits);
        let covered = public_v4().iter().any(|net| net.contains(&v4));
        prop_assert_eq!(check_address(v4.into()).is_ok(), covered);
        for form in embedded(v4) {
            prop_assert_eq!(check_address(form.into()).is_ok(), covered, "{}", form);
        }
    }

    #[test]
    fn a_public_v6_address_lies_in_the_complement(bits: u128) {
        let v6 = Ipv6Addr::from((bits >> 3) | (1 << 125));
        if check_address(v6.into()).is_ok() {
            prop_assert!(public_v6().iter().any(|net| net.contains(&v6)), "{}", v6);
        }
    }

    #[test]
    fn a_block_is_public_exactly_when_the_complement_covers_all_of_it(bits: u32, prefix_len in 0_u8..=32) {
        let net = Ipv4Net::new(bits.into(), prefix_len).unwrap().trunc();
        let covered = public_v4().iter().any(|public| public.contains(&net));
        prop_assert_eq!(class::check_network(net.into()).is_ok(), covered);
    }
}
