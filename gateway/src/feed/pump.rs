//! One session's I/O: reads frames into the session's rules, carries out what they say, and sends reports.

use std::time::Instant;

use allowlist::codec::{self, CodecError};
use allowlist::feed::{GoawayReason, ToGateway, ToServer};
use futures_util::future::{Fuse, FusedFuture};
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::time::{MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::tungstenite::error::CapacityError;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::sync::CancellationToken;

use super::connect::FeedStream;
use super::deadlines::Deadlines;
use super::nodes::{Node, Verdict};
use super::session::{Ending, Session, Step};
use super::status::{LinkState, StatusBoard};
use super::traffic::TrafficMeter;
use super::{FeedMetrics, Timings};
use crate::enforce::Enforcer;
use crate::held::Held;

/// Longest reason in a close frame (RFC 6455, section 5.5: 125 bytes with the two of the code).
const MAX_CLOSE_REASON_BYTES: usize = 123;

/// Why a session is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionEnd {
    #[error("{0}")]
    Rules(#[from] Ending),
    #[error("a frame could not be read: {0}")]
    Frame(#[from] CodecError),
    #[error("a text message, where only binary frames are spoken")]
    Text,
    #[error("no frame for {0} ms")]
    Silence(u128),
    #[error("no part of the snapshot for {0} ms")]
    SnapshotLate(u128),
    #[error("a snapshot or change in parts was not whole after {0} ms")]
    NeverWhole(u128),
    #[error("the node did not take our frames for {0} ms")]
    Stuck(u128),
    #[error("the link was lost: {0}")]
    Lost(String),
    #[error("the gateway is stopping")]
    Stopping,
}

impl SessionEnd {
    /// One word for metrics.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Rules(Ending::Goaway { .. }) => "goaway",
            Self::Rules(Ending::Protocol(_)) | Self::Text => "protocol",
            Self::Rules(Ending::NodeBehind { .. }) => "node_behind",
            Self::Rules(Ending::Disagrees(_)) => "disagrees",
            Self::Frame(_) => "bad_frame",
            Self::Silence(_) => "silence",
            Self::SnapshotLate(_) => "snapshot_late",
            Self::NeverWhole(_) => "never_whole",
            Self::Stuck(_) => "stuck",
            Self::Lost(_) => "lost",
            Self::Stopping => "stopping",
        }
    }

    pub(super) fn verdict(&self, after: std::time::Duration) -> Verdict {
        match self {
            Self::Rules(Ending::Goaway { reason: GoawayReason::Replaced, .. })
            | Self::Frame(CodecError::Version(_)) => Verdict::Refused,
            Self::Rules(Ending::Goaway { retry_after_ms, .. }) => {
                Verdict::HoldOff(std::time::Duration::from_millis(*retry_after_ms))
            }
            _ => Verdict::Lost { after },
        }
    }

    /// The close frame we send; none when there is nobody to read it.
    fn close(&self) -> Option<CloseFrame> {
        let code = match self {
            Self::Lost(_) | Self::Stuck(_) => return None,
            Self::Frame(CodecError::TooLarge(_)) => CloseCode::Size,
            Self::Rules(Ending::Protocol(_)) | Self::Frame(_) => CloseCode::Protocol,
            Self::Text => CloseCode::Unsupported,
            Self::Stopping | Self::Silence(_) | Self::SnapshotLate(_) | Self::NeverWhole(_) => {
                CloseCode::Away
            }
            Self::Rules(_) => CloseCode::Normal,
        };
        let mut reason = self.to_string();
        while reason.len() > MAX_CLOSE_REASON_BYTES {
            reason.pop();
        }
        Some(CloseFrame { code, reason: reason.into() })
    }
}

/// What outlives sessions.
pub(super) struct Pump<'a> {
    pub(super) name: &'a str,
    pub(super) enforcer: &'a Enforcer,
    pub(super) metrics: &'a FeedMetrics,
    pub(super) status: &'a StatusBoard,
    pub(super) timings: Timings,
    pub(super) meter: &'a mut TrafficMeter,
    /// The server reads reports of what source hosts move.
    pub(super) takes_sources: bool,
    pub(super) shutdown: &'a CancellationToken,
}

impl Pump<'_> {
    /// Runs one session to its end and closes the link.
    pub(super) async fn run(&mut self, mut feed: FeedStream, node: &Node) -> SessionEnd {
        let (mut session, hello) = self.enforcer.with_held(|held| Session::begin(self.name, held));
        let end = match self.exchange(&mut feed, &mut session, &hello, node).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        if let Some(close) = end.close() {
            // A peer that is gone already needs no farewell.
            let _ = timeout(self.timings.farewell, feed.close(Some(close))).await;
        }
        end
    }

    async fn exchange(
        &mut self,
        feed: &mut FeedStream,
        session: &mut Session,
        hello: &ToServer,
        node: &Node,
    ) -> Result<std::convert::Infallible, SessionEnd> {
        let mut applied = self.enforcer.applied();
        // The node has to learn what we hold even if nothing changes from now on.
        applied.mark_changed();
        let start = tokio::time::Instant::now();
        let mut report = interval_at(start + self.timings.traffic, self.timings.traffic);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.send(feed, hello).await?;
        // Counting goes on beside the session: the kernel may be busy for longer than a server waits for us.
        let mut counting = std::pin::pin!(Fuse::terminated());
        let mut deadlines = Deadlines::begin(self.timings, start);
        let mut greeted = false;
        loop {
            tokio::select! {
                // In this order: a frame that waits goes before the judgement that the node is silent.
                biased;
                () = self.shutdown.cancelled() => return Err(SessionEnd::Stopping),
                // After our hello it is the server's turn; reports follow its welcome.
                Ok(()) = applied.changed(), if greeted => {
                    let newest = applied.borrow_and_update().clone();
                    if let Some(newest) = newest {
                        self.send(feed, &ToServer::Applied(newest)).await?;
                    }
                }
                cut = self.enforcer.cuts().oldest(), if greeted => {
                    self.send(feed, &ToServer::Cut(cut.clone())).await?;
                    self.enforcer.cuts().told(&cut);
                }
                flows = self.enforcer.denials().due(self.timings.denials), if greeted => {
                    let frame = ToServer::Denied(flows);
                    self.send(feed, &frame).await?;
                    if let ToServer::Denied(flows) = &frame {
                        self.enforcer.denials().told(flows);
                    }
                }
                _ = report.tick(), if greeted && counting.is_terminated() => {
                    counting.set(self.enforcer.counters().fuse());
                }
                // A failure is counted and logged where the kernel is asked; the next report covers this one's time.
                counters = &mut counting => if let Ok(counters) = counters {
                    for report in self.meter.due(&counters) {
                        self.send(feed, &report.frame).await?;
                        self.meter.sent(report);
                    }
                    self.report_sources(feed).await?;
                },
                message = feed.next() => {
                    if let Some(frame) = read(message)? {
                        greeted = true;
                        let is_part = matches!(
                            frame,
                            ToGateway::SnapshotPart { .. } | ToGateway::Change { more: true, .. }
                        );
                        self.on_frame(feed, session, frame, node).await?;
                        deadlines.put_off(tokio::time::Instant::now(), is_part, session.awaits_more());
                    }
                    // Looked at here too: who talks without a pause never lets the branch below have its turn.
                    deadlines.check(tokio::time::Instant::now())?;
                }
                () = tokio::time::sleep_until(deadlines.next()) => deadlines.check(tokio::time::Instant::now())?,
            }
        }
    }

    async fn on_frame(
        &self,
        feed: &mut FeedStream,
        session: &mut Session,
        frame: ToGateway,
        node: &Node,
    ) -> Result<(), SessionEnd> {
        let arrived = Instant::now();
        self.note(&frame, node);
        match self.enforcer.with_held(|held| session.on_frame(held, frame)) {
            Step::Nothing => {}
            Step::Apply(change) => self.enforcer.apply(&change, arrived),
            Step::Replace(held) => {
                self.note_replacement(&held);
                self.enforcer.replace(held, arrived);
            }
            Step::Agreed(revision) => self.enforcer.advance(revision, arrived),
            Step::Resync(request) => {
                self.metrics.resyncs.with_label_values(&["digest"]).inc();
                if let ToServer::ResyncRequest { reason } = &request {
                    tracing::warn!(node = %node, reason, "asking for a snapshot");
                }
                self.send(feed, &request).await?;
            }
            Step::End(ending) => return Err(ending.into()),
        }
        let state = if session.agreed() { LinkState::InSync } else { LinkState::Syncing };
        self.status.link(state, Some(node));
        Ok(())
    }

    fn note(&self, frame: &ToGateway, node: &Node) {
        match frame {
            ToGateway::Welcome(welcome) => {
                self.status.cluster_revision(welcome.revision);
                tracing::info!(
                    node = %node, name = welcome.node, revision = welcome.revision, start = ?welcome.start,
                    "session opened"
                );
                if let allowlist::feed::SessionStart::Snapshot = welcome.start {
                    self.metrics.resyncs.with_label_values(&["session_start"]).inc();
                }
            }
            ToGateway::Heartbeat { revision, .. } => self.status.cluster_revision(*revision),
            ToGateway::Change { change, .. } => self.status.cluster_revision(change.revision),
            ToGateway::SnapshotPart { .. } | ToGateway::SnapshotEnd { .. } | ToGateway::Goaway { .. } => {}
        }
    }

    fn note_replacement(&self, held: &Held) {
        let before = self.enforcer.with_held(Held::cluster);
        if let (Some(before), Some(now)) = (before, held.cluster())
            && before != now
        {
            tracing::warn!(%before, %now, "the servers are another cluster than before; following them");
        }
        tracing::info!(revision = held.revision(), elements = held.elements().len(), "snapshot received");
    }

    /// What could not be sent is due again.
    async fn report_sources(&self, feed: &mut FeedStream) -> Result<(), SessionEnd> {
        let Some(sources) = self.enforcer.sources().filter(|_| self.takes_sources) else { return Ok(()) };
        let report = sources.take_due();
        if report.is_empty() {
            return Ok(());
        }
        let frame = ToServer::Sources(report);
        let sent = self.send(feed, &frame).await;
        if let (Err(_), ToServer::Sources(report)) = (&sent, &frame) {
            sources.put_back(report);
        }
        sent
    }

    async fn send(&self, feed: &mut FeedStream, frame: &ToServer) -> Result<(), SessionEnd> {
        let bytes = codec::encode(frame)?;
        match timeout(self.timings.silence, feed.send(Message::Binary(bytes.into()))).await {
            Ok(sent) => sent.map_err(|error| SessionEnd::Lost(error.to_string())),
            Err(_) => Err(SessionEnd::Stuck(self.timings.silence.as_millis())),
        }
    }
}

/// A message's frame; `None` for WebSocket's own traffic, which proves nothing about the node behind a proxy.
fn read(message: Option<Result<Message, tungstenite::Error>>) -> Result<Option<ToGateway>, SessionEnd> {
    match message {
        None => Err(SessionEnd::Lost("closed without a word".to_owned())),
        Some(Ok(Message::Binary(bytes))) => Ok(Some(codec::decode(&bytes)?)),
        Some(Ok(Message::Text(_))) => Err(SessionEnd::Text),
        Some(Ok(Message::Close(frame))) => Err(SessionEnd::Lost(match frame {
            Some(frame) if !frame.reason.is_empty() => format!("closed by the node: {}", frame.reason),
            Some(frame) => format!("closed by the node ({})", frame.code),
            None => "closed by the node".to_owned(),
        })),
        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(None),
        Some(Err(tungstenite::Error::Capacity(CapacityError::MessageTooLong { size, .. }))) => {
            Err(CodecError::TooLarge(size).into())
        }
        Some(Err(error)) => Err(SessionEnd::Lost(error.to_string())),
    }
}
