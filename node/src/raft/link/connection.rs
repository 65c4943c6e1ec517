//! One connection to a peer: TLS, a task that writes frames, a task that hands answers to those who wait.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt as _};
use nix::sys::socket::{setsockopt, sockopt};
use raft_store::types::NodeId;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::codec::{FramedRead, FramedWrite};
use tokio_util::sync::CancellationToken;

use super::{CallError, Identity, Peer, Pending, lock};
use crate::raft::standing::Fence;
use crate::raft::wire::{Answer, Envelope, GOODBYE_SEQUENCE, Request, Response, decode, encode, framing};
use crate::tls::reason::{is_refusal, reason};
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
/// Entries of callers that gave up are swept out when a connection has this many.
const MAX_ABANDONED: usize = 4_096;

/// Opens a connection; logs the first failure of a peer and its return, not every attempt.
pub(super) async fn connect(peer: &Peer) -> Result<Connection, String> {
    match timeout(CONNECT_TIMEOUT, connect_tls(peer)).await.unwrap_or_else(|_| Err("no answer".to_owned())) {
        Ok(stream) => {
            if peer.warned.swap(false, Ordering::Relaxed) {
                tracing::info!(peer = %peer.address, "peer can be reached again");
            }
            Ok(Connection::start(peer, stream))
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
    TlsConnector::from(peer.tls.peer_client()).connect(name, stream).await.map_err(|error| reason(&error))
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

/// One open connection.
pub(super) struct Connection {
    address: String,
    sequence: AtomicU64,
    frames: mpsc::Sender<Bytes>,
    waiting: Waiting,
    /// Cancelled with the end of the connection.
    closed: CancellationToken,
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
    fn start(peer: &Peer, stream: TlsStream<TcpStream>) -> Self {
        let (address, refused) = (peer.address.clone(), Arc::clone(&peer.refused));
        let (read, write) = tokio::io::split(stream);
        let (frames, mut queue) = mpsc::channel::<Bytes>(WRITE_QUEUE_FRAMES);
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let closed = CancellationToken::new();
        let writer = {
            let (waiting, address) = (Arc::clone(&waiting), address.clone());
            let closing = closed.clone().drop_guard();
            tokio::spawn(async move {
                let _closing = closing;
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
            let closing = closed.clone().drop_guard();
            tokio::spawn(async move {
                let _closing = closing;
                let mut frames = FramedRead::new(read, framing());
                while let Some(frame) = frames.next().await {
                    if let Err(error) = &frame
                        && is_refusal(error)
                        && !refused.swap(true, Ordering::Relaxed)
                    {
                        tracing::warn!(peer = %address, reason = reason(error), "the peer refuses this node");
                    }
                    let answer = frame
                        .map_err(|error| error.to_string())
                        .and_then(|frame| decode::<Answer>(&frame).map_err(|error| error.to_string()));
                    match answer {
                        Ok(Answer { sequence: GOODBYE_SEQUENCE, .. }) => {
                            tracing::debug!(peer = %address, "the peer stops");
                            for waiter in lock(&waiting).take().into_iter().flat_map(HashMap::into_values) {
                                let _ = waiter.send(Response::Goodbye);
                            }
                            break;
                        }
                        Ok(Answer { sequence, response }) => {
                            if refused.swap(false, Ordering::Relaxed) {
                                tracing::info!(peer = %address, "the peer accepts this node again");
                            }
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
        Self { address, sequence: AtomicU64::new(0), frames, waiting, closed, tasks }
    }

    pub(super) fn is_closed(&self) -> bool {
        lock(&self.waiting).is_none()
    }

    /// Returns when the connection has ended.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Sends a request that will be answered.
    pub(super) async fn submit(
        &self,
        identity: &Identity,
        to: Option<NodeId>,
        request: Request,
        fence: &Fence,
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
        self.hand_over(frame).await?;
        Ok(Pending { peer: self.address.clone(), answer, fence: fence.clone() })
    }

    /// Sends a request that has no answer of its own.
    pub(super) async fn send(
        &self,
        identity: &Identity,
        to: Option<NodeId>,
        request: Request,
    ) -> Result<(), CallError> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let frame = self.frame(identity, to, sequence, request)?;
        self.hand_over(frame).await
    }

    async fn hand_over(&self, frame: Bytes) -> Result<(), CallError> {
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
