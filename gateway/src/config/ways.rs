//! Settings for the way out, and for the machine itself.

use std::net::IpAddr;
use std::sync::Arc;

use clap::Args;
use ipnet::IpNet;

use super::{ConfigError, ServerUrl, check_cidrs};
use crate::firewall::{Egress, HostGuard, SnatRange};

/// What people may write.
#[derive(Debug, Clone, Default, Args)]
pub struct WaysFlags {
    /// Let nothing pass but through this interface, e.g. eth1 or eth+ [default: any]
    #[arg(long, env = "OUTPUTGUARD_EGRESS_INTERFACE", value_name = "NAME")]
    pub egress_interface: Option<String>,
    /// Hide clients behind this address of the machine, or a range of them, instead of the address of the interface;
    /// once for each family
    #[arg(
        long = "snat-address",
        env = "OUTPUTGUARD_SNAT_ADDRESSES",
        value_delimiter = ',',
        value_name = "ADDRESS[-ADDRESS]"
    )]
    pub snat_addresses: Vec<String>,
    /// Guard this machine itself, too: it may be reached only from the management networks, and reach only them and what
    /// is published
    #[arg(long, env = "OUTPUTGUARD_RESTRICT_HOST")]
    pub restrict_host: bool,
    /// A network this machine is managed from, or that holds its servers, name servers or monitoring; for
    /// --restrict-host
    #[arg(
        long = "management-cidr",
        env = "OUTPUTGUARD_MANAGEMENT_CIDRS",
        value_delimiter = ',',
        value_name = "CIDR"
    )]
    pub management_cidrs: Vec<String>,
}

/// Everything checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ways {
    /// The way out.
    pub egress: Egress,
    /// Guards the machine itself.
    pub guard: Option<HostGuard>,
}

impl WaysFlags {
    /// Merges these over those of the file, and checks them.
    pub(super) fn over(&self, file: &Self, servers: &[Arc<ServerUrl>]) -> Result<Ways, ConfigError> {
        let either = |flags: &[String], file: &[String]| -> Vec<String> {
            if flags.is_empty() { file.to_vec() } else { flags.to_vec() }
        };
        let interface = self.egress_interface.as_ref().or(file.egress_interface.as_ref());
        let interface = interface.map(|name| name.parse()).transpose();
        let interface = interface.map_err(|reason| ConfigError::Value { key: "egress_interface", reason })?;
        let snat = check_snat(&either(&self.snat_addresses, &file.snat_addresses))?;
        let management =
            check_cidrs("management_cidrs", &either(&self.management_cidrs, &file.management_cidrs))?;
        let guard = match self.restrict_host || file.restrict_host {
            true => Some(check_guard(management, servers)?),
            false => None,
        };
        Ok(Ways { egress: Egress { interface, snat }, guard })
    }
}

fn check_snat(texts: &[String]) -> Result<Vec<SnatRange>, ConfigError> {
    let wrong = |reason: String| ConfigError::Value { key: "snat_addresses", reason };
    let ranges: Vec<SnatRange> =
        texts.iter().map(|text| text.parse().map_err(wrong)).collect::<Result<_, _>>()?;
    for (family, is_v4) in [("IPv4", true), ("IPv6", false)] {
        if ranges.iter().filter(|range| range.is_v4() == is_v4).count() > 1 {
            let reason = format!("more than one for {family}; write a range, e.g. 203.0.114.7-203.0.114.14");
            return Err(wrong(reason));
        }
    }
    Ok(ranges)
}

/// A machine that nobody can manage any more, or that does not reach its own servers, helps nobody.
fn check_guard(management: Vec<IpNet>, servers: &[Arc<ServerUrl>]) -> Result<HostGuard, ConfigError> {
    if management.is_empty() {
        let remedy = "restrict_host would lock you out: name the networks that this machine is managed from, and \
                      that its servers and name servers are in, e.g. 10.0.0.0/8";
        return Err(ConfigError::Missing { key: "management_cidrs", remedy });
    }
    let reached =
        |address: &IpAddr| address.is_loopback() || management.iter().any(|cidr| cidr.contains(address));
    for server in servers {
        if let Ok(address) = server.host.parse::<IpAddr>()
            && !reached(&address)
        {
            let reason = format!(
                "with restrict_host this gateway would not reach its server {server}; add a network with {address}"
            );
            return Err(ConfigError::Value { key: "management_cidrs", reason });
        }
    }
    Ok(HostGuard { management })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(interface: &str, snat: &[&str], management: &[&str]) -> WaysFlags {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        WaysFlags {
            egress_interface: Some(interface.to_owned()),
            snat_addresses: texts(snat),
            restrict_host: !management.is_empty(),
            management_cidrs: texts(management),
        }
    }

    #[test]
    fn the_way_out_is_checked_and_flags_go_before_the_file() {
        let file = flags("eth9", &["203.0.114.9"], &[]);
        let ways = flags("eth1", &["203.0.114.7", "2a01::7-2a01::9"], &[]).over(&file, &[]).unwrap();
        assert_eq!(ways.egress.interface.unwrap().to_string(), "eth1");
        assert_eq!(ways.egress.snat.len(), 2);
        assert_eq!(WaysFlags::default().over(&file, &[]).unwrap().egress.snat[0].to_string(), "203.0.114.9");
        for (wrong, key) in [
            (flags("eth 1", &[], &[]), "`egress_interface`"),
            (flags("eth1", &["203.0.114.0/24"], &[]), "`snat_addresses`"),
            (flags("eth1", &["203.0.114.7", "203.0.114.8"], &[]), "`snat_addresses`: more than one for IPv4"),
        ] {
            let error = wrong.over(&WaysFlags::default(), &[]).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn a_guard_that_would_lock_somebody_out_is_refused() {
        let server = |url: &str| vec![Arc::new(url.parse::<ServerUrl>().unwrap())];
        let guarded = flags("eth1", &[], &["10.0.0.0/8"]);
        let over = |flags: &WaysFlags, url| flags.over(&WaysFlags::default(), &server(url));
        assert!(over(&guarded, "wss://10.1.0.1:8443/ws").unwrap().guard.is_some());
        assert!(over(&guarded, "wss://servers.internal/ws").is_ok());
        let error = over(&guarded, "wss://192.0.2.7:8443/ws").unwrap_err().to_string();
        assert!(error.contains("would not reach its server") && error.contains("192.0.2.7"), "{error}");
        let nobody = WaysFlags { restrict_host: true, ..WaysFlags::default() };
        let error = over(&nobody, "wss://10.1.0.1:8443/ws").unwrap_err().to_string();
        assert!(error.contains("would lock you out"), "{error}");
    }
}
