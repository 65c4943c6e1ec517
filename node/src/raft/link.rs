//! Connections to peers: kept open, one for each purpose, requests multiplexed by sequence number.
//!
//! Heartbeats, log entries, votes and forwarded requests have connections of their own, so that a large append never
//! delays a heartbeat. Whether a request may be sent again depends on one thing: did it leave this node? [`CallError`]
//! says so.

mod connection;

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raft_store::StateReader;
use raft_store::types::NodeId;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};

use super::standing::Fence;
use super::wire::{Refusal, Request, Response};
use crate::tls::NodeTls;
pub(crate) use connection::tune;
use connection::{Connection, connect};

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
    /// Asking what a node can apply.
    Announce,
    /// Asking what its gateways told it.
    Reports,
    /// Asking the leader how its lookups of names go.
    Names,
}
const PURPOSES: usize = 7;

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
    tls: NodeTls,
    fence: Fence,
    known: Arc<Mutex<HashMap<String, Arc<Peer>>>>,
}

impl Peers {
    pub(crate) fn new(identity: Identity, tls: NodeTls, fence: Fence) -> Self {
        Self { identity, tls, fence, known: Arc::default() }
    }

    /// A way to whoever is at `address`; `to` is the node that is meant.
    pub(crate) fn link(&self, address: &str, to: Option<NodeId>, purpose: Purpose) -> Link {
        let peer = Arc::clone(lock(&self.known).entry(address.to_owned()).or_insert_with(|| {
            Arc::new(Peer {
                address: address.to_owned(),
                tls: self.tls.clone(),
                lines: Default::default(),
                warned: AtomicBool::new(false),
                refused: Arc::default(),
            })
        }));
        Link { identity: self.identity.clone(), peer, to, purpose, fence: self.fence.clone() }
    }

    /// The certificates this node shows and trusts.
    pub(crate) fn tls(&self) -> &NodeTls {
        &self.tls
    }

    /// Forgets peers at other addresses than these.
    pub(crate) fn retain(&self, addresses: impl Fn(&str) -> bool) {
        lock(&self.known).retain(|address, _| addresses(address));
    }
}

struct Peer {
    address: String,
    tls: NodeTls,
    lines: [Mutex<Line>; PURPOSES],
    /// True after "cannot reach" was logged, until it can be reached again.
    warned: AtomicBool,
    /// True after "it refuses" was logged, until it answers again.
    refused: Arc<AtomicBool>,
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
    fence: Fence,
}

/// A request that has been handed to a connection.
pub(crate) struct Pending {
    peer: String,
    answer: oneshot::Receiver<Response>,
    fence: Fence,
}

impl Pending {
    /// The answer, or why there is none.
    pub(crate) async fn answer(&mut self, deadline: Instant) -> Result<Response, CallError> {
        match timeout_at(deadline, &mut self.answer).await {
            Ok(Ok(Response::Refused(refusal))) => {
                self.fence.judge(&self.peer, &refusal);
                Err(CallError::Refused { peer: self.peer.clone(), refusal })
            }
            Ok(Ok(Response::Goodbye)) => {
                Err(CallError::NotSent(format!("{} stopped before it began with the request", self.peer)))
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
        connection.submit(&self.identity, self.to, request, &self.fence).await
    }

    /// Keeps a connection open and returns when it has ended or could not be made.
    pub(crate) async fn until_closed(&self) {
        if let Ok(connection) = self.connection().await {
            connection.closed().await;
        }
    }

    /// A connection nobody else uses, for a long transfer.
    pub(crate) async fn own_connection(&self) -> Result<OwnConnection, CallError> {
        let connection = connect(&self.peer).await.map_err(CallError::NotSent)?;
        Ok(OwnConnection {
            connection,
            identity: self.identity.clone(),
            to: self.to,
            fence: self.fence.clone(),
        })
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

/// A connection for one transfer.
pub(crate) struct OwnConnection {
    connection: Connection,
    identity: Identity,
    to: Option<NodeId>,
    fence: Fence,
}

impl OwnConnection {
    /// Sends a request that will be answered.
    pub(crate) async fn submit(&self, request: Request) -> Result<Pending, CallError> {
        self.connection.submit(&self.identity, self.to, request, &self.fence).await
    }

    /// Sends a request that only has an answer together with others.
    pub(crate) async fn send(&self, request: Request) -> Result<(), CallError> {
        self.connection.send(&self.identity, self.to, request).await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
