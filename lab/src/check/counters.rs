//! Step 9: the metrics say exactly what was sent.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::access::open;
use super::probe::address;
use crate::api::NewEntry;
use crate::internet::ECHO_PORT;
use crate::lab::Lab;
use crate::wait;

/// Payload sizes; none is fragmented.
const PAYLOADS: [usize; 5] = [1, 17, 100, 512, 1_200];
const ROUNDS: usize = 40;
const UDP_HEADER_BYTES: usize = 8;
const IPV4_HEADER_BYTES: usize = 20;
const IPV6_HEADER_BYTES: usize = 40;
/// How long the page may lag behind the kernel.
const METRICS_TIMEOUT: Duration = Duration::from_secs(15);

/// Step 9. UDP, since offloading merges TCP segments into fewer, larger packets before they are counted.
pub(super) fn metrics_are_exact(lab: &mut Lab) -> Result<()> {
    let client = lab.client();
    let fresh = [address("93.184.90.1")?, address("2606:4700:90::1")?];
    let mut expected = BTreeMap::new();
    for address in fresh {
        open(lab, &NewEntry::to(address.to_string()).comment("step 9"))?;
        let header = UDP_HEADER_BYTES + if address.is_ipv4() { IPV4_HEADER_BYTES } else { IPV6_HEADER_BYTES };
        let (mut packets, mut bytes) = (0_u64, 0_u64);
        for length in PAYLOADS.into_iter().cycle().take(ROUNDS * PAYLOADS.len()) {
            // Answered, so as many came back as went out.
            client
                .udp_echo((address, ECHO_PORT).into(), &vec![b'm'; length])
                .answer()
                .with_context(|| format!("datagram {packets} to {address}"))?;
            packets += 1;
            bytes += (length + header) as u64;
        }
        expected.insert(address, (packets, bytes));
    }
    for (address, (packets, bytes)) in expected {
        for kind in ["OUTPUT", "INPUT"] {
            wait::until(format!("metrics of {address} {kind}"), METRICS_TIMEOUT, || -> Result<()> {
                let counted = [
                    sum(lab, "iptables_packets_count", address, kind, "packets_count")?,
                    sum(lab, "iptables_bytes_count", address, kind, "bytes_count")?,
                ];
                ensure!(
                    counted == [packets, bytes],
                    "{} packets and {} bytes counted, {packets} and {bytes} sent",
                    counted[0],
                    counted[1]
                );
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// A counter, over all gateways.
fn sum(lab: &Lab, family: &str, address: IpAddr, kind: &str, direction: &str) -> Result<u64> {
    let ip = format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 });
    let chain = if kind == "OUTPUT" { "POSTROUTING" } else { "FORWARD" };
    let labels = [("ip", ip.as_str()), ("type", kind), ("chain", chain), ("direction", direction)];
    let mut total = None;
    for gateway in &lab.gateways {
        let mine = gateway.metrics()?.sum(family, &labels);
        total = total.zip(mine).map(|(a, b): (f64, f64)| a + b).or(total).or(mine);
    }
    // Counters are whole numbers below 2^53.
    total.map(|total| total as u64).with_context(|| format!("no {family} of {labels:?} on any gateway"))
}
