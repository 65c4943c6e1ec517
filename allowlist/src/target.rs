//! What an entry names: a domain, a wildcard, an address or a network. Parsing is strict and says what would be right.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Deserializer, Serialize};

use crate::class::{self, Refusal};
pub use crate::domain::{DomainName, MAX_LABEL_BYTES, MAX_NAME_BYTES};

/// Longest text that is looked at: room for any domain name in its Unicode form.
pub const MAX_TARGET_BYTES: usize = 1024;

/// What a person opens. Its text form is canonical: parsing what [`fmt::Display`] wrote gives the same target. The
/// text form is also what stands in JSON, on disk and on the wire.
///
/// Text from people, JSON included, is parsed by [`FromStr`] with every check. Binary formats are read for their
/// form only: a stored target must stay readable when IANA or the public suffix list changes its mind, and the
/// gateway judges every element by its own table anyway.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(into = "String")]
pub enum Target {
    /// `api.example.com`, resolved by the servers.
    Domain(DomainName),
    /// `*.example.com` (exactly one label in front) or `**.example.com` (any number of labels in front).
    Wildcard {
        /// The name the labels stand in front of.
        suffix: DomainName,
        /// True for `**`.
        any_depth: bool,
    },
    /// A single v4 or v6 address. A v4-mapped address is the v4 address inside.
    Address(IpAddr),
    /// A CIDR block with host bits zero; a /32 or /128 is an [`Target::Address`].
    Network(IpNet),
}

impl Target {
    /// `domain`, `wildcard`, `address` or `network`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Domain(_) => "domain",
            Self::Wildcard { .. } => "wildcard",
            Self::Address(_) => "address",
            Self::Network(_) => "network",
        }
    }

    /// The block an address or a network names by itself; `None` when DNS decides.
    pub fn prefix(&self) -> Option<IpNet> {
        match self {
            Self::Domain(_) | Self::Wildcard { .. } => None,
            Self::Address(address) => Some(IpNet::from(*address)),
            Self::Network(network) => Some(*network),
        }
    }

    /// Refuses what the lists of today do not let in. Everything about form is settled by the time a target exists.
    fn check_policy(self, text: &str) -> Result<Self, TargetError> {
        if let Some(prefix) = self.prefix() {
            class::check_network(prefix)?;
        }
        if let Self::Wildcard { suffix, .. } = &self
            && is_icann_suffix(suffix)
        {
            return Err(TargetError::PublicSuffix(shorten(text)));
        }
        Ok(self)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Domain(name) => name.fmt(f),
            Self::Wildcard { suffix, any_depth: false } => write!(f, "*.{suffix}"),
            Self::Wildcard { suffix, any_depth: true } => write!(f, "**.{suffix}"),
            Self::Address(address) => address.fmt(f),
            Self::Network(network) => network.fmt(f),
        }
    }
}

/// Why a target was refused. The message names the input and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Nothing but white space.
    #[error("the target is empty; write a domain, an address or a CIDR block")]
    Empty,
    /// A URL where a bare name is needed.
    #[error("`{input}` is a URL; write only its host, `{host}`")]
    Url {
        /// What was given, without user name and password.
        input: String,
        /// The host inside it.
        host: String,
    },
    /// `host:port` where ports have a field of their own.
    #[error("`{0}` carries a port; give ports separately, as tcp/443")]
    Port(String),
    /// Not a domain, address or CIDR block.
    #[error("`{input}` is not a domain, an address or a CIDR block: {reason}")]
    Malformed {
        /// What was given, cut to a readable length.
        input: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A CIDR block whose host bits are not zero.
    #[error("`{input}` has host bits set; did you mean {network} or the address {address}?")]
    HostBits {
        /// What was given.
        input: String,
        /// The block it lies in.
        network: IpNet,
        /// The address it names.
        address: IpAddr,
    },
    /// A wildcard directly on a public suffix.
    #[error("`{0}` would open a whole public suffix; put the wildcard below a name somebody registered")]
    PublicSuffix(String),
    /// Address space that is not globally reachable unicast.
    #[error(transparent)]
    NotPublic(#[from] Refusal),
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let text = text.trim();
        let malformed = |reason| TargetError::Malformed { input: shorten(text), reason };
        if text.is_empty() {
            return Err(TargetError::Empty);
        }
        if text.len() > MAX_TARGET_BYTES {
            return Err(malformed("it is far longer than any of them"));
        }
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(malformed("it holds white space or control characters; write one target at a time"));
        }
        if let Some((scheme, rest)) =
            text.split_once("//").filter(|(scheme, _)| scheme.is_empty() || scheme.ends_with(':'))
        {
            return Err(url(scheme, "//", rest));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Self::Address(address.to_canonical()).check_policy(text);
        }
        if let Some((host, _)) = text.split_once('/') {
            // `example.com/path` is a URL that lost its scheme; `1.2.3/24` and `foo/24` are CIDR blocks gone wrong.
            return match host_of(host).parse::<DomainName>() {
                Ok(_) => Err(url("", "", text)),
                Err(_) => parse_network(text)?.check_policy(text),
            };
        }
        if let Some(stars) = text.find(|c| c != '*').filter(|&stars| stars > 0) {
            return parse_wildcard(text, stars)?.check_policy(text);
        }
        if text.contains('*') {
            return Err(malformed(
                "a wildcard is `*.` or `**.` in front of a domain name, as in *.example.com",
            ));
        }
        if text.contains(['[', ']', '%', ':']) {
            return Err(not_an_address(text));
        }
        text.parse().map(Self::Domain)
    }
}

impl TryFrom<String> for Target {
    type Error = TargetError;

    fn try_from(text: String) -> Result<Self, TargetError> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let from_people = deserializer.is_human_readable();
        let text = String::deserialize(deserializer)?;
        if from_people {
            return text.parse().map_err(serde::de::Error::custom);
        }
        from_canonical(&text).map_err(serde::de::Error::custom)
    }
}

/// Reads what [`fmt::Display`] wrote, once, in this or any other release.
fn from_canonical(text: &str) -> Result<Target, TargetError> {
    let name = |name| {
        DomainName::from_canonical(name)
            .map_err(|reason| TargetError::Malformed { input: shorten(text), reason })
    };
    if let Ok(address) = text.parse() {
        Ok(Target::Address(address))
    } else if text.contains('/') {
        parse_network(text)
    } else if let Some(suffix) = text.strip_prefix("**.") {
        Ok(Target::Wildcard { suffix: name(suffix)?, any_depth: true })
    } else if let Some(suffix) = text.strip_prefix("*.") {
        Ok(Target::Wildcard { suffix: name(suffix)?, any_depth: false })
    } else {
        Ok(Target::Domain(name(text)?))
    }
}

fn parse_network(text: &str) -> Result<Target, TargetError> {
    let malformed = |reason| TargetError::Malformed { input: shorten(text), reason };
    let (address, prefix_len) = text.split_once('/').unwrap_or((text, ""));
    let Ok(address) = address.parse::<IpAddr>() else {
        return Err(malformed("what stands before the `/` is not an address"));
    };
    let digits = prefix_len.bytes().all(|byte| byte.is_ascii_digit()) && !prefix_len.is_empty();
    let network = prefix_len
        .parse::<u8>()
        .ok()
        .filter(|_| digits && (prefix_len == "0" || !prefix_len.starts_with('0')))
        .and_then(|prefix_len| IpNet::new(address, prefix_len).ok())
        .ok_or_else(|| malformed("the prefix length is a number from 0 to 32 (v4) or 128 (v6)"))?;
    if network.trunc() != network {
        return Err(TargetError::HostBits { input: shorten(text), network: network.trunc(), address });
    }
    let network = unmapped(network);
    if network.prefix_len() == network.max_prefix_len() {
        return Ok(Target::Address(network.addr()));
    }
    Ok(Target::Network(network))
}

/// A v4-mapped block never is a destination on the wire; what was meant is the v4 block inside.
fn unmapped(network: IpNet) -> IpNet {
    const MAPPED_PREFIX_LEN: u8 = 96;
    let inside = |mapped: Ipv6Addr| {
        Some((mapped.to_ipv4_mapped()?, network.prefix_len().checked_sub(MAPPED_PREFIX_LEN)?))
    };
    match network {
        IpNet::V6(v6) => inside(v6.network())
            .and_then(|(v4, prefix_len)| Ipv4Net::new(v4, prefix_len).ok())
            .map_or(network, IpNet::V4),
        IpNet::V4(_) => network,
    }
}

/// `stars` asterisks stand in front.
fn parse_wildcard(text: &str, stars: usize) -> Result<Target, TargetError> {
    let malformed = |reason| TargetError::Malformed { input: shorten(text), reason };
    let suffix = text[stars..].strip_prefix('.').filter(|_| stars <= 2).ok_or_else(|| {
        malformed("a wildcard is `*.` or `**.` in front of a domain name, as in *.example.com")
    })?;
    match suffix.parse() {
        Ok(suffix) => Ok(Target::Wildcard { suffix, any_depth: stars == 2 }),
        // One label is a public suffix, when it is a label at all.
        Err(_) if format!("label.{suffix}").parse::<DomainName>().is_ok() => {
            Err(TargetError::PublicSuffix(shorten(text)))
        }
        Err(TargetError::Malformed { reason, .. }) => Err(malformed(reason)),
        Err(other) => Err(other),
    }
}

/// On a suffix of the private section, such as `s3.amazonaws.com`, wildcards are what people need.
fn is_icann_suffix(name: &DomainName) -> bool {
    let name = name.as_str().as_bytes();
    psl::suffix(name)
        .is_some_and(|suffix| suffix.typ() == Some(psl::Type::Icann) && suffix.as_bytes() == name)
}

/// The error for a URL, with its user name and password left out and its host picked.
fn url(scheme: &str, slashes: &str, rest: &str) -> TargetError {
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let place = authority.rsplit('@').next().unwrap_or(authority);
    TargetError::Url {
        input: shorten(&format!("{scheme}{slashes}{place}{path}")),
        host: shorten(host_of(authority)),
    }
}

/// The host in `user:password@host:port` and `user:password@[v6]:port`.
fn host_of(authority: &str) -> &str {
    let place = authority.rsplit('@').next().unwrap_or(authority);
    match place.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(v6),
        None => place.split(':').next().unwrap_or(place),
    }
}

/// The error for text with characters that only v6 addresses, zones and ports have.
fn not_an_address(text: &str) -> TargetError {
    let malformed = |reason| TargetError::Malformed { input: shorten(text), reason };
    if let Some((host, port)) = text.rsplit_once(':')
        && !port.is_empty()
        && port.bytes().all(|byte| byte.is_ascii_digit())
        && (host.ends_with(']') || (!host.is_empty() && !host.contains(':')))
    {
        return TargetError::Port(shorten(text));
    }
    if text.starts_with('[') {
        return malformed("write a v6 address without brackets");
    }
    if text.contains('%') {
        return malformed(
            "an address with a zone, as in fe80::1%eth0, means nothing outside of its own machine",
        );
    }
    malformed("`:` stands only in v6 addresses, and this is none")
}

/// Cuts what a person sent to a length fit for an error message, and shows what would not be seen.
pub(crate) fn shorten(text: &str) -> String {
    const MAX_SHOWN_CHARS: usize = 80;
    let mut shown: String = text.chars().take(MAX_SHOWN_CHARS).flat_map(visible).collect();
    if text.chars().nth(MAX_SHOWN_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

/// Control, invisible and direction-changing characters as escapes, everything else as it is.
fn visible(c: char) -> impl Iterator<Item = char> {
    let keep = matches!(c, '\'' | '"' | '\\') || c.escape_debug().count() == 1;
    keep.then_some(c).into_iter().chain((!keep).then(|| c.escape_debug()).into_iter().flatten())
}
