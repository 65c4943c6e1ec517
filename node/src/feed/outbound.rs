//! The sending half of a session.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use allowlist::feed::{GoawayReason, MAX_ELEMENTS_PER_FRAME, ToGateway};
use allowlist::{Digest, Revision, codec};
use axum::extract::ws::{CloseFrame, Message, WebSocket};
use futures_util::SinkExt;
use futures_util::stream::SplitSink;
use raft_store::AppliedBatch;
use raft_store::reader::StateReader;
use raft_store::state::State;
use tokio::time::timeout;

use super::session::End;
use super::{Sessions, split};

/// Batches read from the history at a time.
const BATCHES_PER_READ: usize = 64;
/// How many revisions a session remembers the digests of, to compare with what its gateway reports.
const REMEMBERED_DIGESTS: usize = 256;
/// Longest reason in a close frame, bytes (RFC 6455 section 5.5: 125 for code and reason).
const MAX_CLOSE_REASON_BYTES: usize = 123;

/// Sends a gateway what it lacks, in revision order.
pub(super) struct Outbound {
    sink: SplitSink<WebSocket, Message>,
    reader: StateReader,
    sessions: Sessions,
    /// Everything up to this revision has been sent.
    position: Revision,
    /// The digest at `position`, once this node can know it.
    digest: Option<Digest>,
    digests: Digests,
}

/// The digests of revisions that were sent lately, shared by the two halves of a session.
#[derive(Clone, Default)]
pub(super) struct Digests(Arc<Mutex<VecDeque<(Revision, Digest)>>>);

impl Outbound {
    /// A sending half that has sent nothing.
    pub(super) fn new(sink: SplitSink<WebSocket, Message>, reader: StateReader, sessions: Sessions) -> Self {
        Self { sink, reader, sessions, position: 0, digest: None, digests: Digests::default() }
    }

    /// The gateway holds everything up to `revision`.
    pub(super) fn resume_after(&mut self, revision: Revision) {
        self.position = revision;
    }

    pub(super) fn digests(&self) -> Digests {
        self.digests.clone()
    }

    /// Sends the whole published set. It is the set at one revision, and changes go on from there.
    pub(super) async fn snapshot(&mut self) -> Result<(), End> {
        let state = self.reader.state();
        let revision = state.revision();
        let mut rest = state.published().elements().copied();
        let mut part = 0;
        loop {
            let elements: Vec<_> = rest.by_ref().take(MAX_ELEMENTS_PER_FRAME).collect();
            let last = elements.len() < MAX_ELEMENTS_PER_FRAME;
            // An empty set has one empty part: it empties the receiver's buffer.
            if !elements.is_empty() || part == 0 {
                self.send(&ToGateway::SnapshotPart { part, elements }).await?;
                part += 1;
            }
            if last {
                break;
            }
        }
        let digest = state.published().digest();
        self.digests.remember(revision, digest);
        self.send(&ToGateway::SnapshotEnd { revision, digest }).await?;
        self.position = revision;
        self.digest = Some(digest);
        self.sessions.metrics().snapshot_sent();
        Ok(())
    }

    /// Sends the changes up to `state`'s revision and nothing beyond, or a snapshot when they are not kept.
    pub(super) async fn advance(&mut self, state: &State) -> Result<(), End> {
        let goal = state.revision();
        while self.position < goal {
            let Ok(batches) = self.reader.after(self.position, BATCHES_PER_READ) else {
                return self.snapshot().await;
            };
            let complete = batches.len() < BATCHES_PER_READ;
            for batch in batches.iter().take_while(|batch| batch.revision <= goal) {
                self.change(batch).await?;
                self.position = batch.revision;
            }
            if complete || batches.last().is_some_and(|batch| batch.revision > goal) {
                self.position = goal;
            }
        }
        if self.position == goal {
            let digest = state.published().digest();
            self.digest = Some(digest);
            self.digests.remember(goal, digest);
        }
        Ok(())
    }

    /// Brings the gateway up to date and says where that is, so that it can compare digests.
    pub(super) async fn heartbeat(&mut self) -> Result<(), End> {
        let state = self.reader.state();
        self.advance(&state).await?;
        let (revision, digest) = match self.digest {
            // A snapshot may have gone beyond `state`.
            Some(digest) if self.position != state.revision() => (self.position, digest),
            _ => (state.revision(), state.published().digest()),
        };
        self.send(&ToGateway::Heartbeat { revision, digest }).await?;
        self.write(Message::Ping(axum::body::Bytes::new())).await
    }

    /// Sends one frame.
    pub(super) async fn send(&mut self, frame: &ToGateway) -> Result<(), End> {
        let bytes = codec::encode(frame).map_err(|error| End::Lost(format!("encode a frame: {error}")))?;
        self.write(Message::Binary(bytes.into())).await
    }

    /// The last words, as far as the other side still listens.
    pub(super) async fn close(&mut self, goaway: Option<(GoawayReason, u64)>, code: u16, reason: &str) {
        let goodbye = self.sessions.limits().goodbye;
        let last_words = async {
            if let Some((reason, retry_after_ms)) = goaway {
                let frame = codec::encode(&ToGateway::Goaway { reason, retry_after_ms }).unwrap_or_default();
                self.sink.send(Message::Binary(frame.into())).await?;
            }
            let reason = shorten(reason).into();
            self.sink.send(Message::Close(Some(CloseFrame { code, reason }))).await
        };
        // Whether they arrived changes nothing: the session ends.
        let _ = timeout(goodbye, last_words).await;
    }

    /// Lets the answer to the gateway's close leave.
    pub(super) async fn flush(&mut self) {
        let _ = timeout(self.sessions.limits().goodbye, self.sink.close()).await;
    }

    async fn change(&mut self, batch: &AppliedBatch) -> Result<(), End> {
        for frame in split::frames(&batch.change) {
            self.send(&frame).await?;
        }
        self.digest = Some(batch.published);
        self.digests.remember(batch.change.revision, batch.published);
        Ok(())
    }

    async fn write(&mut self, message: Message) -> Result<(), End> {
        match timeout(self.sessions.limits().write_timeout, self.sink.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(End::Lost(error.to_string())),
            Err(_) => Err(End::TooSlow),
        }
    }
}

impl Digests {
    fn remember(&self, revision: Revision, digest: Digest) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.back().is_some_and(|(last, _)| *last == revision) {
            kept.pop_back();
        }
        if kept.len() == REMEMBERED_DIGESTS {
            kept.pop_front();
        }
        kept.push_back((revision, digest));
    }

    /// Whether `digest` is right for `revision`; `None` when this node no longer knows.
    pub(super) fn agrees(&self, revision: Revision, digest: Digest) -> Option<bool> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().rev().find(|(kept, _)| *kept == revision).map(|(_, right)| *right == digest)
    }
}

fn shorten(reason: &str) -> &str {
    let mut end = reason.len().min(MAX_CLOSE_REASON_BYTES);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_reason_is_cut_between_characters() {
        assert_eq!(shorten("short"), "short");
        let long = "é".repeat(100);
        assert!(shorten(&long).len() <= MAX_CLOSE_REASON_BYTES);
    }

    #[test]
    fn old_digests_are_forgotten_and_not_judged() {
        let digests = Digests::default();
        let other: Digest = {
            let mut digest = Digest::default();
            digest.toggle(&allowlist::Element::host([1, 1, 1, 1].into(), None));
            digest
        };
        for revision in 0..=REMEMBERED_DIGESTS as u64 {
            digests.remember(revision, Digest::default());
        }
        assert_eq!(digests.agrees(0, Digest::default()), None);
        assert_eq!(digests.agrees(1, Digest::default()), Some(true));
        assert_eq!(digests.agrees(1, other), Some(false));
    }
}
