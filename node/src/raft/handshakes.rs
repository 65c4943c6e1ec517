//! Connections that have not shown a certificate yet. They have places of their own, so that strangers that connect and
//! say nothing take none from peers; and when those are full, the one that waits longest from the address with the most
//! goes, so that they do not keep peers from being heard either.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// Handshakes at once.
const MAX_HANDSHAKES: usize = 64;

/// All handshakes under way. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Handshakes {
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    /// By order of arrival.
    places: BTreeMap<u64, (IpAddr, CancellationToken)>,
}

/// A place, given back when dropped.
pub(super) struct Handshake {
    all: Handshakes,
    number: u64,
    /// Cancelled when another one got the place.
    pub(super) displaced: CancellationToken,
}

impl Handshakes {
    /// A place for a connection from `remote`.
    pub(super) fn begin(&self, remote: IpAddr) -> Handshake {
        let mut waiting = self.lock();
        if waiting.places.len() >= MAX_HANDSHAKES {
            waiting.displace_one();
        }
        let number = waiting.next;
        waiting.next += 1;
        let displaced = CancellationToken::new();
        waiting.places.insert(number, (remote, displaced.clone()));
        Handshake { all: self.clone(), number, displaced }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn displace_one(&mut self) {
        let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for (remote, _) in self.places.values() {
            *counts.entry(*remote).or_default() += 1;
        }
        let most = counts.values().copied().max().unwrap_or_default();
        let oldest = self.places.iter().find(|(_, (remote, _))| counts.get(remote) == Some(&most));
        let Some(number) = oldest.map(|(number, _)| *number) else { return };
        if let Some((_, displaced)) = self.places.remove(&number) {
            displaced.cancel();
        }
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.all.lock().places.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_connections_displace_each_other_and_no_peer() {
        let (peer, stranger): (IpAddr, IpAddr) = ([10, 1, 0, 2].into(), [10, 9, 9, 9].into());
        let all = Handshakes::default();
        let of_peer = all.begin(peer);
        let silent: Vec<_> = (0..3 * MAX_HANDSHAKES).map(|_| all.begin(stranger)).collect();
        assert!(!of_peer.displaced.is_cancelled());
        let left = silent.iter().filter(|one| !one.displaced.is_cancelled()).count();
        assert_eq!(left, MAX_HANDSHAKES - 1);
        assert!(silent[0].displaced.is_cancelled(), "the oldest went first");
        drop(silent);
        drop(of_peer);
        assert!(all.lock().places.is_empty(), "places are given back");
    }
}
