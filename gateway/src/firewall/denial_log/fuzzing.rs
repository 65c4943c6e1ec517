//! Doors to what reads the log of denied packets.

use std::net::IpAddr;

use super::PREFIX;
use super::packet;
use super::subscription::{Batch, PACKET_PREFIX, PAYLOAD, SEQUENCE, SUBSYSTEM, configuration};
use crate::firewall::netlink::attribute::Writer;
use crate::firewall::netlink::{begin, seal};

/// Protocols with ports, as IANA numbers them: TCP, UDP, DCCP, SCTP, UDP-Lite.
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];
/// More than the kernel copies, and less than an attribute holds.
const MAX_PAYLOAD_BYTES: usize = 1024;
/// Number of the packet that is logged here.
const NUMBER: u32 = 7;

/// A datagram of the log; and the same bytes as the packet in one.
pub fn denials(bytes: &[u8]) {
    let mut next = 0;
    let batch = Batch::read(bytes, &mut next);
    let told = batch.packets.len() as u64 + batch.unreadable + batch.foreign;
    assert!(told <= bytes.len() as u64 / 16, "more packets than there can be");
    let payload = bytes.get(..MAX_PAYLOAD_BYTES).unwrap_or(bytes);
    next = NUMBER - 1;
    let batch = Batch::read(&logged(payload), &mut next);
    assert_eq!((batch.lost, batch.foreign, next), (1, 0, NUMBER + 1));
    assert_eq!(batch.packets.len() as u64 + batch.unreadable, 1, "a packet neither told nor counted");
    assert_eq!(batch.packets.first().copied(), packet::read(payload));
    let Some(headers) = packet::read(bytes) else { return };
    let (source, place) = match headers.source {
        IpAddr::V4(source) => (source.octets().to_vec(), 12..16),
        IpAddr::V6(source) => (source.octets().to_vec(), 8..24),
    };
    assert_eq!(bytes.get(place), Some(&source[..]), "not the source that stands in the packet");
    assert_eq!(headers.source.is_ipv4(), headers.destination.is_ipv4());
    assert!(headers.port == 0 || WITH_PORTS.contains(&headers.protocol), "a port where there is none");
}

/// The request that makes its sender the reader of the group, numbered 1.
pub fn denials_question(group: u16) -> Vec<u8> {
    configuration(group, 1)
}

fn logged(packet: &[u8]) -> Vec<u8> {
    // `NFULNL_MSG_PACKET` is 0.
    let mut message = begin(SUBSYSTEM, 0, 0, libc::AF_INET as u8);
    let mut writer = Writer(&mut message);
    writer.text(PACKET_PREFIX, PREFIX);
    writer.bytes(PAYLOAD, packet);
    writer.bytes(SEQUENCE, &NUMBER.to_be_bytes());
    seal(message, 0)
}
