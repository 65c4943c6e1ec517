//! v6 forms that carry a v4 address inside: what they reach is decided by the v4 address, and so is the judgement.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::SpecialRange;
use super::table::v6;

/// NAT64's well-known prefix (RFC 6052). It lies outside of 2000::/3, yet what it embeds can be public.
pub const NAT64_PREFIX: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);
/// Teredo (RFC 4380). It lies inside a special-purpose block, yet what it embeds can be public.
pub const TEREDO_PREFIX: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32);

/// A form, and where its v4 address stands.
pub(super) struct Form {
    pub(super) range: SpecialRange,
    layout: Layout,
}

enum Layout {
    /// The v4 address follows the prefix.
    AfterPrefix,
    /// RFC 4380 section 4: the server follows the prefix, the client stands in the last 32 bits, inverted.
    Teredo,
}

static FORMS: [Form; 4] = [
    Form {
        range: SpecialRange {
            prefix: IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96)),
            name: "IPv4-mapped",
            source: "RFC 4291",
        },
        layout: Layout::AfterPrefix,
    },
    Form {
        range: SpecialRange {
            prefix: IpNet::V6(NAT64_PREFIX),
            name: "IPv4/IPv6 translation (NAT64)",
            source: "RFC 6052",
        },
        layout: Layout::AfterPrefix,
    },
    Form { range: v6([0x2001, 0, 0, 0], 32, "Teredo", "RFC 4380"), layout: Layout::Teredo },
    Form { range: v6([0x2002, 0, 0, 0], 16, "6to4", "RFC 3056"), layout: Layout::AfterPrefix },
];

/// The forms, sorted.
pub(super) fn forms() -> &'static [Form] {
    &FORMS
}

/// The v4 blocks inside `network`, when it lies inside one of the forms. All of them must be public.
pub(super) fn embedded_v4(network: Ipv6Net) -> Option<Vec<Ipv4Net>> {
    let asked = IpNet::V6(network);
    let form = forms().iter().find(|form| form.range.prefix.contains(&asked))?;
    let bits = network.network().to_bits();
    let prefix_len = network.prefix_len();
    let after_prefix = v4_at(bits, prefix_len, form.range.prefix.prefix_len());
    Some(match form.layout {
        Layout::AfterPrefix => vec![after_prefix],
        Layout::Teredo => {
            const CLIENT_OFFSET: u8 = 96;
            vec![after_prefix, v4_at(!bits, prefix_len, CLIENT_OFFSET)]
        }
    })
}

/// The v4 block at bit `offset` of a v6 block: as many of its bits count as the v6 prefix covers.
fn v4_at(bits: u128, prefix_len: u8, offset: u8) -> Ipv4Net {
    const V4_BITS: u8 = 32;
    let known = prefix_len.saturating_sub(offset).min(V4_BITS);
    #[allow(clippy::cast_possible_truncation, reason = "the truncation takes the 32 bits that are meant")]
    let address = Ipv4Addr::from_bits((bits >> (128 - V4_BITS - offset)) as u32);
    Ipv4Net::new_assert(address, known).trunc()
}
