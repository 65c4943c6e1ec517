//! Commands over a small world, so that they meet.

use std::collections::{BTreeMap, BTreeSet};

use allowlist::{EntryId, Ports};
use raft_store::State;
use raft_store::command::{
    Command, EntryUpdate, NameStatus, NewEntry, Operation, Origin, ResolutionUpdate, Role, SeenAddress, Token,
};
use uuid::Uuid;

use crate::fixtures::{DOMAINS, PORTS, TARGETS, new_entry};
use crate::rng::Rng;

const ADDRESSES: [&str; 5] = ["1.1.1.1", "8.8.8.8", "9.9.9.9", "2606:4700::1111", "10.0.0.1"];
const MOST_OPERATIONS: u64 = 3;
/// Rarely, or soon nothing can be removed any more.
const PROTECTED_PERMILLE: u64 = 30;

/// The operations of one write; `state` is what its author may have seen.
pub(crate) fn draw(rng: &mut Rng, state: &State, tag: &str) -> Vec<Operation> {
    let origin = Origin { actor: "ops".to_owned(), remote: String::new(), request_id: tag.to_owned() };
    let count = rng.between(1, MOST_OPERATIONS);
    (0..count).map(|_| Operation { origin: origin.clone(), command: command(rng, state) }).collect()
}

fn command(rng: &mut Rng, state: &State) -> Command {
    match rng.below(20) {
        0..8 => Command::AddEntry(NewEntry {
            ports: ports(rng),
            protected: rng.chance(PROTECTED_PERMILLE),
            comment: text(rng).into(),
            ..new_entry(new_id(rng), TARGETS[rng.below(TARGETS.len() as u64) as usize])
        }),
        8..12 => Command::RemoveEntry { id: known_id(rng, state) },
        12..15 => Command::UpdateEntry {
            id: known_id(rng, state),
            update: EntryUpdate {
                protected: rng.chance(2 * PROTECTED_PERMILLE).then_some(rng.chance(500)),
                comment: Some(text(rng).into()),
                ..EntryUpdate::default()
            },
        },
        15..18 => Command::SetResolution {
            domain: TARGETS[rng.below(DOMAINS as u64) as usize].parse().unwrap(),
            resolution: resolution(rng),
        },
        18 => Command::AddToken(Token {
            name: token(rng),
            role: if rng.chance(500) { Role::Admin } else { Role::Editor },
            sha256: [rng.below(3) as u8; 32],
            created_at_ms: 1,
        }),
        _ => Command::RemoveToken { name: token(rng) },
    }
}

fn new_id(rng: &mut Rng) -> u128 {
    u128::from(rng.next()) << 64 | u128::from(rng.next())
}

/// One that is there, or was, or never was.
fn known_id(rng: &mut Rng, state: &State) -> EntryId {
    let ids: Vec<_> = state.entries().keys().copied().collect();
    rng.pick(&ids).copied().unwrap_or_else(|| EntryId(Uuid::nil()))
}

fn ports(rng: &mut Rng) -> Ports {
    let ranges = PORTS[rng.below(PORTS.len() as u64) as usize];
    Ports::new(ranges.iter().map(|range| range.parse().unwrap()).collect()).unwrap()
}

fn text(rng: &mut Rng) -> String {
    format!("note {}", rng.below(4))
}

fn token(rng: &mut Rng) -> String {
    format!("token-{}", rng.below(3))
}

fn resolution(rng: &mut Rng) -> ResolutionUpdate {
    let mut seen = BTreeMap::new();
    let mut retire = BTreeSet::new();
    for address in ADDRESSES {
        let address = address.parse().unwrap();
        match rng.below(4) {
            0 => {
                let upstreams = BTreeSet::from(["9.9.9.9:53".to_owned()]);
                seen.insert(address, SeenAddress { first_seen_ms: 1, ttl_s: 30, upstreams });
            }
            1 => drop(retire.insert(address)),
            _ => {}
        }
    }
    ResolutionUpdate { seen, retire, chain: Vec::new(), status: NameStatus::Ok }
}
