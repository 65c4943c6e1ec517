//! Where sums of gone tables wait for the next process: a kernel set of its own, which no rule looks at.

use super::ipset::{Client, IpsetError};
use super::layout::PairLayout;
use super::ledger::Ledger;
use super::sets::MAX_SET_CAPACITY;

/// The name of the set that keeps what is carried for the next process. No rule refers to it.
pub(super) fn carried_name(name: &str) -> String {
    format!("{name}-sum")
}

/// Writes what is new in the ledger, or all of it when the set is missing, too small or to be rewritten.
pub(super) fn write_carried(
    client: &mut Client,
    name: &str,
    layout: &PairLayout,
    size: u32,
    ledger: &Ledger,
    rewrite: bool,
) -> Result<(), IpsetError> {
    let PairLayout { scope, family, .. } = *layout;
    let there = client.header(name)?;
    let roomy = there.is_some_and(|header| header.fits(scope, family) && header.capacity >= size);
    if roomy && !rewrite {
        return client.add_counted(name, ledger.unwritten()).map(drop);
    }
    destroy_if_there(client, name)?;
    client.create(name, scope, family, size.min(MAX_SET_CAPACITY).next_power_of_two())?;
    client.add_counted(name, ledger.carried()).map(drop)
}

/// Destroys a set that may be gone already.
pub(super) fn destroy_if_there(client: &mut Client, name: &str) -> Result<(), IpsetError> {
    match client.destroy(name) {
        Err(error) if !error.is_missing() => Err(error),
        _ => Ok(()),
    }
}
