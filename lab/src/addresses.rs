//! Who has which address. The same in every run: addresses live inside namespaces and cannot collide.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Most servers a lab can have (their addresses are `.1` to `.9`).
pub const MAX_SERVERS: usize = 9;
/// Most gateways a lab can have (their addresses are `.11` to `.19`).
pub const MAX_GATEWAYS: usize = 9;

/// Prefixes every address of which the internet namespace answers on.
pub const PUBLIC_V4: [&str; 4] = ["93.184.0.0/16", "1.1.1.0/24", "8.8.8.0/24", "151.101.0.0/16"];
/// As [`PUBLIC_V4`].
pub const PUBLIC_V6: [&str; 2] = ["2606:4700::/32", "2606:2800::/32"];

/// Port of the servers' API.
pub const API_PORT: u16 = 8080;
/// Port of the servers' gateway feed.
pub const FEED_PORT: u16 = 8443;
/// Port the servers talk raft on.
pub const RAFT_PORT: u16 = 8081;
/// Port of a gateway's metrics.
pub const METRICS_PORT: u16 = 9900;

/// Host numbers on every network.
const DNS: u8 = 53;
const HOST_100: u8 = 100;
const FIRST_GATEWAY: u8 = 11;
const INTERNET: u8 = 1;

/// One of the three networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Net {
    /// Servers, resolver, load balancer, gateways.
    Management,
    /// Client, resolver, gateways.
    Lan,
    /// Gateways and the internet.
    Public,
}

impl Net {
    /// The v4 address of host `number`.
    pub const fn v4(self, number: u8) -> Ipv4Addr {
        match self {
            Self::Management => Ipv4Addr::new(10, 1, 0, number),
            Self::Lan => Ipv4Addr::new(10, 2, 0, number),
            // Public space, next door to the documentation range: the kernel and OutputGuard treat it as any other.
            Self::Public => Ipv4Addr::new(203, 0, 114, number),
        }
    }

    /// The v6 address of host `number`; its last group reads like the v4 one.
    pub const fn v6(self, number: u8) -> Ipv6Addr {
        let last = hex_like_decimal(number);
        match self {
            Self::Management => Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, last),
            Self::Lan => Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, last),
            Self::Public => Ipv6Addr::new(0x2a00, 0x1450, 0, 0, 0, 0, 0, last),
        }
    }

    /// The bridge in `core`, and the interface in every host on this network.
    pub const fn interface(self) -> &'static str {
        match self {
            Self::Management => "mgmt",
            Self::Lan => "lan",
            Self::Public => "wan",
        }
    }
}

/// 53 becomes 0x53, so that `.53` is `::53`.
const fn hex_like_decimal(number: u8) -> u16 {
    let number = number as u16;
    (number / 100) * 0x100 + (number / 10 % 10) * 0x10 + number % 10
}

/// Host number of server `index` (from 0).
pub const fn server(index: usize) -> u8 {
    index as u8 + 1
}

/// Host number of gateway `index` (from 0), the same on all three networks.
pub const fn gateway(index: usize) -> u8 {
    FIRST_GATEWAY + index as u8
}

/// Host number of the resolver, on management network and LAN.
pub const fn resolver() -> u8 {
    DNS
}

/// Host number of the load balancer (management) and of the client (LAN).
pub const fn hundred() -> u8 {
    HOST_100
}

/// Host number of the internet on the public network.
pub const fn internet() -> u8 {
    INTERNET
}

/// The two public-side addresses of gateway `index`: what the internet must see as the source.
pub fn gateway_public(index: usize) -> [IpAddr; 2] {
    [Net::Public.v4(gateway(index)).into(), Net::Public.v6(gateway(index)).into()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v6_addresses_read_like_the_v4_ones() {
        assert_eq!(Net::Management.v6(resolver()).to_string(), "fd00:1::53");
        assert_eq!(Net::Lan.v6(hundred()).to_string(), "fd00:2::100");
        assert_eq!(Net::Public.v6(gateway(1)).to_string(), "2a00:1450::12");
        assert_eq!(Net::Lan.v4(gateway(0)).to_string(), "10.2.0.11");
    }
}
