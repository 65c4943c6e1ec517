//! Step 4: a record changes, and nobody has to do anything.

use std::time::Duration;

use anyhow::Result;

use super::probe::{Probe, address, all_silent, until_all_answer};
use crate::api::NewEntry;
use crate::dns::{RecordType, ZONE};
use crate::lab::Lab;

/// "By its TTL or within a minute": the upper clamp of the resolver's interval, and some room for the answer's way.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(65);
const TTL_S: u32 = 5;

/// Step 4.
pub(super) fn a_changed_record_passes(lab: &mut Lab) -> Result<()> {
    let client = lab.client();
    let (before, after) = (address("93.184.40.1")?, address("93.184.40.2")?);
    let after_v6 = address("2606:2800:40::2")?;
    lab.dns.set("moving", RecordType::A, TTL_S, &[before])?;
    lab.api()?.add(&NewEntry::to(format!("moving.{ZONE}")).comment("step 4"))?;
    until_all_answer(&client, &Probe::every_way(before), CHANGE_TIMEOUT)?;
    let mut new = Probe::every_way(after);
    new.extend(Probe::every_way(after_v6));
    all_silent(&client, &new)?;

    lab.dns.set("moving", RecordType::A, TTL_S, &[after])?;
    // A family it did not have: the two are resolved independently.
    lab.dns.set("moving", RecordType::Aaaa, TTL_S, &[after_v6])?;
    until_all_answer(&client, &new, CHANGE_TIMEOUT)
}
