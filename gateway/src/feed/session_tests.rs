use super::*;

const CLUSTER: Uuid = Uuid::from_u128(7);

fn element(last: u8) -> Element {
    Element::host(std::net::IpAddr::from([1, 1, 1, last]), None)
}

fn held(revision: Revision, lasts: &[u8]) -> Held {
    Held::published(CLUSTER, revision, lasts.iter().map(|last| element(*last)).collect())
}

fn welcome(revision: Revision, start: SessionStart) -> ToGateway {
    ToGateway::Welcome(Welcome { cluster: CLUSTER, node: "server-1".into(), revision, start })
}

fn added(revision: Revision, lasts: &[u8]) -> Change {
    Change { revision, added: lasts.iter().map(|last| element(*last)).collect(), ..Change::default() }
}

fn change(revision: Revision, lasts: &[u8], more: bool) -> ToGateway {
    ToGateway::Change { change: added(revision, lasts), more }
}

fn heartbeat(of: &Held) -> ToGateway {
    ToGateway::Heartbeat { revision: of.revision(), digest: of.digest() }
}

fn resumed(held: &Held) -> Session {
    let (mut session, _) = Session::begin("gw", held);
    assert_eq!(session.on_frame(held, welcome(held.revision(), SessionStart::Resume)), Step::Nothing);
    session
}

fn is_protocol(step: &Step) -> bool {
    matches!(step, Step::End(Ending::Protocol(_)))
}

#[test]
fn a_gateway_without_state_offers_none_and_takes_a_snapshot_in_parts() {
    let nothing = Held::default();
    let (mut session, hello) = Session::begin("gw", &nothing);
    assert!(matches!(hello, ToServer::Hello(Hello { state: None, .. })));
    session.on_frame(&nothing, welcome(5, SessionStart::Snapshot));
    for (part, lasts) in [(0, [1, 2]), (1, [3, 4])] {
        let elements = lasts.iter().map(|last| element(*last)).collect();
        assert_eq!(session.on_frame(&nothing, ToGateway::SnapshotPart { part, elements }), Step::Nothing);
    }
    let whole = held(5, &[1, 2, 3, 4]);
    let end = ToGateway::SnapshotEnd { revision: 5, digest: whole.digest() };
    assert!(!session.agreed());
    assert_eq!(session.on_frame(&nothing, end), Step::Replace(whole));
    assert!(session.agreed());
}

#[test]
fn a_resumed_session_goes_on_with_changes_and_agrees_at_the_heartbeat() {
    let mut ours = held(5, &[1]);
    let mut session = resumed(&ours);
    let step = session.on_frame(&ours, change(9, &[2], false));
    assert_eq!(step, Step::Apply(added(9, &[2])));
    ours.apply(&added(9, &[2]));
    let theirs = held(12, &[1, 2]);
    assert_eq!(session.on_frame(&ours, heartbeat(&theirs)), Step::Agreed(12));
}

#[test]
fn a_lost_change_is_found_at_the_heartbeat_and_mended_by_a_snapshot() {
    let ours = held(5, &[1]);
    let theirs = held(9, &[1, 2]);
    let mut session = resumed(&ours);
    let step = session.on_frame(&ours, heartbeat(&theirs));
    assert!(matches!(step, Step::Resync(ToServer::ResyncRequest { .. })), "{step:?}");
    // What was on its way before the node read our request is no fault.
    assert_eq!(session.on_frame(&ours, heartbeat(&theirs)), Step::Nothing);
    assert_eq!(session.on_frame(&ours, change(4, &[9], false)), Step::Nothing);
    session.on_frame(&ours, ToGateway::SnapshotPart { part: 0, elements: vec![element(1), element(2)] });
    let end = ToGateway::SnapshotEnd { revision: 9, digest: theirs.digest() };
    assert_eq!(session.on_frame(&ours, end), Step::Replace(theirs));
}

#[test]
fn a_node_whose_stream_never_leads_to_its_digest_is_left() {
    let ours = held(5, &[1]);
    let wrong = held(5, &[1, 2]);
    let mut session = resumed(&ours);
    for _ in 0..MAX_RESYNCS_PER_SESSION {
        assert!(matches!(session.on_frame(&ours, heartbeat(&wrong)), Step::Resync(_)));
        session.on_frame(&ours, ToGateway::SnapshotPart { part: 0, elements: vec![element(1)] });
        let end = ToGateway::SnapshotEnd { revision: 5, digest: ours.digest() };
        assert!(matches!(session.on_frame(&ours, end), Step::Replace(_)));
    }
    assert_eq!(session.on_frame(&ours, heartbeat(&wrong)), Step::End(Ending::Disagrees(5)));
}

#[test]
fn a_change_in_parts_is_applied_as_one() {
    let ours = held(5, &[1]);
    let mut session = resumed(&ours);
    assert_eq!(session.on_frame(&ours, change(6, &[2], true)), Step::Nothing);
    assert_eq!(session.on_frame(&ours, change(6, &[3], false)), Step::Apply(added(6, &[2, 3])));
}

#[test]
fn parts_of_two_changes_are_never_mixed() {
    let ours = held(5, &[1]);
    let mut session = resumed(&ours);
    session.on_frame(&ours, change(6, &[2], true));
    assert!(is_protocol(&session.on_frame(&ours, change(7, &[3], false))));
    let mut session = resumed(&ours);
    session.on_frame(&ours, change(6, &[2], true));
    assert!(is_protocol(&session.on_frame(&ours, heartbeat(&ours))));
}

#[test]
fn revisions_that_go_back_are_refused() {
    let ours = held(5, &[1]);
    assert!(is_protocol(&resumed(&ours).on_frame(&ours, change(5, &[2], false))));
    let old = held(4, &[1]);
    assert_eq!(
        resumed(&ours).on_frame(&ours, heartbeat(&old)),
        Step::End(Ending::NodeBehind { node: 4, ours: 5 })
    );
    let (mut session, _) = Session::begin("gw", &ours);
    let step = session.on_frame(&ours, welcome(4, SessionStart::Snapshot));
    assert_eq!(step, Step::End(Ending::NodeBehind { node: 4, ours: 5 }));
}

#[test]
fn another_cluster_may_send_a_lower_revision_but_only_as_a_snapshot() {
    let ours = Held::published(Uuid::from_u128(1), 500, BTreeSet::new());
    let (mut session, _) = Session::begin("gw", &ours);
    assert!(is_protocol(&session.on_frame(&ours, welcome(3, SessionStart::Resume))));
    let (mut session, _) = Session::begin("gw", &ours);
    session.on_frame(&ours, welcome(3, SessionStart::Snapshot));
    let theirs = held(3, &[]);
    let end = ToGateway::SnapshotEnd { revision: 3, digest: theirs.digest() };
    assert_eq!(session.on_frame(&ours, end), Step::Replace(theirs));
}

#[test]
fn a_snapshot_that_does_not_match_its_digest_is_never_enforced() {
    let nothing = Held::default();
    let (mut session, _) = Session::begin("gw", &nothing);
    session.on_frame(&nothing, welcome(5, SessionStart::Snapshot));
    session.on_frame(&nothing, ToGateway::SnapshotPart { part: 0, elements: vec![element(1)] });
    let end = ToGateway::SnapshotEnd { revision: 5, digest: Digest::default() };
    assert_eq!(session.on_frame(&nothing, end), Step::End(Ending::Disagrees(5)));
}

#[test]
fn frames_out_of_order_end_the_session() {
    let nothing = Held::default();
    let part = |part, lasts: &[u8]| ToGateway::SnapshotPart {
        part,
        elements: lasts.iter().map(|last| element(*last)).collect(),
    };
    for first in [change(1, &[1], false), heartbeat(&nothing), part(0, &[1])] {
        let (mut session, _) = Session::begin("gw", &nothing);
        assert!(is_protocol(&session.on_frame(&nothing, first)));
    }
    for parts in [vec![part(1, &[1])], vec![part(0, &[2, 1])], vec![part(0, &[2]), part(1, &[1])]] {
        let (mut session, _) = Session::begin("gw", &nothing);
        session.on_frame(&nothing, welcome(5, SessionStart::Snapshot));
        let last = parts.into_iter().map(|frame| session.on_frame(&nothing, frame)).last();
        assert!(is_protocol(&last.unwrap()));
    }
    let ours = held(5, &[1]);
    assert!(is_protocol(&resumed(&ours).on_frame(&ours, welcome(5, SessionStart::Resume))));
}

#[test]
fn a_prefix_with_host_bits_ends_the_session() {
    let ours = held(5, &[1]);
    let crooked = Element { prefix: "1.1.1.1/24".parse().unwrap(), ports: None };
    let change = Change { revision: 6, added: vec![crooked], ..Change::default() };
    assert!(is_protocol(&resumed(&ours).on_frame(&ours, ToGateway::Change { change, more: false })));
}

#[test]
fn goaway_ends_the_session_with_its_reason() {
    let ours = held(5, &[1]);
    let goaway = ToGateway::Goaway { reason: GoawayReason::Draining, retry_after_ms: 9 };
    assert_eq!(
        resumed(&ours).on_frame(&ours, goaway),
        Step::End(Ending::Goaway { reason: GoawayReason::Draining, retry_after_ms: 9 })
    );
}

proptest::proptest! {
    /// Whatever order frames come in, nothing panics, and only sets with a matching digest are taken over.
    #[test]
    fn frames_in_any_order_never_panic(seed in proptest::collection::vec((0_u8..6, 0_u64..6, 0_u8..6), 0..40)) {
        let mut ours = held(2, &[1]);
        let (mut session, _) = Session::begin("gw", &ours);
        for (kind, revision, last) in seed {
            let frame = match kind {
                0 => welcome(revision, if last % 2 == 0 { SessionStart::Resume } else { SessionStart::Snapshot }),
                1 => ToGateway::SnapshotPart { part: revision as u32, elements: vec![element(last)] },
                2 => ToGateway::SnapshotEnd { revision, digest: held(revision, &[last]).digest() },
                3 => change(revision, &[last], last % 2 == 0),
                4 => heartbeat(&held(revision, &[last])),
                _ => ToGateway::Goaway { reason: GoawayReason::Lagging, retry_after_ms: revision },
            };
            match session.on_frame(&ours, frame) {
                Step::Apply(change) => ours.apply(&change),
                Step::Replace(received) => ours = received,
                Step::Agreed(revision) => ours.advance(revision),
                Step::Nothing | Step::Resync(_) => {}
                Step::End(_) => break,
            }
            proptest::prop_assert_eq!(ours.digest(), Digest::of(ours.elements()));
        }
    }
}
