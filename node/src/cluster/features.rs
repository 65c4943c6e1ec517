//! Feature levels in a cluster of mixed releases (see [`raft_store::features`]): every node says what it can apply, and the
//! leader raises what the cluster has agreed on once all members can.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use raft_store::command::{Command, Operation, Origin};
use raft_store::features::TooNew;
use raft_store::types::Entry;
use raft_store::types::NodeId;
use raft_store::{FeatureLevel, NodeInfo};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{Cluster, ReadError, WriteError};
use crate::raft::change::{ChangeRefusal, RefusalKind};
use crate::raft::link::{CallError, Purpose};
use crate::raft::wire::{Refusal, Request, Response};

/// A leader whose cluster is held back looks again this often: the last node may have been upgraded.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// A member has this long to say what it can apply.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// The write that raises the level.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// The actor in the audit log.
const ACTOR: &str = "upgrade";

/// What the cluster may use, and why not more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureStanding {
    /// What the cluster has agreed on.
    pub active: FeatureLevel,
    /// What this node can apply.
    pub supported: FeatureLevel,
    /// Members that cannot apply what this node can, or do not say, in words; sorted.
    pub held_back_by: Vec<String>,
}

/// A write needs more than the cluster has agreed on. Part of the frames between peers: append-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error(
    "this needs feature level {needs}, and the cluster uses level {active} as long as not all of its nodes run a release \
     that knows more{}",
    held_back(held_back_by)
)]
pub struct InactiveFeature {
    /// What it needs.
    pub needs: FeatureLevel,
    /// What the cluster has agreed on.
    pub active: FeatureLevel,
    /// As in [`FeatureStanding`].
    pub held_back_by: Vec<String>,
}

fn held_back(by: &[String]) -> String {
    match by {
        [] => "; all of them do by now, so it will be raised in a moment".to_owned(),
        by => format!("; upgrade {}, or remove what is gone for good", by.join(", ")),
    }
}

impl Cluster {
    /// The highest level this node can apply.
    pub fn supported_features(&self) -> FeatureLevel {
        self.inner.features
    }

    /// What the cluster may use; the other members are asked only while that is less than this node can.
    pub async fn features(&self) -> FeatureStanding {
        let (active, supported) = (self.reader().state().features(), self.supported_features());
        let members = if active < supported { self.announced().await } else { Vec::new() };
        let held_back_by = members.iter().filter_map(|member| member.holds_back(supported)).collect();
        FeatureStanding { active, supported, held_back_by }
    }

    /// Refuses log entries that this node cannot apply: it was started from an older release than the cluster agreed on.
    pub(crate) fn check_entries(&self, entries: &[Entry]) -> Result<(), Refusal> {
        let checked = entries.iter().try_for_each(|entry| self.supported_features().check_entry(entry));
        checked.map_err(|refusal| {
            if self.inner.too_new.set(refusal).is_ok() {
                tracing::error!("the log from the leader cannot be taken: {refusal}");
            }
            Refusal::Unable(refusal.to_string())
        })
    }

    /// Why this node cannot follow its cluster, if so.
    pub(super) fn too_new(&self) -> Option<TooNew> {
        self.inner.too_new.get().copied()
    }

    /// On the leader: a node that cannot apply what is in the log must not become a member.
    pub(crate) async fn check_newcomer(&self, id: NodeId, node: &NodeInfo) -> Result<(), Refusal> {
        let active = self.reader().state().features();
        if active == FeatureLevel::FIRST {
            return Ok(());
        }
        let announced = match self.ask_features(id, node).await {
            Ok(level) => level,
            Err(error @ (CallError::NotSent(_) | CallError::Timeout(_))) => {
                let message = format!("{node} does not say which feature level it has: {error}");
                return Err(Refusal::Change(ChangeRefusal::new(RefusalKind::Unreachable, message)));
            }
            // It does not know the question.
            Err(_) => FeatureLevel::FIRST,
        };
        if announced >= active {
            return Ok(());
        }
        let message = format!(
            "{node} has feature level {announced} and the cluster uses {active}: install the release that the other nodes \
             run ({} on {}) there, then add it again",
            env!("CARGO_PKG_VERSION"),
            self.name()
        );
        Err(Refusal::Change(ChangeRefusal::new(RefusalKind::Unfit, message)))
    }

    /// Refuses a write before it leaves this node: a leader of an older release could not even read it.
    pub(super) async fn check_needs(
        &self,
        operations: &[Operation],
        deadline: Instant,
    ) -> Result<(), WriteError> {
        let needs = operations.iter().map(|one| one.command.needs()).max().unwrap_or_default();
        if needs <= self.reader().state().features() {
            return Ok(());
        }
        // This node may not know yet what the cluster agreed on.
        let left = deadline.saturating_duration_since(Instant::now());
        self.read_barrier(left).await.map_err(|ReadError(reason)| WriteError::NoQuorum(reason))?;
        let FeatureStanding { active, held_back_by, .. } = self.features().await;
        if needs <= active {
            return Ok(());
        }
        Err(WriteError::FeatureNotActive(InactiveFeature { needs, active, held_back_by }))
    }

    /// On the leader: raises the level to what all members can apply. Changes of the membership wait meanwhile, so that
    /// nobody comes in who was not asked.
    pub(crate) async fn raise_features(&self) -> Result<FeatureStanding, WriteError> {
        let busy = || WriteError::Unavailable("the membership is being changed".to_owned());
        let _one = self.try_changing().ok_or_else(busy)?;
        let supported = self.supported_features();
        let Some(term) = self.term() else {
            return Err(WriteError::NoQuorum("this node does not lead".to_owned()));
        };
        let members = self.announced().await;
        let all = members.iter().map(|member| member.level.unwrap_or_default()).min().unwrap_or_default();
        let target = all.min(supported);
        if target > self.reader().state().features() {
            let origin = Origin { actor: ACTOR.to_owned(), ..Origin::default() };
            let command = Command::RaiseFeatures(target);
            self.propose_in(term, vec![Operation { origin, command }], WRITE_TIMEOUT).await?;
            tracing::info!(
                level = target.0,
                "all nodes know the feature level: the cluster uses it from now on"
            );
        }
        Ok(FeatureStanding {
            active: self.reader().state().features(),
            supported,
            held_back_by: members.iter().filter_map(|member| member.holds_back(supported)).collect(),
        })
    }

    /// What every member says, this node included, sorted by name.
    async fn announced(&self) -> Vec<Announced> {
        let metrics = self.raft().metrics().borrow_watched().clone();
        let mut asked = JoinSet::new();
        for (id, node) in metrics.membership_config.membership().nodes() {
            let (cluster, id, node) = (self.clone(), *id, node.clone());
            asked.spawn(async move {
                let level = if id == cluster.id() {
                    Some(cluster.supported_features())
                } else {
                    cluster.ask_features(id, &node).await.ok()
                };
                Announced { node, level }
            });
        }
        let mut members = asked.join_all().await;
        members.sort_by(|a, b| a.node.name.cmp(&b.node.name));
        members
    }

    async fn ask_features(&self, id: NodeId, node: &NodeInfo) -> Result<FeatureLevel, CallError> {
        // A release that does not know the question closes the connection, so it is one that nobody else uses.
        let link = self.peers().link(&node.raft_address, Some(id), Purpose::Announce);
        match link.call(Request::Features, Instant::now() + ASK_TIMEOUT).await? {
            Response::Features(level) => Ok(level),
            _ => Err(CallError::Lost(node.raft_address.clone())),
        }
    }
}

/// What a member said of itself; `None` when it is away, or does not know the question.
struct Announced {
    node: NodeInfo,
    level: Option<FeatureLevel>,
}

impl Announced {
    fn holds_back(&self, wanted: FeatureLevel) -> Option<String> {
        let Self { node, level } = self;
        match level {
            Some(level) if *level >= wanted => None,
            Some(level) => Some(format!("{node} (it has level {level})")),
            None => Some(format!("{node} (it is away, or too old to say what it has)")),
        }
    }
}

/// Raises the level while this node leads; until `stop`.
pub(super) async fn run(cluster: Cluster, stop: CancellationToken) {
    stop.run_until_cancelled(watch(&cluster)).await;
}

async fn watch(cluster: &Cluster) {
    let mut leadership = cluster.leadership();
    let mut told = Vec::new();
    loop {
        let leads = *leadership.borrow_and_update();
        let state = cluster.reader().state();
        let wants = leads && state.cluster().is_some() && state.features() < cluster.supported_features();
        if wants {
            match cluster.raise_features().await {
                Ok(standing) if standing.held_back_by != told => {
                    told.clone_from(&standing.held_back_by);
                    if !told.is_empty() {
                        tracing::info!(
                            active = standing.active.0,
                            supported = standing.supported.0,
                            by = told.join(", "),
                            "new features wait until all nodes know them"
                        );
                    }
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "raise the feature level"),
            }
        }
        // Either is a reason to look again.
        if let Ok(Err(_)) = timeout(LOOK_INTERVAL, leadership.changed()).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::problem::Problem;

    #[test]
    fn an_inactive_feature_is_a_problem_that_may_pass() {
        let inactive = InactiveFeature {
            needs: FeatureLevel(2),
            active: FeatureLevel(1),
            held_back_by: vec!["server-2 (it has level 1)".to_owned()],
        };
        let problem = Problem::from(WriteError::FeatureNotActive(inactive));
        assert_eq!((problem.code().as_str(), problem.code().status().as_u16()), ("feature_not_active", 503));
        assert!(
            problem.detail().contains("upgrade server-2") && problem.detail().contains("nothing was written")
        );
    }

    #[test]
    fn an_inactive_feature_names_who_holds_it_back() {
        let node = NodeInfo { name: "server-2".to_owned(), raft_address: "10.1.0.2:8081".to_owned() };
        let held = |level| Announced { node: node.clone(), level }.holds_back(FeatureLevel(3));
        assert_eq!(held(Some(FeatureLevel(3))), None);
        let held_back_by = [Some(FeatureLevel(1)), None].into_iter().filter_map(held).collect();
        let refused =
            InactiveFeature { needs: FeatureLevel(2), active: FeatureLevel(1), held_back_by }.to_string();
        for part in [
            "needs feature level 2",
            "uses level 1",
            "upgrade server-2 at 10.1.0.2:8081 (it has level 1)",
            "too old",
        ] {
            assert!(refused.contains(part), "{refused}");
        }
    }
}
