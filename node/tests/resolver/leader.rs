//! A real cluster of one, on its own data directory, that leads.

use std::time::Duration;

use node::cluster::{Cluster, ClusterSettings, Join, Tuning};
use node::tls::NodeTls;
use tokio::net::TcpListener;

const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Leader {
    cluster: Cluster,
    /// Kept when the test fails: a node whose disk vanishes ends the process, and the test's own message with it.
    directory: Option<tempfile::TempDir>,
}

impl Leader {
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind a port for peers");
        let advertise = listener.local_addr().expect("a bound port").to_string();
        let tls =
            NodeTls::prepare(&directory.path().join("tls"), "n1", &["127.0.0.1"]).expect("make certificates");
        let settings = ClusterSettings {
            name: "n1".to_owned(),
            data_dir: directory.path().join("data"),
            advertise,
            peers: Vec::new(),
            join: Join::Auto,
            admin_token_file: directory.path().join("admin.token"),
            tls,
            tuning: Tuning::default(),
        };
        let cluster = Cluster::start(settings, listener).await.expect("open the node");
        let mut leadership = cluster.leadership();
        let led = tokio::time::timeout(DEADLINE, leadership.wait_for(|leads| *leads)).await;
        assert!(led.is_ok_and(|held| held.is_ok()), "a cluster of one leads soon");
        Self { cluster, directory: Some(directory) }
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Ends the node before its disk goes. Every test that passes ends with it.
    pub(crate) async fn stop(self) {
        self.cluster.stop().await;
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(directory) = self.directory.take()
        {
            let _kept_for_a_look = directory.keep();
        }
    }
}
