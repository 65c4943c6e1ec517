//! Changing who belongs to the cluster, from any node: the leader does it.

use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver as _;
use raft_store::NodeInfo;
use raft_store::types::NodeId;
use tokio::sync::MutexGuard;
use tokio::time::{Instant, timeout_at};

use super::write::pause;
use super::{Cluster, leader_of};
use crate::raft::bootstrap;
use crate::raft::change::{ChangeRefusal, ChangeRequest, MemberChange, MemberChanged};
use crate::raft::departure::{self, Force};
use crate::raft::link::{CallError, Purpose};
use crate::raft::membership::{self, Admitted, Newcomer};
use crate::raft::wire::{Probe, Refusal, Request, Response};

/// A node that asks to join has this long to catch up; then it asks again.
const JOIN_TIME: Duration = Duration::from_secs(27);
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

impl Cluster {
    /// Changes the membership, or makes another node the leader. Any node may be asked. Everything may be asked for
    /// again: what is done already is left as it is.
    ///
    /// # Errors
    /// [`ChangeError`] within `timeout`.
    pub async fn change_members(
        &self,
        change: MemberChange,
        actor: &str,
        timeout: Duration,
    ) -> Result<MemberChanged, ChangeError> {
        let deadline = Instant::now() + timeout;
        let mut metrics = self.raft().metrics();
        loop {
            let leader = leader_of(&metrics.borrow_and_update());
            let left = deadline.saturating_duration_since(Instant::now()).saturating_sub(ANSWER_MARGIN);
            let request = ChangeRequest {
                change: change.clone(),
                actor: actor.to_owned(),
                timeout_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            };
            let reason = match leader {
                None => "no leader is known".to_owned(),
                Some((id, _)) if id == self.id() => match self.change_here(request).await {
                    Ok(changed) => return Ok(changed),
                    Err(Refusal::Change(refusal)) => return Err(ChangeError::Refused(refusal)),
                    Err(refusal) => refusal.to_string(),
                },
                Some((id, node)) => {
                    let link = self.peers().link(&node.raft_address, Some(id), Purpose::Forward);
                    match link.call(Request::Change(request), deadline).await {
                        Ok(Response::Changed(changed)) => return Ok(changed),
                        Ok(_) => return Err(ChangeError::Unknown("the leader's answer does not fit".into())),
                        Err(CallError::Refused { refusal: Refusal::Change(refusal), .. }) => {
                            return Err(ChangeError::Refused(refusal));
                        }
                        Err(error @ (CallError::Lost(_) | CallError::Timeout(_))) => {
                            return Err(ChangeError::Unknown(error.to_string()));
                        }
                        Err(error) => error.to_string(),
                    }
                }
            };
            pause(&mut metrics, deadline).await.map_err(|()| ChangeError::NoLeader(reason))?;
        }
    }

    /// On the leader.
    pub(crate) async fn change_here(&self, request: ChangeRequest) -> Result<MemberChanged, Refusal> {
        let ChangeRequest { change, actor, timeout_ms } = request;
        let deadline = Instant::now() + Duration::from_millis(timeout_ms);
        let _one = self.lead_change(deadline).await?;
        tracing::info!(actor, ?change, "asked to change the membership");
        match change {
            MemberChange::Add { address, replaces, force } => {
                membership::add(self, &address, replaces.as_deref(), force.into(), deadline).await
            }
            MemberChange::Remove { member, force } => {
                departure::remove(self, &member, Force::from(force), deadline).await
            }
            MemberChange::StepDown { to } => departure::step_down(self, to.as_deref()).await,
        }
    }

    /// On the leader: makes a node a voter that asked for it itself.
    pub(crate) async fn join_here(&self, id: NodeId, node: NodeInfo, pristine: bool) -> Result<(), Refusal> {
        let deadline = Instant::now() + JOIN_TIME;
        let _one = self.lead_change(deadline).await?;
        let newcomer = Newcomer { id, node, pristine };
        match membership::admit(self, newcomer, None, deadline).await? {
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
