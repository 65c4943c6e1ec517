//! What must hold of one name, worked out from nothing but the answers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use allowlist::class;
use node::resolver::answer::{Answer, Family};
use node::resolver::judge::{MAX_ADDRESSES_PER_NAME, Round};
use raft_store::state::Resolution;

/// "No such name" is a matter of some answers and a minute; after so long it must be believed.
const DOUBT: Duration = Duration::from_secs(180);

pub(super) struct Model {
    linger: Duration,
    longest_interval: Duration,
    given: BTreeMap<IpAddr, Given>,
    /// By family: since when every upstream has spoken clearly.
    clear_since: [Duration; 2],
    nothing_since: [Option<Duration>; 2],
    changes: u64,
    retired: u64,
    kept_through_trouble: u64,
}

/// When an address was last given, with the longest TTL it ever had.
struct Given {
    at: Duration,
    ttl: Duration,
}

impl Model {
    pub(super) fn new(linger: Duration, longest_interval: Duration) -> Self {
        Self {
            linger,
            longest_interval,
            given: BTreeMap::new(),
            clear_since: [Duration::ZERO; 2],
            nothing_since: [None; 2],
            changes: 0,
            retired: 0,
            kept_through_trouble: 0,
        }
    }

    /// Addresses and states that came or went: more writes than that are too many.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// What a leader has missed, the next one has to miss itself.
    pub(super) fn leader_changed(&mut self, now: Duration) {
        self.clear_since = [now; 2];
    }

    pub(super) fn round(&mut self, round: &Round, before: &Resolution, after: &Resolution) {
        let now = round.at.elapsed;
        let mut public = BTreeMap::new();
        for answer in round.v4.iter().chain(&round.v6) {
            let Answer::Addresses { addresses, .. } = answer else { continue };
            for (address, ttl_s) in
                addresses.iter().filter(|(address, _)| class::check_address(**address).is_ok())
            {
                let ttl = public.entry(*address).or_insert(*ttl_s);
                *ttl = (*ttl).max(*ttl_s);
            }
        }
        let flooded = public.len() > MAX_ADDRESSES_PER_NAME;
        for (place, family) in Family::BOTH.into_iter().enumerate() {
            let answers = round.answers(family);
            if flooded || !answers.iter().all(is_clear) {
                self.clear_since[place] = now;
            }
            if answers.iter().all(|answer| matches!(answer, Answer::Nothing { .. })) {
                let since = *self.nothing_since[place].get_or_insert(now);
                if now - since < DOUBT {
                    self.clear_since[place] = now;
                }
            } else {
                self.nothing_since[place] = None;
            }
        }
        if !flooded {
            for (address, ttl_s) in &public {
                assert!(
                    after.addresses.contains_key(address),
                    "{address} is given and not published at {now:?}"
                );
                let ttl = Duration::from_secs((*ttl_s).into());
                let given = self.given.entry(*address).or_insert(Given { at: now, ttl });
                *given = Given { at: now, ttl: ttl.max(given.ttl) };
            }
        }
        for address in before.addresses.keys().filter(|address| !after.addresses.contains_key(address)) {
            let unseen = now - self.given[address].at;
            assert!(unseen >= self.linger, "{address} is gone {unseen:?} after it was given, at {now:?}");
            assert!(!flooded, "a flood took {address} away");
            self.retired += 1;
        }
        for address in after.addresses.keys() {
            let new = !before.addresses.contains_key(address);
            assert!(!new || class::check_address(*address).is_ok(), "{address} is published at {now:?}");
            let given = &self.given[address];
            let since = given.at.max(self.clear_since[place(*address)]);
            // One interval until it is missed for the first time, one until that is long enough.
            let longest = self.linger.max(given.ttl) + 3 * self.longest_interval;
            assert!(
                now - since <= longest,
                "{address} is still published, {:?} after it was given",
                now - given.at
            );
            if now - given.at > longest {
                self.kept_through_trouble += 1;
            }
        }
        let came = after.addresses.keys().filter(|address| !before.addresses.contains_key(address)).count();
        let went = before.addresses.keys().filter(|address| !after.addresses.contains_key(address)).count();
        let moved = u64::try_from(came + went).unwrap_or(u64::MAX);
        self.changes += moved + u64::from(before.status != after.status);
    }

    /// Addresses that went in their time.
    pub(super) fn retired(&self) -> u64 {
        self.retired
    }

    /// How often an address was found published that would be gone if nobody had failed.
    pub(super) fn kept_through_trouble(&self) -> u64 {
        self.kept_through_trouble
    }
}

fn place(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}

/// It is an answer, and not one of private addresses only.
fn is_clear(answer: &Answer) -> bool {
    match answer {
        Answer::Addresses { addresses, .. } => {
            addresses.keys().any(|address| class::check_address(*address).is_ok())
        }
        Answer::Nothing { .. } => true,
        Answer::Failed(_) => false,
    }
}
