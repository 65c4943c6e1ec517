//! One session's rules, without I/O: a frame goes in, what to do comes out.
//!
//! Revisions are log indexes, so numbers are skipped all the time; a lost change shows in the digest of the next
//! heartbeat, never in the numbers. Numbers that go back are refused.

use std::collections::BTreeSet;

use allowlist::feed::{FeedState, GoawayReason, Hello, SessionStart, ToGateway, ToServer, Welcome};
use allowlist::{Change, Digest, Element, Revision};
use uuid::Uuid;

use crate::held::Held;

/// Most elements a snapshot or a change in parts may have; bounds what a broken server can make us buffer.
pub const MAX_BUFFERED_ELEMENTS: usize = 4_000_000;
/// After this many digest mismatches in one session the node is left: its own stream does not lead to its digest.
pub const MAX_RESYNCS_PER_SESSION: u32 = 3;

/// What a frame asks us to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing beyond noting that the node lives.
    Nothing,
    /// Make this change.
    Apply(Change),
    /// Hold exactly this set from now on.
    Replace(Held),
    /// We hold the same as the node, and nothing changed up to its revision.
    Agreed(Revision),
    /// We hold something else than the node: ask for a snapshot.
    Resync(ToServer),
    /// Leave this node.
    End(Ending),
}

/// Why the rules end a session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ending {
    /// The server asked us to go.
    #[error("the node sent us away: {}", goaway_words(*.reason))]
    Goaway {
        /// Its reason.
        reason: GoawayReason,
        /// How long to stay away from it, milliseconds.
        retry_after_ms: u64,
    },
    /// A frame that has no business where it came.
    #[error("the node broke the protocol: {0}")]
    Protocol(String),
    /// The node is behind what we hold; following it would undo changes.
    #[error("the node is at revision {node}, behind ours ({ours})")]
    NodeBehind {
        /// The node's revision.
        node: Revision,
        /// Ours.
        ours: Revision,
    },
    /// What the node sends does not lead to the digest it names.
    #[error("what the node sends does not match the digest it names at revision {0}")]
    Disagrees(Revision),
}

/// The state of one session.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    offered: Option<FeedState>,
    partial: Option<Change>,
    resyncs: u32,
    agreed: bool,
}

#[derive(Debug)]
enum Phase {
    Greeting,
    /// A snapshot is to come or under way.
    Snapshot(Buffer),
    /// We asked for a snapshot; changes sent before the node read that may still come.
    Resyncing(Uuid),
    Live(Uuid),
}

#[derive(Debug)]
struct Buffer {
    cluster: Uuid,
    parts: u32,
    elements: Vec<Element>,
}

impl Buffer {
    fn new(cluster: Uuid) -> Self {
        Self { cluster, parts: 0, elements: Vec::new() }
    }
}

impl Session {
    /// Begins a session; the frame is to be sent first.
    pub fn begin(name: &str, held: &Held) -> (Self, ToServer) {
        let offered = held.point();
        let hello = ToServer::Hello(Hello {
            name: name.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: offered,
        });
        (Self { phase: Phase::Greeting, offered, partial: None, resyncs: 0, agreed: false }, hello)
    }

    /// True once the node's digest was seen to equal ours.
    pub fn agreed(&self) -> bool {
        self.agreed
    }

    /// True while a snapshot, or the rest of a change in parts, is to come.
    pub fn awaits_more(&self) -> bool {
        self.partial.is_some() || matches!(self.phase, Phase::Snapshot(_) | Phase::Resyncing(_))
    }

    /// Takes one frame. `held` is what we hold at this moment.
    pub fn on_frame(&mut self, held: &Held, frame: ToGateway) -> Step {
        match self.step(held, frame) {
            Ok(step) => step,
            Err(ending) => Step::End(ending),
        }
    }

    fn step(&mut self, held: &Held, frame: ToGateway) -> Result<Step, Ending> {
        match frame {
            ToGateway::Welcome(welcome) => self.on_welcome(&welcome),
            ToGateway::SnapshotPart { part, elements } => self.on_part(part, &elements),
            ToGateway::SnapshotEnd { revision, digest } => self.on_snapshot_end(held, revision, digest),
            ToGateway::Change { change, more } => self.on_change(held, change, more),
            ToGateway::Heartbeat { revision, digest } => self.on_heartbeat(held, revision, digest),
            ToGateway::Goaway { reason, retry_after_ms } => Err(Ending::Goaway { reason, retry_after_ms }),
        }
    }

    fn on_welcome(&mut self, welcome: &Welcome) -> Result<Step, Ending> {
        let Phase::Greeting = self.phase else { return Err(protocol("a second welcome")) };
        let same_cluster = self.offered.filter(|offered| offered.cluster == welcome.cluster);
        if let Some(offered) = same_cluster
            && welcome.revision < offered.revision
        {
            return Err(Ending::NodeBehind { node: welcome.revision, ours: offered.revision });
        }
        self.phase = match welcome.start {
            SessionStart::Snapshot => Phase::Snapshot(Buffer::new(welcome.cluster)),
            SessionStart::Resume if same_cluster.is_some() => Phase::Live(welcome.cluster),
            SessionStart::Resume => return Err(protocol("it resumes a state we did not offer")),
        };
        Ok(Step::Nothing)
    }

    fn on_part(&mut self, part: u32, elements: &[Element]) -> Result<Step, Ending> {
        if let Phase::Resyncing(cluster) = self.phase {
            self.partial = None;
            self.phase = Phase::Snapshot(Buffer::new(cluster));
        }
        let Phase::Snapshot(buffer) = &mut self.phase else {
            return Err(protocol("a snapshot part nobody asked for"));
        };
        if part == 0 {
            buffer.parts = 0;
            buffer.elements.clear();
        }
        if part != buffer.parts {
            return Err(protocol(&format!("snapshot part {part} where {} was due", buffer.parts)));
        }
        check_room(buffer.elements.len(), elements.len())?;
        for element in elements {
            check_element(element)?;
            if buffer.elements.last().is_some_and(|last| last >= element) {
                return Err(protocol("a snapshot that is not sorted"));
            }
            buffer.elements.push(*element);
        }
        buffer.parts += 1;
        Ok(Step::Nothing)
    }

    fn on_snapshot_end(&mut self, held: &Held, revision: Revision, digest: Digest) -> Result<Step, Ending> {
        let (cluster, elements) = match &mut self.phase {
            Phase::Snapshot(buffer) => (buffer.cluster, std::mem::take(&mut buffer.elements)),
            // A snapshot of nothing may come without any part.
            Phase::Resyncing(cluster) => (*cluster, Vec::new()),
            Phase::Greeting | Phase::Live(_) => {
                return Err(protocol("the end of a snapshot nobody asked for"));
            }
        };
        if let Some(point) = held.point()
            && point.cluster == cluster
            && revision < point.revision
        {
            return Err(Ending::NodeBehind { node: revision, ours: point.revision });
        }
        let elements: BTreeSet<Element> = elements.into_iter().collect();
        let received = Held::published(cluster, revision, elements);
        if received.digest() != digest {
            return Err(Ending::Disagrees(revision));
        }
        self.partial = None;
        self.phase = Phase::Live(cluster);
        self.agreed = true;
        Ok(Step::Replace(received))
    }

    fn on_change(&mut self, held: &Held, change: Change, more: bool) -> Result<Step, Ending> {
        let stale_is_fine = match self.phase {
            Phase::Live(_) => false,
            Phase::Resyncing(_) => true,
            Phase::Greeting => return Err(protocol("a change before the welcome")),
            Phase::Snapshot(_) => return Err(protocol("a change within a snapshot")),
        };
        for element in change.added.iter().chain(&change.revoked).chain(&change.retired) {
            check_element(element)?;
        }
        let whole = match self.partial.take() {
            None => change,
            Some(partial) if partial.revision == change.revision => joined(partial, change)?,
            Some(partial) => {
                return Err(protocol(&format!(
                    "a part of revision {} within revision {}",
                    change.revision, partial.revision
                )));
            }
        };
        if more {
            self.partial = Some(whole);
            return Ok(Step::Nothing);
        }
        if whole.revision <= held.revision() {
            if stale_is_fine {
                return Ok(Step::Nothing);
            }
            return Err(protocol(&format!(
                "revision {} after we were at {}",
                whole.revision,
                held.revision()
            )));
        }
        Ok(Step::Apply(whole))
    }

    fn on_heartbeat(&mut self, held: &Held, revision: Revision, digest: Digest) -> Result<Step, Ending> {
        match self.phase {
            Phase::Greeting => return Err(protocol("a heartbeat before the welcome")),
            // Between the parts of a snapshot, or before the node read our request, it proves life and no more.
            Phase::Snapshot(_) | Phase::Resyncing(_) => return Ok(Step::Nothing),
            Phase::Live(_) => {}
        }
        if self.partial.is_some() {
            return Err(protocol("a heartbeat within a change"));
        }
        if revision < held.revision() {
            return Err(Ending::NodeBehind { node: revision, ours: held.revision() });
        }
        if digest == held.digest() {
            self.agreed = true;
            return Ok(Step::Agreed(revision));
        }
        self.ask_again(held, revision, digest)
    }

    fn ask_again(&mut self, held: &Held, revision: Revision, digest: Digest) -> Result<Step, Ending> {
        let Phase::Live(cluster) = self.phase else { return Ok(Step::Nothing) };
        self.resyncs += 1;
        if self.resyncs > MAX_RESYNCS_PER_SESSION {
            return Err(Ending::Disagrees(revision));
        }
        self.agreed = false;
        self.phase = Phase::Resyncing(cluster);
        let reason = format!(
            "digest {} at revision {} differs from the node's {digest} at {revision}",
            held.digest(),
            held.revision()
        );
        Ok(Step::Resync(ToServer::ResyncRequest { reason }))
    }
}

fn joined(mut partial: Change, next: Change) -> Result<Change, Ending> {
    check_room(partial.len(), next.len())?;
    partial.added.extend(next.added);
    partial.revoked.extend(next.revoked);
    partial.retired.extend(next.retired);
    Ok(partial)
}

fn check_room(buffered: usize, more: usize) -> Result<(), Ending> {
    if buffered.saturating_add(more) > MAX_BUFFERED_ELEMENTS {
        return Err(protocol(&format!("more than {MAX_BUFFERED_ELEMENTS} elements at once")));
    }
    Ok(())
}

/// Host bits would make two spellings of one prefix, and the digest would tell them apart.
fn check_element(element: &Element) -> Result<(), Ending> {
    if element.prefix.trunc() == element.prefix {
        Ok(())
    } else {
        Err(protocol(&format!("prefix {} has host bits set", element.prefix)))
    }
}

fn protocol(what: &str) -> Ending {
    Ending::Protocol(what.to_owned())
}

fn goaway_words(reason: GoawayReason) -> &'static str {
    match reason {
        GoawayReason::Draining => "it is being shut down",
        GoawayReason::TooSlow => "we did not read fast enough",
        GoawayReason::Lagging => "it cannot say that it is current",
        GoawayReason::Replaced => {
            "another gateway connected with our name; every gateway needs a name of its own"
        }
        GoawayReason::Protocol => "it says that we broke the protocol",
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
