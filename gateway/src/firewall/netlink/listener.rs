//! A socket on which the kernel tells of its own accord.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_sys::Socket as NetlinkSocket;
use netlink_sys::constants::NETLINK_NETFILTER;
use nix::sys::socket::{setsockopt, sockopt};

use super::answer::{Answer, answers};
use super::attribute::Attributes;

/// Room for the largest message of the kernel's own.
const RECEIVE_BUFFER_BYTES: usize = 64 * 1024;
/// Wanted size of the socket's queue: some ten thousand messages. It takes CAP_NET_ADMIN to go beyond the system's limit.
const SOCKET_QUEUE_BYTES: usize = 8 * 1024 * 1024;

/// The socket; it belongs to the network namespace of the thread that opened it.
pub(in crate::firewall) struct Listener {
    socket: NetlinkSocket,
    subsystem: u16,
    buffer: Vec<u8>,
}

/// What one look at the queue gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::firewall) enum Heard {
    /// A datagram, handed on.
    Some,
    /// The queue is empty.
    Nothing,
    /// The queue overflowed: messages were lost, nobody knows how many.
    Lost,
}

impl Listener {
    /// Opens a socket for the messages of one group of a subsystem.
    pub(in crate::firewall) fn open(subsystem: u16, group: u32) -> io::Result<Self> {
        let mut socket = NetlinkSocket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        {
            // SAFETY: the descriptor is open for as long as `socket` lives, which outlives this borrow.
            let descriptor = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
            if setsockopt(&descriptor, sockopt::RcvBufForce, &SOCKET_QUEUE_BYTES).is_err() {
                socket.set_rx_buf_sz(SOCKET_QUEUE_BYTES)?;
            }
        }
        socket.add_membership(group)?;
        Ok(Self { socket, subsystem, buffer: Vec::with_capacity(RECEIVE_BUFFER_BYTES) })
    }

    /// Hands the messages of the next datagram to `take`; does not wait for one.
    pub(in crate::firewall) fn hear(&mut self, mut take: impl FnMut(Attributes<'_>)) -> io::Result<Heard> {
        self.buffer.clear();
        match self.socket.recv_from(&mut self.buffer, libc::MSG_DONTWAIT) {
            // Only the kernel has port 0; another process could write to our port.
            Ok((_, sender)) if sender.port_number() == 0 => {
                // What the kernel tells of its own accord bears the number 0.
                for answer in answers(&self.buffer, self.subsystem, 0).0 {
                    if let Answer::Data(attributes) = answer {
                        take(attributes);
                    }
                }
                Ok(Heard::Some)
            }
            Ok(_) => Ok(Heard::Some),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => Ok(Heard::Nothing),
                Some(libc::EINTR) => Ok(Heard::Some),
                Some(libc::ENOBUFS) => Ok(Heard::Lost),
                _ => Err(error),
            },
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as `self` lives.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }
}
