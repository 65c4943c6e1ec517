//! Public space as the complement of the table: arithmetic on ranges of addresses, no list written by hand.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::{Add, Sub};

use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Net, Ipv6Subnets};

use super::embedded::TEREDO_PREFIX;
use super::table::special_ranges;

/// The special v4 blocks without those that lie inside another one.
pub(super) fn special_v4() -> Vec<Ipv4Net> {
    outermost().filter_map(|net| if let IpNet::V4(v4) = net { Some(v4) } else { None }).collect()
}

/// The special v6 blocks without those that lie inside another one.
pub(super) fn special_v6() -> Vec<Ipv6Net> {
    outermost().filter_map(|net| if let IpNet::V6(v6) = net { Some(v6) } else { None }).collect()
}

pub(super) fn v4() -> Vec<Ipv4Net> {
    let special = special_v4().into_iter().map(|net| (net.network().into(), net.broadcast().into()));
    gaps(special, u32::MAX)
        .into_iter()
        .flat_map(|(first, last)| Ipv4Subnets::new(Ipv4Addr::from(first), Ipv4Addr::from(last), 0))
        .collect()
}

pub(super) fn v6() -> Vec<Ipv6Net> {
    let special = special_v6().into_iter().map(|net| (net.network().into(), net.broadcast().into()));
    let mut public: Vec<Ipv6Net> = gaps(special, u128::MAX)
        .into_iter()
        .flat_map(|(first, last)| Ipv6Subnets::new(Ipv6Addr::from(first), Ipv6Addr::from(last), 0))
        .collect();
    public.push(TEREDO_PREFIX);
    public.sort_unstable();
    public
}

/// The table is sorted with wider blocks first, so the widest one kept last is the one to compare with.
fn outermost() -> impl Iterator<Item = IpNet> {
    let mut wider: Option<IpNet> = None;
    special_ranges().iter().map(|row| row.prefix).filter(move |prefix| {
        let inside = wider.is_some_and(|wider| wider.contains(prefix));
        if !inside {
            wider = Some(*prefix);
        }
        !inside
    })
}

/// The ranges between 0 and `max` that none of the sorted, disjoint `taken` covers. Bounds are inclusive.
fn gaps<N>(taken: impl Iterator<Item = (N, N)>, max: N) -> Vec<(N, N)>
where
    N: Copy + Ord + Default + From<u8> + Add<Output = N> + Sub<Output = N>,
{
    let one = N::from(1);
    let mut free = Vec::new();
    let mut next = Some(N::default());
    for (first, last) in taken {
        if let Some(start) = next
            && start < first
        {
            free.push((start, first - one));
        }
        next = (last < max).then(|| last + one);
    }
    free.extend(next.map(|start| (start, max)));
    free
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net4(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn the_complement_of_the_15_special_v4_blocks_is_116_blocks() {
        assert_eq!(special_v4().len(), 15);
        assert_eq!(v4().len(), 116);
    }

    #[test]
    fn the_blocks_the_original_lost_are_public() {
        for block in ["172.64.0.0/10", "172.128.0.0/9", "169.255.0.0/16"] {
            assert!(v4().contains(&net4(block)), "{block}");
        }
    }

    #[test]
    fn special_and_public_v4_blocks_tile_the_whole_space_without_overlap() {
        let mut all: Vec<Ipv4Net> = v4().into_iter().chain(special_v4()).collect();
        all.sort_unstable();
        let mut next = 0_u64;
        for net in all {
            assert_eq!(u64::from(u32::from(net.network())), next, "{net}");
            next = u64::from(u32::from(net.broadcast())) + 1;
        }
        assert_eq!(next, 1 << 32);
    }

    #[test]
    fn the_lists_are_sorted_and_cannot_be_written_shorter() {
        let (public4, public6) = (v4(), v6());
        assert_eq!(Ipv4Net::aggregate(&public4), public4);
        assert_eq!(Ipv6Net::aggregate(&public6), public6);
    }

    #[test]
    fn public_v6_is_global_unicast_without_its_special_blocks() {
        let public = v6();
        let global: Ipv6Net = "2000::/3".parse().unwrap();
        assert!(public.iter().all(|net| global.contains(net)));
        let covered = |text: &str| {
            let address: Ipv6Addr = text.parse().unwrap();
            public.iter().any(|net| net.contains(&address))
        };
        for address in
            ["2000::1", "2606:4700::1111", "2620:4f:8000::1", "2002:808:808::1", "2001::1", "3ffe::1"]
        {
            assert!(covered(address), "{address}");
        }
        for address in
            ["2001:1::1", "2001:2::1", "2001:db8::1", "3fff::1", "3fff:fff:ffff::1", "fd00::1", "::1"]
        {
            assert!(!covered(address), "{address}");
        }
    }
}
