//! A session of the feed: frames in any order go through the gateway's rules, and what they lead to is compared with
//! what they said.
//!
//! Input: one byte for what is held before; then for each frame one byte of [`Mend`], its length (u16, little endian) and its
//! bytes. Nobody guesses a digest of 128 bits or an id, hence the mending.

use std::collections::BTreeSet;
use std::net::IpAddr;

use allowlist::codec::{decode, encode};
use allowlist::feed::ToGateway;
use allowlist::{Digest, Element};
use gateway::feed::session::{Ending, MAX_RESYNCS_PER_SESSION, Session, Step};
use gateway::held::Held;
use uuid::Uuid;

const CLUSTER: Uuid = Uuid::from_u128(42);

/// What is put right in a frame before the session sees it.
struct Mend(u8);

impl Mend {
    /// Digests are those of what the gateway then has.
    fn digest(&self) -> bool {
        self.0 & 1 == 0
    }

    /// The revision is the next one.
    fn revision(&self) -> bool {
        self.0 & 2 != 0
    }

    /// The cluster is the one that the gateway knows.
    fn cluster(&self) -> bool {
        self.0 & 4 == 0
    }
}

/// One session from its beginning to its end or the last frame.
pub fn follow(bytes: &[u8]) {
    let Some((&before, mut rest)) = bytes.split_first() else { return };
    let mut held = match before % 3 {
        0 => Held::default(),
        1 => Held::adopted(hosts(before / 3)),
        _ => Held::published(CLUSTER, u64::from(before), hosts(before / 3)),
    };
    let (mut session, hello) = Session::begin("gw", &held);
    assert!(encode(&hello).is_ok(), "a hello that cannot be sent");
    let mut parts: Vec<Element> = Vec::new();
    let mut resyncs = 0;
    while let Some((mend, frame)) = next_frame(&mut rest) {
        let Ok(mut frame) = decode::<ToGateway>(frame) else { return };
        put_right(&mut frame, &mend, &held, &parts);
        let shown = frame.clone();
        let was = (held.cluster(), held.revision());
        match session.on_frame(&held, frame) {
            Step::Nothing => collect(&shown, &mut parts),
            Step::Apply(change) => {
                assert!(change.revision > held.revision(), "a change leads back: {shown:?}");
                let mut wanted = held.elements().clone();
                wanted.extend(&change.added);
                for gone in change.revoked.iter().chain(&change.retired) {
                    wanted.remove(gone);
                }
                held.apply(&change);
                assert_eq!(held.elements(), &wanted, "a change was not made as it stands");
            }
            Step::Replace(received) => {
                let ToGateway::SnapshotEnd { revision, digest } = shown else {
                    unreachable!("{shown:?} replaced the set");
                };
                assert_eq!((received.revision(), received.digest()), (revision, digest));
                assert_eq!(received.elements(), &parts.drain(..).collect(), "not the set that was sent");
                assert!(session.agreed(), "a whole snapshot is an agreement");
                held = received;
            }
            Step::Agreed(revision) => {
                let ToGateway::Heartbeat { digest, .. } = shown else { unreachable!("{shown:?} agreed") };
                assert_eq!(digest, held.digest(), "agreed with a node that holds something else");
                held.advance(revision);
            }
            Step::Resync(request) => {
                assert!(encode(&request).is_ok() && !session.agreed());
                resyncs += 1;
                assert!(resyncs <= MAX_RESYNCS_PER_SESSION, "asks for snapshots without end");
                parts.clear();
            }
            Step::End(ending) => {
                assert!(!ending.to_string().is_empty());
                if let Ending::NodeBehind { node, ours } = ending {
                    assert!(node < ours, "a node that is not behind was left for being behind");
                }
                return;
            }
        }
        assert_eq!(held.digest(), Digest::of(held.elements()), "the digest is not of what is held");
        assert!(held.cluster() != was.0 || held.revision() >= was.1, "the revision went back");
        assert!(held.elements().iter().all(|element| element.prefix == element.prefix.trunc()));
    }
}

fn hosts(count: u8) -> BTreeSet<Element> {
    (0..count % 8).map(|last| Element::host(IpAddr::from([1, 1, 1, last]), None)).collect()
}

fn next_frame<'a>(rest: &mut &'a [u8]) -> Option<(Mend, &'a [u8])> {
    let ([mend, low, high], tail) = rest.split_first_chunk()?;
    let (frame, tail) = tail.split_at_checked(usize::from(u16::from_le_bytes([*low, *high])))?;
    *rest = tail;
    Some((Mend(*mend), frame))
}

fn put_right(frame: &mut ToGateway, mend: &Mend, held: &Held, parts: &[Element]) {
    let next = held.revision().saturating_add(1);
    match frame {
        ToGateway::Welcome(welcome) => {
            if mend.cluster() {
                welcome.cluster = CLUSTER;
            }
            if mend.revision() {
                welcome.revision = next;
            }
        }
        ToGateway::SnapshotEnd { revision, digest } => {
            if mend.digest() {
                *digest = Digest::of(&parts.iter().copied().collect::<BTreeSet<_>>());
            }
            if mend.revision() {
                *revision = next;
            }
        }
        ToGateway::Heartbeat { revision, digest } => {
            if mend.digest() {
                *digest = held.digest();
            }
            if mend.revision() {
                *revision = next;
            }
        }
        ToGateway::Change { change, .. } => {
            if mend.revision() {
                change.revision = next;
            }
        }
        ToGateway::SnapshotPart { .. } | ToGateway::Goaway { .. } => {}
    }
}

/// Keeps the parts of a snapshot as the session is to keep them.
fn collect(frame: &ToGateway, parts: &mut Vec<Element>) {
    if let ToGateway::SnapshotPart { part, elements } = frame {
        if *part == 0 {
            parts.clear();
        }
        parts.extend(elements);
    }
}
