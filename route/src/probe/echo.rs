//! One ICMP or ICMPv6 echo socket, connected to one host (RFC 792, RFC 4443 section 4).

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use tokio::net::UdpSocket;

/// A gateway is one hop away; a probe that some router would forward elsewhere must die there.
const ONE_HOP: i32 = 1;
const HEADER_BYTES: usize = 8;
const PAYLOAD: &[u8; 8] = b"og-probe";
/// Room for an IP header with options and our answer.
const MAX_ANSWER_BYTES: usize = 128;

#[derive(Debug)]
pub(super) struct Echo {
    /// A connected socket is one to send to and receive from, whatever its protocol; tokio has a type for UDP only.
    socket: UdpSocket,
    v4: bool,
    /// Raw sockets see every ICMP packet of the host and, on v4, its IP header.
    raw: bool,
    identifier: u16,
}

impl Echo {
    /// Opens a ping socket where `net.ipv4.ping_group_range` allows, else a raw one (CAP_NET_RAW).
    pub(super) fn open(host: SocketAddr, identifier: u16) -> io::Result<Self> {
        let v4 = host.is_ipv4();
        let (family, protocol) = match v4 {
            true => (AddressFamily::Inet, SockProtocol::Icmp),
            false => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let (fd, raw) = match socket(family, SockType::Datagram, flags, protocol) {
            Ok(fd) => (fd, false),
            Err(Errno::EACCES | Errno::EPERM | Errno::EPROTONOSUPPORT) => {
                (socket(family, SockType::Raw, flags, protocol)?, true)
            }
            Err(error) => return Err(error.into()),
        };
        match v4 {
            true => setsockopt(&fd, sockopt::Ipv4Ttl, &ONE_HOP)?,
            false => setsockopt(&fd, sockopt::Ipv6Ttl, &ONE_HOP)?,
        }
        // Raw sockets hand a port to the kernel as a protocol number; 0 it is.
        connect(fd.as_raw_fd(), &SockaddrStorage::from(host))?;
        Ok(Self { socket: UdpSocket::from_std(fd.into())?, v4, raw, identifier })
    }

    /// Sends one request and waits for its answer. There is no time limit here.
    pub(super) async fn ask(&mut self, sequence: u16) -> io::Result<()> {
        let request = self.request(sequence);
        self.socket.send(&request).await?;
        let mut answer = [0_u8; MAX_ANSWER_BYTES];
        loop {
            let len = self.socket.recv(&mut answer).await?;
            if answer.get(..len).is_some_and(|answer| self.answers(answer, sequence)) {
                return Ok(());
            }
        }
    }

    fn request(&self, sequence: u16) -> Vec<u8> {
        const ECHO_REQUEST_V4: u8 = 8;
        const ECHO_REQUEST_V6: u8 = 128;
        let mut packet = vec![if self.v4 { ECHO_REQUEST_V4 } else { ECHO_REQUEST_V6 }, 0, 0, 0];
        packet.extend(self.identifier.to_be_bytes());
        packet.extend(sequence.to_be_bytes());
        packet.extend(PAYLOAD);
        if self.v4 {
            // The kernel fills it in for v6 and for ping sockets, but not for raw v4 ones.
            let sum = checksum(&packet).to_be_bytes();
            packet[2..4].copy_from_slice(&sum);
        }
        packet
    }

    fn answers(&self, packet: &[u8], sequence: u16) -> bool {
        const ECHO_REPLY_V4: u8 = 0;
        const ECHO_REPLY_V6: u8 = 129;
        let ip_header = match packet.first() {
            Some(first) if self.raw && self.v4 => usize::from(first & 0x0f) * 4,
            _ => 0,
        };
        let Some(&[kind, _, _, _, id_high, id_low, seq_high, seq_low]) =
            packet.get(ip_header..).and_then(|icmp| icmp.first_chunk::<HEADER_BYTES>())
        else {
            return false;
        };
        kind == (if self.v4 { ECHO_REPLY_V4 } else { ECHO_REPLY_V6 })
            && u16::from_be_bytes([seq_high, seq_low]) == sequence
            && (!self.raw || u16::from_be_bytes([id_high, id_low]) == self.identifier)
    }
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[allow(clippy::cast_possible_truncation, reason = "folded to 16 bits above")]
    let folded = sum as u16;
    !folded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_a_packet_that_carries_its_checksum_is_zero() {
        let mut packet = [8, 0, 0, 0, 0x12, 0x34, 0xff, 0xff, b'o', b'g', b'-', b'p'];
        let sum = checksum(&packet).to_be_bytes();
        packet[2..4].copy_from_slice(&sum);
        assert_eq!(checksum(&packet), 0);
    }
}
