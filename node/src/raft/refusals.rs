//! Peers that were refused, in the log: a node with a wrong certificate tries many times a second.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The same refusal of the same address is logged once in this time …
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// … for this many addresses and reasons.
const MAX_REFUSALS: usize = 256;

/// Who was refused lately: a node with a wrong certificate tries many times a second.
#[derive(Clone, Default)]
pub(super) struct Refusals {
    told: Arc<Mutex<HashMap<(IpAddr, String), Told>>>,
}

struct Told {
    at: Instant,
    /// Since then.
    untold: u64,
}

impl Refusals {
    pub(super) fn tell(&self, remote: SocketAddr, certificate: &str, reason: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, told| told.at.elapsed() < REFUSAL_LOG_INTERVAL || told.untold > 0);
        if told.len() >= MAX_REFUSALS {
            told.clear();
        }
        let more = match told.entry((remote.ip(), reason.to_owned())) {
            Entry::Occupied(mut before) if before.get().at.elapsed() < REFUSAL_LOG_INTERVAL => {
                before.get_mut().untold += 1;
                return;
            }
            Entry::Occupied(mut before) => {
                std::mem::replace(before.get_mut(), Told { at: Instant::now(), untold: 0 }).untold
            }
            Entry::Vacant(place) => {
                place.insert(Told { at: Instant::now(), untold: 0 });
                0
            }
        };
        tracing::warn!(peer = %remote, certificate, reason, more, "refused a peer connection");
    }
}
