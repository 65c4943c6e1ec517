//! Frames written by hand and sent past everything the sending host would do: what they cost is what the gateway does.
//!
//! A veth hands a frame to the other end in the sender's own softirq, so that the whole way, up to the far door, runs
//! within the system call: time by packets is the full cost of a packet.

use std::mem;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::Namespace;
use nix::net::if_::if_nametoindex;

use crate::path::{
    CLIENT, CLIENT_LINK, COUNTED_PORT, GATEWAY_LINK, GATEWAY_OUTSIDE, GATEWAY_WAN_LINK, INTERNET_LINK,
};

/// Bytes of a frame: the smallest that Ethernet knows, without its checksum.
const FRAME_BYTES: usize = 60;
const LINK_BYTES: usize = 14;
const IP_BYTES: usize = 20;
/// Where the payload of a UDP packet begins in its frame.
pub(crate) const PAYLOAD: usize = LINK_BYTES + IP_BYTES + 8;
/// Frames in one system call.
const BURST: usize = 64;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const TCP_SYN: u8 = 2;
/// Words of 4 bytes in a TCP header without options, in the upper half of its byte.
const TCP_WORDS: u8 = 5 << 4;

/// A frame from the machine inside to its gateway.
pub(crate) type Frame = [u8; FRAME_BYTES];

/// One end of a flow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    pub(crate) address: Ipv4Addr,
    pub(crate) port: u16,
}

/// A UDP packet to the counted port of `address`.
pub(crate) fn counted(from_port: u16, address: Ipv4Addr) -> Frame {
    let to = End { address, port: COUNTED_PORT };
    udp(End { address: CLIENT, port: from_port }, to, Cable { from: CLIENT_LINK, to: GATEWAY_LINK })
}

/// The answer to [`counted`], as it comes to the gateway from the internet: NAT kept the port.
pub(crate) fn answer(to_port: u16, address: Ipv4Addr) -> Frame {
    let to = End { address: GATEWAY_OUTSIDE, port: to_port };
    udp(End { address, port: COUNTED_PORT }, to, Cable { from: INTERNET_LINK, to: GATEWAY_WAN_LINK })
}

/// The link addresses of a frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cable {
    pub(crate) from: [u8; 6],
    pub(crate) to: [u8; 6],
}

/// A UDP packet without a checksum, which IPv4 allows.
pub(crate) fn udp(from: End, to: End, cable: Cable) -> Frame {
    let mut frame = packet(IPPROTO_UDP, from.address, to.address, cable);
    let udp = &mut frame[LINK_BYTES + IP_BYTES..];
    let length = udp.len() as u16;
    udp[0..2].copy_from_slice(&from.port.to_be_bytes());
    udp[2..4].copy_from_slice(&to.port.to_be_bytes());
    udp[4..6].copy_from_slice(&length.to_be_bytes());
    frame
}

/// The first packet of a TCP connection, as a port scan sends it.
pub(crate) fn syn(from_port: u16, to: End) -> Frame {
    let mut frame = packet(IPPROTO_TCP, CLIENT, to.address, Cable { from: CLIENT_LINK, to: GATEWAY_LINK });
    let (head, tcp) = frame.split_at_mut(LINK_BYTES + IP_BYTES);
    tcp[0..2].copy_from_slice(&from_port.to_be_bytes());
    tcp[2..4].copy_from_slice(&to.port.to_be_bytes());
    tcp[12] = TCP_WORDS;
    tcp[13] = TCP_SYN;
    tcp[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
    // With a wrong checksum conntrack would not look at it, and the flood would be cheaper than a real one.
    let mut sum = words(&head[LINK_BYTES + 12..]) + words(tcp);
    sum += u32::from(IPPROTO_TCP) + tcp.len() as u32;
    tcp[16..18].copy_from_slice(&folded(sum).to_be_bytes());
    frame
}

fn packet(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, cable: Cable) -> Frame {
    let mut frame = [0; FRAME_BYTES];
    frame[0..6].copy_from_slice(&cable.to);
    frame[6..12].copy_from_slice(&cable.from);
    frame[12..14].copy_from_slice(&(libc::ETH_P_IP as u16).to_be_bytes());
    let ip = &mut frame[LINK_BYTES..LINK_BYTES + IP_BYTES];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&((FRAME_BYTES - LINK_BYTES) as u16).to_be_bytes());
    ip[8] = 64;
    ip[9] = protocol;
    ip[12..16].copy_from_slice(&from.octets());
    ip[16..20].copy_from_slice(&to.octets());
    let sum = folded(words(ip));
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn words(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]))).sum()
}

/// The Internet checksum of RFC 1071.
fn folded(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// What was sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) packets: u64,
    pub(crate) time: Duration,
}

impl Sent {
    pub(crate) fn per_second(&self) -> f64 {
        self.packets as f64 / self.time.as_secs_f64()
    }
}

/// A packet socket on one interface.
#[derive(Debug)]
pub(crate) struct Sender {
    socket: OwnedFd,
}

impl Sender {
    /// On `interface` of `namespace`.
    pub(crate) fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        namespace.enter(|| {
            // SAFETY: no pointers are passed; the descriptor is checked before it is owned.
            let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
            ensure!(raw >= 0, "open a packet socket: {}", std::io::Error::last_os_error());
            // SAFETY: just opened and owned by nobody else.
            let socket = unsafe { OwnedFd::from_raw_fd(raw) };
            let index = if_nametoindex(interface).with_context(|| format!("find {interface}"))?;
            // SAFETY: all zeros is a valid value of this plain structure.
            let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_ifindex = i32::try_from(index)?;
            // SAFETY: the structure outlives the call, and its size is its own.
            let failed = unsafe {
                libc::bind(
                    socket.as_raw_fd(),
                    (&raw const address).cast(),
                    mem::size_of_val(&address) as libc::socklen_t,
                )
            } != 0;
            ensure!(!failed, "bind to {interface}: {}", std::io::Error::last_os_error());
            let bypass: libc::c_int = 1;
            // SAFETY: as above.
            let failed = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_PACKET,
                    libc::PACKET_QDISC_BYPASS,
                    (&raw const bypass).cast(),
                    mem::size_of_val(&bypass) as libc::socklen_t,
                )
            } != 0;
            ensure!(!failed, "bypass the queue of {interface}: {}", std::io::Error::last_os_error());
            Ok(Self { socket })
        })
    }

    /// Sends `frames`, again and again, while `more` says so; it is asked with the number sent before each burst.
    pub(crate) fn send_while(&self, frames: &[Frame], mut more: impl FnMut(u64) -> bool) -> Result<Sent> {
        ensure!(!frames.is_empty(), "nothing to send");
        let mut vectors: Vec<libc::iovec> = frames
            .iter()
            .map(|frame| libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = vectors
            .iter_mut()
            .map(|vector| {
                // SAFETY: all zeros is a valid value of this plain structure.
                let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
                message.msg_hdr.msg_iov = vector;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        let (mut packets, mut at) = (0, 0);
        let start = Instant::now();
        while more(packets) {
            let burst = &mut messages[at..(at + BURST).min(frames.len())];
            // SAFETY: the messages point into `vectors` and these into `frames`, which live and stay where they are.
            let sent = unsafe {
                libc::sendmmsg(self.socket.as_raw_fd(), burst.as_mut_ptr(), burst.len() as libc::c_uint, 0)
            };
            if sent < 0 {
                let error = std::io::Error::last_os_error();
                if error.raw_os_error() == Some(libc::ENOBUFS) {
                    continue;
                }
                bail!("send frames: {error}");
            }
            packets += u64::from(sent.unsigned_abs());
            at = (at + sent.unsigned_abs() as usize) % frames.len();
        }
        Ok(Sent { packets, time: start.elapsed() })
    }

    /// Sends each of `frames` once.
    pub(crate) fn send_each(&self, frames: &[Frame]) -> Result<Sent> {
        let all = frames.len() as u64;
        self.send_while(frames, |sent| sent < all)
    }

    /// Sends `frames`, again and again, for that long.
    pub(crate) fn send_for(&self, frames: &[Frame], time: Duration) -> Result<Sent> {
        let start = Instant::now();
        self.send_while(frames, |_| start.elapsed() < time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_of_a_correct_packet_add_up_to_nothing() {
        let to = End { address: Ipv4Addr::new(20, 1, 2, 3), port: 443 };
        let frame = syn(40_000, to);
        let ip = &frame[LINK_BYTES..];
        assert_eq!(folded(words(&ip[..IP_BYTES])), 0);
        let pseudo = u32::from(IPPROTO_TCP) + (ip.len() - IP_BYTES) as u32;
        assert_eq!(folded(words(&ip[12..]) + pseudo), 0);
        let frame = counted(1, to.address);
        assert_eq!(folded(words(&frame[LINK_BYTES..LINK_BYTES + IP_BYTES])), 0);
        assert_eq!(&frame[36..38], &COUNTED_PORT.to_be_bytes());
    }
}
