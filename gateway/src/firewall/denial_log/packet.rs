//! What the first bytes of a packet say: from where, to where, and for which service. Whatever the bytes, reading ends and
//! does not panic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Shortest IPv4 header, bytes (RFC 791).
const MIN_V4_HEADER_BYTES: usize = 20;
/// IPv6 header, bytes (RFC 8200).
const V6_HEADER_BYTES: usize = 40;
/// Extension headers that are followed; what hides behind more is shown without its port.
const MAX_EXTENSION_HEADERS: usize = 8;
/// Fragment offset in IPv4's flags field.
const V4_OFFSET: u16 = 0x1fff;
/// Fragment offset in IPv6's fragment header.
const V6_OFFSET: u16 = 0xfff8;

/// Protocols that begin with source and destination port: TCP, UDP, DCCP, SCTP, UDP-Lite.
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

// IPv6 extension headers (RFC 8200, RFC 4302, RFC 6275).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;

/// Who wanted what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Headers {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// IP protocol number.
    pub(super) protocol: u8,
    /// Destination port; 0 where the protocol has none, or it is not among the bytes.
    pub(super) port: u16,
}

/// Reads the headers at the beginning of an IP packet.
pub(super) fn read(packet: &[u8]) -> Option<Headers> {
    match packet.first()? >> 4 {
        4 => read_v4(packet),
        6 => read_v6(packet),
        _ => None,
    }
}

fn read_v4(packet: &[u8]) -> Option<Headers> {
    let header: &[u8; MIN_V4_HEADER_BYTES] = packet.first_chunk()?;
    let length = usize::from(header[0] & 0x0f) * 4;
    if length < MIN_V4_HEADER_BYTES {
        return None;
    }
    let protocol = header[9];
    let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
    let destination = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
    let is_first = u16::from_be_bytes([header[6], header[7]]) & V4_OFFSET == 0;
    let port = if is_first { port(protocol, packet.get(length..)) } else { 0 };
    Some(Headers { source: source.into(), destination: destination.into(), protocol, port })
}

fn read_v6(packet: &[u8]) -> Option<Headers> {
    let (header, mut rest) = packet.split_first_chunk::<V6_HEADER_BYTES>()?;
    let source = Ipv6Addr::from(*header.get(8..24)?.first_chunk::<16>()?);
    let destination = Ipv6Addr::from(*header.get(24..40)?.first_chunk::<16>()?);
    let mut protocol = header[6];
    let mut is_first = true;
    for _ in 0..MAX_EXTENSION_HEADERS {
        let Some(extension) = rest.first_chunk::<4>() else { break };
        let length = match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY => (usize::from(extension[1]) + 1) * 8,
            AUTHENTICATION => (usize::from(extension[1]) + 2) * 4,
            FRAGMENT => {
                is_first &= u16::from_be_bytes([extension[2], extension[3]]) & V6_OFFSET == 0;
                8
            }
            _ => break,
        };
        protocol = extension[0];
        rest = rest.get(length..).unwrap_or_default();
    }
    let port = if is_first { port(protocol, Some(rest)) } else { 0 };
    Some(Headers { source: source.into(), destination: destination.into(), protocol, port })
}

fn port(protocol: u8, segment: Option<&[u8]>) -> u16 {
    let ports = segment.filter(|_| WITH_PORTS.contains(&protocol)).and_then(|segment| segment.get(2..4));
    ports.and_then(|ports| ports.first_chunk()).map_or(0, |port| u16::from_be_bytes(*port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(protocol: u8, options: usize, offset: u16, segment: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; MIN_V4_HEADER_BYTES + options];
        packet[0] = 0x40 | u8::try_from(packet.len() / 4).unwrap();
        packet[6..8].copy_from_slice(&offset.to_be_bytes());
        packet[9] = protocol;
        packet[12..16].copy_from_slice(&[10, 0, 0, 7]);
        packet[16..20].copy_from_slice(&[9, 9, 9, 9]);
        packet.extend_from_slice(segment);
        packet
    }

    fn v6(first: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; V6_HEADER_BYTES];
        packet[0] = 0x60;
        packet[6] = first;
        packet[8..24].copy_from_slice(&"fd00::7".parse::<Ipv6Addr>().unwrap().octets());
        packet[24..40].copy_from_slice(&"2a01::9".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend_from_slice(rest);
        packet
    }

    const HTTPS: [u8; 4] = [0xc0, 0, 1, 0xbb];

    fn service(packet: &[u8]) -> (u8, u16) {
        let headers = read(packet).unwrap();
        (headers.protocol, headers.port)
    }

    #[test]
    fn addresses_protocol_and_port_are_read_behind_options() {
        let headers = read(&v4(6, 0, 0, &HTTPS)).unwrap();
        assert_eq!(
            (headers.source.to_string(), headers.destination.to_string()),
            ("10.0.0.7".into(), "9.9.9.9".into())
        );
        assert_eq!(service(&v4(6, 40, 0, &HTTPS)), (6, 443));
        assert_eq!(service(&v4(17, 4, 0x4000, &HTTPS)), (17, 443));
        let headers = read(&v6(6, &HTTPS)).unwrap();
        assert_eq!(
            (headers.source.to_string(), headers.destination.to_string()),
            ("fd00::7".into(), "2a01::9".into())
        );
        assert_eq!((headers.protocol, headers.port), (6, 443));
    }

    #[test]
    fn what_has_no_port_or_does_not_show_it_has_port_0() {
        assert_eq!(service(&v4(1, 0, 0, &[8, 0, 0, 0])), (1, 0));
        assert_eq!(service(&v4(6, 0, 1, &HTTPS)), (6, 0), "a later fragment");
        assert_eq!(service(&v4(6, 0, 0, &HTTPS[..3])), (6, 0));
        assert_eq!(service(&v6(58, &[128, 0, 0, 0])), (58, 0));
        let later_fragment = [[6, 0, 0, 8, 0, 0, 0, 1].as_slice(), &HTTPS].concat();
        assert_eq!(service(&v6(FRAGMENT, &later_fragment)), (6, 0));
    }

    #[test]
    fn extension_headers_are_followed_up_to_a_bound() {
        let options = |next: u8| [next, 0, 0, 0, 0, 0, 0, 0];
        let chain = [
            options(ROUTING).as_slice(),
            &options(FRAGMENT),
            // The first fragment.
            &[AUTHENTICATION, 0, 0, 1, 0, 0, 0, 1],
            &[17, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2],
            &HTTPS,
        ]
        .concat();
        assert_eq!(service(&v6(HOP_BY_HOP, &chain)), (17, 443));
        let endless = options(DESTINATION_OPTIONS).repeat(20);
        assert_eq!(service(&v6(DESTINATION_OPTIONS, &endless)), (DESTINATION_OPTIONS, 0));
    }

    #[test]
    fn what_is_no_packet_is_none() {
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[0x45; 19]), None);
        assert_eq!(read(&[0x44; 64]), None, "a header shorter than the shortest");
        assert_eq!(read(&[0x60; 39]), None);
        assert_eq!(read(&[0x50; 64]), None);
    }

    proptest! {
        #[test]
        fn garbage_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..160), version in 0_u8..3) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() && version > 0 {
                *first = (*first & 0x0f) | if version == 1 { 0x40 } else { 0x60 };
            }
            if let Some(headers) = read(&bytes) {
                prop_assert_eq!(headers.source.is_ipv4(), bytes[0] >> 4 == 4);
                prop_assert!(headers.port == 0 || WITH_PORTS.contains(&headers.protocol));
            }
        }
    }
}
