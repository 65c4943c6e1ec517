//! What upstreams say about a name: the form in which DNS answers travel from lookup to judge.

use std::collections::BTreeMap;
use std::net::IpAddr;

use allowlist::DomainName;

/// Most upstreams one name may be asked of; [`UpstreamSet`] has a bit for each.
pub const MAX_UPSTREAMS: usize = 16;

/// The two kinds of addresses, asked for independently of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// A records.
    V4,
    /// AAAA records.
    V6,
}

impl Family {
    /// Both, in the order they are asked.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// What one upstream said about one family of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// There are addresses.
    Addresses {
        /// Each with the seconds it may be kept: the smallest TTL on the way to it, aliases included.
        addresses: BTreeMap<IpAddr, u32>,
        /// The aliases (CNAME) followed, the name itself first; empty when there are none.
        chain: Vec<DomainName>,
    },
    /// The name, or what it is an alias of, does not exist or has no addresses of this family (NXDOMAIN, NODATA).
    Nothing {
        /// As above.
        chain: Vec<DomainName>,
    },
    /// No usable answer. It says nothing about the name.
    Failed(Failure),
}

/// Why an upstream gave no usable answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Nothing came in time.
    #[error("no answer in time")]
    Timeout,
    /// It answered with an error.
    #[error("answered {0}")]
    Code(String),
    /// It pointed elsewhere instead of resolving the name.
    #[error("answered with a referral; it does not resolve names for others")]
    Referral,
    /// The aliases go in a circle.
    #[error("its aliases come back to {0}")]
    AliasLoop(String),
    /// More aliases than [`super::lookup::MAX_ALIASES`].
    #[error("more than {max} aliases in a row", max = super::lookup::MAX_ALIASES)]
    TooManyAliases,
    /// It could not be reached, or what it sent was not DNS.
    #[error("{0}")]
    Transport(String),
    /// It was not asked, because it has not answered for a while.
    #[error("not asked: it does not answer, and is only probed until it does")]
    Skipped,
}

/// A set of upstreams, by their place in the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UpstreamSet(u16);

const _: () = assert!(MAX_UPSTREAMS <= u16::BITS as usize, "an upstream has no bit in UpstreamSet");

impl UpstreamSet {
    /// Adds the upstream at `place`.
    pub fn insert(&mut self, place: usize) {
        debug_assert!(place < MAX_UPSTREAMS, "settings were checked for the number of upstreams");
        self.0 |= 1 << place;
    }

    /// True when the upstream at `place` is in it.
    pub fn contains(self, place: usize) -> bool {
        place < MAX_UPSTREAMS && self.0 & (1 << place) != 0
    }

    /// Their places, ascending.
    pub fn places(self) -> impl Iterator<Item = usize> {
        (0..MAX_UPSTREAMS).filter(move |place| self.contains(*place))
    }

    /// How many are in it.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// True when none is in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those that are in either.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those that are not in `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// True when all of these are in `other` too.
    pub fn within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }
}

impl FromIterator<usize> for UpstreamSet {
    fn from_iter<I: IntoIterator<Item = usize>>(places: I) -> Self {
        let mut set = Self::default();
        for place in places {
            set.insert(place);
        }
        set
    }
}
