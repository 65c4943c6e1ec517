//! How much was denied: the counters of one set for each family that holds every address.

use std::collections::BTreeSet;

use super::ipset::{Client, Counters, IpsetError};
use super::layout::{DENY_SETS, Family, Member, Scope};

/// Every address; the kernel knows no prefix of length 0.
pub(super) const HALVES: [&str; 4] = ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"];
/// Room in a set of two members.
const CAPACITY: u32 = 64;

/// Makes the sets whole; gives what was wrong.
pub(super) fn mend_deny_sets(client: &mut Client) -> Result<Vec<String>, IpsetError> {
    let mut wrong = Vec::new();
    for (family, name) in Family::BOTH.into_iter().zip(DENY_SETS) {
        if client.header(name)?.is_none() {
            client.create_small(name, family, CAPACITY)?;
            wrong.push(format!("ipset {name} was missing"));
        }
        let there: BTreeSet<Member> =
            client.dump(name, Scope::Prefix)?.into_iter().map(|(member, _)| member).collect();
        let wanted: BTreeSet<Member> = halves(family).collect();
        if there != wanted {
            client.add(name, wanted.difference(&there))?;
            client.delete(name, there.difference(&wanted))?;
            if wrong.is_empty() {
                wrong.push(format!("ipset {name} did not hold every address"));
            }
        }
    }
    Ok(wrong)
}

/// What was denied so far, for each family.
pub(super) fn read_denied(client: &mut Client) -> Result<[Counters; 2], IpsetError> {
    let mut denied = [Counters::default(); 2];
    for (sum, name) in denied.iter_mut().zip(DENY_SETS) {
        for (_, counters) in client.dump(name, Scope::Prefix)? {
            sum.packets = sum.packets.saturating_add(counters.packets);
            sum.bytes = sum.bytes.saturating_add(counters.bytes);
        }
    }
    Ok(denied)
}

fn halves(family: Family) -> impl Iterator<Item = Member> {
    HALVES
        .into_iter()
        .filter_map(|prefix| prefix.parse().ok())
        .map(|prefix| Member { prefix, service: None })
        .filter(move |member| Family::of(&member.prefix) == family)
}
