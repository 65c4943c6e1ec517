//! Changing who belongs to the cluster, from any node: the leader does it.

use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver as _;
use raft_store::command::Origin;
use raft_store::types::NodeId;
use raft_store::{FeatureLevel, NodeInfo};
use tokio::sync::MutexGuard;
use tokio::time::{Instant, timeout_at};

use super::write::pause;
use super::{Cluster, leader_of};
use crate::raft::bootstrap;
use crate::raft::change::{ChangeRefusal, ChangeRequest, MemberChange, MemberChanged, RefusalKind};
use crate::raft::departure::{self, Force};
use crate::raft::link::{CallError, Purpose};
use crate::raft::membership::{self, Admitted, Asked, Newcomer};
use crate::raft::wire::{Probe, Refusal, Request, Response};

/// A node that asks to join has this long to catch up; then it asks again.
const JOIN_TIME: Duration = Duration::from_secs(27);
/// The actor in the audit log when a node asked by itself.
const JOIN_ACTOR: &str = "join";
/// Time the leader gets less than the caller has.
const ANSWER_MARGIN: Duration = Duration::from_millis(200);
/// How long the leader takes to confirm that it still leads.
const CONFIRM_TIME: Duration = Duration::from_secs(1);

/// Why a change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The leader says no.
    #[error(transparent)]
    Refused(ChangeRefusal),
    /// No leader was found in time.
    #[error("no quorum: {0}")]
    NoLeader(String),
    /// The leader was asked and did not answer: running it again tells.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}

/// How one attempt ended that did not succeed.
enum Ended {
    /// The leader says no.
    Refused(ChangeRefusal),
    /// It may or may not take effect.
    Unknown(String),
    /// Nothing was begun.
    Again(String),
}

impl From<Refusal> for Ended {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Change(refusal) => Self::Refused(refusal),
            Refusal::Unknown(reason) => Self::Unknown(reason),
            other => Self::Again(other.to_string()),
        }
    }
}

/// What a refusal means after earlier attempts of which nothing is known for certain.
fn refused(
    refusal: ChangeRefusal,
    in_doubt: Option<String>,
    removed: Option<(NodeId, NodeInfo)>,
) -> Result<MemberChanged, ChangeError> {
    match (in_doubt, removed) {
        (None, _) => Err(ChangeError::Refused(refusal)),
        // It took effect.
        (Some(_), Some((id, node))) if refusal.kind == RefusalKind::NoSuchMember => {
            Ok(MemberChanged::Removed { id, node })
        }
        (Some(reason), _) => Err(ChangeError::Unknown(reason)),
    }
}

impl Cluster {
    /// Changes the membership, or makes another node the leader. Any node may be asked. Everything may be asked for
    /// again: what is done already is left as it is.
    ///
    /// # Errors
    /// [`ChangeError`] within `timeout`.
    pub async fn change_members(
        &self,
        change: MemberChange,
        origin: &Origin,
        timeout: Duration,
    ) -> Result<MemberChanged, ChangeError> {
        let deadline = Instant::now() + timeout;
        let mut metrics = self.raft().metrics();
        // Asked a second time, another node might step down as well.
        let repeatable = !matches!(change, MemberChange::StepDown { to: None });
        let removed = match &change {
            MemberChange::Remove { member, .. } => {
                departure::find(&metrics.borrow_and_update(), member, None).ok()
            }
            MemberChange::Add { .. } | MemberChange::StepDown { .. } => None,
        };
        let mut in_doubt: Option<String> = None;
        loop {
            let leader = leader_of(&metrics.borrow_and_update());
            let left = deadline.saturating_duration_since(Instant::now()).saturating_sub(ANSWER_MARGIN);
            let timeout_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            let reason = match self.ask_leader(leader, &change, (origin, timeout_ms), deadline).await {
                Ok(changed) => return Ok(changed),
                // Perhaps it is the change itself that is under way.
                Err(Ended::Refused(refusal)) if in_doubt.is_some() && refusal.kind == RefusalKind::Busy => {
                    refusal.message
                }
                Err(Ended::Refused(refusal)) => return refused(refusal, in_doubt, removed),
                Err(Ended::Unknown(reason)) if repeatable => in_doubt.insert(reason).clone(),
                Err(Ended::Unknown(reason)) => return Err(ChangeError::Unknown(reason)),
                Err(Ended::Again(reason)) => reason,
            };
            if pause(&mut metrics, deadline).await.is_err() {
                return Err(in_doubt.map_or(ChangeError::NoLeader(reason), ChangeError::Unknown));
            }
        }
    }

    async fn ask_leader(
        &self,
        leader: Option<(NodeId, NodeInfo)>,
        change: &MemberChange,
        (origin, timeout_ms): (&Origin, u64),
        deadline: Instant,
    ) -> Result<MemberChanged, Ended> {
        let Some((id, node)) = leader else {
            return Err(Ended::Again("no leader is known".to_owned()));
        };
        if id == self.id() {
            return self.change_here(change.clone(), origin, timeout_ms).await.map_err(Ended::from);
        }
        let (change, origin) = (change.clone(), origin.clone());
        let request = if self.reader().state().features() >= FeatureLevel::MEMBER_EVENTS {
            Request::ChangeFor { change, origin, timeout_ms }
        } else {
            // The leader may be of a release that knows no other.
            Request::Change(ChangeRequest { change, actor: origin.actor, timeout_ms })
        };
        let link = self.peers().link(&node.raft_address, Some(id), Purpose::Forward);
        match link.call(request, deadline).await {
            Ok(Response::Changed(changed)) => Ok(changed),
            Ok(_) => Err(Ended::Unknown("the leader's answer does not fit".to_owned())),
            Err(CallError::Refused { refusal, .. }) => Err(Ended::from(refusal)),
            Err(error @ (CallError::Lost(_) | CallError::Timeout(_))) => {
                Err(Ended::Unknown(error.to_string()))
            }
            Err(error @ CallError::NotSent(_)) => Err(Ended::Again(error.to_string())),
        }
    }

    /// On the leader.
    pub(crate) async fn change_here(
        &self,
        change: MemberChange,
        origin: &Origin,
        timeout_ms: u64,
    ) -> Result<MemberChanged, Refusal> {
        let deadline = Instant::now() + Duration::from_millis(timeout_ms);
        let _one = self.lead_change(deadline).await?;
        tracing::info!(actor = origin.actor, ?change, "asked to change the membership");
        let asked = Asked { origin, deadline };
        match change {
            MemberChange::Add { address, replaces, force } => {
                membership::add(self, &address, replaces.as_deref(), force.into(), asked).await
            }
            MemberChange::Remove { member, force } => {
                departure::remove(self, &member, Force::from(force), asked).await
            }
            MemberChange::StepDown { to } => departure::step_down(self, to.as_deref(), origin).await,
        }
    }

    /// On the leader: makes a node a voter that asked for it itself.
    pub(crate) async fn join_here(&self, id: NodeId, node: NodeInfo, pristine: bool) -> Result<(), Refusal> {
        let deadline = Instant::now() + JOIN_TIME;
        let _one = self.lead_change(deadline).await?;
        let newcomer = Newcomer { id, node, pristine };
        let origin = Origin { actor: JOIN_ACTOR.to_owned(), ..Origin::default() };
        match membership::admit(self, newcomer, None, Asked { origin: &origin, deadline }).await? {
            Admitted::Voter => Ok(()),
            Admitted::CatchingUp { .. } => Err(Refusal::Unable("it is still catching up".to_owned())),
        }
    }

    /// On the leader: the ids of all members.
    pub(crate) async fn members_here(&self) -> Result<Vec<NodeId>, Refusal> {
        self.read_index_here(CONFIRM_TIME).await?;
        let metrics = self.raft().metrics().borrow_watched().clone();
        let mut members: Vec<_> = metrics.membership_config.membership().nodes().map(|(id, _)| *id).collect();
        members.sort_unstable();
        Ok(members)
    }

    /// The answer to [`Request::Identify`].
    pub(crate) async fn identity(&self) -> Result<Probe, Refusal> {
        bootstrap::answer_probe(self, self.configured_peers()).await
    }

    /// The lock on changes, unless somebody has it.
    pub(crate) fn try_changing(&self) -> Option<MutexGuard<'_, ()>> {
        self.inner.changing.try_lock().ok()
    }

    async fn lead_change(&self, deadline: Instant) -> Result<MutexGuard<'_, ()>, Refusal> {
        let lock = timeout_at(deadline, self.inner.changing.lock())
            .await
            .map_err(|_| membership::busy("another change of the membership is under way"))?;
        let metrics = self.raft().metrics().borrow_watched().clone();
        if metrics.state != ServerState::Leader || metrics.current_leader != Some(self.id()) {
            let leader = leader_of(&metrics).filter(|(id, _)| *id != self.id());
            return Err(Refusal::NotLeader { leader });
        }
        Ok(lock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_node_that_is_gone_after_an_attempt_in_doubt_was_removed() {
        let gone = || ChangeRefusal::new(RefusalKind::NoSuchMember, "gone");
        let node = NodeInfo { name: "server-3".to_owned(), raft_address: "10.1.0.3:8081".to_owned() };
        let removed = Some((3, node.clone()));
        let doubt = || Some("lost".to_owned());
        assert_eq!(refused(gone(), doubt(), removed.clone()), Ok(MemberChanged::Removed { id: 3, node }));
        assert_eq!(refused(gone(), None, removed.clone()), Err(ChangeError::Refused(gone())));
        let other = ChangeRefusal::new(RefusalKind::NoQuorumLeft, "no");
        assert_eq!(refused(other, doubt(), removed), Err(ChangeError::Unknown("lost".to_owned())));
    }
}
