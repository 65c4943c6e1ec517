//! What did not pass, as metrics.

use prometheus::{IntCounterVec, Opts, Registry};

use crate::firewall::Denied;
use crate::metrics::registered;

/// Packets and bytes, by IP version.
#[derive(Debug)]
pub(super) struct DeniedMetrics {
    packets: IntCounterVec,
    bytes: IntCounterVec,
    /// What the kernel's counters said last.
    shown: Denied,
}

impl DeniedMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let family = |name: &str, help: &str| -> Result<IntCounterVec, prometheus::Error> {
            let family = registered(registry, IntCounterVec::new(Opts::new(name, help), &["family"]))?;
            for version in ["ipv4", "ipv6"] {
                family.with_label_values(&[version]);
            }
            Ok(family)
        };
        Ok(Self {
            shown: Denied::default(),
            packets: family(
                "outputguard_unlisted_packets_total",
                "Forwarded packets that no element lets pass: denied, or passed and counted in an audit.",
            )?,
            bytes: family("outputguard_unlisted_bytes_total", "Bytes (IP length) of those packets.")?,
        })
    }

    /// The kernel's counters, which outlive this process. One that fell was begun anew.
    pub(super) fn show(&mut self, now: Denied) {
        let last = std::mem::replace(&mut self.shown, now);
        for (family, version, now, last) in [
            (&self.packets, "ipv4", now.packets_v4, last.packets_v4),
            (&self.bytes, "ipv4", now.bytes_v4, last.bytes_v4),
            (&self.packets, "ipv6", now.packets_v6, last.packets_v6),
            (&self.bytes, "ipv6", now.bytes_v6, last.bytes_v6),
        ] {
            family.with_label_values(&[version]).inc_by(now.checked_sub(last).unwrap_or(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_was_begun_anew_goes_on_where_it_was() {
        let mut metrics = DeniedMetrics::register(&Registry::new()).unwrap();
        for packets_v4 in [10, 25, 5, 7] {
            metrics.show(Denied { packets_v4, ..Denied::default() });
        }
        assert_eq!(metrics.packets.with_label_values(&["ipv4"]).get(), 25 + 7);
    }
}
