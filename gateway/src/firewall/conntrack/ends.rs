//! Flows that end, as the kernel tells of them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::firewall::FirewallError;
use crate::firewall::netlink::listener::{Heard, Listener};

use super::flow::Flow;

/// `NFNL_SUBSYS_CTNETLINK`.
const SUBSYSTEM: u16 = 1;
/// `NFNLGRP_CONNTRACK_DESTROY`.
const GROUP_DESTROY: u32 = 3;

/// The ends of all flows of one network namespace that began after this was opened; whether older ones tell is the
/// kernel's choice (`nf_conntrack_events`).
pub(in crate::firewall) struct FlowEnds(Listener);

impl FlowEnds {
    /// Listens in the calling thread's network namespace.
    pub(in crate::firewall) fn listen() -> Result<Self, FirewallError> {
        let listener = Listener::open(SUBSYSTEM, GROUP_DESTROY);
        listener.map(Self).map_err(|error| FirewallError::Failed {
            action: "listen to the ends of conntrack's flows".to_owned(),
            reason: error.to_string(),
        })
    }

    /// Hands flows that have ended to `take`, with their last counters; does not wait for one.
    pub(in crate::firewall) fn hear(&mut self, mut take: impl FnMut(Flow)) -> io::Result<Heard> {
        self.0.hear(|attributes| {
            if let Some(flow) = Flow::read(attributes) {
                take(flow);
            }
        })
    }
}

impl AsFd for FlowEnds {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
