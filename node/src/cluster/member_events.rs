//! Changes of the membership in the audit log. Raft's own log entries say who is a member, but not who asked for it: that
//! is written before a change begins and again when it is made, so that a change that is interrupted has an author, too.

use std::time::Duration;

use raft_store::command::{Command, MemberAction, MemberEvent, Operation, Origin};
use raft_store::types::NodeId;
use raft_store::{FeatureLevel, NodeInfo};

use super::Cluster;
use crate::raft::membership;
use crate::raft::wire::Refusal;

/// Such a write has this long.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) fn event(action: MemberAction, id: NodeId, node: &NodeInfo) -> MemberEvent {
    MemberEvent { action, id, node: node.clone() }
}

impl Cluster {
    /// Writes down what is about to be done; it must not be done when that fails.
    pub(crate) async fn record_intent(
        &self,
        origin: &Origin,
        events: Vec<MemberEvent>,
    ) -> Result<(), Refusal> {
        self.record(origin, events).await.map_err(|error| {
            membership::busy(&format!("who asked for it cannot be written to the audit log: {error}"))
        })
    }

    /// Writes down what was done, or must be done whether or not this succeeds.
    pub(crate) async fn record_best_effort(&self, origin: &Origin, events: Vec<MemberEvent>) {
        if let Err(error) = self.record(origin, events).await {
            tracing::warn!(%error, actor = origin.actor, "write a change of the membership to the audit log");
        }
    }

    async fn record(&self, origin: &Origin, events: Vec<MemberEvent>) -> Result<(), super::WriteError> {
        // Older nodes could not read it. The change itself must be possible: it is how they are replaced.
        if events.is_empty() || self.reader().state().features() < FeatureLevel::MEMBER_EVENTS {
            return Ok(());
        }
        let operation = |event| Operation { origin: origin.clone(), command: Command::RecordMember(event) };
        self.propose(events.into_iter().map(operation).collect(), WRITE_TIMEOUT).await.map(drop)
    }
}
