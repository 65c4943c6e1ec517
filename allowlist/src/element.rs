//! One thing a gateway lets through: a prefix, with all ports or one range of ports.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ports::PortRange;

/// A prefix (host bits zero; an address is a /32 or /128) and one range of ports, or every port.
///
/// An entry with several port ranges becomes several elements. Order: prefix, then ports; it is the order of
/// plans, snapshots and digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "Received")]
pub struct Element {
    /// The destination prefix, host bits zero.
    pub prefix: IpNet,
    /// The ports of it, `None` for every protocol and port.
    pub ports: Option<PortRange>,
}

/// An element as it comes from elsewhere, where host bits may be set.
#[derive(Deserialize)]
#[serde(rename = "Element")]
struct Received {
    prefix: IpNet,
    ports: Option<PortRange>,
}

impl From<Received> for Element {
    fn from(received: Received) -> Self {
        Self::new(received.prefix, received.ports)
    }
}

impl Element {
    /// An element for `prefix`, truncated to its network so that two spellings cannot differ.
    pub fn new(prefix: IpNet, ports: Option<PortRange>) -> Self {
        Self { prefix: prefix.trunc(), ports }
    }

    /// An element for a single address.
    pub fn host(address: IpAddr, ports: Option<PortRange>) -> Self {
        Self { prefix: IpNet::from(address), ports }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ports {
            None => write!(f, "{}", self.prefix),
            Some(ports) => write!(f, "{} {}", self.prefix, ports),
        }
    }
}
