//! OutputGuard's replicated state on disk and in memory.
//!
//! The way of a write through this crate: a [`command::Batch`] becomes an openraft entry, the [`log`] makes it
//! durable, the [`machine`] hands it to [`state::State::apply`] (whose rules stand in `apply`), and the
//! [`reader`] shows the new state and its changes to the rest of the server. Behind that, off the path, the
//! machine folds what was applied into the sled checkpoint, and [`snapshot`] writes and reads whole states.
//! [`store`] opens all of it for one data directory, [`identity`] holds the node's number there,
//! [`recovery`] turns it into another cluster's after the majority was lost.
//!
//! [`kept`] holds the answers to writes with a key, [`features`] says which commands a cluster of mixed releases may use.
//!
//! Shapes on disk: [`codec`] (every record), `layout` (keys in sled), `snapshot::format` (snapshot files),
//! `log` (segments, frames and records of the write-ahead log). Each has a test with its exact bytes.
//!
//! What never happens: a state is acknowledged that is not on this disk's log; the checkpoint is ahead of the
//! fsynced log; a damaged file is read as an empty one.

mod apply;
pub mod codec;
pub mod command;
mod data_dir;
mod disk;
mod error;
mod fatal;
pub mod features;
pub mod history;
mod identity;
pub mod kept;
mod layout;
pub mod log;
pub mod machine;
pub mod pipeline;
pub mod reader;
pub mod recovery;
pub mod snapshot;
pub mod space;
pub mod state;
pub mod store;
pub mod types;

pub use apply::Impact;
pub use command::{Batch, BatchReply, Command, Operation, Reply};
pub use error::OpenError;
pub use fatal::{EXIT_DISK_FAILED, FatalHook};
pub use features::FeatureLevel;
pub use log::{LogSize, LogStore, SyncTimes, SyncTimesSnapshot};
pub use machine::StateMachine;
pub use machine::checkpoint::CheckpointPace;
pub use reader::StateReader;
pub use recovery::Recovery;
pub use snapshot::{IncomingSnapshot, SnapshotFile, Snapshots};
pub use space::{Space, SpaceLimits, SpaceState};
pub use state::{AppliedBatch, State};
pub use store::{Store, StoreOptions};
pub use types::{NodeInfo, TypeConfig};

// The whole-store tests share what drives a store with the programs in `tests/`.
#[cfg(test)]
extern crate self as raft_store;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod driving;
#[cfg(test)]
mod power;
