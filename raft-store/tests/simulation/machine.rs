//! openraft's state machine around the real [`State::apply`], with snapshots in memory.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{Stream, StreamExt as _};
use openraft::async_runtime::watch::WatchSender as _;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::type_config::TypeConfigExt as _;
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf, WatchReceiverOf, WatchSenderOf};
use openraft::{EntryPayload, RaftSnapshotBuilder, Snapshot, SnapshotMeta};
use raft_store::State;
use raft_store::command::BatchReply;
use raft_store::types::{Entry, LogId, StoredMembership};

use crate::disk::Disk;
use crate::types::{SimTypes, pass, sleep_us};

/// A whole state: what a checkpoint and a snapshot hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) state: State,
    pub(crate) applied: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

impl Content {
    fn meta(&self) -> SnapshotMetaOf<SimTypes> {
        SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() }
    }
}

/// Shows the applied state to readers.
#[derive(Clone)]
pub(crate) struct Shown {
    state: Arc<Mutex<State>>,
    revision: WatchReceiverOf<SimTypes, u64>,
}

impl Shown {
    pub(crate) fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Announces each newly applied revision.
    pub(crate) fn revisions(&self) -> WatchReceiverOf<SimTypes, u64> {
        self.revision.clone()
    }
}

/// The applied state of one life of a node.
pub(crate) struct Machine {
    content: Content,
    disk: Disk,
    state: Arc<Mutex<State>>,
    revision: WatchSenderOf<SimTypes, u64>,
}

impl Machine {
    /// Goes on from the newest state on disk, as `raft-store/src/machine/recover.rs` does.
    pub(crate) fn recover(disk: Disk) -> (Self, Shown) {
        let (checkpoint, snapshot, purged) =
            disk.read(|image| (image.checkpoint.clone(), image.snapshot.clone(), image.purged));
        let content = match snapshot {
            Some(snapshot) if snapshot.applied > checkpoint.applied => snapshot,
            _ => checkpoint,
        };
        if purged.map(|id| id.index) > content.applied.map(|id| id.index) {
            disk.world().violation(format!("node {}: the log begins after its newest state", disk.node()));
        }
        let (revision, revisions) = SimTypes::watch_channel(content.state.revision());
        let state = Arc::new(Mutex::new(content.state.clone()));
        let shown = Shown { state: Arc::clone(&state), revision: revisions };
        (Self { content, disk, state, revision }, shown)
    }

    fn apply_entry(&mut self, entry: Entry) -> BatchReply {
        let Entry { log_id, payload } = entry;
        let reply = match payload {
            EntryPayload::Normal(batch) => self.content.state.apply(log_id.index, &batch).1,
            EntryPayload::Membership(membership) => {
                self.content.membership = StoredMembership::new(Some(log_id), membership);
                pass(&mut self.content.state, log_id.index);
                BatchReply { revision: log_id.index, replies: Vec::new() }
            }
            EntryPayload::Blank => {
                pass(&mut self.content.state, log_id.index);
                BatchReply { revision: log_id.index, replies: Vec::new() }
            }
        };
        self.content.applied = Some(log_id);
        reply
    }

    fn show(&mut self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = self.content.state.clone();
        // Nobody may be listening yet.
        let _ = self.revision.send(self.content.state.revision());
        if self.disk.world().chance(CHECKPOINT_PERMILLE) {
            self.disk.checkpoint(&self.content);
        }
    }
}

/// How often an applied entry is followed by a checkpoint, and by a pause.
const CHECKPOINT_PERMILLE: u64 = 150;
const PAUSE_PERMILLE: u64 = 30;
const PAUSE_MAX_US: u64 = 20_000;
/// Building a snapshot takes up to this long, while writes go on.
const BUILD_MAX_US: u64 = 100_000;

impl RaftStateMachine<SimTypes> for Machine {
    type SnapshotData = Content;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.content.applied, self.content.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<SimTypes>>> + Unpin + Send,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            self.disk.world().applied(self.disk.node(), &entry);
            let reply = self.apply_entry(entry);
            self.show();
            if let Some(responder) = responder {
                responder.send(reply);
            }
            if self.disk.world().chance(PAUSE_PERMILLE) {
                sleep_us(self.disk.world().below(PAUSE_MAX_US)).await;
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { content: self.content.clone(), disk: self.disk.clone() }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<SimTypes>,
        snapshot: Content,
    ) -> io::Result<()> {
        if snapshot.meta() != *meta {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the snapshot is another one"));
        }
        self.disk.replace_state(&snapshot).await;
        self.disk.world().installed(self.disk.node(), &snapshot);
        self.content = snapshot;
        self.show();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<SimTypes, Content>>> {
        let snapshot = self.disk.read(|image| image.snapshot.clone());
        Ok(snapshot.map(|content| Snapshot { meta: content.meta(), snapshot: content }))
    }
}

/// Builds a snapshot of the state as it was when the builder was made.
pub(crate) struct Builder {
    content: Content,
    disk: Disk,
}

impl RaftSnapshotBuilder<SimTypes> for Builder {
    type SnapshotData = Content;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<SimTypes, Content>> {
        sleep_us(self.disk.world().below(BUILD_MAX_US)).await;
        let newest = self.disk.store_snapshot(&self.content).await;
        Ok(Snapshot { meta: newest.meta(), snapshot: newest })
    }
}
