//! Steps 7 and 8: servers die, gateways restart, traffic does not notice.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::access::open;
use super::probe::{PASS_TIMEOUT, Probe, address, all_answer, all_silent, until_all_answer};
use crate::api::NewEntry;
use crate::internet::ECHO_PORT;
use crate::lab::Lab;
use crate::udp_stream::UdpStream;
use crate::wait;

/// The transfer of step 7 takes about eight seconds: longer than an election and the write after it.
const TRANSFER_BYTES: u64 = 12_000_000;
const TRANSFER_BYTES_PER_S: u64 = 1_500_000;
/// How long until a survivor takes writes again.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a returned node may take to catch up.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(30);
/// Rate of the numbered stream of step 8.
const DATAGRAMS_PER_S: u32 = 500;
/// Answers seen between two events of step 8, so that each happens in the midst of traffic.
const ANSWERS_BETWEEN: u64 = 250;

/// Step 7.
pub(super) fn leader_killed(lab: &mut Lab) -> Result<()> {
    let client = lab.client();
    let source = address("93.184.70.1")?;
    open(lab, &NewEntry::to("93.184.70.1").comment("step 7"))?;
    until_all_answer(&client, &Probe::tcp(source, &[80]), PASS_TIMEOUT)?;
    let download = client.download((source, 80).into(), TRANSFER_BYTES, TRANSFER_BYTES_PER_S)?;
    wait::until_true("the transfer flows", PASS_TIMEOUT, || download.received() > 0)?;

    let leader = lab.leader()?;
    lab.servers[leader].process.kill();
    ensure!(!download.ended(), "the transfer ended before the leader was killed");
    let survivor = (leader + 1) % lab.servers.len();
    let api = lab.servers[survivor].api()?;
    let written = "93.184.70.2";
    wait::until("a survivor takes a write", ELECTION_TIMEOUT, || {
        api.add(&NewEntry::to(written).comment("step 7, with the leader dead"))
    })?;
    until_all_answer(&client, &Probe::every_way(address(written)?), PASS_TIMEOUT)
        .context("opened while the leader was dead")?;
    download.finish()?;

    lab.servers[leader].process.start_again()?;
    lab.servers[leader].wait_ready().context("the killed node returns")?;
    let returned = lab.servers[leader].api()?;
    let revision = api.status()?.revision;
    wait::until("the killed node catches up", CATCH_UP_TIMEOUT, || -> Result<()> {
        let status = returned.status()?;
        ensure!(
            status.revision >= revision,
            "it is at revision {}, the others at {revision}",
            status.revision
        );
        returned.find(written)?.context("it does not have what was written meanwhile")?;
        Ok(())
    })?;
    lab.wait_in_sync()
}

/// Step 8.
pub(super) fn all_killed(lab: &mut Lab) -> Result<()> {
    let client = lab.client();
    let (allowed, allowed_v6) = (address("93.184.80.1")?, address("2606:4700:80::1")?);
    open(lab, &NewEntry::to("93.184.80.1").comment("step 8"))?;
    open(lab, &NewEntry::to("2606:4700:80::1").comment("step 8"))?;
    let mut passes = Probe::every_way(allowed);
    passes.extend(Probe::every_way(allowed_v6));
    until_all_answer(&client, &passes, PASS_TIMEOUT)?;
    let mut forbidden = Probe::every_way(address("93.184.80.2")?);
    forbidden.extend(Probe::every_way(address("2606:4700:80::2")?));

    let streams = [allowed, allowed_v6]
        .map(|address| UdpStream::start(&client, (address, ECHO_PORT).into(), DATAGRAMS_PER_S))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    flow_on(&streams)?;
    for server in &mut lab.servers {
        server.process.kill();
    }
    flow_on(&streams)?;
    all_answer(&client, &passes).context("with all servers dead")?;
    all_silent(&client, &forbidden).context("with all servers dead")?;

    // Politely, then by force: neither an orderly exit nor a crash may disturb packets.
    for gateway in &mut lab.gateways {
        gateway.process.stop()?;
        flow_on(&streams).with_context(|| format!("with {} stopped", gateway.name()))?;
        gateway.process.start_again()?;
        gateway.wait_live()?;
        gateway.process.kill();
        flow_on(&streams).with_context(|| format!("with {} killed", gateway.name()))?;
        gateway.process.start_again()?;
        gateway.wait_live()?;
    }
    flow_on(&streams)?;
    all_answer(&client, &passes).context("after the gateways' restart")?;
    all_silent(&client, &forbidden).context("after the gateways' restart")?;
    for (stream, address) in streams.into_iter().zip([allowed, allowed_v6]) {
        let report = stream.finish()?;
        ensure!(
            report.missing.is_empty(),
            "{} of {} datagrams to {address} were lost, the first is number {:?}",
            report.missing.len(),
            report.sent,
            report.missing.first()
        );
    }
    lab.revive_servers().context("start the servers again")?;
    lab.wait_in_sync()
}

/// Waits until some more answers came on each stream.
fn flow_on(streams: &[UdpStream]) -> Result<()> {
    for stream in streams {
        let goal = stream.answered() + ANSWERS_BETWEEN;
        wait::until_true("the stream flows on", PASS_TIMEOUT, || stream.answered() >= goal)?;
    }
    Ok(())
}
