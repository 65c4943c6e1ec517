//! One gateway's session, from hello to goodbye: this task sends, a second one receives.

use allowlist::feed::{FeedState, GoawayReason, Hello, SessionStart, ToGateway, Welcome};
use axum::extract::ws::{WebSocket, close_code};
use futures_util::StreamExt;
use futures_util::stream::SplitStream;
use raft_store::state::State;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::Sessions;
use super::inbound::{self, Finished, LastHeard};
use super::outbound::Outbound;
use super::sessions::Registration;
use crate::api::READ_TIMEOUT;
use crate::auth::Caller;
use crate::cluster::Cluster;

/// Goodbye frame (with the time to stay away, milliseconds), close code, reason.
type LastWords = (Option<(GoawayReason, u64)>, u16, String);

/// What a session starts from.
pub(super) struct Opening {
    pub(super) cluster: Cluster,
    pub(super) sessions: Sessions,
    pub(super) caller: Caller,
    pub(super) cluster_id: Uuid,
    /// Held while the session lives.
    pub(super) _place: OwnedSemaphorePermit,
}

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// The gateway closed it.
    Closed,
    /// The connection broke.
    Lost(String),
    /// A frame did not leave in time.
    TooSlow,
    /// The gateway gave no sign of life.
    Silent,
    /// A frame broke the protocol.
    Protocol { code: u16, reason: String },
    /// This node, or another session, wants it so.
    Goaway(GoawayReason),
    /// The token was removed.
    TokenRemoved,
}

/// The receiving half when a session ends.
enum Receiving {
    Running(AbortOnDropHandle<Finished>),
    Finished(Finished),
    Gone,
}

/// Speaks with one gateway until the session ends.
pub(super) async fn serve(socket: WebSocket, opening: Opening) {
    let (sink, mut stream) = socket.split();
    let Opening { cluster, sessions, caller, cluster_id, _place } = opening;
    let mut outbound = Outbound::new(sink, cluster.reader().clone(), sessions.clone());
    let limits = sessions.limits();

    let hello = match timeout(limits.hello_timeout, inbound::hello(&mut stream)).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(refused)) => {
            tracing::info!(token = %caller.name, remote = %caller.remote, end = ?refused.0, "no gateway session came about");
            let receiving = Receiving::Finished(Finished::new(stream, refused.clone()));
            return finish(&sessions, outbound, receiving, refused.0).await;
        }
        Err(_) => {
            let end = End::protocol(format!("no hello within {} ms", limits.hello_timeout.as_millis()));
            let receiving = Receiving::Finished(Finished::new(stream, (end.clone(), false)));
            return finish(&sessions, outbound, receiving, end).await;
        }
    };
    // Stays in the register until the last words are said, so that draining waits for them.
    let mut registration = sessions.register(&hello, &caller.remote);
    let session = Session { cluster: &cluster, sessions: &sessions, caller: &caller, cluster_id };
    let (end, receiving) = session.run(&hello, stream, &mut outbound, &mut registration).await;
    tracing::info!(gateway = %hello.name, remote = %caller.remote, ?end, "gateway session ended");
    finish(&sessions, outbound, receiving, end).await;
}

struct Session<'a> {
    cluster: &'a Cluster,
    sessions: &'a Sessions,
    caller: &'a Caller,
    cluster_id: Uuid,
}

impl Session<'_> {
    async fn run(
        &self,
        hello: &Hello,
        stream: SplitStream<WebSocket>,
        outbound: &mut Outbound,
        registration: &mut Registration,
    ) -> (End, Receiving) {
        let (resync, mut resyncs) = mpsc::channel(1);
        let heard = LastHeard::new();
        let receiving =
            inbound::receive(stream, registration.reporter(), outbound.digests(), resync, heard.clone());
        let mut receiving = AbortOnDropHandle::new(tokio::spawn(receiving));
        if let Err(end) = self.begin(hello, outbound).await {
            return (end, Receiving::Running(receiving));
        }
        let limits = self.sessions.limits();
        let mut revisions = self.cluster.reader().revisions();
        // The first beat comes at once: a resuming gateway compares digests with it.
        let mut heartbeat = interval(limits.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let step = tokio::select! {
                biased;
                reason = registration.goodbye() => Err(End::Goaway(reason)),
                finished = &mut receiving => {
                    return match finished {
                        Ok(finished) => (finished.end.clone(), Receiving::Finished(finished)),
                        Err(error) => (End::Lost(format!("the receiving task failed: {error}")), Receiving::Gone),
                    };
                }
                Some(()) = resyncs.recv() => outbound.snapshot().await,
                _ = heartbeat.tick() => {
                    if heard.elapsed() > limits.silence { Err(End::Silent) } else { outbound.heartbeat().await }
                }
                moved = revisions.changed() => match moved {
                    Ok(()) => self.follow(outbound).await,
                    // The state machine is gone: the process is ending.
                    Err(_) => Err(End::Goaway(GoawayReason::Draining)),
                }
            };
            if let Err(end) = step {
                return (end, Receiving::Running(receiving));
            }
        }
    }

    async fn follow(&self, outbound: &mut Outbound) -> Result<(), End> {
        let state = self.cluster.reader().state();
        let token = state.tokens().get(&self.caller.name);
        if token.is_none_or(|token| token.sha256 != self.caller.sha256) {
            return Err(End::TokenRemoved);
        }
        outbound.advance(&state).await
    }

    /// Welcome, and a snapshot unless the gateway can resume.
    async fn begin(&self, hello: &Hello, outbound: &mut Outbound) -> Result<(), End> {
        let mut state = self.cluster.reader().state();
        let held = hello.state.filter(|held| held.cluster == self.cluster_id);
        if held.is_some_and(|held| held.revision > state.revision()) {
            // The gateway is ahead. Its set must not go back in time, so this node catches up or lets it go.
            let _ = self.cluster.read_barrier(READ_TIMEOUT).await;
            state = self.cluster.reader().state();
            if held.is_some_and(|held| held.revision > state.revision()) {
                return Err(End::Goaway(GoawayReason::Lagging));
            }
        }
        let resume = held.filter(|held| self.can_resume(*held, &state));
        let start = if resume.is_some() { SessionStart::Resume } else { SessionStart::Snapshot };
        let welcome = Welcome {
            cluster: self.cluster_id,
            node: self.sessions.node().to_owned(),
            revision: state.revision(),
            start,
        };
        tracing::info!(gateway = %hello.name, version = %hello.version, remote = %self.caller.remote,
            held = held.map(|held| held.revision), ?start, "gateway connected");
        outbound.send(&ToGateway::Welcome(welcome)).await?;
        match resume {
            Some(held) => {
                outbound.resume_after(held.revision);
                Ok(())
            }
            None => outbound.snapshot().await,
        }
    }

    /// This node still has every change after the gateway's revision. It does not know old digests: the gateway
    /// compares at the first heartbeat, which comes at once.
    fn can_resume(&self, held: FeedState, state: &State) -> bool {
        let known_wrong = held.revision == state.revision() && held.digest != state.published().digest();
        !known_wrong && self.cluster.reader().after(held.revision, 1).is_ok()
    }
}

/// Says the last words and waits for the gateway to have read them.
async fn finish(sessions: &Sessions, mut outbound: Outbound, receiving: Receiving, end: End) {
    sessions.metrics().session_ended(end.label());
    match end.last_words() {
        Some((goaway, code, reason)) => outbound.close(goaway, code, &reason).await,
        None => outbound.flush().await,
    }
    let limit = sessions.limits().goodbye;
    match receiving {
        // It reads on until the gateway's close arrives.
        Receiving::Running(receiving) => drop(timeout(limit, receiving).await),
        Receiving::Finished(finished) if !matches!(end, End::Closed | End::Lost(_)) => {
            finished.linger(limit).await
        }
        Receiving::Finished(_) | Receiving::Gone => {}
    }
}

impl End {
    pub(super) fn protocol(reason: impl Into<String>) -> Self {
        Self::Protocol { code: close_code::PROTOCOL, reason: reason.into() }
    }

    /// For the metric.
    const fn label(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Lost(_) => "lost",
            Self::TooSlow => "too_slow",
            Self::Silent => "silent",
            Self::Protocol { .. } => "protocol",
            Self::Goaway(GoawayReason::Draining) => "draining",
            Self::Goaway(GoawayReason::TooSlow) => "too_slow",
            Self::Goaway(GoawayReason::Lagging) => "lagging",
            Self::Goaway(GoawayReason::Replaced) => "replaced",
            Self::Goaway(GoawayReason::Protocol) => "protocol",
            Self::TokenRemoved => "token_removed",
        }
    }

    /// `None` when nobody listens.
    fn last_words(&self) -> Option<LastWords> {
        let goaway = |reason| Some((reason, stay_away_ms(reason)));
        match self {
            Self::Closed | Self::Lost(_) => None,
            Self::TooSlow => {
                let reason = "frames are not read fast enough; come back and resume".to_owned();
                Some((goaway(GoawayReason::TooSlow), close_code::POLICY, reason))
            }
            Self::Silent => {
                let reason = "no sign of life, not even answers to pings".to_owned();
                Some((goaway(GoawayReason::TooSlow), close_code::POLICY, reason))
            }
            Self::Protocol { code, reason } => Some((goaway(GoawayReason::Protocol), *code, reason.clone())),
            Self::Goaway(reason) => {
                let (code, text) = match reason {
                    GoawayReason::Draining => (close_code::AWAY, "the node is being shut down"),
                    GoawayReason::Lagging => (close_code::AWAY, "this node cannot say that it is current"),
                    GoawayReason::Replaced => {
                        (close_code::POLICY, "another session with the same gateway name took over")
                    }
                    GoawayReason::TooSlow => (close_code::POLICY, "frames are not read fast enough"),
                    GoawayReason::Protocol => (close_code::PROTOCOL, "a frame broke the protocol"),
                };
                Some((goaway(*reason), code, text.to_owned()))
            }
            Self::TokenRemoved => Some((None, close_code::POLICY, "the token was removed".to_owned())),
        }
    }
}

/// How long a gateway should keep away from this node, milliseconds.
const fn stay_away_ms(reason: GoawayReason) -> u64 {
    match reason {
        GoawayReason::TooSlow => 1_000,
        GoawayReason::Lagging => 5_000,
        GoawayReason::Draining => 10_000,
        // Two gateways of one name would throw each other out for ever; a program that speaks another protocol would
        // try for ever.
        GoawayReason::Replaced | GoawayReason::Protocol => 30_000,
    }
}
