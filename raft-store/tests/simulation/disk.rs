//! A disk that forgets: what is written is seen at once, but survives a crash for certain only when its sync has ended.
//! Of the rest, which went to the file in order, a crash leaves any prefix, also a part of an append.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::AsyncRuntime as _;
use openraft::storage::IOFlushed;
use raft_store::types::{Entry, LogId, NodeId, Vote};
use tokio::sync::oneshot;

use crate::machine::Content;
use crate::process::NodeRuntime;
use crate::types::{SimTypes, sleep_us};
use crate::world::{Bug, World};

pub(crate) type Done = oneshot::Sender<io::Result<()>>;

/// What the files of a node hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct Image {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    pub(crate) log: BTreeMap<u64, Entry>,
    /// The state that is on disk beside the log; as in production never ahead of the synced log.
    pub(crate) checkpoint: Content,
    pub(crate) snapshot: Option<Content>,
}

/// One write to the log's file.
pub(crate) enum Write {
    Append(Vec<Entry>, Option<IOFlushed<SimTypes>>),
    Vote(Vote, Option<Done>),
    Committed(LogId),
    Truncate(u64, Option<Done>),
    Purge(LogId, Option<Done>),
}

impl Image {
    pub(crate) fn last(&self) -> Option<LogId> {
        self.log.last_key_value().map(|(_, entry)| entry.log_id).or(self.purged)
    }

    /// Carries out `write`; of an append only the first `entries`.
    fn take(&mut self, write: &Write, entries: usize) {
        match write {
            Write::Append(all, _) => {
                self.log.extend(all.iter().take(entries).map(|entry| (entry.log_id.index, entry.clone())));
            }
            Write::Vote(vote, _) => self.vote = Some(*vote),
            Write::Committed(id) => self.committed = Some(*id),
            Write::Truncate(next, _) => drop(self.log.split_off(next)),
            Write::Purge(upto, _) => {
                self.log = self.log.split_off(&(upto.index + 1));
                self.purged = self.purged.max(Some(*upto));
            }
        }
    }
}

/// The disk of one node as one life of it sees it. After a kill the next life gets what [`Disk::after_crash`] leaves.
#[derive(Clone)]
pub(crate) struct Disk {
    node: NodeId,
    world: World,
    files: Arc<Mutex<Files>>,
}

struct Files {
    /// What a reader sees.
    seen: Image,
    /// What survives.
    synced: Image,
    unsynced: VecDeque<Write>,
    syncing: bool,
}

impl Disk {
    pub(crate) fn new(node: NodeId, world: World, image: Image) -> Self {
        let files = Files { seen: image.clone(), synced: image, unsynced: VecDeque::new(), syncing: false };
        Self { node, world, files: Arc::new(Mutex::new(files)) }
    }

    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    pub(crate) fn world(&self) -> &World {
        &self.world
    }

    /// What is left when the power fails now.
    pub(crate) fn after_crash(&self) -> Image {
        let files = self.files();
        let mut image = files.synced.clone();
        let kept = self.world.below(files.unsynced.len() as u64 + 1) as usize;
        for write in files.unsynced.iter().take(kept) {
            image.take(write, usize::MAX);
        }
        // The write after those may be there in part.
        if let Some(write @ Write::Append(entries, _)) = files.unsynced.get(kept) {
            image.take(write, self.world.below(entries.len() as u64) as usize);
        }
        image
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&Image) -> T) -> T {
        look(&self.files().seen)
    }

    pub(crate) fn write(&self, write: Write) {
        let write = if self.world.has(Bug::AcknowledgesBeforeSync) { acknowledged(write) } else { write };
        let begin = {
            let mut files = self.files();
            if let Write::Append(entries, _) = &write {
                let next = files.seen.last().map_or(0, |last| last.index + 1);
                if entries.first().is_some_and(|first| first.log_id.index != next) {
                    self.world.violation(format!("node {}: append leaves a hole at {next}", self.node));
                }
            }
            files.seen.take(&write, usize::MAX);
            files.unsynced.push_back(write);
            !std::mem::replace(&mut files.syncing, true)
        };
        if begin {
            drop(NodeRuntime::spawn(self.clone().sync_all()));
        }
    }

    /// Writes that [`Self::write`] answers through a channel.
    pub(crate) async fn write_and_sync(&self, write: impl FnOnce(Option<Done>) -> Write) -> io::Result<()> {
        let (done, synced) = oneshot::channel();
        self.write(write(Some(done)));
        synced.await.map_err(|_| io::Error::other("the disk is gone"))?
    }

    /// Like the log's writer thread: whatever has gathered during one sync goes with the next.
    async fn sync_all(self) {
        loop {
            let batch = self.files().unsynced.len();
            if batch == 0 {
                self.files().syncing = false;
                return;
            }
            sleep_us(self.world.sync_us(self.node)).await;
            let done: Vec<_> = {
                let mut files = self.files();
                let done: Vec<_> = files.unsynced.drain(..batch).collect();
                done.iter().for_each(|write| files.synced.take(write, usize::MAX));
                done
            };
            done.into_iter().for_each(answer);
        }
    }

    /// Puts `content` beside the log if the synced log reaches as far.
    pub(crate) fn checkpoint(&self, content: &Content) {
        let mut files = self.files();
        if content.applied <= files.synced.last() {
            files.synced.checkpoint = content.clone();
        }
    }

    /// The file of a snapshot is written and synced before it gets its name. One that was overtaken goes; the answer is
    /// the newest.
    pub(crate) async fn store_snapshot(&self, content: &Content) -> Content {
        sleep_us(self.world.sync_us(self.node)).await;
        let mut files = self.files();
        let files = &mut *files;
        let newest = match files.synced.snapshot.take() {
            Some(there) if there.applied >= content.applied => there,
            _ => content.clone(),
        };
        files.synced.snapshot = Some(newest.clone());
        files.seen.snapshot = Some(newest.clone());
        newest
    }

    /// A snapshot that came from the leader: first its file, then the checkpoint.
    pub(crate) async fn replace_state(&self, content: &Content) {
        self.store_snapshot(content).await;
        sleep_us(self.world.sync_us(self.node)).await;
        self.files().synced.checkpoint = content.clone();
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The broken disk of a self-test: says that it is done when it has only begun.
fn acknowledged(write: Write) -> Write {
    match write {
        Write::Append(entries, callback) => {
            answer(Write::Append(Vec::new(), callback));
            Write::Append(entries, None)
        }
        Write::Vote(vote, done) => {
            answer(Write::Vote(vote, done));
            Write::Vote(vote, None)
        }
        other => other,
    }
}

fn answer(write: Write) {
    match write {
        Write::Append(_, callback) => {
            if let Some(callback) = callback {
                callback.io_completed(Ok(()));
            }
        }
        Write::Vote(_, done) | Write::Truncate(_, done) | Write::Purge(_, done) => {
            // Who asked may be gone.
            drop(done.map(|done| done.send(Ok(()))));
        }
        Write::Committed(_) => {}
    }
}
