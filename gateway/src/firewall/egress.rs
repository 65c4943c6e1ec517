//! The way out: through which interface, and behind which addresses.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::layout::Family;

/// Longest name of an interface (`IFNAMSIZ` less the zero byte).
const MAX_INTERFACE_BYTES: usize = 15;

/// The way out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Egress {
    /// Nothing passes but through it; any interface when none is named.
    pub interface: Option<Interface>,
    /// What hides the clients' addresses, at most one range for each family; the address of the interface when none is
    /// named.
    pub snat: Vec<SnatRange>,
}

impl Egress {
    /// What a rule for packets on their way out begins with.
    pub(super) fn out(&self) -> String {
        self.interface.as_ref().map(|interface| format!("-o {interface} ")).unwrap_or_default()
    }

    /// What a rule for answers begins with.
    pub(super) fn back(&self) -> String {
        self.interface.as_ref().map(|interface| format!("-i {interface} ")).unwrap_or_default()
    }

    /// The target that hides a source.
    pub(super) fn hide(&self, family: Family) -> String {
        let range = self.snat.iter().find(|range| range.first.is_ipv4() == (family == Family::V4));
        range.map_or_else(|| "MASQUERADE".to_owned(), |range| format!("SNAT --to-source {range}"))
    }
}

/// The name of an interface; `eth+` stands for all that begin with `eth`, as for iptables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface(String);

impl FromStr for Interface {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let legal = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | '"' | '\'' | '\\' | '!' | '+');
        let name = text.strip_suffix('+').unwrap_or(text);
        let fits = !name.is_empty() && text.len() <= MAX_INTERFACE_BYTES && !name.starts_with('-');
        if fits && name.chars().all(legal) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "`{text}` is not the name of an interface; write e.g. eth1, or eth+ for all that begin with eth"
        ))
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An address of this machine, or several in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnatRange {
    first: IpAddr,
    last: IpAddr,
}

impl FromStr for SnatRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not an address or a range; write e.g. 203.0.114.7 or 203.0.114.7-203.0.114.14"
            )
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last): (IpAddr, IpAddr) =
            (first.trim().parse().map_err(|_| wrong())?, last.trim().parse().map_err(|_| wrong())?);
        if first.is_ipv4() != last.is_ipv4() || first > last {
            return Err(format!(
                "`{text}`: a range goes from a lower to a higher address of the same family"
            ));
        }
        Ok(Self { first, last })
    }
}

impl SnatRange {
    /// True for a range of IPv4 addresses.
    pub fn is_v4(&self) -> bool {
        self.first.is_ipv4()
    }
}

impl fmt::Display for SnatRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.last != self.first {
            write!(f, "-{}", self.last)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_interfaces_and_ranges_are_checked() {
        for name in ["eth1", "eth+", "bond0.100", "a-very-long-nam"] {
            assert_eq!(name.parse::<Interface>().unwrap().to_string(), name);
        }
        for name in ["", "+", "-j", "eth1 -j ACCEPT", "a/b", "eth+1", "a-very-long-name"] {
            assert!(name.parse::<Interface>().unwrap_err().contains("write e.g."), "{name}");
        }
        for range in ["203.0.114.7", "203.0.114.7-203.0.114.14", "2a01::1-2a01::2"] {
            assert_eq!(range.parse::<SnatRange>().unwrap().to_string(), range);
        }
        for range in ["", "x", "203.0.114.9-203.0.114.7", "203.0.114.7-2a01::1", "203.0.114.0/24"] {
            assert!(range.parse::<SnatRange>().is_err(), "{range}");
        }
    }
}
