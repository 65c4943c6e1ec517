//! Frames: frozen bytes, cuts, damage.

use openraft::Vote as RaftVote;
use openraft::vote::RaftLeaderId as _;

use super::*;
use crate::cluster::InactiveFeature;
use crate::feed::denied::{DeniedKey, DeniedRow};
use crate::feed::traffic::{ElementLine, Moved, SourceLine};
use crate::raft::change::{ChangeRefusal, MemberChange, RefusalKind};

fn log_id(index: u64) -> LogId {
    let leader = <TypeConfig as openraft::RaftTypeConfig>::LeaderId::new(3, 9);
    LogId::new(leader.to_committed(), index)
}

fn envelope(request: Request) -> Envelope {
    Envelope { sequence: 7, cluster: Some(Uuid::from_u128(1)), from: 2, to: Some(3), request }
}

fn entry(index: u64, comment: usize) -> Entry {
    let operation = Operation {
        origin: raft_store::command::Origin { actor: "x".repeat(comment), ..Default::default() },
        command: raft_store::command::Command::RemoveToken { name: "t".to_owned() },
    };
    Entry {
        log_id: log_id(index),
        payload: openraft::EntryPayload::Normal(raft_store::Batch { at_ms: 5, operations: vec![operation] }),
    }
}

fn denied_row() -> DeniedRow {
    let key = DeniedKey {
        gateway: "g".to_owned(),
        source: "10.0.0.7".parse().unwrap(),
        destination: "9.9.9.9".parse().unwrap(),
        protocol: 6,
        port: 443,
    };
    DeniedRow { key, packets: 3, first_ms: 7, last_ms: 9 }
}

fn name_lookups() -> NameLookups {
    let error = crate::resolver::LookupError { at_ms: 6, upstream: "u".to_owned(), error: "e".to_owned() };
    NameLookups { last_answer_ms: Some(5), last_error: Some(Box::new(error)), next_try_ms: Some(7) }
}

fn traffic() -> TrafficSums {
    let source = SourceLine { gateway: "gw".into(), source: Some([10, 0, 0, 1].into()), element: None };
    let element = ElementLine { gateway: "gw".into(), element: None };
    let moved = |numbers: [u64; 4]| {
        let [packets_out, bytes_out, packets_in, bytes_in] = numbers;
        Moved { packets_out, bytes_out, packets_in, bytes_in }
    };
    TrafficSums {
        sources: vec![(source, moved([1, 2, 3, 4]))],
        elements: vec![(element, moved([4, 3, 2, 1]))],
    }
}

fn request(entries: Vec<Entry>) -> AppendEntriesRequest<TypeConfig> {
    AppendEntriesRequest {
        vote: RaftVote::new_committed(3, 9),
        prev_log_id: Some(log_id(4)),
        entries,
        leader_commit: Some(log_id(3)),
    }
}

#[test]
fn the_bytes_of_version_1_are_frozen() {
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (
            encode(&envelope(Request::Status)).unwrap().to_vec(),
            "01070110000000000000000000000000000000010201030\
         9",
        ),
        (
            encode(&envelope(Request::Probe { peers: vec!["a:1".to_owned()] })).unwrap().to_vec(),
            "010701100000000000000000000000000000000102010\
             30a0103613a31",
        ),
        (
            encode(&Answer { sequence: 1, response: Response::ReadIndex(300) }).unwrap().to_vec(),
            "010106fb2c01",
        ),
        (
            encode(&Answer { sequence: 1, response: Response::Refused(Refusal::NotLeader { leader: None }) })
                .unwrap()
                .to_vec(),
            "0101000200",
        ),
        (
            encode(&envelope(Request::Misses { vote: RaftVote::new_committed(3, 9) })).unwrap().to_vec(),
            "010701100000000000000000000000000000000102010\
             30c030901",
        ),
        (
            encode(&Answer {
                sequence: 1,
                response: Response::Misses { missed: true, last: Some(log_id(5)) },
            })
            .unwrap()
            .to_vec(),
            "01010a0101030905",
        ),
        (
            encode(&Answer { sequence: GOODBYE_SEQUENCE, response: Response::Goodbye }).unwrap().to_vec(),
            "01fdffffffffffffffff0b",
        ),
        (
            encode(&envelope(Request::Change(ChangeRequest {
                change: MemberChange::Remove { member: "a".to_owned(), force: false },
                actor: "b".to_owned(),
                timeout_ms: 5,
            })))
            .unwrap()
            .to_vec(),
            "01070110000000000000000000000000000000010201030e01016100016205",
        ),
        (
            encode(&envelope(Request::LogEnd)).unwrap().to_vec(),
            "010701100000000000000000000000000000000102010311",
        ),
        (
            encode(&envelope(Request::Room)).unwrap().to_vec(),
            "010701100000000000000000000000000000000102010313",
        ),
        (encode(&Answer { sequence: 1, response: Response::Room(true) }).unwrap().to_vec(), "01011001"),
        (
            encode(&envelope(Request::Process)).unwrap().to_vec(),
            "010701100000000000000000000000000000000102010314",
        ),
        (
            encode(&Answer { sequence: 1, response: Response::Process { id: 7, process: 9 } })
                .unwrap()
                .to_vec(),
            "0101110709",
        ),
        (
            encode(&Answer {
                sequence: 1,
                response: Response::Proposed(Err(ProposeFailure::NoRoom("x".to_owned()))),
            })
            .unwrap()
            .to_vec(),
            "01010501050178",
        ),
        (
            encode(&Answer { sequence: 1, response: Response::Members(vec![300]) }).unwrap().to_vec(),
            "01010d01fb2c01",
        ),
        (
            encode(&Answer { sequence: 1, response: Response::LogEnd(LogEnd { term: 3, index: 5 }) })
                .unwrap()
                .to_vec(),
            "01010f0305",
        ),
        (
            encode(&Answer {
                sequence: 1,
                response: Response::Refused(Refusal::Change(ChangeRefusal::new(RefusalKind::Busy, "x"))),
            })
            .unwrap()
            .to_vec(),
            "01010006040178",
        ),
        (
            encode(&Answer { sequence: 1, response: Response::Refused(Refusal::Unknown("x".to_owned())) })
                .unwrap()
                .to_vec(),
            "010100090178",
        ),
        (
            encode(&Answer { sequence: 1, response: Response::Refused(Refusal::SameId(7)) })
                .unwrap()
                .to_vec(),
            "0101000807",
        ),
        (
            encode(&envelope(Request::ProposeFor {
                token: TokenMark { name: "t".to_owned(), sha256: [7; 32] },
                operations: Vec::new(),
                timeout_ms: 300,
            }))
            .unwrap()
            .to_vec(),
            "010701100000000000000000000000000000000102010\
             3120174\
             0707070707070707070707070707070707070707070707070707070707070707\
             00fb2c01",
        ),
        (
            encode(&Answer { sequence: 1, response: Response::Proposed(Err(ProposeFailure::TokenGone)) })
                .unwrap()
                .to_vec(),
            "0101050104",
        ),
        (
            encode(&envelope(Request::Features)).unwrap().to_vec(),
            "010701100000000000000000000000000000000102010315",
        ),
        (
            encode(&envelope(Request::ChangeFor {
                change: MemberChange::Remove { member: "a".to_owned(), force: false },
                origin: Origin { actor: "b".to_owned(), remote: "c".to_owned(), request_id: "d".to_owned() },
                timeout_ms: 5,
            }))
            .unwrap()
            .to_vec(),
            "010701100000000000000000000000000000000102010316010161000162016301 6405",
        ),
        (
            encode(&Answer { sequence: 1, response: Response::Features(FeatureLevel(2)) }).unwrap().to_vec(),
            "01011202",
        ),
        (
            encode(&Answer {
                sequence: 1,
                response: Response::Proposed(Err(ProposeFailure::FeatureNotActive(InactiveFeature {
                    needs: FeatureLevel(2),
                    active: FeatureLevel(1),
                    held_back_by: vec!["x".to_owned()],
                }))),
            })
            .unwrap()
            .to_vec(),
            "0101050106020101 0178",
        ),
        (
            encode(&envelope(Request::Denied(DeniedQuery {
                gateway: Some("g".to_owned()),
                source: Some("10.0.0.0/8".parse().unwrap()),
                destinations: Some(vec!["9.9.9.9/32".parse().unwrap()]),
                since_ms: 300,
                behind: Some(denied_row().place()),
                limit: 2,
            })))
            .unwrap()
            .to_vec(),
            "010701100000000000000000000000000000000102010317\
             010167 0100 0a000000 08 0101 00 09090909 20 fb2c01\
             01 09 0167 00 0a000007 00 09090909 06 fbbb01 02",
        ),
        (
            encode(&Answer {
                sequence: 1,
                response: Response::Denied(DeniedPage { rows: vec![denied_row()], more: true }),
            })
            .unwrap()
            .to_vec(),
            "01011301 0167 00 0a000007 00 09090909 06 fbbb01 030709 01",
        ),
        (
            encode(&envelope(Request::Traffic {
                window: Window::Minutes(10),
                gateway: Some("gw".to_owned()),
            }))
            .unwrap()
            .to_vec(),
            "010701100000000000000000000000000000000102010318000a01026777",
        ),
        (
            encode(&Answer { sequence: 1, response: Response::Traffic(traffic()) }).unwrap().to_vec(),
            "01011401026777 01000a000001 00 01020304 01026777 00 04030201",
        ),
        (
            encode(&envelope(Request::NameLookups(vec!["a.io".parse().unwrap()]))).unwrap().to_vec(),
            "0107011000000000000000000000000000000001020103190104612e696f",
        ),
        (
            encode(&Answer { sequence: 1, response: Response::NameLookups(Some(vec![name_lookups()])) })
                .unwrap()
                .to_vec(),
            "01011501010105010601750165 0107",
        ),
    ];
    for (bytes, frozen) in cases {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, frozen.replace([' ', '\n'], ""));
    }
}

#[test]
fn an_append_request_comes_out_as_it_went_in() {
    let sent = request(vec![entry(5, 1), entry(6, 1)]);
    let mut parts = append_parts(sent.clone()).unwrap();
    assert_eq!(parts.len(), 1);
    let part = parts.remove(0);
    assert_eq!((part.prev, part.last), (Some(log_id(4)), Some(log_id(6))));
    let frame = encode(&envelope(Request::Append(part.message))).unwrap();
    let Request::Append(append) = decode::<Envelope>(&frame).unwrap().request else {
        panic!("another request")
    };
    assert_eq!(format!("{:?}", append.into_request().unwrap()), format!("{sent:?}"));
}

#[test]
fn a_large_append_request_is_cut_into_frames_that_follow_each_other() {
    let entries: Vec<_> = (5..25).map(|index| entry(index, 200_000)).collect();
    let parts = append_parts(request(entries)).unwrap();
    assert!(parts.len() > 2);
    let mut prev = Some(log_id(4));
    for part in &parts {
        assert_eq!(part.prev, prev);
        prev = part.last;
        assert!(encode(&envelope(Request::Append(part.message.clone()))).unwrap().len() < MAX_FRAME_BYTES);
    }
    assert_eq!(prev, Some(log_id(24)));
}

#[test]
fn a_heartbeat_is_one_frame_whose_success_means_the_previous_entry() {
    let parts = append_parts(request(Vec::new())).unwrap();
    assert_eq!(parts.len(), 1);
    assert_eq!((parts[0].prev, parts[0].last), (Some(log_id(4)), Some(log_id(4))));
}

#[test]
fn a_newer_version_garbage_and_leftovers_are_refused() {
    let good = encode(&envelope(Request::Status)).unwrap();
    let mut newer = good.to_vec();
    newer[0] = 2;
    assert!(decode::<Envelope>(&newer).unwrap_err().to_string().contains("version 2"));
    let mut longer = good.to_vec();
    longer.push(0);
    assert!(decode::<Envelope>(&longer).unwrap_err().to_string().contains("left over"));
    for len in 0..good.len() {
        assert!(decode::<Envelope>(&good[..len]).is_err(), "{len} bytes");
    }
    // A length that promises more than a frame can hold must not be believed.
    assert!(decode::<Envelope>(&[1, 0, 0, 0, 0, 6, 253, 255, 255, 255, 255, 255, 255, 255, 255]).is_err());
}
