//! What did not pass, as metrics.

use prometheus::{IntCounterVec, Opts, Registry};

use crate::firewall::Denied;

/// Packets and bytes, by IP version.
#[derive(Debug)]
pub(super) struct DeniedMetrics {
    packets: IntCounterVec,
    bytes: IntCounterVec,
}

impl DeniedMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let family = |name: &str, help: &str| -> Result<IntCounterVec, prometheus::Error> {
            let family = IntCounterVec::new(Opts::new(name, help), &["family"])?;
            registry.register(Box::new(family.clone()))?;
            for version in ["ipv4", "ipv6"] {
                family.with_label_values(&[version]);
            }
            Ok(family)
        };
        Ok(Self {
            packets: family(
                "outputguard_unlisted_packets_total",
                "Forwarded packets that no element lets pass: denied, or passed and counted in an audit.",
            )?,
            bytes: family("outputguard_unlisted_bytes_total", "Bytes (IP length) of those packets.")?,
        })
    }

    /// The kernel's counters, which outlive this process. One that fell was begun anew.
    pub(super) fn show(&self, denied: Denied) {
        let Denied { packets_v4, bytes_v4, packets_v6, bytes_v6 } = denied;
        for (version, packets, bytes) in [("ipv4", packets_v4, bytes_v4), ("ipv6", packets_v6, bytes_v6)] {
            for (family, now) in [(&self.packets, packets), (&self.bytes, bytes)] {
                let counter = family.with_label_values(&[version]);
                let shown = counter.get();
                counter.inc_by(now.saturating_sub(shown));
            }
        }
    }
}
