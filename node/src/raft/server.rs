//! The listener for peers: TLS with client certificates, frames, dispatch.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesOrdered;
use futures_util::{SinkExt, StreamExt as _};
use openraft::errors::RaftError;
use openraft::raft::AppendEntriesResponse;
use raft_store::TypeConfig;
use raft_store::command::Origin;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::codec::{FramedRead, FramedWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::change::ChangeRequest;
use super::handshakes::{Handshake, Handshakes};
use super::link::tune;
use super::peer_certificate::PeerCertificate;
use super::proposer::Condition;
use super::refusals::Refusals;
use super::snapshot::Incoming;
use super::succession;
use super::wire::{Answer, Envelope, GOODBYE_SEQUENCE, Refusal, Request, Response, decode, encode, framing};
use crate::cluster::Cluster;
use crate::tls::NodeTls;
use crate::tls::reason::reason;

/// A peer must finish TLS within this time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections of peers at once, all together; more are closed at once.
const MAX_CONNECTIONS: usize = 256;
/// Requests of one connection under way; the next is not read before one is answered.
const MAX_REQUESTS: usize = 256;
/// Appends of one connection under way, likewise. More than a peer sends ahead.
const MAX_APPENDS: usize = 32;
/// A node that leaves gives requests it has begun with this much time.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// … and the peer this much to close its end.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(200);
/// After a failing accept (no file descriptors), wait this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How serving ends.
#[derive(Clone)]
pub(crate) struct Ending {
    /// In order: what was begun is answered, and peers are told that the rest was not.
    pub(crate) leave: CancellationToken,
    /// At once.
    pub(crate) stop: CancellationToken,
}

/// Serves peers until told to end.
pub(crate) async fn run(cluster: Cluster, listener: TcpListener, tls: NodeTls, ending: Ending) {
    let refusals = Refusals::default();
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let handshakes = Handshakes::default();
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = ending.stop.cancelled() => break,
            () = ending.leave.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept peer connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let handshake = handshakes.begin(remote.ip());
        let (cluster, tls, ending) = (cluster.clone(), tls.clone(), ending.clone());
        let refusals = refusals.clone();
        let connections = Arc::clone(&connections);
        tasks.spawn(async move {
            tokio::select! {
                () = ending.stop.cancelled() => {}
                () = welcome(cluster, (&tls, &refusals), stream, remote, ending.leave, handshake, connections) => {}
            }
        });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

async fn welcome(
    cluster: Cluster,
    (tls, refusals): (&NodeTls, &Refusals),
    stream: TcpStream,
    remote: SocketAddr,
    leave: CancellationToken,
    handshake: Handshake,
    connections: Arc<Semaphore>,
) {
    if let Err(error) = tune(&stream) {
        tracing::debug!(peer = %remote, %error, "set up peer connection");
        return;
    }
    let (config, shown) = match tls.peer_server() {
        Ok(made) => made,
        Err(error) => {
            tracing::error!(peer = %remote, %error, "set up TLS for a peer");
            return;
        }
    };
    let accepted = tokio::select! {
        () = handshake.displaced.cancelled() => {
            tracing::debug!(peer = %remote, "closed a connection without a certificate: too many are open");
            return;
        }
        accepted = timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)) => accepted,
    };
    drop(handshake);
    match accepted {
        Ok(Ok(stream)) => {
            let certificate = PeerCertificate::of(stream.get_ref().1.peer_certificates());
            let Ok(_permit) = connections.try_acquire_owned() else {
                tracing::warn!(
                    peer = %remote,
                    certificate = certificate.names(),
                    "refused a peer connection: {MAX_CONNECTIONS} are open"
                );
                return;
            };
            let connection = PeerConnection { cluster, remote, certificate, incoming: None };
            connection.serve(stream, &leave).await;
        }
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            tracing::debug!(peer = %remote, "peer connection closed before TLS was up");
        }
        Ok(Err(error)) => refusals.tell(remote, &shown.subject(), &reason(&error)),
        Err(_) => refusals.tell(remote, &shown.subject(), "no TLS handshake in time"),
    }
}

type AppendResult = Result<AppendEntriesResponse<TypeConfig>, RaftError<TypeConfig>>;
type PendingAppend = Pin<Box<dyn Future<Output = (u64, AppendResult)> + Send>>;

struct PeerConnection {
    cluster: Cluster,
    remote: SocketAddr,
    certificate: PeerCertificate,
    incoming: Option<Incoming>,
}

impl PeerConnection {
    async fn serve(
        mut self,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        leave: &CancellationToken,
    ) {
        let (read, write) = tokio::io::split(stream);
        let mut frames = FramedRead::new(read, framing());
        let (answers, queue) = mpsc::channel(MAX_REQUESTS);
        let requests = Arc::new(Semaphore::new(MAX_REQUESTS));
        let mut appends: FuturesOrdered<PendingAppend> = FuturesOrdered::new();
        let writer = tokio::spawn(write_answers(write, queue));
        // Requests under way end with the connection.
        let mut handlers = tokio::task::JoinSet::new();
        let leaving = loop {
            tokio::select! {
                biased;
                () = leave.cancelled() => break true,
                Some((sequence, result)) = appends.next(), if !appends.is_empty() => {
                    if answers.send(Answer { sequence, response: append_response(result) }).await.is_err() {
                        break false;
                    }
                }
                Some(_) = handlers.join_next(), if !handlers.is_empty() => {}
                frame = frames.next(), if appends.len() < MAX_APPENDS => {
                    let Some(frame) = frame else { break false };
                    let envelope = match frame {
                        Ok(frame) => decode::<Envelope>(&frame),
                        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => Err(error.into()),
                        Err(error) => {
                            // A peer that ends or was killed.
                            tracing::debug!(peer = %self.remote, %error, "peer connection ended");
                            break false;
                        }
                    };
                    let envelope = match envelope {
                        Ok(envelope) => envelope,
                        Err(error) => {
                            tracing::warn!(
                                peer = %self.remote,
                                certificate = self.certificate.names(),
                                %error,
                                "closing a peer connection"
                            );
                            break false;
                        }
                    };
                    let sequence = envelope.sequence;
                    match self.accept(envelope).await {
                        Next::Append(mut pending) => {
                            // The first poll hands it to raft, so that appends enter in the order they came.
                            match futures_util::poll!(&mut pending) {
                                std::task::Poll::Ready(done) => appends.push_back(Box::pin(async { done })),
                                std::task::Poll::Pending => appends.push_back(pending),
                            }
                        }
                        Next::Answer(response) => {
                            if answers.send(Answer { sequence, response }).await.is_err() {
                                break false;
                            }
                        }
                        Next::AnswerTo(sequence, response) => {
                            if answers.send(Answer { sequence, response }).await.is_err() {
                                break false;
                            }
                        }
                        Next::Nothing => {}
                        Next::Handle(request) => {
                            let Ok(permit) = Arc::clone(&requests).acquire_owned().await else { break false };
                            let (cluster, answers) = (self.cluster.clone(), answers.clone());
                            handlers.spawn(async move {
                                let response = cluster.handle(request).await.unwrap_or_else(Response::Refused);
                                // The peer may be gone.
                                let _ = answers.send(Answer { sequence, response }).await;
                                drop(permit);
                            });
                        }
                    }
                }
            }
        };
        if leaving {
            farewell(answers, appends, handlers, writer, frames.into_inner()).await;
        } else {
            writer.abort();
        }
    }

    async fn accept(&mut self, envelope: Envelope) -> Next {
        let Envelope { sequence, cluster, from, to, request } = envelope;
        let checked = self.cluster.check_target(cluster, from, to, &request);
        if let Err(refusal) = checked.and_then(|()| self.certificate.check(&self.cluster, from, &request)) {
            tracing::warn!(
                peer = %self.remote,
                certificate = self.certificate.names(),
                from = %format_args!("{from:016x}"),
                "refused a peer's request: this node says {refusal}"
            );
            return Next::Answer(Response::Refused(refusal));
        }
        match request {
            Request::Append(append) => match append.into_request() {
                Ok(request) => {
                    if let Err(refusal) = self.cluster.check_entries(&request.entries) {
                        return Next::Answer(Response::Refused(refusal));
                    }
                    self.cluster.heard().note(from);
                    let raft = self.cluster.raft().clone();
                    Next::Append(Box::pin(async move { (sequence, raft.append_entries(request).await) }))
                }
                Err(error) => Next::Answer(Response::Refused(Refusal::Malformed(error.to_string()))),
            },
            Request::SnapshotBegin { vote, len } => {
                match Incoming::begin(&self.cluster, sequence, vote, len).await {
                    Ok(incoming) => {
                        self.incoming = Some(incoming);
                        Next::Nothing
                    }
                    Err(refusal) => Next::Answer(Response::Refused(refusal)),
                }
            }
            Request::SnapshotChunk(bytes) => match &mut self.incoming {
                Some(incoming) => match incoming.chunk(bytes.0).await {
                    Ok(()) => Next::Nothing,
                    Err(refusal) => {
                        let sequence = incoming.sequence;
                        self.incoming = None;
                        Next::AnswerTo(sequence, Response::Refused(refusal))
                    }
                },
                // What is left of a transfer that was refused.
                None => Next::Nothing,
            },
            Request::SnapshotEnd => match self.incoming.take() {
                Some(incoming) => {
                    let sequence = incoming.sequence;
                    let response = incoming.install(self.cluster.raft()).await;
                    Next::AnswerTo(sequence, response.map_or_else(Response::Refused, Response::Snapshot))
                }
                None => Next::Nothing,
            },
            request => Next::Handle(request),
        }
    }
}

/// What to do with a request.
enum Next {
    /// In order with the other appends.
    Append(PendingAppend),
    /// Beside others.
    Handle(Request),
    Answer(Response),
    AnswerTo(u64, Response),
    Nothing,
}

fn append_response(result: AppendResult) -> Response {
    match result {
        Ok(response) => Response::Append(response),
        Err(error) => Response::Refused(Refusal::Unable(error.to_string())),
    }
}

/// Ends a connection in order: what was begun is answered, then comes the goodbye. Frames that were not read were not
/// begun, and the goodbye says so. Whoever is not done in time leaves the peer in doubt, without a goodbye.
async fn farewell(
    answers: mpsc::Sender<Answer>,
    mut appends: FuturesOrdered<PendingAppend>,
    mut handlers: tokio::task::JoinSet<()>,
    writer: tokio::task::JoinHandle<()>,
    mut read: impl AsyncRead + Unpin,
) {
    let abort = writer.abort_handle();
    let told = async {
        while let Some((sequence, result)) = appends.next().await {
            answers.send(Answer { sequence, response: append_response(result) }).await?;
        }
        while handlers.join_next().await.is_some() {}
        answers.send(Answer { sequence: GOODBYE_SEQUENCE, response: Response::Goodbye }).await?;
        drop(answers);
        // It ends after it has written the last answer.
        let _ = writer.await;
        Ok::<(), mpsc::error::SendError<Answer>>(())
    };
    if matches!(timeout(FAREWELL_TIMEOUT, told).await, Ok(Ok(()))) {
        // What the peer sent meanwhile must be read: unread bytes would turn the end into a reset, which can overtake
        // the goodbye.
        let _ = timeout(CLOSE_TIMEOUT, tokio::io::copy(&mut read, &mut tokio::io::sink())).await;
    }
    abort.abort();
}

async fn write_answers(write: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Answer>) {
    let mut sink = FramedWrite::new(write, framing());
    while let Some(answer) = queue.recv().await {
        let mut next = Some(answer);
        while let Some(answer) = next {
            let Some(frame) = frame(&answer) else { return };
            if sink.feed(frame).await.is_err() {
                return;
            }
            next = queue.try_recv().ok();
        }
        if SinkExt::<Bytes>::flush(&mut sink).await.is_err() {
            return;
        }
    }
    let _ = SinkExt::<Bytes>::close(&mut sink).await;
}

/// An answer that is too large becomes a refusal; the refusal always fits.
fn frame(answer: &Answer) -> Option<Bytes> {
    let sequence = answer.sequence;
    encode(answer)
        .or_else(|error| {
            encode(&Answer { sequence, response: Response::Refused(Refusal::Unable(error.to_string())) })
        })
        .ok()
}

impl Cluster {
    /// Requests that are handled beside others.
    async fn handle(&self, request: Request) -> Result<Response, Refusal> {
        let unable = |error: &dyn std::fmt::Display| Refusal::Unable(error.to_string());
        match request {
            Request::Vote(request) => {
                self.raft().vote(request).await.map(Response::Vote).map_err(|error| unable(&error))
            }
            Request::PreVote(request) => {
                self.raft().pre_vote(request).await.map(Response::Vote).map_err(|error| unable(&error))
            }
            Request::TransferLeader(request) => {
                let handed = self.raft().handle_transfer_leader(request).await;
                handed.map(Response::TransferLeader).map_err(|error| unable(&error))
            }
            Request::Propose { operations, timeout_ms } => {
                let deadline = Instant::now() + Duration::from_millis(timeout_ms);
                Ok(Response::Proposed(self.propose_here(operations, Condition::None, deadline).await))
            }
            Request::ProposeFor { token, operations, timeout_ms } => {
                let deadline = Instant::now() + Duration::from_millis(timeout_ms);
                Ok(Response::Proposed(self.propose_here(operations, Condition::Token(token), deadline).await))
            }
            Request::ReadIndex { timeout_ms } => {
                self.read_index_here(Duration::from_millis(timeout_ms)).await.map(Response::ReadIndex)
            }
            Request::Status => self
                .node_status()
                .map(Response::Status)
                .ok_or_else(|| Refusal::Unable("it is starting".into())),
            Request::Probe { peers } => self.probed(&peers).await.map(Response::Probe),
            Request::Join { id, node, pristine } => {
                self.join_here(id, node, pristine).await.map(|()| Response::Joined)
            }
            Request::Traffic { window, gateway } => {
                Ok(Response::Traffic(self.traffic_here(window, gateway.as_deref())))
            }
            Request::NameLookups(names) => Ok(Response::NameLookups(self.name_lookups_here(&names))),
            Request::Room => Ok(Response::Room(self.has_room_to_spare())),
            Request::Process => Ok(Response::Process { id: self.id(), process: self.process() }),
            Request::Misses { vote } => Ok(succession::answer(self, vote).await),
            Request::Identify => self.identity().await.map(Response::Probe),
            Request::Change(request) => {
                let ChangeRequest { change, actor, timeout_ms } = request;
                let origin = Origin { actor, ..Origin::default() };
                self.change_here(change, &origin, timeout_ms).await.map(Response::Changed)
            }
            Request::ChangeFor { change, origin, timeout_ms } => {
                self.change_here(change, &origin, timeout_ms).await.map(Response::Changed)
            }
            Request::Features => Ok(Response::Features(self.supported_features())),
            Request::Denied(query) => self.denied_here(&query).map(Response::Denied),
            Request::Members => self.members_here().await.map(Response::Members),
            Request::Leaving => {
                self.leaving().finish().await;
                Ok(Response::Left)
            }
            Request::LogEnd => Ok(Response::LogEnd(self.log_end().await)),
            Request::Append(_)
            | Request::SnapshotBegin { .. }
            | Request::SnapshotChunk(_)
            | Request::SnapshotEnd => Err(Refusal::Malformed("out of order".to_owned())),
        }
    }
}
