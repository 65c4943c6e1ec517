//! Questions over UDP that share a few sockets. A socket for each question costs more than the question: opening it,
//! registering it and closing it are most of what 100,000 names a minute take.
//!
//! An answer is as hard to forge as with a socket for each question: it must come from the upstream's address (the sockets
//! are connected), to a port the kernel drew, carry a 16-bit number drawn for the question, and repeat the question. No
//! port is used for long.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::op::{DnsRequest, DnsResponse, Query};
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::{SENDS_PER_QUESTION, answers};
use crate::resolver::answer::Failure;

/// Sockets towards one upstream.
const SOCKETS: usize = 8;
/// After so long, or so many questions, another port takes the place of a socket's.
const PORT_LIFE: Duration = Duration::from_secs(10);
const QUESTIONS_PER_PORT: u32 = 2_000;
/// Questions on their way through one socket; a number is drawn until it is free, so there must be many free ones.
const MAX_PENDING: usize = 4_096;
/// Largest answer that is read; more than is asked for ([`super::UDP_PAYLOAD_BYTES`]).
const MAX_ANSWER_BYTES: usize = 4_096;

/// The way to one upstream.
pub(super) struct Udp {
    address: SocketAddr,
    patience: Duration,
    sockets: Mutex<[Option<Arc<Socket>>; SOCKETS]>,
    heard: Arc<Heard>,
}

/// When a datagram last came from the upstream.
#[derive(Default)]
struct Heard(Mutex<Option<Instant>>);

struct Socket {
    socket: Arc<UdpSocket>,
    pending: Arc<Pending>,
    until: Instant,
    receiver: AbortHandle,
}

struct Pending {
    waiting: Mutex<Waiting>,
    heard: Arc<Heard>,
}

#[derive(Default)]
struct Waiting {
    by_number: HashMap<u16, (Query, oneshot::Sender<Result<DnsResponse, Failure>>)>,
    asked: u32,
}

/// A question on its way; what comes after its end finds nobody.
struct Asked<'a> {
    socket: &'a Socket,
    number: u16,
}

impl Udp {
    /// Nothing is opened before the first question. A question has `patience`, all its sends together.
    pub(super) fn new(address: SocketAddr, patience: Duration) -> Self {
        Self { address, patience, sockets: Mutex::default(), heard: Arc::default() }
    }

    /// Asks up to [`SENDS_PER_QUESTION`] times.
    pub(super) async fn ask(&self, request: &DnsRequest) -> Result<DnsResponse, Failure> {
        let deadline = Instant::now() + self.patience;
        let query = request.queries.first().ok_or_else(|| failed("ask", "there is no question"))?;
        let socket = self.socket().await?;
        let (asked, mut answer) = socket.expect(query)?;
        let mut message = request.to_vec().map_err(|error| failed("write the question", error))?;
        // The first two bytes of a message are its number (RFC 1035 section 4.1.1).
        if let Some(start) = message.first_chunk_mut() {
            *start = asked.number.to_be_bytes();
        }
        let pause = self.patience / u32::from(SENDS_PER_QUESTION);
        for _ in 0..SENDS_PER_QUESTION {
            socket.socket.send(&message).await.map_err(|error| failed("ask over UDP", error))?;
            let until = deadline.min(Instant::now() + pause);
            if let Ok(answer) = timeout_at(until, &mut answer).await {
                return answer.unwrap_or_else(|_| Err(failed("ask over UDP", "the socket is gone")));
            }
        }
        Err(Failure::Timeout)
    }

    /// True when a datagram came from the upstream since then, whatever it was.
    pub(super) fn heard_since(&self, then: Instant) -> bool {
        let heard = *self.heard.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.is_some_and(|heard| heard >= then)
    }

    async fn socket(&self) -> Result<Arc<Socket>, Failure> {
        let place = rand::random_range(0..SOCKETS);
        if let Some(socket) = &self.sockets()[place]
            && socket.is_fresh()
        {
            return Ok(Arc::clone(socket));
        }
        // Several may do this at once: each has what it opened, and the last one's stays.
        let opened = timeout(self.patience, Socket::open(self.address, Arc::clone(&self.heard)))
            .await
            .map_err(|_| Failure::Timeout)?;
        let socket = Arc::new(opened.map_err(|error| failed("open a UDP socket", error))?);
        self.sockets()[place] = Some(Arc::clone(&socket));
        Ok(socket)
    }

    fn sockets(&self) -> MutexGuard<'_, [Option<Arc<Socket>>; SOCKETS]> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Socket {
    async fn open(address: SocketAddr, heard: Arc<Heard>) -> std::io::Result<Self> {
        let any: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(address).await?;
        let pending = Arc::new(Pending { waiting: Mutex::default(), heard });
        let socket = Arc::new(socket);
        let receiver = tokio::spawn(receive(Arc::clone(&socket), Arc::clone(&pending))).abort_handle();
        Ok(Self { socket, pending, until: Instant::now() + PORT_LIFE, receiver })
    }

    fn is_fresh(&self) -> bool {
        let waiting = self.pending.lock();
        waiting.asked < QUESTIONS_PER_PORT
            && waiting.by_number.len() < MAX_PENDING
            && !self.receiver.is_finished()
            && Instant::now() < self.until
    }

    /// Draws a number for a question.
    fn expect(
        &self,
        query: &Query,
    ) -> Result<(Asked<'_>, oneshot::Receiver<Result<DnsResponse, Failure>>), Failure> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.pending.lock();
        if waiting.by_number.len() >= MAX_PENDING {
            return Err(failed("ask over UDP", format!("{MAX_PENDING} questions are on their way")));
        }
        let number = loop {
            let number = rand::random();
            if !waiting.by_number.contains_key(&number) {
                break number;
            }
        };
        waiting.asked += 1;
        waiting.by_number.insert(number, (query.clone(), sender));
        Ok((Asked { socket: self, number }, receiver))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.receiver.abort();
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.socket.pending.lock().by_number.remove(&self.number);
    }
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands an answer to who waits for it. What nobody asked for is dropped.
    fn take(&self, bytes: &[u8]) {
        *self.heard.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let Some(number) = bytes.first_chunk().map(|bytes| u16::from_be_bytes(*bytes)) else { return };
        if !self.lock().by_number.contains_key(&number) {
            return;
        }
        let Ok(response) = DnsResponse::from_buffer(bytes.to_vec()) else { return };
        let mut waiting = self.lock();
        if waiting.by_number.get(&number).is_some_and(|(query, _)| answers(&response, query))
            && let Some((_, sender)) = waiting.by_number.remove(&number)
        {
            // Who asked may just have given up.
            let _ = sender.send(Ok(response));
        }
    }

    fn fail(&self, error: &std::io::Error) {
        for (_, (_, sender)) in self.lock().by_number.drain() {
            let _ = sender.send(Err(failed("ask over UDP", error)));
        }
    }
}

async fn receive(socket: Arc<UdpSocket>, pending: Arc<Pending>) {
    let mut buffer = vec![0; MAX_ANSWER_BYTES];
    loop {
        match socket.recv(&mut buffer).await {
            Ok(length) => pending.take(&buffer[..length]),
            // The kernel tells what ICMP said: nobody listens there, or there is no way.
            Err(error) => pending.fail(&error),
        }
    }
}

fn failed(action: &str, error: impl std::fmt::Display) -> Failure {
    Failure::Transport(format!("{action}: {error}"))
}

#[cfg(test)]
mod tests;
