//! One encrypted connection that is kept and carries many questions at a time.
//!
//! A connection that broke is made anew by the next question; a question that went down with a connection that had
//! worked before is asked once more, because servers close idle ones at will (RFC 7858 section 3.4). One that no answer
//! came from while a question waited for its whole time is given up: a firewall may have forgotten it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hickory_proto::op::{DnsRequest, DnsResponse};
use hickory_resolver::net::h2::HttpsClientStream;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::tls::tls_exchange;
use hickory_resolver::net::xfer::DnsExchange;
use hickory_resolver::net::{DnsHandle, NetError};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout};

use super::first;
use crate::resolver::answer::Failure;
use crate::resolver::endpoint::{Endpoint, Transport};
use crate::resolver::pace::Pace;

/// Most questions on their way at once: what servers of HTTP/2 allow at least (RFC 9113 section 6.5.2). Others wait.
const MAX_IN_FLIGHT: usize = 100;
/// Most connections made a second. Others wait.
const CONNECTS_PER_SECOND: u32 = 10;
/// hickory's own patience, in multiples of ours, which is to end first: so silence and a broken connection differ.
const HICKORYS_PATIENCE: u32 = 2;

type Exchange = DnsExchange<TokioRuntimeProvider>;

pub(super) struct Kept {
    endpoint: Endpoint,
    timeout: Duration,
    tls: Arc<ClientConfig>,
    in_flight: Semaphore,
    line: Mutex<Line>,
}

struct Line {
    connection: Option<Connection>,
    /// When the last try to connect failed, and why.
    failed: Option<(Instant, Failure)>,
    /// How many were made.
    made: u64,
    connects: Pace,
    started: Instant,
}

#[derive(Clone)]
struct Connection {
    number: u64,
    exchange: Exchange,
    /// Its task lives as long as this.
    _runtime: TokioRuntimeProvider,
    /// Answers that came over it.
    answers: Arc<AtomicU64>,
}

impl Kept {
    pub(super) fn new(endpoint: Endpoint, timeout: Duration, tls: Arc<ClientConfig>) -> Self {
        let line = Line {
            connection: None,
            failed: None,
            made: 0,
            connects: Pace::new(CONNECTS_PER_SECOND, Duration::ZERO),
            started: Instant::now(),
        };
        Self { endpoint, timeout, tls, in_flight: Semaphore::new(MAX_IN_FLIGHT), line: Mutex::new(line) }
    }

    pub(super) async fn ask(&self, request: DnsRequest) -> Result<DnsResponse, Failure> {
        // The semaphore is never closed.
        let _slot = self.in_flight.acquire().await.map_err(|_| Failure::Timeout)?;
        let connection = self.connection().await?;
        let had_worked = connection.answers.load(Ordering::Relaxed) > 0;
        match self.exchange(&connection, request.clone()).await {
            Err(Failure::Transport(_)) if had_worked => {
                let connection = self.connection().await?;
                self.exchange(&connection, request).await
            }
            result => result,
        }
    }

    async fn exchange(&self, connection: &Connection, request: DnsRequest) -> Result<DnsResponse, Failure> {
        let answers_before = connection.answers.load(Ordering::Relaxed);
        let failure = match timeout(self.timeout, first(connection.exchange.send(request))).await {
            Ok(Some(Ok(response))) => {
                connection.answers.fetch_add(1, Ordering::Relaxed);
                return Ok(response);
            }
            Ok(Some(Err(error))) => Failure::Transport(error.to_string()),
            Ok(None) => Failure::Transport("the connection was closed".to_owned()),
            Err(_) if connection.answers.load(Ordering::Relaxed) > answers_before => {
                return Err(Failure::Timeout);
            }
            Err(_) => Failure::Timeout,
        };
        let mut line = self.line.lock().await;
        if line.connection.as_ref().is_some_and(|kept| kept.number == connection.number) {
            line.connection = None;
        }
        Err(failure)
    }

    /// The connection there is, or a new one.
    async fn connection(&self) -> Result<Connection, Failure> {
        let asked_at = Instant::now();
        let mut line = self.line.lock().await;
        if let Some(connection) = &line.connection {
            return Ok(connection.clone());
        }
        // All that waited for one try share how it ended.
        if let Some((at, failure)) = &line.failed
            && *at >= asked_at
        {
            return Err(failure.clone());
        }
        let now = line.started.elapsed();
        if !line.connects.is_open(now) {
            let opens_at = line.started + line.connects.opens_at();
            tokio::time::sleep_until(opens_at).await;
        }
        line.connects.spend(1);
        // One of its own for each connection, so that what one has begun ends with it.
        let runtime = TokioRuntimeProvider::new();
        match timeout(self.timeout, self.connect(runtime.clone())).await {
            Ok(Ok(exchange)) => {
                line.made += 1;
                let answers = Arc::new(AtomicU64::new(0));
                let connection = Connection { number: line.made, exchange, _runtime: runtime, answers };
                line.connection = Some(connection.clone());
                Ok(connection)
            }
            Ok(Err(NetError::Timeout)) | Err(_) => Err(line.fail(Failure::Timeout)),
            Ok(Err(error)) => Err(line.fail(Failure::Transport(format!("connect: {error}")))),
        }
    }

    async fn connect(&self, provider: TokioRuntimeProvider) -> Result<Exchange, NetError> {
        let patience = self.timeout * HICKORYS_PATIENCE;
        match &self.endpoint.transport {
            Transport::Tls { server_name } => {
                let name = ServerName::try_from(server_name.clone())
                    .map_err(|error| NetError::from(format!("name a server {server_name}: {error}")))?;
                let tls = (*self.tls).clone();
                tls_exchange(self.endpoint.address, name, tls, patience, Some(MAX_IN_FLIGHT), provider).await
            }
            Transport::Https { server_name, path } => {
                let mut builder = HttpsClientStream::builder(Arc::clone(&self.tls), provider);
                builder.request_timeout(patience);
                builder
                    .exchange(self.endpoint.address, server_name.as_str().into(), path.as_str().into())
                    .await
            }
            Transport::Plain => Err(NetError::from("plain DNS keeps no connection")),
        }
    }
}

impl Line {
    fn fail(&mut self, failure: Failure) -> Failure {
        self.failed = Some((Instant::now(), failure.clone()));
        failure
    }
}
