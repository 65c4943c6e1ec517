//! The gateways connected to this node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use allowlist::feed::{Applied, CutReport, DeniedFlow, GoawayReason, Hello};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::Limits;
use super::denied::DeniedLog;
use super::metrics::FeedMetrics;
use super::receipts::CutReceipts;
use super::traffic::TrafficBook;
use crate::cluster::GatewayStatus;

/// Most gateway connections on one node, those that have not said hello included.
pub const MAX_SESSIONS: usize = 1_000;

/// The register of sessions, cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    shared: Arc<Shared>,
}

struct Shared {
    node: String,
    limits: Limits,
    metrics: FeedMetrics,
    receipts: CutReceipts,
    denied: DeniedLog,
    traffic: TrafficBook,
    places: Arc<Semaphore>,
    table: Mutex<Table>,
    /// Sessions ended so far; moves when one ends.
    ended: watch::Sender<u64>,
}

#[derive(Default)]
struct Table {
    next_id: u64,
    draining: bool,
    /// By gateway name: a gateway has one session.
    live: BTreeMap<String, Live>,
    /// Gateways sent away since this node last had a quorum. They are not sent away again: when every node has lost
    /// its quorum, a gateway tries each once and then stays.
    sent_away: BTreeSet<String>,
}

struct Live {
    id: u64,
    goodbye: watch::Sender<Option<GoawayReason>>,
    status: GatewayStatus,
}

/// A session's own line in the register; it leaves when this is dropped.
pub(super) struct Registration {
    sessions: Sessions,
    name: String,
    id: u64,
    goodbye: watch::Receiver<Option<GoawayReason>>,
}

/// Writes a session's reports into its line of the register.
pub(super) struct Reporter {
    sessions: Sessions,
    name: String,
    id: u64,
}

impl Sessions {
    /// An empty register of the node called `node`.
    ///
    /// # Errors
    /// Never in practice: the metric names are fixed.
    pub fn new(node: &str, limits: Limits) -> Result<Self, prometheus::Error> {
        let shared = Shared {
            node: node.to_owned(),
            limits,
            metrics: FeedMetrics::new()?,
            receipts: CutReceipts::default(),
            denied: DeniedLog::default(),
            traffic: TrafficBook::default(),
            places: Arc::new(Semaphore::new(MAX_SESSIONS)),
            table: Mutex::default(),
            ended: watch::Sender::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The node's name.
    pub fn node(&self) -> &str {
        &self.shared.node
    }

    /// What the feed counts.
    pub fn metrics(&self) -> &FeedMetrics {
        &self.shared.metrics
    }

    /// What gateways said of flows they cut.
    pub fn receipts(&self) -> &CutReceipts {
        &self.shared.receipts
    }

    /// What gateways said of packets they denied.
    pub fn denied(&self) -> &DeniedLog {
        &self.shared.denied
    }

    /// What gateways said of traffic.
    pub fn traffic(&self) -> &TrafficBook {
        &self.shared.traffic
    }

    /// How each connected gateway stands, sorted by name.
    pub fn snapshot(&self) -> Vec<GatewayStatus> {
        self.table().live.values().map(|live| live.status.clone()).collect()
    }

    /// True once [`Self::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.table().draining
    }

    /// Lets no more gateways in, tells those connected to go elsewhere, and waits until they left, at most `limit`.
    pub async fn drain(&self, limit: Duration) {
        let mut ended = self.shared.ended.subscribe();
        {
            let mut table = self.table();
            table.draining = true;
            for live in table.live.values() {
                live.goodbye.send_replace(Some(GoawayReason::Draining));
            }
        }
        let all_left = async {
            while !self.table().live.is_empty() {
                if ended.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(limit, all_left).await.is_err() {
            tracing::warn!(left = self.table().live.len(), "gateway sessions did not end in time");
        }
    }

    /// Sends gateways to look for a node that knows its cluster; each at most once until [`Self::quorum_is_back`].
    pub(super) fn send_away_lagging(&self) {
        let mut table = self.table();
        let Table { live, sent_away, .. } = &mut *table;
        for (name, live) in live.iter().filter(|(name, _)| !sent_away.contains(*name)) {
            tracing::warn!(gateway = %name, "no quorum: telling the gateway to try another node");
            live.goodbye.send_replace(Some(GoawayReason::Lagging));
        }
        sent_away.extend(live.keys().cloned());
    }

    /// From now on gateways may be sent away again.
    pub(super) fn quorum_is_back(&self) {
        self.table().sent_away.clear();
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// A place for one more connection; `None` when all are taken.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.shared.places).try_acquire_owned().ok()
    }

    /// Lists a gateway that said hello. An older session of the same name is told to end.
    pub(super) fn register(&self, hello: &Hello, remote: &str) -> Registration {
        let mut table = self.table();
        let id = table.next_id;
        table.next_id += 1;
        let (sender, goodbye) = watch::channel(table.draining.then_some(GoawayReason::Draining));
        let status = GatewayStatus {
            name: hello.name.clone(),
            version: hello.version.clone(),
            remote: remote.to_owned(),
            node: self.shared.node.clone(),
            connected_at_ms: now_ms(),
            applied: hello.state.map_or(0, |state| state.revision),
            in_sync: false,
            kernel_us: 0,
            refused: 0,
        };
        let older = table.live.insert(hello.name.clone(), Live { id, goodbye: sender, status });
        if let Some(older) = older {
            tracing::warn!(gateway = %hello.name, was = %older.status.remote, now = %remote,
                "another session with the same gateway name takes over");
            older.goodbye.send_replace(Some(GoawayReason::Replaced));
        }
        Registration { sessions: self.clone(), name: hello.name.clone(), id, goodbye }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.shared.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registration {
    /// Waits until somebody wants the session to end.
    pub(super) async fn goodbye(&mut self) -> GoawayReason {
        match self.goodbye.wait_for(Option::is_some).await.map(|reason| *reason) {
            Ok(Some(reason)) => reason,
            // The line was taken over and its sender is gone.
            Ok(None) | Err(_) => GoawayReason::Replaced,
        }
    }

    /// For the session's reading half.
    pub(super) fn reporter(&self) -> Reporter {
        Reporter { sessions: self.sessions.clone(), name: self.name.clone(), id: self.id }
    }
}

impl Reporter {
    /// Notes what the gateway's kernel holds; `in_sync` as far as this node can tell.
    pub(super) fn applied(&self, report: &Applied, in_sync: Option<bool>) {
        self.update(|status| {
            status.applied = report.revision;
            status.kernel_us = report.kernel_us;
            status.refused = u64::try_from(report.refused.len()).unwrap_or(u64::MAX);
            status.in_sync = in_sync.unwrap_or(status.in_sync);
        });
    }

    /// The gateway said that it does not hold what it should.
    pub(super) fn out_of_sync(&self) {
        self.update(|status| status.in_sync = false);
    }

    /// Keeps the receipt of flows the gateway cut.
    pub(super) fn cut(&self, report: CutReport) {
        self.sessions.metrics().cut(&self.name, &report);
        self.sessions.receipts().add(&self.name, report);
    }

    /// Keeps what the gateway denied.
    pub(super) fn denied(&self, flows: &[DeniedFlow]) {
        self.sessions.metrics().denied(&self.name, flows);
        self.sessions.denied().add(&self.name, flows, now_ms());
    }

    /// The gateway's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What the feed counts.
    pub(super) fn metrics(&self) -> &FeedMetrics {
        self.sessions.metrics()
    }

    /// What gateways said of traffic.
    pub(super) fn book(&self) -> &TrafficBook {
        self.sessions.traffic()
    }

    /// Does nothing once another session took the name over.
    fn update(&self, change: impl FnOnce(&mut GatewayStatus)) {
        if let Some(live) = self.sessions.table().live.get_mut(&self.name).filter(|live| live.id == self.id) {
            change(&mut live.status);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        {
            let mut table = self.sessions.table();
            if table.live.get(&self.name).is_some_and(|live| live.id == self.id) {
                table.live.remove(&self.name);
            }
        }
        self.sessions.shared.ended.send_modify(|ended| *ended += 1);
    }
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(name: &str) -> Hello {
        Hello { name: name.into(), version: "1".into(), state: None }
    }

    fn sessions() -> Sessions {
        Sessions::new("server-1", Limits::default()).unwrap()
    }

    #[tokio::test]
    async fn a_second_session_of_the_same_name_replaces_the_first() {
        let sessions = sessions();
        let mut first = sessions.register(&hello("gw-1"), "10.0.0.1");
        let second = sessions.register(&hello("gw-1"), "10.0.0.2");
        assert_eq!(first.goodbye().await, GoawayReason::Replaced);
        drop(first);
        let listed: Vec<String> = sessions.snapshot().into_iter().map(|status| status.remote).collect();
        assert_eq!(listed, ["10.0.0.2"]);
        drop(second);
        assert!(sessions.snapshot().is_empty());
    }

    #[tokio::test]
    async fn a_gateway_is_sent_away_once_until_the_quorum_is_back() {
        let sessions = sessions();
        let mut session = sessions.register(&hello("gw-1"), "");
        sessions.send_away_lagging();
        assert_eq!(session.goodbye().await, GoawayReason::Lagging);
        drop(session);

        let mut again = sessions.register(&hello("gw-1"), "");
        sessions.send_away_lagging();
        assert_eq!(*again.goodbye.borrow_and_update(), None);
        sessions.quorum_is_back();
        sessions.send_away_lagging();
        assert_eq!(again.goodbye().await, GoawayReason::Lagging);
    }

    #[tokio::test]
    async fn draining_waits_for_sessions_to_end_and_meets_late_ones() {
        let sessions = sessions();
        let mut session = sessions.register(&hello("gw-1"), "");
        let ending = tokio::spawn(async move { session.goodbye().await });
        sessions.drain(Duration::from_secs(5)).await;
        assert_eq!(ending.await.unwrap(), GoawayReason::Draining);
        assert!(sessions.is_draining());
        assert!(sessions.snapshot().is_empty());
        assert_eq!(sessions.register(&hello("gw-2"), "").goodbye().await, GoawayReason::Draining);
    }
}
