//! Requests to the ipset subsystem and the answers to them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::attribute::{Attribute, Attributes, Nest, Writer};
use crate::firewall::layout::{Family, Member, Scope, Service};

/// `NFNL_SUBSYS_IPSET`.
const SUBSYSTEM: u16 = 6;
/// `nlmsghdr` and `nfgenmsg`.
const HEADERS_BYTES: usize = NLMSG_HEADER_BYTES + 4;
const NLMSG_HEADER_BYTES: usize = 16;
/// Nests carry their length in 16 bits, hence a batch of elements ends below 64 KiB.
const MAX_BATCH_BYTES: usize = 65_000;
/// More than an element with counters takes (v6: 120 bytes).
const MAX_ELEMENT_BYTES: usize = 160;

/// `IPSET_CMD_*`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Command {
    Protocol = 1,
    Create = 2,
    Destroy = 3,
    Swap = 6,
    List = 7,
    Add = 9,
    Delete = 10,
    Type = 13,
}

// `IPSET_ATTR_*` at command level.
const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
const ATTR_TYPENAME: u16 = 3;
const ATTR_SETNAME2: u16 = 3;
const ATTR_REVISION: u16 = 4;
const ATTR_FAMILY: u16 = 5;
const ATTR_FLAGS: u16 = 6;
const ATTR_DATA: u16 = 7;
const ATTR_ADT: u16 = 8;
const ATTR_LINENO: u16 = 9;
// `IPSET_ATTR_*` inside data.
const DATA_IP: u16 = 1;
const DATA_CIDR: u16 = 3;
const DATA_PORT: u16 = 4;
const DATA_PROTO: u16 = 7;
const DATA_CADT_FLAGS: u16 = 8;
const DATA_LINENO: u16 = 9;
const DATA_HASHSIZE: u16 = 18;
const DATA_MAXELEM: u16 = 19;
const DATA_BYTES: u16 = 24;
const DATA_PACKETS: u16 = 25;
// `IPSET_ATTR_IPADDR_*`.
const IPADDR_IPV4: u16 = 1;
const IPADDR_IPV6: u16 = 2;
/// `IPSET_FLAG_WITH_COUNTERS`.
const WITH_COUNTERS: u32 = 1 << 3;
/// `IPSET_FLAG_LIST_SETNAME`.
const LIST_SETNAME: u32 = 1 << 1;
/// `IPSET_FLAG_LIST_HEADER`.
const LIST_HEADER: u32 = 1 << 2;

/// What a dump lists of each set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listing {
    Names,
    Header,
    Members,
}

/// Packets and bytes (IP length) of one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::firewall) struct Counters {
    pub(in crate::firewall) packets: u64,
    pub(in crate::firewall) bytes: u64,
}

/// A request in the making; [`Self::finish`] seals it.
pub(super) struct Request {
    buffer: Vec<u8>,
}

impl Request {
    fn new(command: Command, flags: i32, family: u8, protocol: u8) -> Self {
        let mut buffer = Vec::with_capacity(256);
        let kind = (SUBSYSTEM << 8) | command as u16;
        let flags = (flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        buffer.extend_from_slice(&[0; 4]);
        buffer.extend_from_slice(&kind.to_ne_bytes());
        buffer.extend_from_slice(&flags.to_ne_bytes());
        buffer.extend_from_slice(&[0; 8]);
        buffer.extend_from_slice(&[family, 0, 0, 0]);
        let mut request = Self { buffer };
        request.writer().u8(ATTR_PROTOCOL, protocol);
        request
    }

    fn writer(&mut self) -> Writer<'_> {
        Writer(&mut self.buffer)
    }

    /// The bytes to send, numbered `sequence`.
    pub(super) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.buffer.len()).unwrap_or(u32::MAX);
        self.buffer[0..4].copy_from_slice(&length.to_ne_bytes());
        self.buffer[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.buffer
    }

    /// Which protocol versions does the kernel speak?
    pub(super) fn protocol(ours: u8) -> Self {
        Self::new(Command::Protocol, 0, libc::AF_INET as u8, ours)
    }

    /// Which revisions of a set type does the kernel have? Loads the type's module.
    pub(super) fn set_type(protocol: u8, scope: Scope, family: Family) -> Self {
        let mut request = Self::new(Command::Type, 0, nfproto(family), protocol);
        request.writer().text(ATTR_TYPENAME, scope.kernel_type());
        request.writer().u8(ATTR_FAMILY, nfproto(family));
        request
    }

    /// Makes a set with counters.
    pub(super) fn create(
        protocol: u8,
        name: &str,
        scope: Scope,
        family: Family,
        revision: u8,
        size: u32,
    ) -> Self {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut request = Self::new(Command::Create, flags, nfproto(family), protocol);
        let mut writer = request.writer();
        writer.text(ATTR_SETNAME, name);
        writer.text(ATTR_TYPENAME, scope.kernel_type());
        writer.u8(ATTR_REVISION, revision);
        writer.u8(ATTR_FAMILY, nfproto(family));
        let data = writer.open(ATTR_DATA);
        writer.network(DATA_HASHSIZE, &size.to_be_bytes());
        writer.network(DATA_MAXELEM, &size.to_be_bytes());
        writer.network(DATA_CADT_FLAGS, &WITH_COUNTERS.to_be_bytes());
        writer.close(data);
        request
    }

    pub(super) fn destroy(protocol: u8, name: &str) -> Self {
        // EXCL: say so when there is none.
        let mut request = Self::new(Command::Destroy, libc::NLM_F_EXCL, libc::AF_INET as u8, protocol);
        request.writer().text(ATTR_SETNAME, name);
        request
    }

    pub(super) fn swap(protocol: u8, first: &str, second: &str) -> Self {
        let mut request = Self::new(Command::Swap, 0, libc::AF_INET as u8, protocol);
        request.writer().text(ATTR_SETNAME, first);
        request.writer().text(ATTR_SETNAME2, second);
        request
    }

    /// Lists one set or all.
    pub(super) fn list(protocol: u8, name: Option<&str>, listing: Listing) -> Self {
        let mut request = Self::new(Command::List, libc::NLM_F_DUMP, libc::AF_INET as u8, protocol);
        let mut writer = request.writer();
        if let Some(name) = name {
            writer.text(ATTR_SETNAME, name);
        }
        let flags = match listing {
            Listing::Names => LIST_SETNAME,
            Listing::Header => LIST_HEADER,
            Listing::Members => return request,
        };
        writer.network(ATTR_FLAGS, &flags.to_be_bytes());
        request
    }
}

/// A batch of members to add to or delete from one set; each has a line number, which the kernel names on failure.
pub(super) struct Batch {
    request: Request,
    nest: Nest,
}

impl Batch {
    /// Without `NLM_F_EXCL`: adding what is there and deleting what is not are no errors.
    pub(super) fn new(command: Command, protocol: u8, name: &str) -> Self {
        let mut request = Request::new(command, 0, libc::AF_INET as u8, protocol);
        let mut writer = request.writer();
        writer.text(ATTR_SETNAME, name);
        writer.u32_native(ATTR_LINENO, 0);
        let nest = writer.open(ATTR_ADT);
        Self { request, nest }
    }

    pub(super) fn has_room(&self) -> bool {
        self.request.buffer.len() + MAX_ELEMENT_BYTES <= MAX_BATCH_BYTES
    }

    /// `line` is not 0.
    pub(super) fn push(&mut self, line: u32, member: &Member, counters: Option<Counters>) {
        let mut writer = self.request.writer();
        let data = writer.open(ATTR_DATA);
        let ip = writer.open(DATA_IP);
        match member.prefix.addr() {
            IpAddr::V4(address) => writer.network(IPADDR_IPV4, &address.octets()),
            IpAddr::V6(address) => writer.network(IPADDR_IPV6, &address.octets()),
        }
        writer.close(ip);
        writer.u8(DATA_CIDR, member.prefix.prefix_len());
        if let Some(Service { protocol, port }) = member.service {
            writer.network(DATA_PORT, &port.to_be_bytes());
            writer.u8(DATA_PROTO, protocol);
        }
        if let Some(Counters { packets, bytes }) = counters {
            writer.network(DATA_PACKETS, &packets.to_be_bytes());
            writer.network(DATA_BYTES, &bytes.to_be_bytes());
        }
        writer.u32_native(DATA_LINENO, line);
        writer.close(data);
    }

    pub(super) fn finish(mut self, sequence: u32) -> Vec<u8> {
        self.request.writer().close(self.nest);
        self.request.finish(sequence)
    }
}

/// One message of an answer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Answer<'a> {
    /// End of a dump, or success.
    Done,
    /// Positive error code, and the line of the batch it struck.
    Refused { code: i32, line: Option<u32> },
    /// Attributes of the ipset subsystem.
    Data(Attributes<'a>),
}

/// Parts a datagram into the answers to `sequence`. Messages for others and of other subsystems are left out; a message
/// that does not fit ends it. The flag says that the dump was interrupted by a change.
pub(super) fn answers(datagram: &[u8], sequence: u32) -> (Vec<Answer<'_>>, bool) {
    let mut rest = datagram;
    let mut answers = Vec::new();
    let mut interrupted = false;
    while let Some(header) = rest.first_chunk::<NLMSG_HEADER_BYTES>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let flags = u16::from_ne_bytes([header[6], header[7]]);
        let number = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let Some(payload) = rest.get(NLMSG_HEADER_BYTES..length) else { break };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        if number != sequence {
            continue;
        }
        interrupted |= flags & libc::NLM_F_DUMP_INTR as u16 != 0;
        if kind == libc::NLMSG_ERROR as u16 || kind == libc::NLMSG_DONE as u16 {
            answers.push(verdict(payload));
        } else if kind >> 8 == SUBSYSTEM {
            answers.push(Answer::Data(Attributes(payload.get(4..).unwrap_or_default())));
        }
    }
    (answers, interrupted)
}

/// Reads an error or end message: a code and, in an error that struck a batch, the request with the line filled in.
fn verdict(payload: &[u8]) -> Answer<'_> {
    let code = payload.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    if code == 0 {
        return Answer::Done;
    }
    let request = payload.get(4 + HEADERS_BYTES..).unwrap_or_default();
    let line = Attributes(request).find(ATTR_LINENO).and_then(|line| line.as_u32_native());
    Answer::Refused { code: code.saturating_neg(), line: line.filter(|line| *line != 0) }
}

/// The highest version of an answer to [`Request::protocol`].
pub(super) fn read_protocol(attributes: Attributes<'_>) -> Option<u8> {
    attributes.find(ATTR_PROTOCOL)?.as_u8()
}

/// The highest revision of an answer to [`Request::set_type`].
pub(super) fn read_revision(attributes: Attributes<'_>) -> Option<u8> {
    attributes.find(ATTR_REVISION)?.as_u8()
}

/// The name of a listed set.
pub(super) fn read_name(attributes: Attributes<'_>) -> Option<&str> {
    attributes.find(ATTR_SETNAME)?.as_text()
}

/// Type name, family number, capacity and whether it counts, of a listed set's first message.
pub(super) fn read_header(attributes: Attributes<'_>) -> Option<(&str, u8, u32, bool)> {
    let kind = attributes.find(ATTR_TYPENAME)?.as_text()?;
    let family = attributes.find(ATTR_FAMILY)?.as_u8()?;
    let data = attributes.find(ATTR_DATA)?.nested();
    let capacity = data.find(DATA_MAXELEM)?.as_u32_network()?;
    let flags = data.find(DATA_CADT_FLAGS).and_then(|flags| flags.as_u32_network()).unwrap_or(0);
    Some((kind, family, capacity, flags & WITH_COUNTERS != 0))
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

/// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
pub(super) const fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
        let (answers, interrupted) = answers(&bytes, 42);
        assert!(!interrupted);
        let [Answer::Data(attributes)] = answers[..] else { panic!("{answers:?}") };
        assert_eq!(read_name(attributes), Some("og4op"));
        let mut read = Vec::new();
        read_members(attributes, Scope::Port, &mut read).unwrap();
        assert_eq!(read, wanted);
        assert!(super::answers(&bytes, 41).0.is_empty());
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
            for answer in answers(&bytes, 7).0 {
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
            for answer in answers(&bytes, 7).0 {
                if let Answer::Data(attributes) = answer {
                    let _ = read_members(attributes, Scope::Port, &mut Vec::new());
                }
            }
        }
    }
}
