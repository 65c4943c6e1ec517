//! What both sides have in common.

use std::time::Duration;

use anyhow::{Result, bail};
use lab::Process;

use crate::load::Client;

/// How long a cluster may take until every node serves.
pub(crate) const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at something that is awaited.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A running cluster of three nodes.
pub(crate) trait Contender {
    type Client: Client;

    /// Its name in tables.
    fn name(&self) -> &'static str;
    /// Node `node`'s process.
    fn process(&mut self, node: usize) -> &mut Process;
    /// The node that leads.
    async fn leader(&self) -> Result<usize>;
    /// Waits until every node serves reads and writes.
    async fn wait_ready(&self) -> Result<()>;
    /// `count` clients of one node, which have written nothing yet.
    async fn connect(&self, node: usize, count: usize) -> Result<Vec<Self::Client>>;
}

/// Tries `attempt` until it succeeds.
pub(crate) async fn until<T>(
    what: &str,
    timeout: Duration,
    mut attempt: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let start = tokio::time::Instant::now();
    loop {
        let attempt = tokio::time::timeout_at(start + timeout, attempt()).await;
        match attempt {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) if start.elapsed() >= timeout => {
                return Err(error.context(format!("{what}: not within {} s", timeout.as_secs())));
            }
            Ok(Err(_)) => tokio::time::sleep(POLL_INTERVAL).await,
            Err(_) => bail!("{what}: no answer within {} s", timeout.as_secs()),
        }
    }
}

/// `count` clients, the same number on each node, or as near as can be.
pub(crate) async fn connect_everywhere<C: Contender>(contender: &C, count: usize) -> Result<Vec<C::Client>> {
    let mut clients = Vec::with_capacity(count);
    for node in 0..crate::seat::NODES {
        let here = count / crate::seat::NODES + usize::from(node < count % crate::seat::NODES);
        clients.extend(contender.connect(node, here).await?);
    }
    Ok(clients)
}
