//! What the cutting of flows asks of the kernel's table.

use std::io;
use std::net::IpAddr;

use crate::firewall::FirewallError;
use crate::firewall::layout::Family;
use crate::firewall::netlink::answer::Answer;
use crate::firewall::netlink::attribute::Writer;
use crate::firewall::netlink::socket::{ExchangeError, Socket, Take};
use crate::firewall::netlink::{begin, seal};

use super::flow::{Flow, ID, IP_V4_SRC, IP_V6_SRC, Key, TUPLE_IP, TUPLE_ORIG, TUPLE_REPLY, ZONE};

/// `NFNL_SUBSYS_CTNETLINK`.
pub(in crate::firewall) const SUBSYSTEM: u16 = 1;
// `IPCTNL_MSG_CT_*`.
const GET: u16 = 1;
const DELETE: u16 = 2;
/// `CTA_FILTER`, Linux 5.8; older kernels ignore it and list everything.
const FILTER: u16 = 25;
// `CTA_FILTER_*`.
const FILTER_ORIG_FLAGS: u16 = 1;
const FILTER_REPLY_FLAGS: u16 = 2;
/// `CTA_FILTER_F_CTA_IP_SRC`.
const FILTER_IP_SRC: u32 = 1;
/// How often a listing is begun anew when parts of it were lost.
const MAX_ATTEMPTS: usize = 5;

/// A connection to the flows of one network namespace.
pub(in crate::firewall) struct FlowTable {
    socket: Socket,
}

/// What to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::firewall) enum Scan {
    /// All flows of a family.
    Family(Family),
    /// Flows to one address, picked out by the kernel.
    To(IpAddr),
}

impl FlowTable {
    /// Opens a socket in the calling thread's network namespace.
    pub(in crate::firewall) fn connect() -> Result<Self, FirewallError> {
        let socket =
            Socket::open(SUBSYSTEM).map_err(|error| failed("open a netlink socket to conntrack", &error))?;
        Ok(Self { socket })
    }

    /// The flows that `wanted` says yes to. One that ends or begins meanwhile may be missing.
    pub(in crate::firewall) fn list(
        &mut self,
        scan: Scan,
        mut wanted: impl FnMut(&Flow) -> bool,
    ) -> Result<Vec<Flow>, FirewallError> {
        let mut attempt = 1;
        loop {
            let mut flows = Vec::new();
            let mut refused = None;
            let listed = self.socket.exchange(
                |sequence| listing(scan, sequence),
                |answer| match answer {
                    Answer::Done => Take::Last,
                    Answer::Refused { code, .. } => {
                        refused = Some(code);
                        Take::Last
                    }
                    Answer::Data(attributes) => {
                        flows.extend(Flow::read(attributes).filter(|flow| wanted(flow)));
                        Take::More
                    }
                },
            );
            let action = "list flows of conntrack";
            match (listed, refused) {
                (Ok(()), None) => return Ok(flows),
                (Ok(()), Some(code)) => return Err(failed(action, &io::Error::from_raw_os_error(code))),
                (Err(ExchangeError::Lost(_)), _) if attempt < MAX_ATTEMPTS => attempt += 1,
                (Err(ExchangeError::Lost(error) | ExchangeError::Socket(error)), _) => {
                    return Err(failed(action, &error));
                }
            }
        }
    }

    /// Deletes one flow. False when it had ended already.
    pub(in crate::firewall) fn delete(&mut self, flow: &Flow) -> Result<bool, FirewallError> {
        let mut refused = None;
        let deleted = self.socket.exchange(
            |sequence| deletion(flow, sequence),
            |answer| {
                if let Answer::Refused { code, .. } = answer {
                    refused = Some(code);
                }
                Take::Last
            },
        );
        let action = "delete a flow from conntrack";
        match (deleted, refused) {
            (Ok(()), None) => Ok(true),
            (Ok(()), Some(libc::ENOENT)) => Ok(false),
            (Ok(()), Some(code)) => Err(failed(action, &io::Error::from_raw_os_error(code))),
            (Err(ExchangeError::Lost(error) | ExchangeError::Socket(error)), _) => {
                Err(failed(action, &error))
            }
        }
    }
}

pub(super) fn listing(scan: Scan, sequence: u32) -> Vec<u8> {
    let family = match scan {
        Scan::Family(Family::V4) | Scan::To(IpAddr::V4(_)) => libc::AF_INET,
        Scan::Family(Family::V6) | Scan::To(IpAddr::V6(_)) => libc::AF_INET6,
    };
    let mut message = begin(SUBSYSTEM, GET, libc::NLM_F_DUMP, family as u8);
    if let Scan::To(address) = scan {
        let mut writer = Writer(&mut message);
        // Where a flow really goes is the source of its replies.
        let tuple = writer.open(TUPLE_REPLY);
        let ip = writer.open(TUPLE_IP);
        match address {
            IpAddr::V4(address) => writer.bytes(IP_V4_SRC, &address.octets()),
            IpAddr::V6(address) => writer.bytes(IP_V6_SRC, &address.octets()),
        }
        writer.close(ip);
        writer.close(tuple);
        let filter = writer.open(FILTER);
        writer.u32_native(FILTER_ORIG_FLAGS, 0);
        writer.u32_native(FILTER_REPLY_FLAGS, FILTER_IP_SRC);
        writer.close(filter);
    }
    seal(message, sequence)
}

pub(super) fn deletion(flow: &Flow, sequence: u32) -> Vec<u8> {
    let family = if flow.source.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let Key { tuple, id, zone } = &flow.key;
    let mut message = begin(SUBSYSTEM, DELETE, libc::NLM_F_ACK, family as u8);
    let mut writer = Writer(&mut message);
    writer.bytes(TUPLE_ORIG | (1 << 15), tuple);
    writer.bytes(ID, id);
    if let Some(zone) = zone {
        writer.bytes(ZONE, zone);
    }
    seal(message, sequence)
}

fn failed(action: &str, error: &io::Error) -> FirewallError {
    FirewallError::Failed { action: action.to_owned(), reason: error.to_string() }
}
