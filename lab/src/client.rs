//! Traffic from inside a namespace: real sockets, short patience, typed outcomes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData};
use serde::Deserialize;

use crate::dns::RecordType;
use crate::internet::WHO_PORT;
use crate::namespace::Namespace;

/// How long to wait for an answer. Answers inside a machine take microseconds; a second without one is silence.
const PATIENCE: Duration = Duration::from_secs(1);
/// Largest datagram we read.
const MAX_DATAGRAM_BYTES: usize = 65_536;

/// How an attempt to reach something ended.
#[derive(Debug)]
pub enum Outcome<T> {
    /// It answered.
    Answer(T),
    /// Nothing came back: what a dropping firewall looks like.
    Silence,
    /// The connection was refused or reset.
    Refused,
    /// The kernel knows no way, or was told there is none.
    Unreachable(String),
}

impl<T> Outcome<T> {
    /// Whether it answered.
    pub fn answered(&self) -> bool {
        matches!(self, Self::Answer(_))
    }

    /// The answer.
    ///
    /// # Errors
    /// Any other outcome, in words.
    pub fn answer(self) -> Result<T> {
        match self {
            Self::Answer(value) => Ok(value),
            Self::Silence => Err(anyhow!("no answer")),
            Self::Refused => Err(anyhow!("refused")),
            Self::Unreachable(why) => Err(anyhow!("unreachable: {why}")),
        }
    }

    fn map<U>(self, change: impl FnOnce(T) -> Outcome<U>) -> Outcome<U> {
        match self {
            Self::Answer(value) => change(value),
            Self::Silence => Outcome::Silence,
            Self::Refused => Outcome::Refused,
            Self::Unreachable(why) => Outcome::Unreachable(why),
        }
    }
}

impl<T> From<io::Result<T>> for Outcome<T> {
    fn from(result: io::Result<T>) -> Self {
        match result {
            Ok(value) => Self::Answer(value),
            Err(error) => match error.kind() {
                ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::Silence,
                ErrorKind::ConnectionRefused
                | ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                | ErrorKind::UnexpectedEof => Self::Refused,
                _ => Self::Unreachable(error.to_string()),
            },
        }
    }
}

/// What the internet saw of us.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Seen {
    /// The address we asked.
    pub asked: SocketAddr,
    /// The address we came from, as the other side saw it.
    pub source: SocketAddr,
}

/// Somebody inside a namespace.
#[derive(Debug, Clone)]
pub struct Client {
    namespace: Arc<Namespace>,
    patience: Duration,
}

impl Client {
    /// In `namespace`, waiting a second for answers.
    pub fn new(namespace: &Arc<Namespace>) -> Self {
        Self { namespace: Arc::clone(namespace), patience: PATIENCE }
    }

    /// The same with another patience.
    pub fn with_patience(&self, patience: Duration) -> Self {
        Self { namespace: Arc::clone(&self.namespace), patience }
    }

    /// Where it is.
    pub fn namespace(&self) -> &Arc<Namespace> {
        &self.namespace
    }

    /// Opens a TCP connection; reads and writes on it wait as long as we do.
    pub fn tcp(&self, address: SocketAddr) -> Outcome<TcpStream> {
        let patience = self.patience;
        self.inside(|| {
            let stream = TcpStream::connect_timeout(&address, patience)?;
            stream.set_read_timeout(Some(patience))?;
            stream.set_write_timeout(Some(patience))?;
            stream.set_nodelay(true)?;
            Ok(stream)
        })
    }

    /// Opens a TCP connection to the echo port of `address` and sees one line come back.
    pub fn tcp_echo(&self, address: SocketAddr) -> Outcome<()> {
        self.tcp(address).map(|mut stream| exchange(&mut stream, b"hello\n"))
    }

    /// `GET path`, and the body of a 200 answer.
    pub fn http_get(&self, address: SocketAddr, path: &str) -> Outcome<String> {
        self.tcp(address).map(|mut stream| {
            let get = |stream: &mut TcpStream| -> io::Result<String> {
                stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                let (head, body) = answer
                    .split_once("\r\n\r\n")
                    .ok_or_else(|| io::Error::new(ErrorKind::UnexpectedEof, "no answer head"))?;
                if head.split(' ').nth(1) != Some("200") {
                    return Err(io::Error::other(head.lines().next().unwrap_or_default().to_owned()));
                }
                Ok(body.to_owned())
            };
            get(&mut stream).into()
        })
    }

    /// What the HTTP server at `address` saw of us.
    pub fn who(&self, address: SocketAddr) -> Outcome<Seen> {
        self.http_get(address, "/").map(|body| parse_seen(body.as_bytes()))
    }

    /// What `address` saw of a datagram of ours.
    pub fn udp_who(&self, address: IpAddr) -> Outcome<Seen> {
        self.udp((address, WHO_PORT).into(), b"?").map(|answer| parse_seen(&answer))
    }

    /// Sends one datagram and waits for the same one to come back.
    pub fn udp_echo(&self, address: SocketAddr, payload: &[u8]) -> Outcome<()> {
        self.udp(address, payload).map(|answer| {
            if answer == payload {
                Outcome::Answer(())
            } else {
                Outcome::Unreachable("another datagram came back".to_owned())
            }
        })
    }

    /// Sends one datagram and waits for an answer.
    pub fn udp(&self, address: SocketAddr, payload: &[u8]) -> Outcome<Vec<u8>> {
        let patience = self.patience;
        self.inside(|| {
            let socket = bind(address)?;
            socket.set_read_timeout(Some(patience))?;
            socket.send(payload)?;
            let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
            let length = socket.recv(&mut buffer)?;
            buffer.truncate(length);
            Ok(buffer)
        })
    }

    /// A UDP socket of this namespace, connected to `address`.
    ///
    /// # Errors
    /// When the kernel knows no way to it.
    pub fn udp_socket(&self, address: SocketAddr) -> Result<UdpSocket> {
        self.namespace.enter(|| bind(address).with_context(|| format!("make a socket towards {address}")))
    }

    /// One ICMP echo request.
    pub fn ping(&self, address: IpAddr) -> Outcome<()> {
        let seconds = self.patience.as_secs().max(1).to_string();
        let mut command = self.namespace.command("ping");
        command.args(["-n", "-c", "1", "-W", &seconds, &address.to_string()]);
        match command.output() {
            Err(error) => Outcome::Unreachable(format!("start ping (package iputils-ping): {error}")),
            Ok(output) if output.status.success() => Outcome::Answer(()),
            // 1: sent, no answer came (an error report may have); 2: could not even send.
            Ok(output) if output.status.code() == Some(1) => Outcome::Silence,
            Ok(output) => Outcome::Unreachable(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }

    /// Asks `resolver` for `name`'s addresses of a type, with the TTLs as they came. No such name is an empty list.
    ///
    /// # Errors
    /// When there is no answer, or a failure as answer.
    pub fn resolve(&self, resolver: SocketAddr, name: &str, kind: RecordType) -> Result<Vec<(IpAddr, u32)>> {
        let kind = match kind {
            RecordType::A => hickory_proto::rr::RecordType::A,
            RecordType::Aaaa => hickory_proto::rr::RecordType::AAAA,
            RecordType::Cname => hickory_proto::rr::RecordType::CNAME,
        };
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_str(&format!("{name}."))?, kind));
        question.metadata.recursion_desired = true;
        let answer = self
            .udp(resolver, &question.to_vec()?)
            .answer()
            .with_context(|| format!("ask {resolver} for {name}"))?;
        let answer = Message::from_vec(&answer).with_context(|| format!("read {resolver}'s answer"))?;
        let code = answer.metadata.response_code;
        ensure!(
            matches!(code, ResponseCode::NoError | ResponseCode::NXDomain),
            "{resolver} answers {code} when asked for {name}"
        );
        Ok(answer
            .answers
            .iter()
            .filter_map(|record| match &record.data {
                RData::A(address) => Some((address.0.into(), record.ttl)),
                RData::AAAA(address) => Some((address.0.into(), record.ttl)),
                _ => None,
            })
            .collect())
    }

    /// Downloads `bytes` at `bytes_per_s` from the HTTP server at `address`, on a thread of its own.
    ///
    /// # Errors
    /// When the connection cannot be opened.
    pub fn download(&self, address: SocketAddr, bytes: u64, bytes_per_s: u64) -> Result<Download> {
        let mut stream = self.tcp(address).answer().with_context(|| format!("connect to {address}"))?;
        let path = format!("/stream?bytes={bytes}&rate={bytes_per_s}");
        stream
            .write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())
            .with_context(|| format!("ask {address} for {path}"))?;
        // A stall of this length is a broken transfer.
        stream.set_read_timeout(Some(self.patience * 10)).context("set the read time limit")?;
        let received = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&received);
        let thread =
            thread::Builder::new().name("download".to_owned()).spawn(move || read_body(stream, &counter))?;
        Ok(Download { wanted: bytes, received, thread })
    }

    /// Runs `work` inside; a failure to enter is `Unreachable`.
    fn inside<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> Outcome<T> {
        match self.namespace.enter(|| Ok(work())) {
            Ok(result) => result.into(),
            Err(error) => Outcome::Unreachable(format!("{error:#}")),
        }
    }
}

/// Writes `message` and waits for it to come back.
pub(crate) fn exchange(stream: &mut TcpStream, message: &[u8]) -> Outcome<()> {
    let mut run = || -> io::Result<()> {
        stream.write_all(message)?;
        let mut echo = vec![0; message.len()];
        stream.read_exact(&mut echo)?;
        if echo == message { Ok(()) } else { Err(io::Error::other("something else came back")) }
    };
    run().into()
}

fn bind(towards: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr =
        if towards.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(towards)?;
    Ok(socket)
}

fn parse_seen(body: &[u8]) -> Outcome<Seen> {
    match serde_json::from_slice(body) {
        Ok(seen) => Outcome::Answer(seen),
        Err(error) => Outcome::Unreachable(format!("not the internet's answer: {error}")),
    }
}

/// A running transfer.
#[derive(Debug)]
pub struct Download {
    wanted: u64,
    received: Arc<AtomicU64>,
    thread: JoinHandle<io::Result<()>>,
}

impl Download {
    /// Bytes that arrived so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Whether it has ended, well or not.
    pub fn ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it broke off or came short.
    pub fn finish(self) -> Result<()> {
        let result = self.thread.join().map_err(|_| anyhow!("the download's thread panicked"))?;
        let received = self.received.load(Ordering::Relaxed);
        result
            .with_context(|| format!("the transfer broke off after {received} of {} bytes", self.wanted))?;
        ensure!(received == self.wanted, "the transfer brought {received} of {} bytes", self.wanted);
        Ok(())
    }
}

fn read_body(mut stream: TcpStream, received: &AtomicU64) -> io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => received.fetch_add(length as u64, Ordering::Relaxed),
        };
    }
}
