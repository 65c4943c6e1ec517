use super::*;
use crate::{codec, driving};

fn bytes<T: Serialize>(value: &T) -> Vec<u8> {
    codec::encode(value).unwrap()
}

fn new_entry() -> NewEntry {
    NewEntry { comment: "c".into(), ..driving::new_entry(1, "8.8.8.8") }
}

const NEW_ENTRY: &[u8] = b"\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x078.8.8.8\0\0\x01c\0\0\0\0";

#[test]
fn commands_have_these_exact_bytes() {
    let id = EntryId(Uuid::from_u128(1));
    let id_bytes = &NEW_ENTRY[..17];
    let token = Token { name: "x".to_owned(), role: Role::Admin, sha256: [9; 32], created_at_ms: 4 };
    let token_bytes = [&[1, b'x', 3][..], &[9; 32], &[4]].concat();
    assert_eq!(bytes(&Command::AddEntry(new_entry())), [&[1, 0][..], NEW_ENTRY].concat());
    assert_eq!(bytes(&Command::RemoveEntry { id }), [&[1, 1][..], id_bytes].concat());
    let update = EntryUpdate { protected: Some(true), ..EntryUpdate::default() };
    let expected = [&[1, 2][..], id_bytes, &[1, 1, 0, 0, 0, 0]].concat();
    assert_eq!(bytes(&Command::UpdateEntry { id, update }), expected);
    let resolution = ResolutionUpdate { status: NameStatus::Ok, ..ResolutionUpdate::default() };
    let domain: DomainName = "a.io".parse().unwrap();
    assert_eq!(bytes(&Command::SetResolution { domain, resolution }), b"\x01\x03\x04a.io\0\0\0\x01");
    assert_eq!(bytes(&Command::InitCluster { cluster: id.0 }), [&[1, 4][..], id_bytes].concat());
    assert_eq!(bytes(&Command::AddToken(token.clone())), [&[1, 5][..], &token_bytes].concat());
    assert_eq!(bytes(&Command::RemoveToken { name: "x".to_owned() }), [1, 6, 1, b'x']);

    let once = OnceCommand {
        key: "k".to_owned(),
        fingerprint: [7; 32],
        commands: vec![Command::RemoveToken { name: "x".to_owned() }],
    };
    let expected = [&[1, 7, 1, b'k'][..], &[7; 32], &[1, 6, 1, b'x']].concat();
    assert_eq!(bytes(&Command::Once(once.clone())), expected);
    assert_eq!(codec::decode::<Command>(&expected).unwrap(), Command::Once(once));
    let expected = [&[1, 8, 1][..], NEW_ENTRY].concat();
    assert_eq!(bytes(&Command::AddEntries(vec![new_entry()])), expected);
    let entry = new_entry().made_by("me", 5);
    let parts = vec![
        RestorePart::Entry { entry, resolution: Some(Resolution::default()) },
        RestorePart::Token(token),
    ];
    let entry_bytes = [&NEW_ENTRY[..NEW_ENTRY.len() - 1], b"\x02me\x05\0"].concat();
    let expected = [&[1, 9, 2, 0][..], &entry_bytes, &[1, 0, 0, 0, 0, 1], &token_bytes].concat();
    assert_eq!(bytes(&Command::Restore(parts.clone())), expected);
    assert_eq!(codec::decode::<Command>(&expected).unwrap(), Command::Restore(parts));
}

#[test]
fn commands_of_level_two_have_these_exact_bytes() {
    assert_eq!(bytes(&Command::RaiseFeatures(FeatureLevel(2))), [1, 10, 2]);
    let event = |action| {
        let node = NodeInfo { name: "s".to_owned(), raft_address: "h:1".to_owned() };
        Command::RecordMember(MemberEvent { action, id: 7, node })
    };
    let actions = [
        MemberAction::Adding,
        MemberAction::Added,
        MemberAction::Removing,
        MemberAction::Removed,
        MemberAction::Leads,
    ];
    for (action, number) in actions.into_iter().zip(0..) {
        let expected = [&[1, 11, number, 7, 1, b's', 3][..], b"h:1"].concat();
        assert_eq!(bytes(&event(action)), expected);
        assert_eq!(codec::decode::<Command>(&expected).unwrap(), event(action));
    }
}

#[test]
fn commands_of_level_three_have_these_exact_bytes() {
    let id = EntryId(Uuid::from_u128(1));
    let id_bytes = &NEW_ENTRY[..17];
    let change = Command::ChangeEntry { id, update: EntryUpdate::default(), expires_at_ms: Some(7) };
    let expected = [&[1, 12][..], id_bytes, &[0, 0, 0, 0, 0, 1, 7]].concat();
    assert_eq!(bytes(&change), expected);
    assert_eq!(codec::decode::<Command>(&expected).unwrap(), change);
    let expire = Command::Expire { ids: vec![id] };
    let expected = [&[1, 13, 1][..], id_bytes].concat();
    assert_eq!(bytes(&expire), expected);
    assert_eq!(codec::decode::<Command>(&expected).unwrap(), expire);
    let history = crate::history::AddressChange {
        revision: 1,
        at_ms: 2,
        added: vec!["8.8.8.8".parse().unwrap()],
        retired: vec!["::1".parse().unwrap()],
    };
    let expected = [&[1, 1, 2, 1, 0][..], &[8; 4], &[1, 1], &[0; 15], &[1]].concat();
    assert_eq!(bytes(&history), expected);
}

#[test]
fn replies_have_these_exact_bytes() {
    let id = EntryId(Uuid::from_u128(1));
    let id_bytes = &NEW_ENTRY[..17];
    assert_eq!(bytes(&Reply::Done), [1, 0]);
    assert_eq!(bytes(&Reply::Added { id, created: true }), [&[1, 1][..], id_bytes, &[1]].concat());
    assert_eq!(bytes(&Reply::Unchanged), [1, 2]);
    let name = || "x".to_owned();
    let refusals = [
        (CommandRefusal::NoSuchEntry(id), [&[0][..], id_bytes].concat()),
        (CommandRefusal::Protected(id), [&[1][..], id_bytes].concat()),
        (CommandRefusal::NoSuchToken(name()), vec![2, 1, b'x']),
        (CommandRefusal::LastAdmin(name()), vec![3, 1, b'x']),
        (CommandRefusal::IdTaken(id), [&[4][..], id_bytes].concat()),
        (CommandRefusal::TokenExists(name()), vec![5, 1, b'x']),
        (CommandRefusal::KeyReused(name()), vec![6, 1, b'x']),
    ];
    for (refusal, expected) in refusals {
        assert_eq!(bytes(&Reply::Refused(refusal)), [&[1, 3][..], &expected].concat());
    }
    let once = Reply::Once { replayed: true, at_ms: 5, revision: 6, replies: vec![Reply::Done] };
    assert_eq!(bytes(&once), [1, 4, 1, 5, 6, 1, 0]);
    assert_eq!(bytes(&Reply::AddedMany { created: 1, existing: 2, refused: 3 }), [1, 5, 1, 2, 3]);
    let restored = Reply::Restored { entries: 1, tokens: 2, skipped_tokens: vec![name()], refused: vec![id] };
    assert_eq!(bytes(&restored), [&[1, 6, 1, 2, 1, 1, b'x', 1][..], id_bytes].concat());
}

#[test]
fn a_command_counts_as_many_operations_as_it_holds() {
    let operation = |command| Operation { origin: Origin::default(), command }.weight();
    let many = Command::AddEntries(vec![new_entry(); 3]);
    assert_eq!(operation(Command::AddEntry(new_entry())), 1);
    assert_eq!(operation(many.clone()), 3);
    assert_eq!(operation(Command::AddEntries(Vec::new())), 1);
    let commands = vec![many, Command::AddEntry(new_entry())];
    let once = OnceCommand { key: "k".to_owned(), fingerprint: [0; 32], commands };
    assert_eq!(operation(Command::Once(once)), 4);
}

#[test]
fn what_came_with_level_four_has_these_exact_bytes() {
    let mixed = NameStatus::Mixed { reason: "r".to_owned() };
    let resolution = ResolutionUpdate { status: mixed, ..ResolutionUpdate::default() };
    let command = Command::SetResolution { domain: "a.io".parse().unwrap(), resolution };
    assert_eq!(command.needs(), FeatureLevel::MIXED_NAMES);
    let status = NameStatus::Mixed { reason: "r".to_owned() };
    let resolution = Some(Resolution { status, ..Resolution::default() });
    let part = RestorePart::Entry { entry: new_entry().made_by("me", 5), resolution };
    assert_eq!(Command::Restore(vec![part]).needs(), FeatureLevel::MIXED_NAMES, "restored as well");
    assert_eq!(bytes(&command), b"\x01\x03\x04a.io\0\0\0\x05\x01r");
    assert_eq!(codec::decode::<Command>(&bytes(&command)).unwrap(), command);
}
