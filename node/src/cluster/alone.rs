//! A cluster of one on loopback, complete and leading: what tests of the parts above replication stand on.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use raft_store::FatalHook;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::{Cluster, ClusterSettings, Join, Tuning};
use crate::tls::NodeTls;

/// Founding takes some fsyncs.
const FOUNDING_TIMEOUT: Duration = Duration::from_secs(30);

impl Cluster {
    /// Starts a node of its own cluster with everything it keeps in `dir`, and returns when it leads and the cluster
    /// has its id and its admin token. The real thing: log, checkpoint and certificates are on disk.
    ///
    /// # Errors
    /// When the node does not start or does not lead in time.
    pub async fn single_for_tests(dir: &Path) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("listen on loopback")?;
        let advertise = listener.local_addr().context("address of the listener")?.to_string();
        let name = "server-1".to_owned();
        let settings = ClusterSettings {
            tls: NodeTls::prepare(&dir.join("tls"), &name, &["127.0.0.1"])?,
            name,
            data_dir: dir.join("data"),
            advertise,
            peers: Vec::new(),
            join: Join::Auto,
            admin_token_file: dir.join("admin.token"),
            tuning: Tuning::default(),
        };
        // A test's directory may go before its node does; that must not end the test's process.
        let on_disk_failure =
            FatalHook::new(|reason| tracing::warn!(reason, "the disk of a test's node is gone"));
        let cluster = Self::start_with(settings, listener, on_disk_failure).await?;
        let mut founded = cluster.inner.complete.clone();
        timeout(FOUNDING_TIMEOUT, founded.wait_for(|complete| *complete))
            .await
            .context("the cluster was not founded in time")?
            .context("the node stopped while it founded its cluster")?;
        Ok(cluster)
    }
}
