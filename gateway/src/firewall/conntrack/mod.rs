//! The kernel's table of flows over netlink: what is in it, and taking flows out of it.
//!
//! [`flow`] reads one flow, [`table`] asks for them and deletes them, [`ends`] hears of those that end, [`room`] says how many
//! there may be. Source of all formats:
//! `linux/netfilter/nfnetlink_conntrack.h` and `net/netfilter/nf_conntrack_netlink.c`.

mod accounting;
mod ends;
mod flow;
#[cfg(feature = "fuzzing")]
pub(super) mod fuzzing;
mod room;
mod table;

pub(super) use accounting::switch_on_accounting;
pub(super) use ends::FlowEnds;
pub(super) use flow::Flow;
pub use room::FlowRoom;
pub(super) use table::{FlowTable, Scan};
