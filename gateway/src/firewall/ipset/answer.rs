//! What the ipset subsystem answers. Whatever arrives, reading it ends and does not panic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::numbers::*;
use crate::firewall::layout::{Member, Scope, Service};
use crate::firewall::netlink::attribute::{Attribute, Attributes};

/// The highest version of an answer to `Request::protocol`.
pub(super) fn read_protocol(attributes: Attributes<'_>) -> Option<u8> {
    attributes.find(ATTR_PROTOCOL)?.as_u8()
}

/// The highest revision of an answer to `Request::set_type`.
pub(super) fn read_revision(attributes: Attributes<'_>) -> Option<u8> {
    attributes.find(ATTR_REVISION)?.as_u8()
}

/// The name of a listed set.
pub(super) fn read_name(attributes: Attributes<'_>) -> Option<&str> {
    attributes.find(ATTR_SETNAME)?.as_text()
}

/// Type name and family number of an answer to `Request::kind`.
pub(super) fn read_kind(attributes: Attributes<'_>) -> Option<(&str, u8)> {
    Some((attributes.find(ATTR_TYPENAME)?.as_text()?, attributes.find(ATTR_FAMILY)?.as_u8()?))
}

/// Type name, family number, capacity, number of members (if the kernel tells) and whether it counts, of a listed set's
/// first message.
pub(super) fn read_header(attributes: Attributes<'_>) -> Option<(&str, u8, u32, Option<u32>, bool)> {
    let kind = attributes.find(ATTR_TYPENAME)?.as_text()?;
    let family = attributes.find(ATTR_FAMILY)?.as_u8()?;
    let data = attributes.find(ATTR_DATA)?.nested();
    let capacity = data.find(DATA_MAXELEM)?.as_u32_network()?;
    let flags = data.find(DATA_CADT_FLAGS).and_then(|flags| flags.as_u32_network()).unwrap_or(0);
    let members = data.find(DATA_ELEMENTS).and_then(|members| members.as_u32_network());
    Some((kind, family, capacity, members, flags & WITH_COUNTERS != 0))
}

/// The members in one message of a listing.
///
/// # Errors
/// What could not be read.
pub(super) fn read_members(
    attributes: Attributes<'_>,
    scope: Scope,
    into: &mut Vec<(Member, Counters)>,
) -> Result<(), &'static str> {
    let Some(list) = attributes.find(ATTR_ADT) else { return Ok(()) };
    for data in list.nested().filter(|attribute| attribute.kind == ATTR_DATA) {
        into.push(read_member(&data, scope)?);
    }
    Ok(())
}

fn read_member(data: &Attribute<'_>, scope: Scope) -> Result<(Member, Counters), &'static str> {
    let (mut address, mut length, mut port, mut protocol) = (None, None, None, None);
    let mut counters = Counters::default();
    for attribute in data.nested() {
        match attribute.kind {
            DATA_IP => address = read_address(attribute.nested()),
            DATA_CIDR => length = attribute.as_u8(),
            DATA_PORT => port = attribute.as_u16_network(),
            DATA_PROTO => protocol = attribute.as_u8(),
            DATA_PACKETS => counters.packets = attribute.as_u64_network().ok_or("packets are cut short")?,
            DATA_BYTES => counters.bytes = attribute.as_u64_network().ok_or("bytes are cut short")?,
            _ => {}
        }
    }
    let address = address.ok_or("an element without an address")?;
    let length = length.unwrap_or(if address.is_ipv4() { 32 } else { 128 });
    let prefix = IpNet::new(address, length).map_err(|_| "a prefix length out of range")?.trunc();
    let service = match scope {
        Scope::Prefix => None,
        Scope::Port => Some(Service {
            protocol: protocol.ok_or("an element without a protocol")?,
            port: port.ok_or("an element without a port")?,
        }),
    };
    Ok((Member { prefix, service }, counters))
}

fn read_address(mut attributes: Attributes<'_>) -> Option<IpAddr> {
    let attribute = attributes.next()?;
    match attribute.kind {
        IPADDR_IPV4 => attribute.value.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets).into()),
        IPADDR_IPV6 => attribute.value.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::request::{Batch, Command};
    use super::*;
    use crate::firewall::netlink::HEADERS_BYTES;
    use crate::firewall::netlink::answer::{Answer, answers, verdict};

    fn member(prefix: &str, service: Option<(u8, u16)>) -> Member {
        let service = service.map(|(protocol, port)| Service { protocol, port });
        Member { prefix: prefix.parse().unwrap(), service }
    }

    #[test]
    fn a_batch_reads_back_as_the_members_it_was_made_of() {
        let wanted = [
            (member("8.8.8.0/24", Some((6, 443))), Counters { packets: 3, bytes: 1 << 40 }),
            (member("2a01:4f8::/32", Some((17, 53))), Counters::default()),
        ];
        let mut batch = Batch::new(Command::Add, 7, "og4op");
        for (line, (member, counters)) in (1..).zip(&wanted) {
            batch.push(line, member, Some(*counters));
        }
        let bytes = batch.finish(42);
        let (answers, interrupted) = answers(&bytes, SUBSYSTEM, 42);
        assert!(!interrupted);
        let [Answer::Data(attributes)] = answers[..] else { panic!("{answers:?}") };
        assert_eq!(read_name(attributes), Some("og4op"));
        let mut read = Vec::new();
        read_members(attributes, Scope::Port, &mut read).unwrap();
        assert_eq!(read, wanted);
        assert!(super::tests::answers(&bytes, SUBSYSTEM, 41).0.is_empty());
    }

    #[test]
    fn a_full_batch_fits_a_nest_and_its_error_names_the_line() {
        let mut batch = Batch::new(Command::Add, 7, "og6op");
        let mut line = 0;
        while batch.has_room() {
            line += 1;
            batch.push(line, &member("2a01:4f8::1/128", Some((6, 1))), Some(Counters::default()));
        }
        assert!(line > 500);
        let mut request = batch.finish(1);
        assert!(request.len() < usize::from(u16::MAX));
        // The kernel answers with the request, the line number written over the outer zero.
        let at = HEADERS_BYTES + 8 + 12 + 4;
        request[at..at + 4].copy_from_slice(&line.to_ne_bytes());
        let mut payload = (-4352i32).to_ne_bytes().to_vec();
        payload.extend_from_slice(&request);
        let Answer::Refused { code, line: struck } = verdict(&payload) else { panic!() };
        assert_eq!((code, struck), (4352, Some(line)));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), honest: bool) {
            if honest && bytes.len() > 20 {
                let length = bytes.len() as u32;
                bytes[0..4].copy_from_slice(&length.to_ne_bytes());
                bytes[5] = SUBSYSTEM as u8;
                bytes[8..12].copy_from_slice(&7u32.to_ne_bytes());
            }
            for answer in answers(&bytes, SUBSYSTEM, 7).0 {
                if let Answer::Data(attributes) = answer {
                    let mut members = Vec::new();
                    let _ = read_members(attributes, Scope::Port, &mut members);
                    let _ = (read_header(attributes), read_name(attributes), read_revision(attributes));
                }
            }
            let _ = verdict(&bytes);
        }

        #[test]
        fn a_damaged_batch_never_panics(at in 0usize..200, value: u8) {
            let mut batch = Batch::new(Command::Add, 7, "og4op");
            batch.push(1, &member("8.8.8.8/32", Some((6, 443))), Some(Counters::default()));
            let mut bytes = batch.finish(7);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            for answer in answers(&bytes, SUBSYSTEM, 7).0 {
                if let Answer::Data(attributes) = answer {
                    let _ = read_members(attributes, Scope::Port, &mut Vec::new());
                }
            }
        }
    }
}
