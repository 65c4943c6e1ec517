//! Port restrictions of an entry: `tcp/443`, `udp/5000-5010`, or nothing for every protocol and port.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most ports one entry may name, counted after ranges are spread out. A gateway's kernel set holds one element
/// for each port and prefix, so this bounds what one entry can cost.
pub const MAX_PORTS_PER_ENTRY: usize = 1024;

/// Transport protocols a port restriction can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP, IP protocol 6.
    Tcp,
    /// UDP, IP protocol 17.
    Udp,
}

impl Protocol {
    /// The IP protocol number (IANA protocol-numbers registry).
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// An inclusive range of ports of one protocol; `first == last` for a single port. Written `tcp/443` or
/// `udp/5000-5010`, also on the wire and on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    protocol: Protocol,
    first: u16,
    last: u16,
}

impl PortRange {
    /// A range from `first` to `last`, both included.
    ///
    /// # Errors
    /// [`PortsError`] when `first` is 0 or greater than `last`.
    pub fn new(protocol: Protocol, first: u16, last: u16) -> Result<Self, PortsError> {
        if first == 0 || first > last {
            return Err(PortsError::Range(format!("{protocol}/{first}-{last}")));
        }
        Ok(Self { protocol, first, last })
    }

    /// The protocol the range belongs to.
    pub const fn protocol(self) -> Protocol {
        self.protocol
    }

    /// The lowest port.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    pub const fn last(self) -> u16 {
        self.last
    }

    /// True when a packet of this IP protocol number to this port is within the range.
    pub fn contains(self, protocol: u8, port: u16) -> bool {
        self.protocol().number() == protocol && (self.first()..=self.last()).contains(&port)
    }

    /// How many ports the range holds, 1 to 65,535.
    pub const fn count(self) -> usize {
        (self.last - self.first) as usize + 1
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}/{}", self.protocol, self.first)
        } else {
            write!(f, "{}/{}-{}", self.protocol, self.first, self.last)
        }
    }
}

impl FromStr for PortRange {
    type Err = PortsError;

    fn from_str(text: &str) -> Result<Self, PortsError> {
        let malformed = || PortsError::Malformed(text.chars().take(64).collect());
        let (protocol, ports) = text.trim().split_once('/').ok_or_else(malformed)?;
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(malformed()),
        };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let number = |part: &str| -> Result<u16, PortsError> {
            if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(malformed());
            }
            part.parse().map_err(|_| malformed())
        };
        Self::new(protocol, number(first)?, number(last)?)
    }
}

impl TryFrom<String> for PortRange {
    type Error = PortsError;

    fn try_from(text: String) -> Result<Self, PortsError> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

/// What an entry restricts its target to. Empty means every protocol and port. Kept sorted, with overlapping
/// and touching ranges joined, so that equal restrictions compare equal: with the target it is an entry's natural key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<PortRange>", into = "Vec<PortRange>")]
pub struct Ports(Option<Box<[PortRange]>>);

impl Ports {
    /// No restriction.
    pub const fn all() -> Self {
        Self(None)
    }

    /// Sorts and joins `ranges`. An empty list means no restriction.
    ///
    /// # Errors
    /// [`PortsError::TooMany`] beyond [`MAX_PORTS_PER_ENTRY`] ports.
    pub fn new(mut ranges: Vec<PortRange>) -> Result<Self, PortsError> {
        ranges.sort_unstable();
        let mut joined: Vec<PortRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(last)
                    if last.protocol == range.protocol
                        && u32::from(range.first) <= u32::from(last.last) + 1 =>
                {
                    last.last = last.last.max(range.last);
                }
                _ => joined.push(range),
            }
        }
        let count: usize = joined.iter().map(|range| range.count()).sum();
        if count > MAX_PORTS_PER_ENTRY {
            return Err(PortsError::TooMany(count));
        }
        Ok(Self((!joined.is_empty()).then(|| joined.into_boxed_slice())))
    }

    /// True when every protocol and port is meant.
    pub fn is_all(&self) -> bool {
        self.0.is_none()
    }

    /// The ranges, sorted and disjoint; empty when every port is meant.
    pub fn ranges(&self) -> &[PortRange] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl TryFrom<Vec<PortRange>> for Ports {
    type Error = PortsError;

    fn try_from(ranges: Vec<PortRange>) -> Result<Self, PortsError> {
        Self::new(ranges)
    }
}

impl From<Ports> for Vec<PortRange> {
    fn from(ports: Ports) -> Self {
        ports.0.map(Vec::from).unwrap_or_default()
    }
}

/// Why a port restriction was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortsError {
    /// Not of the form `tcp/443` or `udp/5000-5010`.
    #[error("`{0}` is not a port restriction; write tcp/443 or udp/5000-5010")]
    Malformed(String),
    /// Port 0, or a range that ends before it begins.
    #[error("`{0}` is not a range of ports between 1 and 65535, lowest first")]
    Range(String),
    /// More ports than one entry may name.
    #[error(
        "{0} ports in one entry, at most {MAX_PORTS_PER_ENTRY} are possible; leave the ports out to allow all"
    )]
    TooMany(usize),
}
