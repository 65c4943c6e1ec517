//! Waiting until a write bites: the receipt of a change.

use std::time::Duration;

use allowlist::{EntryId, Revision, Target};
use raft_store::command::NameStatus;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};
use utoipa::{IntoParams, ToSchema};

use super::AppState;
use super::problem::{Code, Problem};
use super::status::newest_gateways;

/// How long is waited when the client does not say, seconds.
const DEFAULT_WAIT_S: u64 = 5;
/// Longest wait; with the write before it, it stays below the deadline of a request.
const MAX_WAIT_S: u64 = 6;
/// Between two looks at the gateways: the first time, doubling up to [`MAX_LOOK_PAUSE`].
const FIRST_LOOK_PAUSE: Duration = Duration::from_millis(5);
const MAX_LOOK_PAUSE: Duration = Duration::from_millis(320);
/// How long nodes have to say which gateways they hold.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);
/// … and at the end of the wait still so long.
const MIN_ASK_TIMEOUT: Duration = Duration::from_millis(100);

/// Until when the answer waits.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitParams {
    /// `resolved`: until DNS was asked for a new domain. `applied`: also until every gateway with a session holds the
    /// change in its kernel. The answer then has a `receipt`, which says how far it came.
    #[param(inline, required = false)]
    pub(super) wait: Option<WaitFor>,
    /// At most so many seconds, 1 to 6; 5 when left out.
    #[param(required = false, minimum = 1, maximum = 6)]
    pub(super) wait_s: Option<u64>,
}

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum WaitFor {
    Resolved,
    Applied,
}

/// How far a change came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct Receipt {
    /// The revision that gateways have to hold.
    revision: Revision,
    /// True when DNS was asked for the domain; null for everything else.
    resolved: Option<bool>,
    /// True when every gateway with a session holds the revision; null when that was not waited for. With no gateway
    /// at all it is false.
    applied: Option<bool>,
    /// All gateways with a session.
    gateways: Vec<GatewayReceipt>,
    /// Nodes that did not say which gateways they hold: with one of them `applied` is false.
    silent_nodes: Vec<String>,
    /// How long it took, milliseconds.
    waited_ms: u64,
}

/// What one gateway holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
struct GatewayReceipt {
    name: String,
    /// The newest revision its kernel holds.
    revision: Revision,
    /// True when that is the one waited for, or newer.
    applied: bool,
    /// Elements that its kernel refused; they do not pass.
    refused: u64,
}

/// A wait that was asked for and checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wait {
    what: WaitFor,
    limit: Duration,
}

impl WaitParams {
    /// # Errors
    /// A time out of bounds, or one without anything to wait for.
    pub(super) fn check(&self) -> Result<Option<Wait>, Problem> {
        let wrong = |detail: String| Err(Problem::new(Code::InvalidQuery, detail));
        match (self.wait, self.wait_s) {
            (None, Some(_)) => wrong("wait_s without wait; add wait=applied".to_owned()),
            (_, Some(seconds)) if !(1..=MAX_WAIT_S).contains(&seconds) => {
                wrong(format!("wait_s is {seconds}; write a number from 1 to {MAX_WAIT_S}"))
            }
            (what, seconds) => {
                Ok(what
                    .map(|what| Wait { what, limit: Duration::from_secs(seconds.unwrap_or(DEFAULT_WAIT_S)) }))
            }
        }
    }
}

impl AppState {
    /// Waits for the change at `revision`; `entry` is the one that was added, if one was.
    pub(super) async fn receipt(&self, wait: Wait, revision: Revision, entry: Option<EntryId>) -> Receipt {
        let begun = Instant::now();
        let deadline = begun + wait.limit;
        let (mut revision, mut resolved) = (revision, None);
        if let Some(id) = entry {
            resolved = self.resolved(id, deadline).await;
            if resolved == Some(true) {
                revision = revision.max(self.local().revision());
            }
        }
        let mut receipt = Receipt {
            revision,
            resolved,
            applied: None,
            gateways: Vec::new(),
            silent_nodes: Vec::new(),
            waited_ms: 0,
        };
        if wait.what == WaitFor::Applied {
            (receipt.gateways, receipt.silent_nodes) = self.applied(revision, deadline).await;
            let all = receipt.gateways.iter().all(|gateway| gateway.applied && gateway.refused == 0);
            receipt.applied = Some(all && !receipt.gateways.is_empty() && receipt.silent_nodes.is_empty());
        }
        receipt.waited_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        receipt
    }

    /// Whether DNS was asked for the entry's domain; `None` when it names none, or is gone.
    async fn resolved(&self, id: EntryId, deadline: Instant) -> Option<bool> {
        let mut revisions = self.cluster().reader().revisions();
        loop {
            let state = self.local();
            let Target::Domain(domain) = &state.entry(id)?.target else { return None };
            let pending = |status: &NameStatus| *status == NameStatus::Pending;
            if state.resolutions().get(domain).is_some_and(|known| !pending(&known.status)) {
                return Some(true);
            }
            match timeout_at(deadline, revisions.changed()).await {
                Ok(Ok(())) => {}
                _ => return Some(false),
            }
        }
    }

    /// What the gateways hold, and the nodes that do not say.
    async fn applied(&self, revision: Revision, deadline: Instant) -> (Vec<GatewayReceipt>, Vec<String>) {
        let mut pause = FIRST_LOOK_PAUSE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let members = self.cluster().members(left.clamp(MIN_ASK_TIMEOUT, ASK_TIMEOUT)).await;
            let silent = members.iter().filter(|member| member.status.is_none());
            let silent: Vec<String> = silent.map(|member| member.name.clone()).collect();
            let gateways: Vec<_> = newest_gateways(&members, self.sessions().snapshot())
                .into_values()
                .map(|gateway| GatewayReceipt {
                    name: gateway.name,
                    revision: gateway.applied,
                    applied: gateway.applied >= revision,
                    refused: gateway.refused,
                })
                .collect();
            let next = Instant::now() + pause;
            let done = silent.is_empty() && gateways.iter().all(|gateway| gateway.applied);
            if done || next >= deadline {
                return (gateways, silent);
            }
            tokio::time::sleep_until(next).await;
            pause = (pause * 2).min(MAX_LOOK_PAUSE);
        }
    }
}
