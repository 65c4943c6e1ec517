//! A small client for the kernel's ipset subsystem over netlink: what programs take a fork and milliseconds for is a
//! message and microseconds here.
//!
//! [`request`] and [`answer`] are made of attributes by [`numbers`], [`client`] is what drivers call. Source of all formats: `linux/netfilter/ipset/ip_set.h` and
//! `net/netfilter/ipset/ip_set_core.c`.

mod answer;
mod client;
#[cfg(feature = "fuzzing")]
pub(super) mod fuzzing;
mod numbers;
mod request;

pub(super) use client::Client;
pub(super) use numbers::Counters;

/// What the kernel or the way to it said.
#[derive(Debug, thiserror::Error)]
pub(super) enum IpsetError {
    /// The kernel refused a request.
    #[error("{action}: {}", describe(*.code))]
    Kernel {
        /// What was asked.
        action: String,
        /// Positive errno or `IPSET_ERR_*`.
        code: i32,
    },
    /// The netlink socket failed.
    #[error("{action}: {source}")]
    Socket {
        /// What was asked.
        action: String,
        /// Why.
        source: std::io::Error,
    },
    /// An answer could not be read.
    #[error("{action}: the kernel's answer is malformed: {reason}")]
    Malformed {
        /// What was asked.
        action: String,
        /// Where it stopped making sense.
        reason: &'static str,
    },
}

/// `IPSET_ERR_FIND_TYPE`: the kernel has no such set type.
const ERR_FIND_TYPE: i32 = 4098;
/// `IPSET_ERR_BUSY`: a rule still refers to the set.
const ERR_BUSY: i32 = 4100;
/// `IPSET_ERR_EXIST`: to a question, that the set does not hold it.
const ERR_EXIST: i32 = 4103;
/// `IPSET_ERR_HASH_FULL`, a type-specific code of the hash types.
const ERR_HASH_FULL: i32 = 4352;

impl IpsetError {
    fn code(&self) -> Option<i32> {
        match self {
            Self::Kernel { code, .. } => Some(*code),
            Self::Socket { .. } | Self::Malformed { .. } => None,
        }
    }

    /// No set of that name.
    pub(super) fn is_missing(&self) -> bool {
        self.code() == Some(libc::ENOENT)
    }

    /// A rule still refers to the set.
    pub(super) fn is_busy(&self) -> bool {
        self.code() == Some(ERR_BUSY)
    }

    /// The answer to a question is no.
    pub(super) fn says_no(&self) -> bool {
        self.code() == Some(ERR_EXIST)
    }

    /// The kernel knows neither ipset nor the type.
    pub(super) fn is_unsupported(&self) -> bool {
        matches!(self.code(), Some(ERR_FIND_TYPE | libc::EOPNOTSUPP | libc::EINVAL))
    }
}

/// An ipset error code in words.
pub(super) fn describe(code: i32) -> String {
    let known = match code {
        libc::ENOENT => "no such set",
        libc::EPERM => "permission denied (needs CAP_NET_ADMIN)",
        4097 => "kernel and program disagree on the protocol",
        ERR_FIND_TYPE => "the kernel has no such set type (module ip_set_hash_net or ip_set_hash_netport)",
        4099 => "the kernel's maximum number of sets is reached",
        ERR_BUSY => "the set is in use by a rule",
        4101 => "a set of that second name exists",
        4102 => "the two sets differ in type",
        ERR_EXIST => "the element exists",
        4104 => "the prefix length is invalid",
        4106 => "the address family is invalid",
        4108 => "the set is referenced",
        4111 => "the set was made without counters",
        ERR_HASH_FULL => "the set is full",
        4353 => "the element is null",
        4354 => "the protocol is invalid",
        _ => return std::io::Error::from_raw_os_error(code).to_string(),
    };
    known.to_owned()
}
