//! Doors to what reads the table of flows.

pub(in crate::firewall) use super::table::SUBSYSTEM;

use super::flow::{Flow, ID, TUPLE_ORIG, ZONE};
use super::table::{Scan, deletion, listing};
use crate::firewall::layout::Family;
use crate::firewall::netlink::HEADERS_BYTES;
use crate::firewall::netlink::attribute::Attributes;

/// The attributes of one flow.
pub fn conntrack(bytes: &[u8]) {
    read(Attributes(bytes));
}

/// Reads a flow; the deletion of one that was read must name exactly that one.
pub(in crate::firewall) fn read(attributes: Attributes<'_>) {
    let Some(flow) = Flow::read(attributes) else { return };
    let message = deletion(&flow, 1);
    let named = Attributes(message.get(HEADERS_BYTES..).unwrap_or_default());
    let value = |attributes: Attributes<'_>, kind| attributes.find(kind).map(|found| found.value.to_vec());
    for kind in [TUPLE_ORIG, ID, ZONE] {
        assert_eq!(value(named, kind), value(attributes, kind), "another flow would be deleted");
    }
}

/// What a gateway asks when it cuts flows.
pub(in crate::firewall) fn questions() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("flows-v4", listing(Scan::Family(Family::V4), 1)),
        ("flows-v6", listing(Scan::Family(Family::V6), 1)),
        ("flows-to", listing(Scan::To([127, 0, 0, 1].into()), 1)),
    ]
}
