//! Going on without a majority that is lost for good: this node becomes a cluster of one with new ids and all its
//! entries. Nobody but an operator can know that the others do not come back, so everything that can be checked is:
//! there is no leader in reach, the nodes in reach are too few to elect one, and none of them holds more.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use raft_store::{Recovery, recovery};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::Cluster;
use crate::raft::link::Purpose;
use crate::raft::wire::{LogEnd, Request, Response};

/// How long a leader and each member have to show that they are there.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// What going on alone would mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryPlan {
    /// The cluster whose majority is lost.
    pub lost: Uuid,
    /// Newest revision applied on this node.
    pub applied: u64,
    /// Index of the newest entry in its log. All of it is kept: entries after `applied` may have been acknowledged.
    pub logged: u64,
    /// How many entries of the allowlist it holds.
    pub entries: usize,
    /// The voters, this node included.
    pub voters: Vec<VoterStanding>,
    /// Why it is refused, if it is.
    pub obstacle: Option<String>,
}

/// A voter as it is seen from this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VoterStanding {
    /// Its name.
    pub name: String,
    /// Its raft address.
    pub address: String,
    /// Index of the newest entry in its log; `None` when it does not answer.
    pub logged: Option<u64>,
}

/// What a node became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    /// The new cluster.
    pub cluster: Uuid,
    /// The node's new id.
    pub id: u64,
}

/// Why a node does not go on alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    /// There is a majority, or a node that holds more, or this node is none to begin with.
    #[error("{0}")]
    Refused(String),
    /// The caller named another cluster than this node's.
    #[error("this node belongs to cluster {0}; name that to confirm that its majority is lost for good")]
    OtherCluster(Uuid),
    /// The disk.
    #[error("write the request to the data directory: {0}")]
    Disk(String),
}

impl Cluster {
    /// Looks at what is left of the cluster.
    ///
    /// # Errors
    /// [`RecoveryError::Refused`] when this node never belonged to a cluster.
    pub async fn recovery_plan(&self) -> Result<RecoveryPlan, RecoveryError> {
        let state = self.reader().state();
        let Some(lost) = state.cluster() else {
            let message = "this node belongs to no cluster yet; there is nothing to go on with";
            return Err(RecoveryError::Refused(message.to_owned()));
        };
        let metrics = self.raft().metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let mine = self.log_end().await;
        let mut asked = JoinSet::new();
        for voter in membership.voter_ids() {
            let Some(node) = membership.get_node(&voter).cloned() else { continue };
            if voter == self.id() {
                asked.spawn(async move { (node, Some(mine)) });
                continue;
            }
            let link = self.peers().link(&node.raft_address, Some(voter), Purpose::Forward);
            asked.spawn(async move {
                let end = match link.call(Request::LogEnd, Instant::now() + ASK_TIMEOUT).await {
                    Ok(Response::LogEnd(end)) => Some(end),
                    Ok(_) | Err(_) => None,
                };
                (node, end)
            });
        }
        let (confirmed, mut voters) = tokio::join!(self.read_barrier(ASK_TIMEOUT), asked.join_all());
        voters.sort_by(|(a, _), (b, _)| (&a.name, &a.raft_address).cmp(&(&b.name, &b.raft_address)));
        let there: Vec<_> = voters.iter().filter(|(_, end)| end.is_some()).collect();
        let needed = voters.len() / 2 + 1;
        let names = || there.iter().map(|(node, _)| node.name.as_str()).collect::<Vec<_>>().join(", ");
        let ahead = there.iter().max_by_key(|(_, end)| *end).filter(|(_, end)| *end > Some(mine));
        let obstacle = if let Some(reason) = self.fenced() {
            Some(reason)
        } else if confirmed.is_ok() {
            Some("the cluster has a quorum and a leader; to take a node out, use `cluster remove`".to_owned())
        } else if !membership.voter_ids().any(|voter| voter == self.id()) {
            Some("this node is no voter; it may lack what others hold".to_owned())
        } else if there.len() >= needed {
            Some(format!(
                "{} of {} voters can be reached ({}), which is a majority; they will elect a leader by themselves, or \
                 their logs say what keeps them from it",
                there.len(),
                voters.len(),
                names()
            ))
        } else {
            ahead.map(|(node, _)| {
                format!("{node} can be reached and holds more than this node; recover from that one instead")
            })
        };
        Ok(RecoveryPlan {
            lost,
            applied: state.revision(),
            logged: mine.index,
            entries: state.entries().len(),
            voters: voters
                .into_iter()
                .map(|(node, end)| VoterStanding {
                    name: node.name,
                    address: node.raft_address,
                    logged: end.map(|end| end.index),
                })
                .collect(),
            obstacle,
        })
    }

    /// Asks for it: the node's data is turned into another cluster's when it is opened the next time, which
    /// [`Self::restart_wanted`] then asks for. `lost` is the id of the cluster as the operator typed it.
    ///
    /// # Errors
    /// [`RecoveryError`].
    pub async fn recover(&self, lost: Uuid) -> Result<Recovered, RecoveryError> {
        let plan = self.recovery_plan().await?;
        if let Some(obstacle) = plan.obstacle {
            return Err(RecoveryError::Refused(obstacle));
        }
        if plan.lost != lost {
            return Err(RecoveryError::OtherCluster(plan.lost));
        }
        let recovered = Recovered { cluster: Uuid::new_v4(), id: rand::random() };
        let asked =
            Recovery { lost, cluster: recovered.cluster, id: recovered.id, node: self.node().clone() };
        let dir = self.inner.data_dir.clone();
        tokio::task::spawn_blocking(move || recovery::request(&dir, &asked))
            .await
            .map_err(|error| RecoveryError::Disk(error.to_string()))?
            .map_err(|error| RecoveryError::Disk(error.to_string()))?;
        tracing::warn!(
            lost = %plan.lost,
            cluster = %recovered.cluster,
            applied = plan.applied,
            logged = plan.logged,
            "the majority is given up for lost: this node goes on as a cluster of one"
        );
        self.inner.restart.cancel();
        Ok(recovered)
    }

    /// Returns when the node is to be stopped and opened again.
    pub async fn restart_wanted(&self) {
        self.inner.restart.cancelled().await;
    }

    pub(crate) async fn log_end(&self) -> LogEnd {
        let end =
            self.raft().with_raft_state(|state| state.log_ids.last().map(|id| (id.leader_id.term, id.index)));
        let (term, index) = end.await.ok().flatten().unwrap_or_default();
        LogEnd { term, index }
    }
}
