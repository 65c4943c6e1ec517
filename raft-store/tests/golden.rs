//! The exact bytes of a batch with every command. They are on disks; they never change.
#![allow(clippy::unwrap_used, reason = "a test may panic, also in what its functions share")]

use std::collections::{BTreeMap, BTreeSet};

use allowlist::{EntryId, Ports, Target};
use raft_store::codec;
use raft_store::command::*;
use uuid::Uuid;

fn operation(command: Command) -> Operation {
    let origin = Origin { actor: "ops".to_owned(), remote: "r".to_owned(), request_id: "q".to_owned() };
    Operation { origin, command }
}

fn every_command() -> Batch {
    let id = EntryId(Uuid::from_u128(1));
    let new = NewEntry {
        id,
        target: "a.io".parse::<Target>().unwrap(),
        ports: Ports::new(vec!["tcp/443".parse().unwrap()]).unwrap(),
        protected: true,
        comment: "c".into(),
        owner: "o".into(),
        ticket: "t".into(),
        labels: BTreeMap::from([("k".to_owned(), "v".to_owned())]).into(),
        expires_at_ms: Some(9),
    };
    let update = EntryUpdate { protected: Some(true), comment: Some("d".into()), ..EntryUpdate::default() };
    let seen = SeenAddress { first_seen_ms: 7, ttl_s: 60, upstreams: BTreeSet::from(["u".to_owned()]) };
    let resolution = |status| ResolutionUpdate {
        seen: BTreeMap::from([("1.1.1.1".parse().unwrap(), seen.clone())]),
        retire: BTreeSet::from(["2606:4700::1111".parse().unwrap()]),
        chain: vec!["b.io".parse().unwrap()],
        status,
    };
    let set =
        |status| Command::SetResolution { domain: "a.io".parse().unwrap(), resolution: resolution(status) };
    let token =
        |role| Command::AddToken(Token { name: "n".to_owned(), role, sha256: [0xab; 32], created_at_ms: 8 });
    let commands = vec![
        Command::AddEntry(new),
        Command::RemoveEntry { id },
        Command::UpdateEntry { id, update },
        set(NameStatus::Pending),
        set(NameStatus::Ok),
        set(NameStatus::Stale { since_ms: 3, error: "e".to_owned() }),
        set(NameStatus::NoSuchName),
        set(NameStatus::Refused { reason: "f".to_owned() }),
        Command::InitCluster { cluster: Uuid::from_u128(2) },
        token(Role::Gateway),
        token(Role::Viewer),
        token(Role::Editor),
        token(Role::Admin),
        Command::RemoveToken { name: "n".to_owned() },
    ];
    Batch { at_ms: 1_000, operations: commands.into_iter().map(operation).collect() }
}

#[test]
fn a_batch_with_every_command_has_these_exact_bytes() {
    let bytes = codec::encode(&every_command()).unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, include_str!("golden/batch-v1.hex").trim());
    assert_eq!(codec::decode::<Batch>(&bytes).unwrap(), every_command());
}
