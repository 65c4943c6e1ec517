//! Step 5: deleting bites at once, protection refuses it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::access::open;
use super::probe::{PASS_TIMEOUT, Probe, address, all_silent, until_all_answer};
use crate::api::NewEntry;
use crate::client::{Outcome, exchange};
use crate::internet::ECHO_PORT;
use crate::lab::Lab;
use crate::wait;

/// How long the answer of an open connection is waited for before it counts as stopped.
const ECHO_PATIENCE: Duration = Duration::from_millis(700);

/// Step 5.
pub(super) fn delete_cuts(lab: &mut Lab) -> Result<()> {
    let client = lab.client();
    let cut = [address("1.1.1.50")?, address("2606:4700:50::1")?];
    let mut ids = Vec::new();
    let mut streams = Vec::new();
    for address in cut {
        ids.push(open(lab, &NewEntry::to(address.to_string()).comment("step 5"))?);
        until_all_answer(&client, &Probe::every_way(address), PASS_TIMEOUT)?;
        let mut stream = client
            .tcp((address, ECHO_PORT).into())
            .answer()
            .with_context(|| format!("connect to {address}"))?;
        exchange(&mut stream, b"before\n").answer().with_context(|| format!("talk to {address}"))?;
        stream.set_read_timeout(Some(ECHO_PATIENCE)).context("set the read time limit")?;
        streams.push(stream);
    }
    for id in &ids {
        lab.api()?.delete(id).context("delete")?;
    }
    for (stream, address) in streams.iter_mut().zip(cut) {
        wait::until(format!("the open connection to {address} stops"), PASS_TIMEOUT, || {
            match exchange(stream, b"after\n") {
                Outcome::Answer(()) => bail!("it still answers"),
                _ => Ok(()),
            }
        })?;
        ensure!(
            !exchange(stream, b"and again\n").answered(),
            "the connection to {address} came back to life"
        );
    }
    let mut closed = Vec::new();
    for address in cut {
        closed.extend(Probe::every_way(address));
    }
    all_silent(&client, &closed).context("after the deletion")?;

    let protected = address("1.1.1.51")?;
    let id = open(lab, &NewEntry::to("1.1.1.51").protected().comment("step 5"))?;
    until_all_answer(&client, &Probe::every_way(protected), PASS_TIMEOUT)?;
    let error = lab.api()?.delete(&id).err().context("a protected entry was deleted")?;
    let problem = error.problem().with_context(|| format!("the refusal is no problem document: {error}"))?;
    ensure!(problem.status == 409 && problem.code == "protected", "should be 409 protected: {error}");
    lab.wait_in_sync()?;
    until_all_answer(&client, &Probe::every_way(protected), PASS_TIMEOUT)
        .context("after the refused deletion")
}
