//! What the operator wants, checked before anything is touched.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;

/// Routing table used when none is named.
pub const DEFAULT_TABLE: u32 = 7700;
/// Preference of the first rule when none is named: before the main table (32766), behind what container networks
/// usually add.
pub const DEFAULT_RULE_PRIORITY: u32 = 30_100;
/// Probe interval when none is named, milliseconds.
pub const DEFAULT_PROBE_INTERVAL_MS: u64 = 500;
/// Probe intervals that make sense, milliseconds.
pub const PROBE_INTERVAL_RANGE_MS: std::ops::RangeInclusive<u64> = 20..=60_000;

/// The rule of the main table, which ours must precede (`ip-rule(8)`).
const MAIN_RULE_PRIORITY: u32 = 32_766;
/// The tables the kernel keeps for itself (`/etc/iproute2/rt_tables`): unspec, default, main, local.
const RESERVED_TABLES: [u32; 4] = [0, 253, 254, 255];

/// Checked settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Gateways in order of preference, both families in one list.
    pub gateways: Vec<Gateway>,
    /// Our own table.
    pub table: u32,
    /// Preference of our first rule.
    pub rule_priority: u32,
    /// Time between two probes of a gateway.
    pub probe_interval: Duration,
    /// Go back to a preferred gateway once it is alive again.
    pub prefer_first: bool,
    /// Routes in the main table instead of a table of our own.
    pub main_table: bool,
    /// Remove everything when stopped.
    pub cleanup_on_exit: bool,
}

/// A gateway's address, and the device it is behind where that is not plain from the address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Its address on a network this host is on.
    pub address: IpAddr,
    /// Name of the device, needed for v6 link-local addresses.
    pub device: Option<String>,
}

/// The settings as the YAML file holds them.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileSettings {
    pub(crate) gateways: Vec<String>,
    pub(crate) table: Option<u32>,
    pub(crate) rule_priority: Option<u32>,
    pub(crate) probe_interval_ms: Option<u64>,
    pub(crate) prefer_first: bool,
    pub(crate) main_table: bool,
    pub(crate) cleanup_on_exit: bool,
}

/// Why settings cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Nowhere to send traffic.
    #[error("no gateway given; name at least one with --gateway ADDRESS or `gateways:` in the file")]
    NoGateway,
    /// Not an address.
    #[error("gateway `{0}` is not an IP address; write 10.2.0.1, 2001:db8::1 or fe80::1%eth0")]
    NotAnAddress(String),
    /// An address no gateway can have.
    #[error("gateway {0} is not the unicast address of another host")]
    NotAHost(IpAddr),
    /// A v6 link-local address alone names no host.
    #[error("gateway {0} is link-local and needs its device; write {0}%eth0")]
    NeedsDevice(IpAddr),
    /// The same gateway twice.
    #[error("gateway {0} is given twice")]
    Twice(Gateway),
    /// A table of the kernel's.
    #[error("table {0} is one the kernel keeps for itself; use another, such as {DEFAULT_TABLE}")]
    Table(u32),
    /// Rules would stand behind the main table's, or in front of the local table's.
    #[error("rule_priority {0} leaves no room before the main table's rule; use 1 to {max}", max = MAIN_RULE_PRIORITY - 2)]
    RulePriority(u32),
    /// Too fast or too slow.
    #[error("probe_interval_ms {0} is outside of {PROBE_INTERVAL_RANGE_MS:?}")]
    ProbeInterval(u64),
}

impl FileSettings {
    /// Reads the YAML file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, is not YAML, or holds a key that does not exist.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        serde_saphyr::from_str(&text).with_context(|| format!("parse {}", path.display()))
    }

    /// Fills in defaults and checks everything.
    ///
    /// # Errors
    /// [`SettingsError`] for the first thing that cannot work.
    pub fn check(self) -> Result<Settings, SettingsError> {
        let mut gateways: Vec<Gateway> = Vec::with_capacity(self.gateways.len());
        for text in &self.gateways {
            let gateway: Gateway = text.parse()?;
            if gateways.iter().any(|other| other.address == gateway.address && other.device == gateway.device)
            {
                return Err(SettingsError::Twice(gateway));
            }
            gateways.push(gateway);
        }
        if gateways.is_empty() {
            return Err(SettingsError::NoGateway);
        }
        let table = self.table.unwrap_or(DEFAULT_TABLE);
        if RESERVED_TABLES.contains(&table) {
            return Err(SettingsError::Table(table));
        }
        let rule_priority = self.rule_priority.unwrap_or(DEFAULT_RULE_PRIORITY);
        if !(1..=MAIN_RULE_PRIORITY - 2).contains(&rule_priority) {
            return Err(SettingsError::RulePriority(rule_priority));
        }
        let probe_interval_ms = self.probe_interval_ms.unwrap_or(DEFAULT_PROBE_INTERVAL_MS);
        if !PROBE_INTERVAL_RANGE_MS.contains(&probe_interval_ms) {
            return Err(SettingsError::ProbeInterval(probe_interval_ms));
        }
        Ok(Settings {
            gateways,
            table,
            rule_priority,
            probe_interval: Duration::from_millis(probe_interval_ms),
            prefer_first: self.prefer_first,
            main_table: self.main_table,
            cleanup_on_exit: self.cleanup_on_exit,
        })
    }
}

impl FromStr for Gateway {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        let text = text.trim();
        let (address, device) = match text.split_once('%') {
            Some((address, device)) if !device.is_empty() => (address, Some(device.to_owned())),
            Some(_) => return Err(SettingsError::NotAnAddress(text.to_owned())),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| SettingsError::NotAnAddress(text.to_owned()))?;
        let (broadcast, link_local) = match address {
            IpAddr::V4(v4) => (v4.is_broadcast(), false),
            IpAddr::V6(v6) => (v6.to_ipv4_mapped().is_some(), v6.is_unicast_link_local()),
        };
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() || broadcast {
            return Err(SettingsError::NotAHost(address));
        }
        if link_local && device.is_none() {
            return Err(SettingsError::NeedsDevice(address));
        }
        Ok(Self { address, device })
    }
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.device {
            Some(device) => write!(f, "{}%{device}", self.address),
            None => self.address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(yaml: &str) -> Result<Settings, String> {
        let file: FileSettings = serde_saphyr::from_str(yaml).map_err(|error| error.to_string())?;
        file.check().map_err(|error| error.to_string())
    }

    #[test]
    fn a_gateway_alone_is_enough() {
        let settings = check("gateways: [10.2.0.1, 'fe80::1%eth0']").unwrap();
        assert_eq!(settings.gateways.len(), 2);
        assert_eq!((settings.table, settings.rule_priority), (7700, 30_100));
    }

    #[test]
    fn what_cannot_work_is_named() {
        for (yaml, word) in [
            ("gateways: []", "no gateway given"),
            ("gateways: [gw.example.com]", "`gw.example.com` is not an IP address"),
            ("gateways: [10.2.0.0/24]", "`10.2.0.0/24` is not an IP address"),
            ("gateways: [127.0.0.1]", "127.0.0.1 is not the unicast address"),
            ("gateways: ['ff02::1']", "ff02::1 is not the unicast address"),
            ("gateways: ['fe80::1']", "fe80::1%eth0"),
            ("gateways: [10.2.0.1, 10.2.0.1]", "given twice"),
            ("{gateways: [10.2.0.1], table: 254}", "table 254"),
            ("{gateways: [10.2.0.1], rule_priority: 32766}", "rule_priority 32766"),
            ("{gateways: [10.2.0.1], rule_priority: 0}", "rule_priority 0"),
            ("{gateways: [10.2.0.1], probe_interval_ms: 1}", "probe_interval_ms 1"),
            ("{gateways: [10.2.0.1], tabel: 1}", "tabel"),
        ] {
            let said = check(yaml).unwrap_err();
            assert!(said.contains(word), "{yaml}: {said}");
        }
    }
}
