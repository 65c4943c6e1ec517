//! Doors to what reads the answers of the ipset subsystem.

pub(in crate::firewall) use super::numbers::SUBSYSTEM;

use super::answer::{read_header, read_kind, read_members, read_name, read_protocol, read_revision};
use super::request::{Batch, Command, Listing, Request};
use crate::firewall::layout::{Family, Scope};
use crate::firewall::netlink::answer::{Answer, answers};
use crate::firewall::netlink::attribute::Attributes;

/// The protocol version of Linux 4.20 and later.
const PROTOCOL: u8 = 7;

/// The attributes of one answer.
pub fn ipset(bytes: &[u8]) {
    read(Attributes(bytes));
}

/// Reads an answer in every way; members that were read must be what the kernel is told when they are put back.
pub(in crate::firewall) fn read(attributes: Attributes<'_>) {
    let _ = (read_protocol(attributes), read_revision(attributes), read_name(attributes));
    let _ = (read_header(attributes), read_kind(attributes));
    for scope in [Scope::Prefix, Scope::Port] {
        let mut members = Vec::new();
        let _ = read_members(attributes, scope, &mut members);
        let mut batch = Batch::new(Command::Add, PROTOCOL, "og4o");
        let mut written = Vec::new();
        for (line, (member, counters)) in (1..).zip(members) {
            if !batch.has_room() {
                break;
            }
            batch.push(line, &member, Some(counters));
            written.push((member, counters));
        }
        let request = batch.finish(1);
        let (answers, _) = answers(&request, SUBSYSTEM, 1);
        let [Answer::Data(again)] = answers[..] else { unreachable!("a batch is one message: {answers:?}") };
        let mut read = Vec::new();
        assert_eq!(read_members(again, scope, &mut read), Ok(()));
        assert_eq!(read, written, "written and read again they are others");
    }
}

/// What a gateway asks when it starts.
pub(in crate::firewall) fn questions() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("protocol", Request::protocol(PROTOCOL).finish(1)),
        ("type", Request::set_type(PROTOCOL, Scope::Port, Family::V6).finish(1)),
        ("names", Request::list(PROTOCOL, None, Listing::Names).finish(1)),
        ("header", Request::list(PROTOCOL, Some("og4op"), Listing::Header).finish(1)),
        ("members-v4", Request::list(PROTOCOL, Some("og4o"), Listing::Members).finish(1)),
        ("members-v4-ports", Request::list(PROTOCOL, Some("og4op"), Listing::Members).finish(1)),
        ("members-v6", Request::list(PROTOCOL, Some("og6o"), Listing::Members).finish(1)),
        ("missing", Request::list(PROTOCOL, Some("og6op"), Listing::Members).finish(1)),
    ]
}
