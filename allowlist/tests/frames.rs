//! The feed's bytes, frozen: a frame of version 1 reads the same in every release that knows version 1.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use allowlist::codec::{CodecError, MAX_FRAME_BYTES, decode, encode};
use allowlist::feed::{
    Applied, CutCause, CutElement, CutReport, DeniedFlow, FeedState, GoawayReason, Hello,
    MAX_ELEMENTS_PER_FRAME, MAX_SOURCES_PER_FRAME, RefusedElement, SessionStart, SourceDelta, ToGateway,
    ToServer, TrafficDelta, Welcome,
};
use allowlist::{Change, Digest, Element};
use proptest::prelude::*;
use uuid::Uuid;

fn v4() -> Element {
    Element::new("8.8.8.0/24".parse().unwrap(), None)
}

fn v6() -> Element {
    Element::new("2606:4700::1111/128".parse().unwrap(), Some("udp/5000-5010".parse().unwrap()))
}

fn cluster() -> Uuid {
    Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10)
}

fn digest() -> Digest {
    Digest::of(&[v4()])
}

fn to_server() -> Vec<(ToServer, &'static str)> {
    let state = FeedState { cluster: cluster(), revision: 300, digest: digest() };
    let hello =
        |state| ToServer::Hello(Hello { name: "gw-1".to_owned(), version: "0.1.0".to_owned(), state });
    vec![
        (hello(None), "01000467772d3105302e312e3000"),
        (
            hello(Some(state)),
            "01000467772d3105302e312e3001100102030405060708090a0b0c0d0e0f10fb2c01fef0c7e06a35feeddbb6d0732f4953f753",
        ),
        (
            ToServer::Applied(Applied {
                revision: 7,
                digest: digest(),
                kernel_us: 250,
                refused: vec![RefusedElement { element: v6(), reason: "full".to_owned() }],
            }),
            "010107fef0c7e06a35feeddbb6d0732f4953f753fa01012606470000000000000000000000111180010d7564702f353030302d353031300466756c6c",
        ),
        (
            ToServer::Traffic(vec![TrafficDelta {
                element: v4(),
                packets_out: 1,
                bytes_out: 60,
                packets_in: 70_000,
                bytes_in: 1 << 40,
            }]),
            "01020100080808001800013cfc70110100fd0000000000010000",
        ),
        (
            ToServer::Denied(vec![DeniedFlow {
                source: "10.1.0.7".parse().unwrap(),
                destination: "2001:db8::1".parse().unwrap(),
                protocol: 6,
                port: 443,
                packets: 3,
                first_ms: 1_700_000_000_000,
                last_ms: 1_700_000_000_500,
            }]),
            "010301000a0100070120010db800000000000000000000000106fbbb0103fd0068e5cf8b010000fdf469e5cf8b010000",
        ),
        (ToServer::ResyncRequest { reason: "digest".to_owned() }, "010406646967657374"),
        (
            cut(CutCause::Revoked),
            "0105fb2c01000301fd0000000002000000fc70110100fd0068e5cf8b010000fbdc050100080808001800023cfc70110100",
        ),
        (
            cut(CutCause::Drained),
            "0105fb2c01010301fd0000000002000000fc70110100fd0068e5cf8b010000fbdc050100080808001800023cfc70110100",
        ),
        (
            cut(CutCause::Stale),
            "0105fb2c01020301fd0000000002000000fc70110100fd0068e5cf8b010000fbdc050100080808001800023cfc70110100",
        ),
        (
            cut(CutCause::SourceShown),
            "0105fb2c01030301fd0000000002000000fc70110100fd0068e5cf8b010000fbdc050100080808001800023cfc70110100",
        ),
        (
            ToServer::Sources(vec![
                source(Some("10.1.0.7"), Some(v4())),
                source(Some("fd09::2"), None),
                source(None, None),
            ]),
            "01060301000a0100070100080808001800013cfb2c01fd00000000000100000101fd09000000000000000000000000000200013cfb2c01fd00000000000100000000013cfb2c01fd0000000000010000",
        ),
    ]
}

fn source(source: Option<&str>, element: Option<Element>) -> SourceDelta {
    SourceDelta {
        source: source.map(|source| source.parse().unwrap()),
        element,
        packets_out: 1,
        bytes_out: 60,
        packets_in: 300,
        bytes_in: 1 << 40,
    }
}

fn cut(cause: CutCause) -> ToServer {
    ToServer::Cut(CutReport {
        revision: 300,
        cause,
        flows: 3,
        uncounted: 1,
        bytes_out: 1 << 33,
        bytes_in: 70_000,
        at_ms: 1_700_000_000_000,
        took_us: 1_500,
        elements: vec![CutElement { element: v4(), flows: 2, bytes_out: 60, bytes_in: 70_000 }],
    })
}

fn to_gateway() -> Vec<(ToGateway, &'static str)> {
    let welcome =
        |start| ToGateway::Welcome(Welcome { cluster: cluster(), node: "n1".to_owned(), revision: 9, start });
    let goaway = |reason| ToGateway::Goaway { reason, retry_after_ms: 5_000 };
    vec![
        (welcome(SessionStart::Resume), "0100100102030405060708090a0b0c0d0e0f10026e310900"),
        (welcome(SessionStart::Snapshot), "0100100102030405060708090a0b0c0d0e0f10026e310901"),
        (
            ToGateway::SnapshotPart { part: 0, elements: vec![v4(), v6()] },
            "0101000200080808001800012606470000000000000000000000111180010d7564702f353030302d35303130",
        ),
        (
            ToGateway::SnapshotEnd { revision: 9, digest: digest() },
            "010209fef0c7e06a35feeddbb6d0732f4953f753",
        ),
        (
            ToGateway::Change {
                change: Change {
                    revision: 10,
                    added: vec![v4()],
                    revoked: vec![v6()],
                    retired: vec![v4(), v6()],
                },
                more: true,
            },
            "01030a010008080800180001012606470000000000000000000000111180010d7564702f353030302d353031300200080808001800012606470000000000000000000000111180010d7564702f353030302d3530313001",
        ),
        (ToGateway::Heartbeat { revision: 10, digest: digest() }, "01040afef0c7e06a35feeddbb6d0732f4953f753"),
        (goaway(GoawayReason::Draining), "010500fb8813"),
        (goaway(GoawayReason::TooSlow), "010501fb8813"),
        (goaway(GoawayReason::Lagging), "010502fb8813"),
        (goaway(GoawayReason::Replaced), "010503fb8813"),
        (goaway(GoawayReason::Protocol), "010504fb8813"),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn frames_to_the_server_have_exactly_these_bytes() {
    for (frame, golden) in to_server() {
        assert_eq!(hex(&encode(&frame).unwrap()), golden, "{frame:?}");
        assert_eq!(decode::<ToServer>(&bytes(golden)).unwrap(), frame);
    }
}

#[test]
fn frames_to_the_gateway_have_exactly_these_bytes() {
    for (frame, golden) in to_gateway() {
        assert_eq!(hex(&encode(&frame).unwrap()), golden, "{frame:?}");
        assert_eq!(decode::<ToGateway>(&bytes(golden)).unwrap(), frame);
    }
}

#[test]
fn a_truncated_frame_is_an_error_at_every_length() {
    for (frame, _) in to_gateway() {
        let whole = encode(&frame).unwrap();
        for len in 0..whole.len() {
            assert!(decode::<ToGateway>(&whole[..len]).is_err(), "{len} bytes of {frame:?}");
        }
    }
}

#[test]
fn other_versions_trailing_bytes_and_oversize_are_told_apart() {
    let good = encode(&ToServer::ResyncRequest { reason: String::new() }).unwrap();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        decode::<ToServer>(&bytes).unwrap_err()
    };
    assert_eq!(decode::<ToServer>(&[]).unwrap_err(), CodecError::Empty);
    assert_eq!(with(&|bytes| bytes[0] = 2), CodecError::Version(2));
    assert_eq!(with(&|bytes| bytes.extend([0, 0])), CodecError::Trailing(2));
    assert_eq!(
        with(&|bytes| bytes.resize(MAX_FRAME_BYTES + 1, 0)),
        CodecError::TooLarge(MAX_FRAME_BYTES + 1)
    );
    assert!(matches!(with(&|bytes| bytes[1] = 200), CodecError::Malformed(_)));
    let huge = ToServer::ResyncRequest { reason: "x".repeat(MAX_FRAME_BYTES) };
    assert!(matches!(encode(&huge).unwrap_err(), CodecError::TooLarge(_)));
}

#[test]
fn a_full_frame_of_the_longest_elements_stays_below_the_limit() {
    let longest = Element::new(
        "2606:4700:ffff:ffff:ffff:ffff:ffff:ffff/128".parse().unwrap(),
        Some("udp/60000-65535".parse().unwrap()),
    );
    let frame = ToGateway::SnapshotPart { part: u32::MAX, elements: vec![longest; MAX_ELEMENTS_PER_FRAME] };
    assert!(encode(&frame).unwrap().len() <= MAX_FRAME_BYTES / 2);
}

#[test]
fn a_full_report_of_sources_stays_below_the_limit() {
    let longest = Element::new(
        "2606:4700:ffff:ffff:ffff:ffff:ffff:ffff/128".parse().unwrap(),
        Some("udp/60000-65535".parse().unwrap()),
    );
    let line = SourceDelta {
        packets_out: u64::MAX,
        bytes_out: u64::MAX,
        packets_in: u64::MAX,
        bytes_in: u64::MAX,
        ..source(Some("fd09:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), Some(longest))
    };
    let frame = ToServer::Sources(vec![line; MAX_SOURCES_PER_FRAME]);
    assert!(encode(&frame).unwrap().len() <= MAX_FRAME_BYTES / 2);
}

#[test]
fn a_length_that_promises_more_than_the_frame_holds_is_an_error() {
    // SnapshotPart 0 with 2^62 elements, then Hello with a name of 2^62 bytes.
    let endless = |tag: &[u8]| [&[1], tag, &[253, 0, 0, 0, 0, 0, 0, 0, 64]].concat();
    assert!(matches!(decode::<ToGateway>(&endless(&[1, 0])), Err(CodecError::Malformed(_))));
    assert!(matches!(decode::<ToServer>(&endless(&[0])), Err(CodecError::Malformed(_))));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), mend: bool) {
        if mend && let Some(version) = bytes.first_mut() {
            *version = 1;
        }
        let _ = decode::<ToServer>(&bytes);
        if let Ok(frame) = decode::<ToGateway>(&bytes) {
            prop_assert_eq!(decode::<ToGateway>(&encode(&frame).unwrap()).unwrap(), frame);
        }
    }

    #[test]
    fn flipped_bits_never_panic(pick in 0_usize..11, at: prop::sample::Index, bit in 0_u8..8) {
        let mut bytes = encode(&to_gateway()[pick].0).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let _ = decode::<ToGateway>(&bytes);
    }
}
