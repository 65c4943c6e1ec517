//! Replication between nodes.
//!
//! The way of a write: [`crate::cluster::Cluster::propose`] asks the leader, here or over a [`link`]; there the
//! [`proposer`] gathers operations into a log entry
//! that carries the leader's [`clock`]; openraft replicates it through the [`network`] to the [`server`]
//! of each peer. [`wire`] holds the frames between nodes. [`bootstrap`] founds a cluster or joins one, [`membership`]
//! is the leader's side of joining and [`departure`] of leaving, [`standing`] notices that this node no longer belongs,
//! [`succession`] replaces a leader that is gone, [`read_rounds`] confirms reads, [`meter`] counts,
//! [`compaction`] decides when a snapshot is due, [`snapshot`] sends and receives it.

pub(crate) mod admin_token;
pub(crate) mod bootstrap;
pub(crate) mod change;
pub(crate) mod clock;
pub(crate) mod compaction;
pub(crate) mod departure;
mod handshakes;
pub(crate) mod link;
pub(crate) mod membership;
pub(crate) mod meter;
pub(crate) mod network;
mod peer_certificate;
pub(crate) mod proposer;
pub(crate) mod read_rounds;
mod refusals;
pub(crate) mod server;
pub(crate) mod settings;
pub(crate) mod snapshot;
pub(crate) mod standing;
pub(crate) mod succession;
mod sync_histogram;
pub(crate) mod wire;

#[cfg(test)]
mod certificate_tests;
#[cfg(test)]
mod refusal_tests;
#[cfg(test)]
mod standing_tests;

/// openraft, instantiated with our log and state machine.
pub(crate) type Raft = openraft::Raft<raft_store::TypeConfig, raft_store::StateMachine>;
/// What openraft says of itself.
pub(crate) type Metrics = openraft::RaftMetrics<raft_store::TypeConfig>;
/// … and follows it.
pub(crate) type MetricsWatch = openraft::type_config::alias::WatchReceiverOf<raft_store::TypeConfig, Metrics>;
