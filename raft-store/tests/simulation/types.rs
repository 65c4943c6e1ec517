//! The same cluster as in production (commands, replies, nodes, settings), on the simulated runtime.

use std::sync::Arc;
use std::time::Duration;

use openraft::{AsyncRuntime as _, Config};
use openraft_rt_sim::SimInstant;
use raft_store::command::{Batch, BatchReply};
use raft_store::types::NodeId;
use raft_store::{NodeInfo, State};

use crate::machine::Machine;
use crate::process::NodeRuntime;

/// The server's own settings, compiled from its source: a simulation of other values would prove nothing.
#[path = "../../../node/src/raft/settings.rs"]
#[expect(unreachable_pub, reason = "the server lets its own tests use it")]
mod settings;

pub(crate) use settings::Tuning;

openraft::declare_raft_types!(
    /// As [`raft_store::TypeConfig`], on the simulated runtime.
    pub(crate) SimTypes:
        D = Batch,
        R = BatchReply,
        NodeId = NodeId,
        Node = NodeInfo,
        Term = u64,
        AsyncRuntime = NodeRuntime,
);

pub(crate) type Raft = openraft::Raft<SimTypes, Machine>;
pub(crate) type Metrics = openraft::RaftMetrics<SimTypes>;

/// The settings of a node whose clock runs at `percent` of the true speed: a clock that is slow makes every time longer.
pub(crate) fn config(tuning: &Tuning, percent: u64) -> Arc<Config> {
    let local = |ms: u64| ms * 100 / percent;
    let tuning = Tuning {
        heartbeat_ms: local(tuning.heartbeat_ms),
        election_min_ms: local(tuning.election_min_ms),
        election_max_ms: local(tuning.election_max_ms),
        ..tuning.clone()
    };
    tuning.raft_config().unwrap()
}

pub(crate) fn now() -> SimInstant {
    <SimInstant as openraft::Instant>::now()
}

pub(crate) async fn sleep_us(us: u64) {
    NodeRuntime::sleep(Duration::from_micros(us)).await;
}

pub(crate) async fn sleep_ms(ms: u64) {
    NodeRuntime::sleep(Duration::from_millis(ms)).await;
}

/// What raft's own entries do to the state: nothing but its revision.
pub(crate) fn pass(state: &mut State, index: u64) {
    state.apply(index, &Batch { at_ms: 0, operations: Vec::new() });
}
