//! openraft's state machine: applies committed entries to the state in memory, shows the result to readers, answers,
//! and lets the [`checkpoint`] follow.

pub(crate) mod checkpoint;
pub(crate) mod database;
pub(crate) mod recover;

use std::fmt;
use std::io;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, RaftSnapshotBuilder};

use crate::command::{BatchReply, Operation};
use crate::data_dir::DataDir;
use crate::fatal::FatalHook;
use crate::reader::StatePublisher;
use crate::snapshot::{Content, SnapshotFile, Snapshots, format};
use crate::space::Space;
use crate::state::AppliedBatch;
use crate::types::{Entry, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use checkpoint::{CatchUp, Checkpointer};
use database::Dirty;

/// Entries taken from openraft at once, if so many are ready.
const READY_ENTRIES: usize = 256;
/// After so many operations readers get to see the state and other tasks get their turn.
const STEP_OPERATIONS: usize = 2_000;

/// The applied state of this node.
pub struct StateMachine {
    content: Content,
    publisher: StatePublisher,
    checkpointer: Checkpointer,
    snapshots: Snapshots,
    space: Space,
    fatal: FatalHook,
    /// Keeps other processes out as long as the state is open.
    _dir: Arc<DataDir>,
}

/// Builds a snapshot of the state as it was when the builder was made.
pub struct SnapshotBuilder {
    content: Content,
    checkpoint: CatchUp,
    snapshots: Snapshots,
    space: Space,
}

/// Entries applied and not yet shown.
#[derive(Default)]
struct Step {
    applied: Vec<AppliedBatch>,
    dirty: Dirty,
    replies: Vec<(ApplyResponder<TypeConfig>, BatchReply)>,
    operations: usize,
    entries: usize,
}

impl StateMachine {
    pub(crate) fn new(
        content: Content,
        publisher: StatePublisher,
        checkpointer: Checkpointer,
        snapshots: Snapshots,
        space: Space,
        fatal: FatalHook,
        dir: Arc<DataDir>,
    ) -> Self {
        Self { content, publisher, checkpointer, snapshots, space, fatal, _dir: dir }
    }

    fn apply_entry(&mut self, step: &mut Step, entry: Entry, responder: Option<ApplyResponder<TypeConfig>>) {
        let Entry { log_id, payload } = entry;
        let reply = match payload {
            EntryPayload::Normal(batch) => {
                let (mut applied, reply) = self.content.state.apply(log_id.index, &batch);
                step.dirty.note(&applied);
                applied.kept = Vec::new();
                step.operations += batch.operations.iter().map(Operation::weight).sum::<usize>();
                step.applied.push(applied);
                reply
            }
            EntryPayload::Membership(membership) => {
                self.content.membership = StoredMembership::new(Some(log_id), membership);
                self.pass(log_id)
            }
            EntryPayload::Blank => self.pass(log_id),
        };
        self.content.applied = Some(log_id);
        step.entries += 1;
        step.replies.extend(responder.map(|responder| (responder, reply)));
    }

    fn pass(&mut self, log_id: LogId) -> BatchReply {
        self.content.state.pass(log_id.index);
        BatchReply { revision: log_id.index, replies: Vec::new() }
    }

    /// Shows what was applied, then answers: who got an answer finds it in the state.
    fn show(&mut self, step: &mut Step) {
        let Step { applied, dirty, replies, entries, .. } = std::mem::take(step);
        if entries == 0 {
            return;
        }
        self.publisher.publish(self.content.state.clone(), applied);
        self.checkpointer.note(self.content.clone(), dirty);
        for (responder, reply) in replies {
            responder.send(reply);
        }
    }
}

impl fmt::Debug for StateMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateMachine").field("applied", &self.content.applied).finish_non_exhaustive()
    }
}

impl fmt::Debug for SnapshotBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotBuilder").field("applied", &self.content.applied).finish_non_exhaustive()
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.content.applied, self.content.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + Send,
    {
        let mut ready = entries.ready_chunks(READY_ENTRIES);
        let mut step = Step::default();
        while let Some(entries) = ready.next().await {
            for item in entries {
                match item {
                    Ok((entry, responder)) => self.apply_entry(&mut step, entry, responder),
                    Err(error) => {
                        self.show(&mut step);
                        return Err(error);
                    }
                }
                if step.operations >= STEP_OPERATIONS {
                    self.show(&mut step);
                    tokio::task::yield_now().await;
                }
            }
            self.show(&mut step);
        }
        Ok(())
    }

    /// None while the disk has no room for it: the log grows until there is some, and a disk filled by a snapshot would
    /// stop the log.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        match self.snapshots.room_to_build() {
            Err(error) if !force => {
                tracing::warn!(%error, "no snapshot is made for now");
                None
            }
            _ => Some(self.get_snapshot_builder().await),
        }
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder {
            content: self.content.clone(),
            checkpoint: self.checkpointer.catching_up(),
            snapshots: self.snapshots.clone(),
            space: self.space.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> io::Result<()> {
        let (snapshots, replacement, meta) =
            (self.snapshots.clone(), self.checkpointer.replacement(), meta.clone());
        let (ours, space) = (self.content.state.cluster(), self.space.clone());
        let installed = tokio::task::spawn_blocking(move || {
            let content = format::read(snapshot.file())?;
            let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
            if content.meta() != meta {
                return Err(invalid(format!("the snapshot is {}, not {meta}", content.meta())));
            }
            if let (Some(ours), Some(theirs)) = (ours, content.state.cluster())
                && ours != theirs
            {
                return Err(invalid(format!(
                    "the snapshot is of cluster {theirs}, this node belongs to {ours}"
                )));
            }
            // First the file, then the checkpoint: whatever is found after a crash between them reaches far enough.
            match snapshots.adopt(snapshot.path(), meta.clone()) {
                Err(error) if error.kind() == io::ErrorKind::StorageFull && space.release() => {
                    snapshots.adopt(snapshot.path(), meta)?
                }
                adopted => adopted?,
            };
            replacement.replace(&content).map_err(io::Error::other)?;
            Ok(content)
        });
        let content = installed.await.map_err(io::Error::other)?.inspect_err(|error| {
            if error.kind() != io::ErrorKind::InvalidData {
                self.fatal.call(&format!("install a snapshot: {error}"));
            }
        })?;
        self.content = content;
        self.publisher.replace(self.content.state.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self.snapshots.newest())
    }
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotFile;

    /// Off the async threads, from a version of the state of its own: writes go on meanwhile.
    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let (content, snapshots, space) = (self.content.clone(), self.snapshots.clone(), self.space.clone());
        let checkpoint = self.checkpoint.clone();
        // An error here ends raft on this node, and the snapshot is what lets the log give its room back.
        let build = move || {
            checkpoint.wait();
            match snapshots.build(&content) {
                Err(error) if error.kind() == io::ErrorKind::StorageFull && space.release() => {
                    snapshots.build(&content)
                }
                built => built,
            }
        };
        tokio::task::spawn_blocking(build).await.map_err(io::Error::other)?
    }
}
