//! Settings for what is counted and shown.

use clap::{Args, ValueEnum};
use serde::Deserialize;

use super::ConfigError;

/// Sources with series of their own unless somebody wants another number.
const DEFAULT_TOP_SOURCES: usize = 50;
/// Most sources with series of their own.
const MAX_TOP_SOURCES: usize = 1_000;

/// Which prefixes have series of their own on the metrics page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PerIpMetrics {
    /// Every listed one.
    #[default]
    All,
    /// Those that ever moved a packet.
    Active,
    /// None.
    Off,
}

/// What people may write.
#[derive(Debug, Clone, Default, Args)]
pub struct MeteringFlags {
    /// Which prefixes have series of their own on /metrics: every listed one, those that ever moved a packet, or none
    /// [default: all]
    #[arg(long, env = "OUTPUTGUARD_PER_IP_METRICS")]
    pub per_ip_metrics: Option<PerIpMetrics>,
    /// How many source hosts have series of their own on /metrics, the busiest ones; 0 leaves hosts uncounted
    /// [default: 50]
    #[arg(long, env = "OUTPUTGUARD_TOP_SOURCES", value_name = "NUMBER")]
    pub top_sources: Option<usize>,
}

/// Everything checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metering {
    /// Which prefixes have series.
    pub per_ip: PerIpMetrics,
    /// How many source hosts have series; 0: they are not counted at all.
    pub top_sources: usize,
}

impl Default for Metering {
    fn default() -> Self {
        Self { per_ip: PerIpMetrics::default(), top_sources: DEFAULT_TOP_SOURCES }
    }
}

impl MeteringFlags {
    /// Merges these over those of the file over the defaults.
    pub(super) fn over(&self, file: &Self) -> Result<Metering, ConfigError> {
        let top_sources = self.top_sources.or(file.top_sources).unwrap_or(DEFAULT_TOP_SOURCES);
        if top_sources > MAX_TOP_SOURCES {
            let reason =
                format!("{top_sources} is more than {MAX_TOP_SOURCES}, and each costs two series for good");
            return Err(ConfigError::Value { key: "top_sources", reason });
        }
        let per_ip = self.per_ip_metrics.or(file.per_ip_metrics).unwrap_or_default();
        Ok(Metering { per_ip, top_sources })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_go_before_the_file_and_both_before_the_defaults() {
        let nothing = MeteringFlags::default();
        assert_eq!(nothing.over(&nothing).unwrap(), Metering::default());
        let file = MeteringFlags { per_ip_metrics: Some(PerIpMetrics::Off), top_sources: Some(3) };
        let flags = MeteringFlags { per_ip_metrics: Some(PerIpMetrics::Active), top_sources: None };
        let merged = flags.over(&file).unwrap();
        assert_eq!(merged, Metering { per_ip: PerIpMetrics::Active, top_sources: 3 });
    }

    #[test]
    fn too_many_sources_are_refused_by_their_key() {
        let flags = MeteringFlags { top_sources: Some(MAX_TOP_SOURCES + 1), ..MeteringFlags::default() };
        let error = flags.over(&MeteringFlags::default()).unwrap_err().to_string();
        assert!(error.contains("`top_sources`") && error.contains("1000"), "{error}");
    }
}
