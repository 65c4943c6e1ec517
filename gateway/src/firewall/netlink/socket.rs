//! One netlink socket: a request goes in, its answers come out.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_sys::constants::NETLINK_NETFILTER;
use netlink_sys::{Socket as NetlinkSocket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::answer::{Answer, answers};

/// Room for the largest message: an error that carries a whole 64 KiB batch.
const RECEIVE_BUFFER_BYTES: usize = 128 * 1024;
/// Wanted size of the socket's queue; the kernel's limit may lower it.
const SOCKET_QUEUE_BYTES: usize = 1024 * 1024;
/// The kernel answers before `send` returns; anything longer is an answer that was lost.
const ANSWER_TIMEOUT_S: i64 = 10;

/// Why an exchange failed.
#[derive(Debug)]
pub(in crate::firewall) enum ExchangeError {
    /// The socket failed.
    Socket(io::Error),
    /// Answers were lost or changed underneath: ask again.
    Lost(io::Error),
}

/// The socket; it belongs to the network namespace of the thread that opened it.
pub(in crate::firewall) struct Socket {
    socket: NetlinkSocket,
    kernel: SocketAddr,
    subsystem: u16,
    sequence: u32,
    buffer: Vec<u8>,
    /// Exchanges until one whose answer is lost.
    #[cfg(test)]
    loses: Option<u32>,
}

impl Socket {
    pub(in crate::firewall) fn open(subsystem: u16) -> io::Result<Self> {
        let mut socket = NetlinkSocket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        // Without this an acknowledgement of an error carries the whole request back.
        socket.set_cap_ack(true)?;
        socket.set_rx_buf_sz(SOCKET_QUEUE_BYTES)?;
        let descriptor = socket.as_raw_fd();
        // SAFETY: the descriptor is open for as long as `socket` lives, which outlives this borrow.
        let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
        setsockopt(&borrowed.as_fd(), sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_TIMEOUT_S, 0))?;
        Ok(Self {
            socket,
            kernel: SocketAddr::new(0, 0),
            subsystem,
            sequence: 0,
            buffer: Vec::with_capacity(RECEIVE_BUFFER_BYTES),
            #[cfg(test)]
            loses: None,
        })
    }

    /// Loses the answer to the exchange after `count` more, which the kernel has carried out by then.
    #[cfg(test)]
    pub(in crate::firewall) fn lose_answer_after(&mut self, count: u32) {
        self.loses = Some(count);
    }

    #[cfg(test)]
    fn is_lost(&mut self) -> bool {
        let left = self.loses.take();
        self.loses = left.and_then(|left| left.checked_sub(1));
        left == Some(0)
    }

    pub(in crate::firewall) fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as `self.socket` lives, which outlives this borrow.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }

    /// What the kernel said by itself, without waiting for it; `None` when another process spoke.
    pub(in crate::firewall) fn receive(&mut self) -> io::Result<Option<&[u8]>> {
        self.buffer.clear();
        let (_, sender) = retry_interrupted(|| self.socket.recv_from(&mut self.buffer, libc::MSG_DONTWAIT))?;
        Ok((sender.port_number() == 0).then_some(&self.buffer))
    }

    /// Sends what `seal` makes of the next sequence number and hands each answer to `take`, which says when it
    /// has had the last.
    pub(in crate::firewall) fn exchange(
        &mut self,
        seal: impl FnOnce(u32) -> Vec<u8>,
        mut take: impl FnMut(Answer<'_>) -> Take,
    ) -> Result<(), ExchangeError> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let sequence = self.sequence;
        let request = seal(sequence);
        retry_interrupted(|| self.socket.send_to(&request, &self.kernel, 0))
            .map_err(ExchangeError::Socket)?;
        #[cfg(test)]
        if self.is_lost() {
            return Err(ExchangeError::Lost(io::Error::from_raw_os_error(libc::ENOBUFS)));
        }
        let mut interrupted = false;
        loop {
            self.buffer.clear();
            let received = retry_interrupted(|| self.socket.recv_from(&mut self.buffer, 0));
            let sender = match received {
                Ok((_, sender)) => sender,
                // ENOBUFS: the queue overflowed. EAGAIN: the answer never came. Both mean that answers were lost.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => {
                    return Err(ExchangeError::Lost(error));
                }
                Err(error) => return Err(ExchangeError::Socket(error)),
            };
            // Only the kernel has port 0; another process could write to our port.
            if sender.port_number() != 0 {
                continue;
            }
            let (messages, changed) = answers(&self.buffer, self.subsystem, sequence);
            interrupted |= changed;
            for message in messages {
                if take(message) == Take::Last {
                    return if interrupted {
                        Err(ExchangeError::Lost(io::ErrorKind::Interrupted.into()))
                    } else {
                        Ok(())
                    };
                }
            }
        }
    }
}

/// Whether an answer was the last of its exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::firewall) enum Take {
    More,
    Last,
}

fn retry_interrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
