//! openraft's log and vote on the simulated [`Disk`], with the contract of the real one (`raft-store/src/log`): entries
//! are seen at once and answered when synced; vote, truncation and purge wait; `committed` rides along unsynced.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;

use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use raft_store::types::{Entry, LogId, Vote};

use crate::disk::{Disk, Write};
use crate::types::SimTypes;

/// The log of one life of a node.
#[derive(Clone)]
pub(crate) struct Log(pub(crate) Disk);

impl RaftLogReader<SimTypes> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        Ok(self.0.read(|image| image.log.range(range).map(|(_, entry)| entry.clone()).collect()))
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.0.read(|image| image.vote))
    }
}

impl RaftLogStorage<SimTypes> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<SimTypes>> {
        Ok(self.0.read(|image| LogState { last_purged_log_id: image.purged, last_log_id: image.last() }))
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.0.write_and_sync(|done| Write::Vote(*vote, done)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        if let Some(id) = committed.filter(|id| Some(*id) <= self.0.read(|image| image.last())) {
            self.0.write(Write::Committed(id));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.0.read(|image| image.committed))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<SimTypes>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        self.0.write(Write::Append(entries.into_iter().collect(), Some(callback)));
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let next = last_log_id.map_or(0, |id| id.index + 1);
        self.0.write_and_sync(|done| Write::Truncate(next, done)).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.0.write_and_sync(|done| Write::Purge(upto, done)).await
    }
}
