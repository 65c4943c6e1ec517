//! A numbered stream of datagrams to an echo port: proof of what got lost, and when.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::client::Client;

/// How long to wait for late answers after the last datagram.
const STRAGGLERS: Duration = Duration::from_secs(1);
/// How often the receiver looks whether it should end.
const RECEIVE_TIMEOUT: Duration = Duration::from_millis(100);

/// What became of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamReport {
    /// Datagrams sent; they are numbered from 0.
    pub sent: u64,
    /// Numbers never answered.
    pub missing: Vec<u64>,
}

/// A running stream. All its datagrams come from one socket, so they are one flow.
#[derive(Debug)]
pub struct UdpStream {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<BTreeSet<u64>>,
}

impl UdpStream {
    /// Starts sending `per_s` datagrams a second from `client` to the echo port `address`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn start(client: &Client, address: SocketAddr, per_s: u32) -> Result<Self> {
        let socket = client.udp_socket(address)?;
        socket.set_read_timeout(Some(RECEIVE_TIMEOUT)).context("set the receive time limit")?;
        let outgoing = socket.try_clone().context("duplicate the socket")?;
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let answered = Arc::<AtomicU64>::default();
        let sender = {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            thread::Builder::new().name("udp-send".to_owned()).spawn(move || {
                let result = send(&outgoing, &stop, Duration::from_secs(1) / per_s);
                thread::sleep(STRAGGLERS);
                done.store(true, Ordering::Relaxed);
                result
            })?
        };
        let receiver = {
            let answered = Arc::clone(&answered);
            thread::Builder::new()
                .name("udp-receive".to_owned())
                .spawn(move || receive(&socket, &done, &answered))?
        };
        Ok(Self { stop, answered, sender, receiver })
    }

    /// Answers so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Stops sending, waits for late answers, and says what is missing.
    ///
    /// # Errors
    /// When sending itself failed.
    pub fn finish(self) -> Result<StreamReport> {
        self.stop.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow!("a thread of the stream panicked");
        let sent = self.sender.join().map_err(panicked)??;
        let answered = self.receiver.join().map_err(panicked)?;
        Ok(StreamReport { sent, missing: (0..sent).filter(|number| !answered.contains(number)).collect() })
    }
}

fn send(socket: &UdpSocket, stop: &AtomicBool, interval: Duration) -> Result<u64> {
    let start = Instant::now();
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        socket.send(&number.to_be_bytes()).with_context(|| format!("send datagram {number}"))?;
        number += 1;
        // Paced by the clock of the whole stream, so that a late wake-up does not slow it down.
        let due = interval.saturating_mul(u32::try_from(number).unwrap_or(u32::MAX));
        thread::sleep(due.saturating_sub(start.elapsed()));
    }
    Ok(number)
}

fn receive(socket: &UdpSocket, done: &AtomicBool, count: &AtomicU64) -> BTreeSet<u64> {
    let mut answered = BTreeSet::new();
    let mut buffer = [0; 16];
    while !done.load(Ordering::Relaxed) {
        match socket.recv(&mut buffer) {
            Ok(8) => {
                let mut number = [0; 8];
                number.copy_from_slice(&buffer[..8]);
                if answered.insert(u64::from_be_bytes(number)) {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            // An ICMP error for an earlier datagram; that one shows as missing.
            Err(_) => thread::yield_now(),
        }
    }
    answered
}
