//! The feed: what the published set is, to every gateway connected here (`/ws`, subprotocol `outputguard.v1`).
//!
//! Map: [`upgrade`] lets a gateway in, `session` is one gateway's session from hello to goodbye, `outbound` sends it
//! what it lacks, `inbound` takes its reports, [`traffic`] and [`receipts`] keep
//! what they say for people who ask, [`sessions`] lists who is connected, `quorum_watch` sends gateways away
//! from a node that lost its cluster, `metrics` counts.
//!
//! A session pulls: it remembers the revision its gateway has been sent and reads on from there in the node's
//! history when the revision moves. So there is no queue of changes per gateway that could overflow: a slow gateway
//! costs its own session's time, and is cut when one frame does not leave within [`Limits::write_timeout`]. It comes
//! back and resumes.

use std::time::Duration;

pub mod denied;
mod inbound;
mod metrics;
mod outbound;
mod quorum_watch;
pub mod receipts;
mod session;
pub mod sessions;
mod split;
pub mod traffic;
pub(crate) mod upgrade;

pub use metrics::FeedMetrics;
pub use quorum_watch::watch_quorum;
pub use sessions::Sessions;

/// Time limits of a session; tests shorten them.
#[derive(Debug, Clone)]
pub struct Limits {
    /// From the upgrade to the gateway's hello.
    pub hello_timeout: Duration,
    /// For one frame to leave towards the gateway.
    pub write_timeout: Duration,
    /// Between heartbeats.
    pub heartbeat: Duration,
    /// Without a sign of life (every heartbeat is accompanied by a ping) the session ends.
    pub silence: Duration,
    /// For the last words: goodbye, close, and the other side's close.
    pub goodbye: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hello_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(10),
            heartbeat: Duration::from_millis(allowlist::feed::HEARTBEAT_INTERVAL_MS),
            silence: Duration::from_secs(15),
            goodbye: Duration::from_secs(1),
        }
    }
}
