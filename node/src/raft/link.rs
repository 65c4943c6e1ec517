//! Connections to peers: kept open, one for each purpose, requests multiplexed by sequence number.
//!
//! Heartbeats, log entries, votes and forwarded requests have connections of their own, so that a large append never
//! delays a heartbeat. Whether a request may be sent again depends on one thing: did it leave this node? [`CallError`]
//! says so.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt as _};
use nix::sys::socket::{setsockopt, sockopt};
use raft_store::StateReader;
use raft_store::types::NodeId;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::codec::{FramedRead, FramedWrite};

use super::wire::{Answer, Envelope, Refusal, Request, Response, decode, encode, framing};
use crate::tls::server_name;

/// TCP and TLS must be up within this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Frames waiting for the socket; whoever sends more waits.
const WRITE_QUEUE_FRAMES: usize = 16;
/// An idle connection is probed after this time, and given up when the probes stay unanswered, seconds.
const KEEPALIVE_IDLE_S: u32 = 5;
const KEEPALIVE_INTERVAL_S: u32 = 2;
const KEEPALIVE_PROBES: u32 = 3;
/// Sent bytes the peer's kernel does not acknowledge for this long end the connection, milliseconds.
const TCP_USER_TIMEOUT_MS: u32 = 5_000;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Log entries.
    Append,
    /// The leader's sign of life.
    Heartbeat,
    /// Elections and handing over.
    Vote,
    /// Writes, reads, status, joining.
    Forward,
}
const PURPOSES: usize = 4;

/// Why a call brought no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum CallError {
    /// Nothing left this node: the request may be sent again.
    #[error("{0}")]
    NotSent(String),
    /// The connection broke after the request was handed to it.
    #[error("connection to {0} lost before the answer")]
    Lost(String),
    /// No answer in time.
    #[error("{0} does not answer in time")]
    Timeout(String),
    /// The peer did nothing and says why.
    #[error("{peer} refuses: {refusal}")]
    Refused {
        /// Its address.
        peer: String,
        /// Why.
        refusal: Refusal,
    },
}

/// Who this node is towards peers.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) id: NodeId,
    pub(crate) reader: StateReader,
}

/// All peers this node has talked to, by address.
#[derive(Clone)]
pub(crate) struct Peers {
    identity: Identity,
    tls: Arc<rustls::ClientConfig>,
    known: Arc<Mutex<HashMap<String, Arc<Peer>>>>,
}

impl Peers {
    pub(crate) fn new(identity: Identity, tls: Arc<rustls::ClientConfig>) -> Self {
        Self { identity, tls, known: Arc::default() }
    }

    /// A way to whoever is at `address`; `to` is the node that is meant.
    pub(crate) fn link(&self, address: &str, to: Option<NodeId>, purpose: Purpose) -> Link {
        let peer = Arc::clone(lock(&self.known).entry(address.to_owned()).or_insert_with(|| {
            Arc::new(Peer {
                address: address.to_owned(),
                tls: Arc::clone(&self.tls),
                lines: Default::default(),
                warned: AtomicBool::new(false),
            })
        }));
        Link { identity: self.identity.clone(), peer, to, purpose }
    }

    /// Forgets peers at other addresses than these.
    pub(crate) fn retain(&self, addresses: impl Fn(&str) -> bool) {
        lock(&self.known).retain(|address, _| addresses(address));
    }
}

struct Peer {
    address: String,
    tls: Arc<rustls::ClientConfig>,
    lines: [Mutex<Line>; PURPOSES],
    /// True after "cannot reach" was logged, until it can be reached again.
    warned: AtomicBool,
}

#[derive(Default)]
enum Line {
    #[default]
    Down,
    /// Somebody is connecting; the outcome is told to all who wait.
    Connecting(watch::Receiver<Option<Result<Arc<Connection>, String>>>),
    Up(Arc<Connection>),
}

/// A way to one node for one purpose. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Link {
    identity: Identity,
    peer: Arc<Peer>,
    to: Option<NodeId>,
    purpose: Purpose,
}

/// A request that has been handed to a connection.
pub(crate) struct Pending {
    peer: String,
    answer: oneshot::Receiver<Response>,
}

impl Pending {
    /// The answer, or why there is none.
    pub(crate) async fn answer(&mut self, deadline: Instant) -> Result<Response, CallError> {
        match timeout_at(deadline, &mut self.answer).await {
            Ok(Ok(Response::Refused(refusal))) => {
                Err(CallError::Refused { peer: self.peer.clone(), refusal })
            }
            Ok(Ok(response)) => Ok(response),
            Ok(Err(_)) => Err(CallError::Lost(self.peer.clone())),
            Err(_) => Err(CallError::Timeout(self.peer.clone())),
        }
    }
}

impl Link {
    /// The peer's `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.peer.address
    }

    /// Sends `request` and waits for the answer.
    pub(crate) async fn call(&self, request: Request, deadline: Instant) -> Result<Response, CallError> {
        let late = || CallError::NotSent(format!("no connection to {} in time", self.peer.address));
        let mut pending = timeout_at(deadline, self.submit(request)).await.map_err(|_| late())??;
        pending.answer(deadline).await
    }

    /// Hands `request` to the connection, after all requests submitted before.
    pub(crate) async fn submit(&self, request: Request) -> Result<Pending, CallError> {
        let connection = self.connection().await?;
        connection.submit(&self.identity, self.to, request).await
    }

    /// A connection nobody else uses, for a long transfer.
    pub(crate) async fn own_connection(&self) -> Result<OwnConnection, CallError> {
        let connection = connect(&self.peer).await.map_err(CallError::NotSent)?;
        Ok(OwnConnection { connection, identity: self.identity.clone(), to: self.to })
    }

    /// The open connection, or a new one. Connecting goes on when the caller gives up: a heartbeat does not wait long
    /// enough for TLS, and the next one finds the connection ready.
    async fn connection(&self) -> Result<Arc<Connection>, CallError> {
        let mut outcome = {
            let mut line = lock(&self.peer.lines[self.purpose as usize]);
            match &*line {
                Line::Up(connection) if !connection.is_closed() => return Ok(Arc::clone(connection)),
                Line::Connecting(outcome) => outcome.clone(),
                Line::Up(_) | Line::Down => {
                    let (tell, outcome) = watch::channel(None);
                    *line = Line::Connecting(outcome.clone());
                    tokio::spawn(connect_line(Arc::clone(&self.peer), self.purpose, tell));
                    outcome
                }
            }
        };
        let connected = match outcome.wait_for(Option::is_some).await {
            Ok(connected) => connected.clone(),
            Err(_) => None,
        };
        match connected {
            Some(Ok(connection)) => Ok(connection),
            Some(Err(error)) => Err(CallError::NotSent(error)),
            None => Err(CallError::NotSent(format!("connecting to {} was given up", self.peer.address))),
        }
    }
}

async fn connect_line(
    peer: Arc<Peer>,
    purpose: Purpose,
    tell: watch::Sender<Option<Result<Arc<Connection>, String>>>,
) {
    let connected = connect(&peer).await.map(Arc::new);
    *lock(&peer.lines[purpose as usize]) = match &connected {
        Ok(connection) => Line::Up(Arc::clone(connection)),
        Err(_) => Line::Down,
    };
    tell.send_replace(Some(connected));
}

/// Opens a connection; logs the first failure of a peer and its return, not every attempt.
async fn connect(peer: &Peer) -> Result<Connection, String> {
    match timeout(CONNECT_TIMEOUT, connect_tls(peer)).await.unwrap_or_else(|_| Err("no answer".to_owned())) {
        Ok(stream) => {
            if peer.warned.swap(false, Ordering::Relaxed) {
                tracing::info!(peer = %peer.address, "peer can be reached again");
            }
            Ok(Connection::start(peer.address.clone(), stream))
        }
        Err(error) => {
            let message = format!("connect to peer {}: {error}", peer.address);
            if !peer.warned.swap(true, Ordering::Relaxed) {
                tracing::warn!(peer = %peer.address, error, "cannot reach peer; trying on");
            }
            Err(message)
        }
    }
}

async fn connect_tls(peer: &Peer) -> Result<TlsStream<TcpStream>, String> {
    let name = server_name(&peer.address)?;
    let stream = TcpStream::connect(&peer.address).await.map_err(|error| error.to_string())?;
    tune(&stream).map_err(|error| error.to_string())?;
    TlsConnector::from(Arc::clone(&peer.tls))
        .connect(name, stream)
        .await
        .map_err(|error| format!("TLS: {error}; both nodes need certificates of one CA (ca.pem)"))
}

/// Small frames go out at once, and a peer that is gone without a word is noticed.
pub(crate) fn tune(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_S)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_S)?;
    setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &TCP_USER_TIMEOUT_MS)?;
    Ok(())
}

/// Requests whose answers are awaited; `None` once the connection is closed.
type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Response>>>>>;

struct Connection {
    address: String,
    sequence: AtomicU64,
    frames: mpsc::Sender<Bytes>,
    waiting: Waiting,
    /// Both ends when the connection is dropped.
    tasks: [tokio::task::AbortHandle; 2],
}

impl Drop for Connection {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Connection {
    fn start(address: String, stream: TlsStream<TcpStream>) -> Self {
        let (read, write) = tokio::io::split(stream);
        let (frames, mut queue) = mpsc::channel::<Bytes>(WRITE_QUEUE_FRAMES);
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let writer = {
            let (waiting, address) = (Arc::clone(&waiting), address.clone());
            tokio::spawn(async move {
                let mut sink = FramedWrite::new(write, framing());
                while let Some(frame) = queue.recv().await {
                    let mut sent = sink.feed(frame).await;
                    while let Ok(frame) = queue.try_recv() {
                        if sent.is_err() {
                            break;
                        }
                        sent = sink.feed(frame).await;
                    }
                    if sent.is_ok() {
                        sent = SinkExt::<Bytes>::flush(&mut sink).await;
                    }
                    if let Err(error) = sent {
                        tracing::debug!(peer = %address, %error, "peer connection ends");
                        break;
                    }
                }
                lock(&waiting).take();
            })
        };
        let reader = {
            let (waiting, address) = (Arc::clone(&waiting), address.clone());
            tokio::spawn(async move {
                let mut frames = FramedRead::new(read, framing());
                while let Some(frame) = frames.next().await {
                    let answer = frame
                        .map_err(|error| error.to_string())
                        .and_then(|frame| decode::<Answer>(&frame).map_err(|error| error.to_string()));
                    match answer {
                        Ok(Answer { sequence, response }) => {
                            let waiter =
                                lock(&waiting).as_mut().and_then(|waiting| waiting.remove(&sequence));
                            if let Some(waiter) = waiter {
                                // Nobody may be waiting any longer.
                                let _ = waiter.send(response);
                            }
                        }
                        Err(error) => {
                            tracing::debug!(peer = %address, error, "peer connection ends");
                            break;
                        }
                    }
                }
                lock(&waiting).take();
            })
        };
        let tasks = [writer.abort_handle(), reader.abort_handle()];
        Self { address, sequence: AtomicU64::new(0), frames, waiting, tasks }
    }

    fn is_closed(&self) -> bool {
        lock(&self.waiting).is_none()
    }

    async fn submit(
        &self,
        identity: &Identity,
        to: Option<NodeId>,
        request: Request,
    ) -> Result<Pending, CallError> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let frame = self.frame(identity, to, sequence, request)?;
        let (waiter, answer) = oneshot::channel();
        match lock(&self.waiting).as_mut() {
            Some(waiting) => {
                // Whoever gave up waiting left an entry behind.
                if waiting.len() >= MAX_ABANDONED {
                    waiting.retain(|_, waiter| !waiter.is_closed());
                }
                waiting.insert(sequence, waiter);
            }
            None => return Err(CallError::NotSent(format!("the connection to {} was closed", self.address))),
        }
        self.send(frame).await?;
        Ok(Pending { peer: self.address.clone(), answer })
    }

    async fn send(&self, frame: Bytes) -> Result<(), CallError> {
        let closed = |_| CallError::NotSent(format!("the connection to {} was closed", self.address));
        self.frames.send(frame).await.map_err(closed)
    }

    fn frame(
        &self,
        identity: &Identity,
        to: Option<NodeId>,
        sequence: u64,
        request: Request,
    ) -> Result<Bytes, CallError> {
        let cluster = identity.reader.state().cluster();
        encode(&Envelope { sequence, cluster, from: identity.id, to, request })
            .map_err(|error| CallError::NotSent(error.to_string()))
    }
}

/// Entries of callers that gave up are swept out when a connection has this many.
const MAX_ABANDONED: usize = 4_096;

/// A connection for one transfer.
pub(crate) struct OwnConnection {
    connection: Connection,
    identity: Identity,
    to: Option<NodeId>,
}

impl OwnConnection {
    /// Sends a request that will be answered.
    pub(crate) async fn submit(&self, request: Request) -> Result<Pending, CallError> {
        self.connection.submit(&self.identity, self.to, request).await
    }

    /// Sends a request that only has an answer together with others.
    pub(crate) async fn send(&self, request: Request) -> Result<(), CallError> {
        let sequence = self.connection.sequence.fetch_add(1, Ordering::Relaxed);
        let frame = self.connection.frame(&self.identity, self.to, sequence, request)?;
        self.connection.send(frame).await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
