//! A snapshot on its way in from a peer.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use super::file::{RoomCheck, Temporary};
use super::{SnapshotFile, format};
use crate::disk::{Disk, DiskFile};
use crate::features::FeatureLevel;
use crate::space::Space;
use crate::types::{Snapshot, SnapshotMeta};

/// Most bytes accepted for one snapshot: ten times what a million entries with long texts need.
pub const MAX_SNAPSHOT_BYTES: u64 = 16 * 1024 * 1024 * 1024;

/// A file that grows as a snapshot arrives. All methods block: call them off the async threads. Without an
/// owner, this or the finished snapshot that was not installed, the file goes.
#[derive(Debug)]
pub struct IncomingSnapshot {
    file: DiskFile,
    temporary: Arc<Temporary>,
    len: u64,
    room: RoomCheck,
    cluster: Option<Uuid>,
    known: FeatureLevel,
}

impl IncomingSnapshot {
    pub(super) fn create(
        disk: &Disk,
        path: &Path,
        space: &Space,
        cluster: Option<Uuid>,
        known: FeatureLevel,
    ) -> io::Result<Self> {
        let file = disk.create(path)?;
        Ok(Self {
            file,
            temporary: Arc::new(Temporary(path.to_owned())),
            len: 0,
            room: RoomCheck::new(space),
            cluster,
            known,
        })
    }

    /// How many bytes have come: the offset of the next ones.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True before the first byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends the next bytes.
    ///
    /// # Errors
    /// What the file system says, or that it is too long; `StorageFull` before the log's reserve is touched.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.len += bytes.len() as u64;
        if self.len > MAX_SNAPSHOT_BYTES {
            let reason = format!("a snapshot longer than {MAX_SNAPSHOT_BYTES} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        self.room.take(bytes.len() as u64)?;
        self.file.write_all(bytes)
    }

    /// Syncs and verifies the whole file, so that installing it cannot fail because of what a peer sent. The answer is
    /// what `Raft::install_full_snapshot` takes; its meta comes from the file.
    ///
    /// # Errors
    /// `InvalidData` when it is damaged, belongs to another cluster, or needs a newer program.
    pub fn finish(self) -> io::Result<Snapshot> {
        self.file.sync()?;
        let file = SnapshotFile::open_temporary(self.temporary)?;
        format::verify_sum(file.file())?;
        let header = format::read_any_header(file.file())?;
        let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
        self.known
            .check(header.data_version)
            .map_err(|refusal| invalid(format!("the snapshot: {refusal}")))?;
        if let (Some(ours), Some(theirs)) = (self.cluster, header.cluster)
            && ours != theirs
        {
            let reason = format!("the snapshot is of cluster {theirs}, this node belongs to {ours}");
            return Err(invalid(reason));
        }
        let meta = SnapshotMeta { last_log_id: header.last_log_id, last_membership: header.membership };
        Ok(Snapshot { meta, snapshot: file })
    }
}
