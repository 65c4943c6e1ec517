//! How many flows the kernel tracks, and how many it could.

use std::fs;
use std::path::Path;

/// Where the kernel says it, of the calling thread's network namespace.
const SETTINGS: &str = "/proc/sys/net/netfilter";
/// Below so many flows a gateway of a few hundred hosts meets the limit, and the kernel drops packets of new flows. A flow
/// takes about 320 bytes.
const ENOUGH_FLOWS: u64 = 262_144;

/// The kernel's table of flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlowRoom {
    /// Flows it tracks.
    pub tracked: u64,
    /// Flows it has room for; beyond it packets of new ones are dropped.
    pub limit: u64,
}

impl FlowRoom {
    /// Reads it; `None` where the kernel does not say.
    pub(in crate::firewall) fn read() -> Option<Self> {
        Self::below(Path::new(SETTINGS))
    }

    fn below(settings: &Path) -> Option<Self> {
        let number = |key: &str| fs::read_to_string(settings.join(key)).ok()?.trim().parse().ok();
        Some(Self { tracked: number("nf_conntrack_count")?, limit: number("nf_conntrack_max")? })
    }

    /// What to do when there is little room for a gateway.
    pub(in crate::firewall) fn complaint(self) -> Option<String> {
        (self.limit < ENOUGH_FLOWS).then(|| {
            format!(
                "the kernel tracks at most {} flows and drops what would begin another; run `sysctl -w \
                 net.netfilter.nf_conntrack_max={ENOUGH_FLOWS}` and keep it in /etc/sysctl.d/",
                self.limit
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_room_for_flows_is_told_with_the_command_that_makes_more() {
        let settings = tempfile::tempdir().unwrap();
        assert_eq!(FlowRoom::below(settings.path()), None);
        let of_limit = |limit: &str| {
            fs::write(settings.path().join("nf_conntrack_count"), "7\n").unwrap();
            fs::write(settings.path().join("nf_conntrack_max"), limit).unwrap();
            FlowRoom::below(settings.path()).unwrap()
        };
        assert_eq!(of_limit("262144\n"), FlowRoom { tracked: 7, limit: 262_144 });
        assert_eq!(of_limit("262144\n").complaint(), None);
        let complaint = of_limit("65536\n").complaint().unwrap();
        assert!(complaint.contains("at most 65536 flows"), "{complaint}");
        assert!(complaint.contains("`sysctl -w net.netfilter.nf_conntrack_max=262144`"), "{complaint}");
    }
}
