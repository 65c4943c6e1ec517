//! Steps 1 to 3: nothing passes, then exactly what was added.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};

use super::probe::{PASS_TIMEOUT, Probe, Way, address, all_answer, all_silent, until_all_answer};
use crate::api::NewEntry;
use crate::client::{Client, Seen};
use crate::demo::{DEMO_NAME, DEMO_V4, DEMO_V6};
use crate::dns::ZONE;
use crate::lab::Lab;
use crate::wait;

/// A sample of the public space, both families, spread over the prefixes of the internet.
const SAMPLE: [&str; 7] =
    [DEMO_V4, "93.184.1.1", "1.1.1.1", "8.8.8.8", "151.101.1.69", DEMO_V6, "2606:4700::1111"];

/// Step 1. The same addresses answer the gateways themselves, so it is the firewall that is silent, not the internet.
pub(super) fn nothing_passes(lab: &mut Lab) -> Result<()> {
    let mut probes = Vec::new();
    for text in SAMPLE {
        probes.extend(Probe::every_way(address(text)?));
    }
    for gateway in &lab.gateways {
        all_answer(&gateway.client(), &probes)
            .with_context(|| format!("the internet should answer {} itself", gateway.name()))?;
    }
    all_silent(&lab.client(), &probes)
}

/// Step 2.
pub(super) fn a_domain_passes(lab: &mut Lab) -> Result<()> {
    let client = lab.client();
    let (v4, v6) = (address(DEMO_V4)?, address(DEMO_V6)?);
    all_silent(&client, &Probe::tcp(v4, &[80]))?;

    let follower = lab.follower()?;
    let entry = NewEntry::to(format!("{DEMO_NAME}.{ZONE}")).comment("step 2");
    lab.servers[follower].api()?.add(&entry).context("add the domain on a follower")?;
    let mut opened = Probe::every_way(v4);
    opened.extend(Probe::every_way(v6));
    until_all_answer(&client, &opened, PASS_TIMEOUT)?;

    for address in [v4, v6] {
        let seen =
            client.who((address, 80).into()).answer().with_context(|| format!("GET http://{address}/"))?;
        is_a_gateway(lab, &seen)?;
        let seen = client.udp_who(address).answer().with_context(|| format!("ask {address} over UDP"))?;
        is_a_gateway(lab, &seen)?;
    }
    let others = ["93.184.216.33", "93.184.216.35", "1.1.1.1", "2606:2800:220:1::35", "2606:4700::1111"];
    all_stay_closed(&client, &others)
}

/// Step 3.
pub(super) fn exactly_those_pass(lab: &mut Lab) -> Result<()> {
    let client = lab.client();
    let api = lab.api()?;
    let with_port = address("151.101.1.69")?;
    let v6 = address("2606:4700::1111")?;
    api.add(&NewEntry::to("151.101.1.69").port("tcp/8080").comment("step 3"))
        .context("add an address with a port")?;
    api.add(&NewEntry::to("8.8.8.0/25").comment("step 3")).context("add a CIDR")?;
    api.add(&NewEntry::to("2606:4700::1111").comment("step 3")).context("add a v6 address")?;
    api.add(&NewEntry::to("2606:4700:10::/48").port("udp/7").comment("step 3"))
        .context("add a v6 CIDR with a port")?;

    let udp_only = address("2606:4700:10:ffff::1")?;
    let mut opened = Probe::tcp(with_port, &[8080]);
    for text in ["8.8.8.0", "8.8.8.8", "8.8.8.127"] {
        opened.extend(Probe::every_way(address(text)?));
    }
    opened.extend(Probe::every_way(v6));
    opened.push(Probe { address: udp_only, way: Way::Udp });
    until_all_answer(&client, &opened, PASS_TIMEOUT)?;

    // The same address on other ports, and neighbours just outside.
    let mut closed = Probe::every_way(with_port);
    closed.extend(Probe::tcp(address("151.101.1.70")?, &[8080]));
    closed.extend(Probe::tcp(udp_only, &[80, 7]));
    closed.push(Probe { address: udp_only, way: Way::Icmp });
    all_silent(&client, &closed)?;
    all_stay_closed(&client, &["8.8.8.128", "1.1.1.2", "2606:4700::1112", "2606:4700:11::1"])
}

/// No way to any of `texts`.
fn all_stay_closed(client: &Client, texts: &[&str]) -> Result<()> {
    let mut probes = Vec::new();
    for text in texts {
        probes.extend(Probe::every_way(address(text)?));
    }
    all_silent(client, &probes)
}

/// The source the internet saw is one of a gateway's public addresses: the packets were NATed.
fn is_a_gateway(lab: &Lab, seen: &Seen) -> Result<()> {
    gateway_seen(lab, seen.source.ip()).map(drop)
}

/// Index of the gateway whose public address `source` is.
pub(super) fn gateway_seen(lab: &Lab, source: IpAddr) -> Result<usize> {
    lab.gateways
        .iter()
        .position(|gateway| gateway.public_addresses().contains(&source))
        .with_context(|| format!("the internet saw {source}, which is no gateway's address"))
}

/// Opens `target` by the balancer's API and waits until both gateways hold it.
pub(super) fn open(lab: &mut Lab, entry: &NewEntry) -> Result<String> {
    let added = lab.api()?.add(entry).with_context(|| format!("add {}", entry.target))?;
    ensure!(!added.id.is_empty(), "the entry for {} has no id", entry.target);
    lab.wait_in_sync()?;
    wait::until("the API shows the entry", PASS_TIMEOUT, || {
        lab.api()?.find(&entry.target)?.context("it is not in the list")
    })?;
    Ok(added.id)
}
