//! Entries and what a small world of them is made of.

use allowlist::{EntryId, Labels, Ports, SharedText};
use raft_store::command::NewEntry;
use uuid::Uuid;

/// So few that commands meet; domains first.
pub(crate) const TARGETS: [&str; 8] = [
    "a.example.com",
    "b.example.com",
    "c.example.org",
    "1.1.1.1",
    "8.8.8.8",
    "2606:4700::1111",
    "9.9.9.0/24",
    "*.example.net",
];
/// How many of them are.
pub(crate) const DOMAINS: usize = 3;
/// Of an entry.
pub(crate) const PORTS: [&[&str]; 3] = [&[], &["tcp/443"], &["tcp/443", "udp/53-54"]];

/// For all ports, without texts.
pub(crate) fn new_entry(id: u128, target: &str) -> NewEntry {
    NewEntry {
        id: EntryId(Uuid::from_u128(id)),
        target: target.parse().unwrap(),
        ports: Ports::all(),
        protected: false,
        comment: Box::default(),
        owner: SharedText::default(),
        ticket: SharedText::default(),
        labels: Labels::default(),
        expires_at_ms: None,
    }
}
