use std::collections::BTreeMap;

use openraft::Membership;
use openraft::vote::RaftLeaderId;
use proptest::prelude::*;

use super::*;
use crate::apply::model::batches;
use crate::command::{Batch, Command, NewEntry, Operation, Origin, Role};
use crate::driving::new_entry;
use crate::types::NodeInfo;

fn log_id(index: u64) -> LogId {
    LogId::new(RaftLeaderId::new(2, 7), index)
}

fn membership() -> StoredMembership {
    let nodes =
        BTreeMap::from([(7, NodeInfo { name: "s1".to_owned(), raft_address: "10.1.0.1:8081".to_owned() })]);
    let membership = Membership::new(vec![[7].into()], nodes).unwrap();
    StoredMembership::new(Some(log_id(1)), membership)
}

fn content(batches: &[Batch]) -> Content {
    let mut state = State::default();
    for (batch, revision) in batches.iter().zip(1..) {
        state.apply(revision, batch);
    }
    Content { applied: Some(log_id(state.revision())), state, membership: membership() }
}

fn many_entries(count: u128) -> Vec<Batch> {
    let operations = (1..=count).map(|number| {
        let octets = (0x0808_0000 + number as u32).to_be_bytes();
        let command = Command::AddEntry(NewEntry {
            // Random enough not to shrink to nothing.
            comment: format!("{:x}", Sha256::digest(number.to_be_bytes())).into(),
            ..new_entry(number, &std::net::Ipv4Addr::from(octets).to_string())
        });
        Operation { origin: Origin::default(), command }
    });
    vec![Batch { at_ms: 5, operations: operations.collect() }]
}

#[test]
fn header_and_footer_have_these_exact_bytes() {
    let header = Header {
        data_version: FeatureLevel::FIRST,
        cluster: Some(Uuid::from_u128(5)),
        last_log_id: Some(log_id(300)),
        membership: membership(),
    };
    let bytes = codec::encode(&header).unwrap();
    let expected = [
        &[1, 1, 1, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5][..], // record, data, Some(cluster)
        &[1, 2, 7, 251, 44, 1],                                             // Some(term, node, index)
        &[1, 2, 7, 1],                                                      // membership's log id
        &[1, 1, 7],                                                         // one configuration of one voter
        &[1, 7, 2, b's', b'1', 13],                                         // one node
        b"10.1.0.1:8081",
    ]
    .concat();
    assert_eq!(bytes, expected);
    assert_eq!(codec::decode::<Header>(&bytes).unwrap(), header);

    let footer = Footer { resolutions: 1, tokens: 2, entries: 3, published: SetDigest::default() };
    assert_eq!(codec::encode(&footer).unwrap(), [1, 1, 2, 3, 0]);
}

#[test]
fn items_have_these_exact_bytes() {
    let domain: DomainName = "a.io".parse().unwrap();
    let bytes = codec::encode(&ItemRef::Resolution(&domain, &Resolution::default())).unwrap();
    assert_eq!(bytes, b"\x01\x00\x04a.io\x00\x00\x00\x00");
    let token = Token { name: "x".to_owned(), role: Role::Admin, sha256: [9; 32], created_at_ms: 4 };
    let bytes = codec::encode(&ItemRef::Token(&token)).unwrap();
    assert_eq!(bytes, [&[1, 1, 1, b'x', 3][..], &[9; 32], &[4]].concat());
    let content = content(&many_entries(1));
    let bytes = codec::encode(&ItemRef::Entry(content.state.entries().values().next().unwrap())).unwrap();
    let expected = [
        &[1, 2, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 7][..], // record, entry, id
        b"8.8.0.1\x00\x00\x40",                                             // target, ports, protected
        b"cd2662154e6d76b2b2b92e70c0cac3ccf534f9b74eb5b89819ec509083d00a50",
        &[0, 0, 0, 0, 5, 0], // owner, ticket, labels, created by, created at, expires
    ]
    .concat();
    assert_eq!(bytes[..30], expected[..30]);
    assert_eq!(bytes.len(), expected.len());
    assert_eq!(bytes[bytes.len() - 6..], expected[expected.len() - 6..]);
    let name = crate::kept::name_of("ops", "k");
    let answer =
        KeptAnswer { name, fingerprint: [7; 32], at_ms: 5, revision: 6, position: 3, replies: vec![] };
    let bytes = codec::encode(&ItemRef::Kept(&answer)).unwrap();
    assert_eq!(bytes, [&[1, 3, 5][..], b"ops\0k", &[7; 32], &[5, 6, 3, 0]].concat());
}

#[test]
fn a_snapshot_of_several_blocks_reads_back_and_is_the_same_wherever_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let content = content(&many_entries(20_000));
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    write(&Disk::default(), &one, &content).unwrap();
    write(&Disk::default(), &two, &content).unwrap();
    assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap());
    assert_eq!(read(&File::open(&one).unwrap()).unwrap(), content);
    assert_eq!(verify(&File::open(&one).unwrap()).unwrap().last_log_id, Some(log_id(1)));
}

#[test]
fn every_flipped_byte_and_every_cut_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snapshot");
    write(&Disk::default(), &path, &content(&many_entries(20))).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for position in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[position] ^= 0x10;
        std::fs::write(&path, &flipped).unwrap();
        assert!(verify(&File::open(&path).unwrap()).is_err(), "byte {position}");
        if position % 7 == 0 {
            std::fs::write(&path, &bytes[..position]).unwrap();
            assert!(verify(&File::open(&path).unwrap()).is_err(), "cut at {position}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_state_reads_back_as_it_was(history in batches()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot");
        let content = content(&history);
        write(&Disk::default(), &path, &content).unwrap();
        prop_assert_eq!(read(&File::open(&path).unwrap()).unwrap(), content);
    }
}
