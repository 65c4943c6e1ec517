//! Who may lead next.

use std::time::Duration;

use openraft::{Instant as _, LogIdOptionExt as _, Membership, ServerState};
use raft_store::NodeInfo;
use raft_store::types::NodeId;

use crate::raft::Metrics;

/// A voter heard from this lately is alive.
const ALIVE: Duration = Duration::from_millis(250);
/// An heir further behind would let writes wait until it has caught up, log entries. What is on its way counts, too.
const MAX_BEHIND_ENTRIES: u64 = 64;

/// A voter that could take over from this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Heir {
    /// Heard within [`ALIVE`].
    pub(crate) heard: bool,
    /// How far its log is known to reach.
    matched: Option<u64>,
    /// Who.
    pub(crate) id: NodeId,
    /// Log entries it lacks.
    pub(crate) behind: u64,
}

impl Heir {
    /// True when it can take over at once.
    pub(crate) fn is_ready(&self) -> bool {
        self.heard && self.matched.is_some() && self.behind <= MAX_BEHIND_ENTRIES
    }
}

/// All voters but this node and those on their way out, the best first: alive, then with the longest log. None when this
/// node does not lead or is alone.
pub(crate) fn heirs(metrics: &Metrics) -> Vec<Heir> {
    let (ServerState::Leader, Some(replication)) = (metrics.state, &metrics.replication) else {
        return Vec::new();
    };
    let last = metrics.last_log_index.unwrap_or(0);
    let mut heirs: Vec<_> = staying_voters(metrics.membership_config.membership())
        .filter(|voter| *voter != metrics.id)
        .map(|id| {
            let at = metrics.heartbeat.as_ref().and_then(|heard| heard.get(&id).copied().flatten());
            let matched = replication.get(&id).copied().flatten().index();
            Heir {
                heard: at.is_some_and(|at| at.into_inner().elapsed() < ALIVE),
                matched,
                id,
                behind: last.saturating_sub(matched.unwrap_or(0)),
            }
        })
        .collect();
    heirs.sort_unstable_by(|a, b| b.cmp(a));
    heirs
}

/// The voters, without those on their way out.
pub(crate) fn staying_voters(membership: &Membership<NodeId, NodeInfo>) -> impl Iterator<Item = NodeId> {
    membership.get_joint_config().last().into_iter().flatten().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heir(heard: bool, matched: Option<u64>) -> Heir {
        Heir { heard, matched, id: 1, behind: 1_000 - matched.unwrap_or(0) }
    }

    #[test]
    fn only_a_voter_that_is_heard_and_has_caught_up_is_ready() {
        assert!(heir(true, Some(1_000)).is_ready());
        assert!(!heir(false, Some(1_000)).is_ready());
        assert!(!heir(true, Some(1_000 - MAX_BEHIND_ENTRIES - 1)).is_ready());
        assert!(!heir(true, None).is_ready());
    }

    #[test]
    fn one_that_is_alive_is_better_than_one_with_a_longer_log() {
        assert!(heir(true, Some(5)) > heir(false, Some(1_000)));
        assert!(heir(true, Some(6)) > heir(true, Some(5)));
    }
}
