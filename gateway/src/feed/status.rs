//! What the feed does at this moment, for readiness and metrics.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use allowlist::Revision;

use super::nodes::Node;

/// The one link, as a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinkState {
    /// Between two attempts.
    #[default]
    Waiting,
    /// TCP, TLS or the upgrade is under way.
    Connecting,
    /// The link is open; we do not know yet whether we hold what the node holds.
    Syncing,
    /// The link is open, and our digest was the node's.
    InSync,
    /// The gateway is stopping.
    Stopped,
}

impl LinkState {
    /// One word for people and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Connecting => "connecting",
            Self::Syncing => "syncing",
            Self::InSync => "in_sync",
            Self::Stopped => "stopped",
        }
    }

    /// True while a session is open.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Syncing | Self::InSync)
    }
}

/// A look at the board.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// The link.
    pub link: LinkState,
    /// The node it leads to.
    pub node: Option<String>,
    /// The newest revision a node told us.
    pub cluster_revision: Revision,
    /// The last thing that went wrong, until a session is in sync.
    pub problem: Option<String>,
}

/// The board. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct StatusBoard(Arc<Mutex<Status>>);

impl StatusBoard {
    /// What stands there now.
    pub fn read(&self) -> Status {
        self.lock().clone()
    }

    pub(super) fn link(&self, state: LinkState, node: Option<&Node>) {
        let mut status = self.lock();
        status.link = state;
        status.node = node.map(ToString::to_string);
        if state == LinkState::InSync {
            status.problem = None;
        }
    }

    pub(super) fn cluster_revision(&self, revision: Revision) {
        self.lock().cluster_revision = revision;
    }

    pub(super) fn problem(&self, what: String) {
        self.lock().problem = Some(what);
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
