//! Requests to the ipset subsystem.

use std::net::IpAddr;

use super::numbers::*;
use crate::firewall::layout::{Family, Member, Scope, Service};
use crate::firewall::netlink::attribute::{Nest, Writer};
use crate::firewall::netlink::{begin, seal};

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
    Test = 11,
    Header = 12,
    Type = 13,
}

/// What a dump lists of each set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listing {
    Names,
    Header,
    Members,
}

/// The size of a set's table.
#[derive(Debug, Clone, Copy)]
pub(super) struct TableShape {
    /// Buckets.
    pub(super) width: u32,
    /// Members.
    pub(super) capacity: u32,
    /// How long a member stays, seconds; `None` for ever.
    pub(super) lifetime: Option<u32>,
}

/// A request in the making; [`Self::finish`] seals it.
pub(super) struct Request {
    buffer: Vec<u8>,
}

impl Request {
    fn new(command: Command, flags: i32, family: u8, protocol: u8) -> Self {
        let buffer = begin(SUBSYSTEM, command as u16, flags | libc::NLM_F_ACK, family);
        let mut request = Self { buffer };
        request.writer().u8(ATTR_PROTOCOL, protocol);
        request
    }

    fn writer(&mut self) -> Writer<'_> {
        Writer(&mut self.buffer)
    }

    /// The bytes to send, numbered `sequence`.
    pub(super) fn finish(self, sequence: u32) -> Vec<u8> {
        seal(self.buffer, sequence)
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
        shape: TableShape,
    ) -> Self {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut request = Self::new(Command::Create, flags, nfproto(family), protocol);
        let mut writer = request.writer();
        writer.text(ATTR_SETNAME, name);
        writer.text(ATTR_TYPENAME, scope.kernel_type());
        writer.u8(ATTR_REVISION, revision);
        writer.u8(ATTR_FAMILY, nfproto(family));
        let data = writer.open(ATTR_DATA);
        writer.network(DATA_HASHSIZE, &shape.width.to_be_bytes());
        writer.network(DATA_MAXELEM, &shape.capacity.to_be_bytes());
        if let Some(lifetime) = shape.lifetime {
            writer.network(DATA_TIMEOUT, &lifetime.to_be_bytes());
        }
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

    /// Is an address (with its port) in a set, by itself or in a prefix?
    pub(super) fn test(protocol: u8, name: &str, member: &Member) -> Self {
        let mut request = Self::new(Command::Test, 0, libc::AF_INET as u8, protocol);
        let mut writer = request.writer();
        writer.text(ATTR_SETNAME, name);
        let data = writer.open(ATTR_DATA);
        write_member(&mut writer, member);
        writer.close(data);
        request
    }

    /// What is a set? Unlike a listing of its header, the kernel counts no members for the answer.
    pub(super) fn kind(protocol: u8, name: &str) -> Self {
        let mut request = Self::new(Command::Header, 0, libc::AF_INET as u8, protocol);
        request.writer().text(ATTR_SETNAME, name);
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
        write_member(&mut writer, member);
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

fn write_member(writer: &mut Writer<'_>, member: &Member) {
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
}
