//! Step 10: a gateway goes dark, the client moves.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::access::{gateway_seen, open};
use super::probe::{PASS_TIMEOUT, Probe, address, all_silent, until_all_answer};
use crate::api::NewEntry;
use crate::client::Client;
use crate::lab::Lab;
use crate::wait;

/// How long the route agent may take to notice and to move.
const MOVE_TIMEOUT: Duration = Duration::from_secs(30);
/// Patience of one try while it moves.
const TRY_PATIENCE: Duration = Duration::from_millis(500);

/// Step 10. The gateway's host loses its links, as it does when it loses power.
pub(super) fn client_moves(lab: &mut Lab) -> Result<()> {
    let client = lab.client();
    let addresses = [address("93.184.100.1")?, address("2606:4700:100::1")?];
    for address in addresses {
        open(lab, &NewEntry::to(address.to_string()).comment("step 10"))?;
        until_all_answer(&client, &Probe::every_way(address), PASS_TIMEOUT)?;
    }
    let dark = gateway_of(lab, &client, addresses[0])?;
    lab.network.set_gateway_plugged(dark, false)?;
    let moved = addresses.iter().try_for_each(|address| until_moved(lab, &client, *address, dark));
    let closed = [address("93.184.100.2")?, address("2606:4700:100::2")?];
    let still_closed = moved.and_then(|()| {
        all_silent(&client, &closed.map(Probe::every_way).concat()).context("through the other gateway")
    });
    // Whatever came out: the cables go back in.
    lab.network.set_gateway_plugged(dark, true)?;
    still_closed?;
    lab.wait_in_sync().context("with the gateway's links back")
}

fn until_moved(lab: &Lab, client: &Client, address: IpAddr, dark: usize) -> Result<()> {
    let hasty = client.with_patience(TRY_PATIENCE);
    wait::until(format!("{address} is reached through the other gateway"), MOVE_TIMEOUT, || -> Result<()> {
        let now = gateway_of(lab, &hasty, address)?;
        ensure!(now != dark, "it still goes through gw{}", dark + 1);
        Ok(())
    })
}

/// The gateway a new connection to `address` goes through, by the source the internet sees.
fn gateway_of(lab: &Lab, client: &Client, address: IpAddr) -> Result<usize> {
    let seen = client.who((address, 80).into()).answer().with_context(|| format!("ask {address}"))?;
    gateway_seen(lab, seen.source.ip())
}
