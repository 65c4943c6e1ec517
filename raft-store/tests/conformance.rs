//! openraft's own suite for stores, on real stores.
#![allow(clippy::unwrap_used, reason = "a test may panic, also in what its functions share")]

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use raft_store::{LogStore, StateMachine, Store, StoreOptions, TypeConfig};
use tempfile::TempDir;

struct RealStores;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for RealStores {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let store =
            Store::open(dir.path(), StoreOptions { new_id: 1, ..StoreOptions::default() }).await.unwrap();
        Ok((dir, store.log, store.machine))
    }
}

#[test]
fn real_stores_pass_the_suite_of_openraft() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(Suite::test_all(RealStores)).unwrap();
}
