//! What happens when the disk fails under a node.

use std::fmt;
use std::sync::Arc;

/// Called with one sentence when this node can no longer keep its promises (write-ahead log or checkpoint not
/// writable). After a failed write the log's memory is ahead of its disk and nobody can say by how much, so the only
/// honest way on is a new process that reads the disk again: the hook should not return.
#[derive(Clone)]
pub struct FatalHook(Arc<dyn Fn(&str) + Send + Sync>);

/// Exit code of a process whose disk failed (`EX_IOERR` of sysexits.h).
pub const EXIT_DISK_FAILED: i32 = 74;

impl FatalHook {
    /// A hook that calls `act`.
    pub fn new(act: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(act))
    }

    pub(crate) fn call(&self, reason: &str) {
        tracing::error!(reason, "storage failed, this node stops");
        (self.0)(reason);
    }
}

impl Default for FatalHook {
    /// Ends the process with [`EXIT_DISK_FAILED`].
    fn default() -> Self {
        Self::new(|_| std::process::exit(EXIT_DISK_FAILED))
    }
}

impl fmt::Debug for FatalHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FatalHook")
    }
}
