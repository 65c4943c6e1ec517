//! Which kernel sets there are and which members of them make an element.
//!
//! A set name reads `og`, family (`4`/`6`), direction (`o`: towards the internet, `i`: replies) and `p` when its
//! members carry a port; `d` before the direction marks what drains.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use allowlist::{Element, PortRange, Protocol};
use ipnet::IpNet;

use super::drain::DrainLimits;
use super::egress::Egress;
use super::host_guard::HostGuard;
use super::rules::Policy;

/// Members a set is made for unless more are wanted at once.
const DEFAULT_SET_CAPACITY: u32 = 65_536;

/// How the kernel driver is to stand on its machine.
#[derive(Debug, Clone)]
pub struct KernelOptions {
    /// The networks whose traffic is ours to judge, on a machine that forwards other traffic too. Empty: everything
    /// that is forwarded is ours. When given, a family without a network in it is judged as a whole.
    pub internal_cidrs: Vec<IpNet>,
    /// Members each set has room for at first; it grows when more are wanted.
    pub set_capacity: u32,
    /// How long flows of what left DNS may go on.
    pub drain: DrainLimits,
    /// What becomes of what is not listed.
    pub policy: Policy,
    /// The way out.
    pub egress: Egress,
    /// Guards the machine itself, too; not in an audit.
    pub guard: Option<HostGuard>,
    /// How source hosts are counted.
    pub sources: SourceOptions,
}

/// How it is counted which source host moves how much.
#[derive(Debug, Clone, Copy)]
pub struct SourceOptions {
    /// How many hosts have sums of their own; 0: nothing is counted.
    pub top: usize,
    /// Time between two readings of the kernel's flows; a long table is read less often.
    pub interval: Duration,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self { top: 50, interval: Duration::from_secs(10) }
    }
}

impl Default for KernelOptions {
    fn default() -> Self {
        Self {
            internal_cidrs: Vec::new(),
            set_capacity: DEFAULT_SET_CAPACITY,
            drain: DrainLimits::default(),
            policy: Policy::default(),
            egress: Egress::default(),
            guard: None,
            sources: SourceOptions::default(),
        }
    }
}

/// IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(super) const fn of(prefix: &IpNet) -> Self {
        match prefix {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        })
    }
}

/// What the members of a set are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Prefixes: kernel type `hash:net`.
    Prefix,
    /// Prefixes with protocol and port: kernel type `hash:net,port`.
    Port,
}

impl Scope {
    pub(super) const fn kernel_type(self) -> &'static str {
        match self {
            Self::Prefix => "hash:net",
            Self::Port => "hash:net,port",
        }
    }
}

/// Two sets with the same members: one counts what leaves, the other what comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PairLayout {
    pub(super) family: Family,
    pub(super) scope: Scope,
    /// Matched on the destination of packets towards the internet.
    pub(super) out: &'static str,
    /// Matched on the source of replies.
    pub(super) back: &'static str,
}

/// Every pair of what passes, in the order of [`pair_of`].
pub(super) const PAIRS: [PairLayout; 4] = [
    PairLayout { family: Family::V4, scope: Scope::Prefix, out: "og4o", back: "og4i" },
    PairLayout { family: Family::V4, scope: Scope::Port, out: "og4op", back: "og4ip" },
    PairLayout { family: Family::V6, scope: Scope::Prefix, out: "og6o", back: "og6i" },
    PairLayout { family: Family::V6, scope: Scope::Port, out: "og6op", back: "og6ip" },
];

/// Every pair of what drains, in the same order: flows that are there may finish.
pub(super) const DRAIN_PAIRS: [PairLayout; 4] = [
    PairLayout { family: Family::V4, scope: Scope::Prefix, out: "og4do", back: "og4di" },
    PairLayout { family: Family::V4, scope: Scope::Port, out: "og4dop", back: "og4dip" },
    PairLayout { family: Family::V6, scope: Scope::Prefix, out: "og6do", back: "og6di" },
    PairLayout { family: Family::V6, scope: Scope::Port, out: "og6dop", back: "og6dip" },
];

/// Destinations whose TCP connections were cut a while ago, by family: what comes from the middle of one begins no
/// new flow.
pub(super) const CUT_SETS: [&str; 2] = ["og4cut", "og6cut"];

/// Sets of every address, by family: their counters count what is denied.
pub(super) const DENY_SETS: [&str; 2] = ["og4deny", "og6deny"];

/// The index in [`PAIRS`] of the pair that holds `element`.
pub(super) const fn pair_of(element: &Element) -> usize {
    let family = match element.prefix {
        IpNet::V4(_) => 0,
        IpNet::V6(_) => 2,
    };
    family + element.ports.is_some() as usize
}

/// One member of a kernel set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Member {
    pub(super) prefix: IpNet,
    pub(super) service: Option<Service>,
}

/// In few words: members are looked up by the million.
impl Hash for Member {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let service = self.service.map_or(0, |it| u64::from(it.protocol) << 16 | u64::from(it.port));
        let rest = service << 8 | u64::from(self.prefix.prefix_len());
        match self.prefix {
            IpNet::V4(net) => state.write_u64(u64::from(net.addr().to_bits()) << 32 | rest),
            IpNet::V6(net) => {
                state.write_u128(net.addr().to_bits());
                state.write_u64(rest);
            }
        }
    }
}

/// IP protocol number and port, in the order that keeps neighbouring ports together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Service {
    pub(super) protocol: u8,
    pub(super) port: u16,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.service {
            None => write!(f, "{}", self.prefix),
            Some(Service { protocol, port }) => match protocol_of(protocol) {
                Some(name) => write!(f, "{},{name}:{port}", self.prefix),
                None => write!(f, "{},{protocol}:{port}", self.prefix),
            },
        }
    }
}

/// The members that make `element`: one, or one for each port.
pub(super) fn members_of(element: &Element) -> impl Iterator<Item = Member> + use<> {
    let prefix = element.prefix;
    let range = element.ports;
    let whole = range.is_none().then_some(Member { prefix, service: None });
    let ports = range.into_iter().flat_map(move |range| {
        let protocol = range.protocol().number();
        (range.first()..=range.last())
            .map(move |port| Member { prefix, service: Some(Service { protocol, port }) })
    });
    whole.into_iter().chain(ports)
}

/// The elements that sorted `members` make, neighbouring ports joined; members we never make ourselves are left out.
pub(super) fn elements_of(members: &[Member]) -> Vec<Element> {
    let mut elements: Vec<Element> = Vec::with_capacity(members.len());
    for member in members {
        let Some(service) = member.service else {
            elements.push(Element::new(member.prefix, None));
            continue;
        };
        let Some(protocol) = protocol_of(service.protocol) else { continue };
        if let Some(last) = elements.last_mut()
            && last.prefix == member.prefix
            && let Some(range) = last.ports
            && range.protocol() == protocol
            && range.last().checked_add(1) == Some(service.port)
            && range.count() < allowlist::ports::MAX_PORTS_PER_ENTRY
            && let Ok(joined) = PortRange::new(protocol, range.first(), service.port)
        {
            last.ports = Some(joined);
        } else if let Ok(single) = PortRange::new(protocol, service.port, service.port) {
            elements.push(Element::new(member.prefix, Some(single)));
        }
    }
    elements
}

fn protocol_of(number: u8) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp].into_iter().find(|protocol| protocol.number() == number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_a_range_join_to_the_same_element() {
        let prefix = "8.8.8.0/24".parse().unwrap();
        for ports in ["tcp/443", "udp/5000-5010"] {
            let element = Element::new(prefix, Some(ports.parse().unwrap()));
            let members: Vec<_> = members_of(&element).collect();
            assert_eq!(elements_of(&members), [element]);
            assert_eq!(PAIRS[pair_of(&element)].out, "og4op");
        }
        let whole = Element::new("2a01:4f8::/32".parse().unwrap(), None);
        assert_eq!(elements_of(&members_of(&whole).collect::<Vec<_>>()), [whole]);
        assert_eq!(PAIRS[pair_of(&whole)].out, "og6o");
    }

    #[test]
    fn members_of_foreign_protocols_make_no_element() {
        let prefix = "8.8.8.8/32".parse().unwrap();
        let sctp = Member { prefix, service: Some(Service { protocol: 132, port: 9 }) };
        assert_eq!(elements_of(&[sctp]), []);
        assert_eq!(sctp.to_string(), "8.8.8.8/32,132:9");
    }
}
