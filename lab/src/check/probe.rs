//! Asking many addresses at once, and saying which did not do as they should.

use std::fmt;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};

use crate::client::{Client, Outcome};
use crate::internet::ECHO_PORT;
use crate::wait;

/// How long a write may take until its packets pass.
pub(super) const PASS_TIMEOUT: Duration = Duration::from_secs(15);
/// Payload of UDP probes.
const PAYLOAD: &[u8] = b"are you there";

/// How to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Open a TCP connection to this port.
    Tcp(u16),
    /// Send a datagram to the echo port.
    Udp,
    /// Ping.
    Icmp,
}

/// One question to one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Who.
    pub address: IpAddr,
    /// How.
    pub way: Way,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.way {
            Way::Tcp(port) => write!(f, "{} tcp/{port}", self.address),
            Way::Udp => write!(f, "{} udp/{ECHO_PORT}", self.address),
            Way::Icmp => write!(f, "{} icmp", self.address),
        }
    }
}

impl Probe {
    /// Asks `address` on these TCP ports.
    pub fn tcp(address: IpAddr, ports: &[u16]) -> Vec<Self> {
        ports.iter().map(|port| Self { address, way: Way::Tcp(*port) }).collect()
    }

    /// Asks `address` in every way: TCP on three ports, UDP, ICMP.
    pub fn every_way(address: IpAddr) -> Vec<Self> {
        let mut probes = Self::tcp(address, &[80, 443, ECHO_PORT]);
        probes.extend([Way::Udp, Way::Icmp].map(|way| Self { address, way }));
        probes
    }

    /// Asks once.
    pub fn ask(&self, client: &Client) -> Outcome<()> {
        match self.way {
            Way::Tcp(port) => match client.tcp((self.address, port).into()) {
                Outcome::Answer(_) => Outcome::Answer(()),
                Outcome::Silence => Outcome::Silence,
                Outcome::Refused => Outcome::Refused,
                Outcome::Unreachable(why) => Outcome::Unreachable(why),
            },
            Way::Udp => client.udp_echo((self.address, ECHO_PORT).into(), PAYLOAD),
            Way::Icmp => client.ping(self.address),
        }
    }
}

/// Asks all at once.
fn ask_all(client: &Client, probes: &[Probe]) -> Vec<Outcome<()>> {
    thread::scope(|scope| {
        let asked: Vec<_> = probes.iter().map(|probe| scope.spawn(|| probe.ask(client))).collect();
        let panicked = |_| Outcome::Unreachable("the probe panicked".to_owned());
        asked.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    })
}

/// All of `probes` are met with silence, which only a dropping firewall on a working way gives.
///
/// # Errors
/// Lists those that are not.
pub(super) fn all_silent(client: &Client, probes: &[Probe]) -> Result<()> {
    let wrong: Vec<String> = probes
        .iter()
        .zip(ask_all(client, probes))
        .filter(|(_, outcome)| !matches!(outcome, Outcome::Silence))
        .map(|(probe, outcome)| format!("{probe}: {outcome:?}"))
        .collect();
    ensure!(wrong.is_empty(), "should be dropped: {}", wrong.join("; "));
    Ok(())
}

/// All of `probes` are answered.
///
/// # Errors
/// Lists those that are not.
pub(super) fn all_answer(client: &Client, probes: &[Probe]) -> Result<()> {
    let wrong: Vec<String> = probes
        .iter()
        .zip(ask_all(client, probes))
        .filter(|(_, outcome)| !outcome.answered())
        .map(|(probe, outcome)| format!("{probe}: {outcome:?}"))
        .collect();
    ensure!(wrong.is_empty(), "should answer: {}", wrong.join("; "));
    Ok(())
}

/// Waits until all of `probes` are answered at once.
///
/// # Errors
/// Lists those that are not after `timeout`.
pub(super) fn until_all_answer(client: &Client, probes: &[Probe], timeout: Duration) -> Result<()> {
    let impatient = client.with_patience(Duration::from_millis(300));
    wait::until("the opened addresses pass", timeout, || all_answer(&impatient, probes))
}

/// Parses an address of the lab's own constants.
///
/// # Errors
/// When it is none.
pub(super) fn address(text: &str) -> Result<IpAddr> {
    text.parse().map_err(|error| anyhow!("{text}: {error}"))
}
