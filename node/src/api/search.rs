//! Which entries a search text means.

use std::net::IpAddr;

use allowlist::{Entry, Target};
use raft_store::state::State;

/// A search: text found in target, comment, owner or ticket whatever its case; an address also finds what covers it.
pub(super) struct Search {
    text: String,
    address: Option<IpAddr>,
}

impl Search {
    pub(super) fn new(text: &str) -> Self {
        Self { text: text.trim().to_lowercase(), address: text.trim().parse().ok() }
    }

    pub(super) fn finds(&self, entry: &Entry, state: &State) -> bool {
        let contains = |text: &str| text.to_lowercase().contains(&self.text);
        contains(&entry.target.to_string())
            || contains(&entry.comment)
            || contains(&entry.owner)
            || contains(&entry.ticket)
            || self.address.is_some_and(|address| covers(entry, address, state))
    }
}

fn covers(entry: &Entry, address: IpAddr, state: &State) -> bool {
    match &entry.target {
        Target::Address(own) => *own == address,
        Target::Network(network) => network.contains(&address),
        Target::Domain(name) => {
            state.resolutions().get(name).is_some_and(|found| found.addresses.contains_key(&address))
        }
        Target::Wildcard { .. } => false,
    }
}
