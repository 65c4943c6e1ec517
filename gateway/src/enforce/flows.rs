//! How full the kernel's table of flows is, as metrics.

use prometheus::{IntGauge, Registry};

use super::owner::gauge;
use crate::firewall::FlowRoom;
use crate::metrics::registered;

/// Tracked flows and their limit.
#[derive(Debug)]
pub(super) struct FlowMetrics {
    tracked: IntGauge,
    limit: IntGauge,
}

impl FlowMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let family = |name: &str, help: &str| registered(registry, IntGauge::new(name, help));
        Ok(Self {
            tracked: family("outputguard_conntrack_flows", "Flows the kernel of this gateway tracks.")?,
            limit: family(
                "outputguard_conntrack_flows_limit",
                "Flows it has room for; packets of new flows are dropped beyond it. 0 when it does not say.",
            )?,
        })
    }

    pub(super) fn show(&self, room: FlowRoom) {
        self.tracked.set(gauge(room.tracked));
        self.limit.set(gauge(room.limit));
    }
}
