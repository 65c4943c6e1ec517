//! Addresses that are public beyond doubt, told by one search in sorted bounds. Nearly all that DNS gives are, and the
//! table has to be read as a whole to say why one is not.

use std::net::IpAddr;
use std::sync::LazyLock;

use ipnet::IpNet;

use super::{complement, embedded};

struct Bounds {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

/// First and last address of each block that is special, or embeds addresses; sorted and disjoint.
static DOUBTFUL: LazyLock<Bounds> = LazyLock::new(|| {
    let v4 = complement::special_v4().into_iter().map(|net| (net.network().into(), net.broadcast().into()));
    let special = complement::special_v6();
    let forms = embedded::forms().iter().filter_map(|form| match form.range.prefix {
        IpNet::V6(prefix) => Some(prefix),
        IpNet::V4(_) => None,
    });
    let outside: Vec<_> =
        forms.filter(|form| special.iter().all(|special| !special.contains(form))).collect();
    let all = special.iter().chain(&outside);
    let mut v6: Vec<(u128, u128)> = all.map(|net| (net.network().into(), net.broadcast().into())).collect();
    v6.sort_unstable();
    Bounds { v4: v4.collect(), v6 }
});

/// True when `address` lies in no special block and embeds none.
pub(super) fn is_plainly_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_outside(&DOUBTFUL.v4, v4.to_bits()),
        IpAddr::V6(v6) => is_outside(&DOUBTFUL.v6, v6.to_bits()),
    }
}

fn is_outside<N: Copy + Ord>(sorted: &[(N, N)], address: N) -> bool {
    let after = sorted.partition_point(|(first, _)| *first <= address);
    after.checked_sub(1).and_then(|place| sorted.get(place)).is_none_or(|(_, last)| *last < address)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::super::{check_address, check_network, special_ranges};
    use super::*;

    fn agrees(address: IpAddr) {
        assert_eq!(check_address(address), check_network(IpNet::from(address)), "{address}");
        if is_plainly_public(address) {
            assert_eq!(check_address(address), Ok(()), "{address}");
        }
    }

    #[test]
    fn the_quick_way_agrees_with_the_table_at_every_bound() {
        let forms = embedded::forms().iter().map(|form| &form.range);
        for range in special_ranges().iter().chain(forms) {
            match range.prefix {
                IpNet::V4(net) => {
                    let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
                    for bits in [first.wrapping_sub(1), first, last, last.wrapping_add(1)] {
                        agrees(Ipv4Addr::from_bits(bits).into());
                    }
                }
                IpNet::V6(net) => {
                    let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
                    for bits in [first.wrapping_sub(1), first, last, last.wrapping_add(1)] {
                        agrees(Ipv6Addr::from_bits(bits).into());
                    }
                }
            }
        }
        assert!(is_plainly_public("8.8.8.8".parse().unwrap()));
        assert!(is_plainly_public("2606:4700::1".parse().unwrap()));
        assert!(!is_plainly_public("2002:808:808::1".parse().unwrap()), "public, but not plainly");
    }

    proptest! {
        #[test]
        fn the_quick_way_agrees_with_the_table(v4 in any::<u32>(), v6 in any::<u128>(), global in any::<u128>()) {
            agrees(Ipv4Addr::from_bits(v4).into());
            agrees(Ipv6Addr::from_bits(v6).into());
            agrees(Ipv6Addr::from_bits(1 << 125 | global >> 3).into());
        }
    }
}
