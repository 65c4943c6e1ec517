//! The numbers of the ipset protocol that requests and answers share, and what a member counted.

use crate::firewall::layout::Family;

/// `NFNL_SUBSYS_IPSET`.
pub(in crate::firewall) const SUBSYSTEM: u16 = 6;

// `IPSET_ATTR_*` at command level.
pub(super) const ATTR_PROTOCOL: u16 = 1;
pub(super) const ATTR_SETNAME: u16 = 2;
pub(super) const ATTR_TYPENAME: u16 = 3;
pub(super) const ATTR_SETNAME2: u16 = 3;
pub(super) const ATTR_REVISION: u16 = 4;
pub(super) const ATTR_FAMILY: u16 = 5;
pub(super) const ATTR_FLAGS: u16 = 6;
pub(super) const ATTR_DATA: u16 = 7;
pub(super) const ATTR_ADT: u16 = 8;
pub(super) const ATTR_LINENO: u16 = 9;
// `IPSET_ATTR_*` inside data.
pub(super) const DATA_IP: u16 = 1;
pub(super) const DATA_CIDR: u16 = 3;
pub(super) const DATA_PORT: u16 = 4;
pub(super) const DATA_TIMEOUT: u16 = 6;
pub(super) const DATA_PROTO: u16 = 7;
pub(super) const DATA_CADT_FLAGS: u16 = 8;
pub(super) const DATA_LINENO: u16 = 9;
pub(super) const DATA_HASHSIZE: u16 = 18;
pub(super) const DATA_MAXELEM: u16 = 19;
/// `IPSET_ATTR_ELEMENTS` of a header.
pub(super) const DATA_ELEMENTS: u16 = 24;
pub(super) const DATA_BYTES: u16 = 24;
pub(super) const DATA_PACKETS: u16 = 25;
// `IPSET_ATTR_IPADDR_*`.
pub(super) const IPADDR_IPV4: u16 = 1;
pub(super) const IPADDR_IPV6: u16 = 2;
/// `IPSET_FLAG_WITH_COUNTERS`.
pub(super) const WITH_COUNTERS: u32 = 1 << 3;
/// `IPSET_FLAG_LIST_SETNAME`.
pub(super) const LIST_SETNAME: u32 = 1 << 1;
/// `IPSET_FLAG_LIST_HEADER`.
pub(super) const LIST_HEADER: u32 = 1 << 2;

/// Packets and bytes (IP length) of one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::firewall) struct Counters {
    pub(in crate::firewall) packets: u64,
    pub(in crate::firewall) bytes: u64,
}

/// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
pub(super) const fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}
