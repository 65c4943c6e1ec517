//! Doors to the parsers of what the kernel and iptables answer.

pub use super::chains::fuzzing::iptables;
pub use super::conntrack::fuzzing::conntrack;
pub use super::denial_log::fuzzing::{denials, denials_question};
pub use super::ipset::fuzzing::ipset;

use super::conntrack::fuzzing as flows;
use super::ipset::fuzzing as sets;
use super::netlink::NLMSG_HEADER_BYTES;
use super::netlink::answer::{Answer, answers, verdict};
use super::netlink::attribute::Attributes;

/// How deep attributes are followed; the kernel's own go four deep.
const MAX_DEPTH: u32 = 6;

/// A datagram as it comes from a netlink socket. The number it answers to is that of its first message.
pub fn netlink(datagram: &[u8]) {
    let sequence = datagram.get(8..12).and_then(<[u8]>::first_chunk).map_or(0, |n| u32::from_ne_bytes(*n));
    for subsystem in [sets::SUBSYSTEM, flows::SUBSYSTEM] {
        let (answers, _) = answers(datagram, subsystem, sequence);
        assert!(answers.len() <= datagram.len() / NLMSG_HEADER_BYTES, "more answers than there can be");
        for answer in answers {
            check(answer);
        }
    }
    check(verdict(datagram));
}

/// Questions that the gateway asks, sealed with number 1, to record real answers by.
pub fn questions() -> Vec<(&'static str, Vec<u8>)> {
    sets::questions().into_iter().chain(flows::questions()).collect()
}

fn check(answer: Answer<'_>) {
    match answer {
        Answer::Done => {}
        Answer::Refused { code, line } => {
            assert!(code != 0 && line != Some(0), "success as a refusal, or a line that no batch has");
        }
        Answer::Data(attributes) => {
            walk(attributes, MAX_DEPTH);
            sets::read(attributes);
            flows::read(attributes);
        }
    }
}

fn walk(attributes: Attributes<'_>, depth: u32) {
    let most = attributes.0.len().div_ceil(4);
    let mut count = 0;
    for attribute in attributes {
        let _ = (attribute.as_u8(), attribute.as_u16_network(), attribute.as_u32_network());
        let _ = (attribute.as_u32_native(), attribute.as_u64_network(), attribute.as_text());
        if depth > 0 {
            walk(attribute.nested(), depth - 1);
        }
        count += 1;
    }
    assert!(count <= most, "{count} attributes where {most} have room");
}
