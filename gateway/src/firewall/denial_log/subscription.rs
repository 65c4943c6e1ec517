//! The kernel's log group over netlink: asking for its packets, and reading them. Source of the formats:
//! `linux/netfilter/nfnetlink_log.h` and `net/netfilter/nfnetlink_log.c`.

use std::io;
use std::os::fd::BorrowedFd;

use super::PREFIX;
use super::packet::{self, Headers};
use crate::firewall::netlink::answer::{Answer, answers};
use crate::firewall::netlink::attribute::{Attributes, Writer};
use crate::firewall::netlink::socket::{ExchangeError, Socket, Take};
use crate::firewall::netlink::{begin, seal};

/// `NFNL_SUBSYS_ULOG`.
pub(super) const SUBSYSTEM: u16 = 4;
/// `NFULNL_MSG_CONFIG`.
const CONFIG: u16 = 1;
// `NFULA_CFG_*`.
const CFG_CMD: u16 = 1;
const CFG_MODE: u16 = 2;
const CFG_TIMEOUT: u16 = 4;
const CFG_QTHRESH: u16 = 5;
const CFG_FLAGS: u16 = 6;
/// `NFULNL_CFG_CMD_BIND`.
const BIND: u8 = 1;
/// `NFULNL_COPY_PACKET`.
const COPY_PACKET: u8 = 2;
/// `NFULNL_CFG_F_SEQ`: packets are numbered, so that what was lost shows.
const NUMBERED: u16 = 1;
// `NFULA_*`.
pub(super) const PAYLOAD: u16 = 9;
pub(super) const PACKET_PREFIX: u16 = 10;
pub(super) const SEQUENCE: u16 = 12;
/// Where `nfgenmsg` names the group.
const RESOURCE: std::ops::Range<usize> = 18..20;

/// Bytes of each packet that the kernel hands over: the longest headers worth reading.
pub(in crate::firewall) const COPIED_BYTES: u32 = 128;
/// Packets the kernel gathers before it wakes us …
const GATHERED_PACKETS: u32 = 32;
/// … or so long, hundredths of a second.
const GATHERED_TIME_CS: u32 = 10;

/// Our place as the one reader of a group, which goes with it.
pub(super) struct Subscription {
    socket: Socket,
    /// Number of the next packet.
    next: u32,
}

/// What one datagram held.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) packets: Vec<Headers>,
    /// Packets that the kernel numbered and that never came.
    pub(super) lost: u64,
    /// Packets that say nothing we understand.
    pub(super) unreadable: u64,
    /// Packets that some other rule sent to this group.
    pub(super) foreign: u64,
}

impl Subscription {
    /// Becomes the reader of the group in the calling thread's network namespace.
    pub(super) fn open(group: u16) -> io::Result<Self> {
        let mut socket = Socket::open(SUBSYSTEM)?;
        let mut refused = None;
        let bound = socket.exchange(
            |sequence| configuration(group, sequence),
            |answer| {
                if let Answer::Refused { code, .. } = answer {
                    refused = Some(code);
                }
                if matches!(answer, Answer::Data(_)) { Take::More } else { Take::Last }
            },
        );
        match (bound, refused) {
            (Ok(()), None) => Ok(Self { socket, next: 0 }),
            (Ok(()), Some(code)) => Err(io::Error::from_raw_os_error(code)),
            (Err(ExchangeError::Lost(error) | ExchangeError::Socket(error)), _) => Err(error),
        }
    }

    /// Becomes readable when packets wait.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads what waits.
    pub(super) fn read(&mut self) -> io::Result<Batch> {
        match self.socket.receive() {
            Ok(Some(datagram)) => Ok(Batch::read(datagram, &mut self.next)),
            // Not from the kernel, or already gone. After an overflow the next number says how many were lost.
            Ok(None) => Ok(Batch::default()),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => {
                Ok(Batch::default())
            }
            Err(error) => Err(error),
        }
    }
}

impl Batch {
    pub(super) fn read(datagram: &[u8], next: &mut u32) -> Self {
        let mut batch = Self::default();
        let (messages, _) = answers(datagram, SUBSYSTEM, 0);
        for message in messages {
            if let Answer::Data(attributes) = message {
                batch.take(attributes, next);
            }
        }
        batch
    }

    fn take(&mut self, attributes: Attributes<'_>, next: &mut u32) {
        if let Some(number) = attributes.find(SEQUENCE).and_then(|sequence| sequence.as_u32_network()) {
            self.lost += u64::from(number.wrapping_sub(*next));
            *next = number.wrapping_add(1);
        }
        if attributes.find(PACKET_PREFIX).and_then(|prefix| prefix.as_text()) != Some(PREFIX) {
            self.foreign += 1;
            return;
        }
        match attributes.find(PAYLOAD).and_then(|payload| packet::read(payload.value)) {
            Some(headers) => self.packets.push(headers),
            None => self.unreadable += 1,
        }
    }
}

pub(super) fn configuration(group: u16, sequence: u32) -> Vec<u8> {
    let mut message = begin(SUBSYSTEM, CONFIG, libc::NLM_F_ACK, libc::AF_UNSPEC as u8);
    message[RESOURCE].copy_from_slice(&group.to_be_bytes());
    let mut writer = Writer(&mut message);
    writer.u8(CFG_CMD, BIND);
    let mut mode = COPIED_BYTES.to_be_bytes().to_vec();
    mode.extend([COPY_PACKET, 0]);
    writer.bytes(CFG_MODE, &mode);
    writer.bytes(CFG_TIMEOUT, &GATHERED_TIME_CS.to_be_bytes());
    writer.bytes(CFG_QTHRESH, &GATHERED_PACKETS.to_be_bytes());
    writer.bytes(CFG_FLAGS, &NUMBERED.to_be_bytes());
    seal(message, sequence)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(number: u32, prefix: &str, payload: &[u8]) -> Vec<u8> {
        // `NFULNL_MSG_PACKET` is 0.
        let mut message = begin(SUBSYSTEM, 0, 0, libc::AF_INET as u8);
        let mut writer = Writer(&mut message);
        writer.text(PACKET_PREFIX, prefix);
        writer.bytes(PAYLOAD, payload);
        writer.bytes(SEQUENCE, &number.to_be_bytes());
        seal(message, 0)
    }

    fn packet() -> Vec<u8> {
        let mut packet = vec![0x45; 20];
        packet.extend([0, 0, 0, 53]);
        packet[6..8].fill(0);
        packet[9] = 17;
        packet
    }

    #[test]
    fn packets_are_read_and_missing_numbers_foreign_rules_and_garbage_are_counted() {
        let datagram = [
            message(2, PREFIX, &packet()),
            message(3, "somebody", &packet()),
            message(6, PREFIX, &[0x99]),
            message(7, PREFIX, &packet()),
        ]
        .concat();
        let mut next = 0;
        let batch = Batch::read(&datagram, &mut next);
        assert_eq!((batch.lost, batch.unreadable, batch.foreign, next), (4, 1, 1, 8));
        assert_eq!(batch.packets.iter().map(|headers| headers.port).collect::<Vec<_>>(), [53, 53]);
    }

    #[test]
    fn numbers_go_round() {
        let mut next = u32::MAX;
        let datagram = [message(u32::MAX, PREFIX, &packet()), message(1, PREFIX, &packet())].concat();
        assert_eq!(Batch::read(&datagram, &mut next).lost, 1);
        assert_eq!(next, 2);
    }

    proptest! {
        #[test]
        fn garbage_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let mut next = 0;
            Batch::read(&bytes, &mut next);
            let framed = [message(0, PREFIX, &bytes), bytes.clone()].concat();
            Batch::read(&framed, &mut next);
        }
    }
}
