//! Settings for what is not listed, or no longer.

use std::time::Duration;

use clap::Args;

use super::ConfigError;
use crate::firewall::{DEFAULT_LOG_GROUP, DRAIN_IDLE, DRAIN_LIMIT, Deny, Mode, Policy};

/// Longest time to drain that makes sense: a week, seconds.
const MAX_DRAIN_S: u64 = 7 * 24 * 3_600;

/// What people may write.
#[derive(Debug, Clone, Default, Args)]
pub struct UnlistedFlags {
    /// Whether what is not listed is kept from passing, or passes and is counted [default: enforce]
    #[arg(long, env = "OUTPUTGUARD_MODE")]
    pub mode: Option<Mode>,
    /// What becomes of a packet that is not let through: answered as administratively prohibited, or dropped in
    /// silence [default: reject]
    #[arg(long, env = "OUTPUTGUARD_DENY")]
    pub deny: Option<Deny>,
    /// The kernel's log group (NFLOG) through which denied packets are read; 0 reads none [default: 100]
    #[arg(long, env = "OUTPUTGUARD_NFLOG_GROUP", value_name = "GROUP")]
    pub nflog_group: Option<u16>,
    /// Seconds without a packet after which flows to an address that left DNS end [default: 300]
    #[arg(long = "drain-idle", env = "OUTPUTGUARD_DRAIN_IDLE", value_name = "SECONDS")]
    pub drain_idle_s: Option<u64>,
    /// Seconds after which they end in any case [default: 3600]
    #[arg(long = "drain-limit", env = "OUTPUTGUARD_DRAIN_LIMIT", value_name = "SECONDS")]
    pub drain_limit_s: Option<u64>,
}

/// Everything checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unlisted {
    /// What the rules do.
    pub policy: Policy,
    /// Idle time after which draining ends.
    pub drain_idle: Duration,
    /// Time after which it ends in any case.
    pub drain_limit: Duration,
}

impl UnlistedFlags {
    /// Merges these over those of the file over the defaults.
    pub(super) fn over(&self, file: &Self) -> Result<Unlisted, ConfigError> {
        let seconds = |key: &'static str, flag: Option<u64>, default: Duration| match flag {
            None => Ok(default),
            Some(seconds) if seconds <= MAX_DRAIN_S => Ok(Duration::from_secs(seconds)),
            Some(seconds) => Err(ConfigError::Value {
                key,
                reason: format!("{seconds} seconds is longer than a week ({MAX_DRAIN_S})"),
            }),
        };
        Ok(Unlisted {
            policy: Policy {
                mode: self.mode.or(file.mode).unwrap_or_default(),
                deny: self.deny.or(file.deny).unwrap_or_default(),
                log_group: match self.nflog_group.or(file.nflog_group) {
                    None => Some(DEFAULT_LOG_GROUP),
                    Some(0) => None,
                    group => group,
                },
            },
            drain_idle: seconds("drain_idle_s", self.drain_idle_s.or(file.drain_idle_s), DRAIN_IDLE)?,
            drain_limit: seconds("drain_limit_s", self.drain_limit_s.or(file.drain_limit_s), DRAIN_LIMIT)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_go_before_the_file_and_both_before_the_defaults() {
        let nothing = UnlistedFlags::default();
        let plain = nothing.over(&nothing).unwrap();
        let policy = |mode, deny, log_group| Policy { mode, deny, log_group };
        assert_eq!(plain.policy, policy(Mode::Enforce, Deny::Reject, Some(DEFAULT_LOG_GROUP)));
        assert_eq!((plain.drain_idle, plain.drain_limit), (DRAIN_IDLE, DRAIN_LIMIT));
        let file = UnlistedFlags {
            mode: Some(Mode::Audit),
            nflog_group: Some(0),
            drain_idle_s: Some(5),
            ..UnlistedFlags::default()
        };
        let flags =
            UnlistedFlags { drain_idle_s: Some(7), deny: Some(Deny::Drop), ..UnlistedFlags::default() };
        let merged = flags.over(&file).unwrap();
        assert_eq!(merged.policy, policy(Mode::Audit, Deny::Drop, None));
        let flags = UnlistedFlags { nflog_group: Some(7), ..flags };
        assert_eq!(flags.over(&file).unwrap().policy.log_group, Some(7));
        assert_eq!(merged.drain_idle, Duration::from_secs(7));
    }

    #[test]
    fn a_time_beyond_a_week_is_refused_by_its_key() {
        let flags = UnlistedFlags { drain_limit_s: Some(MAX_DRAIN_S + 1), ..UnlistedFlags::default() };
        let error = flags.over(&UnlistedFlags::default()).unwrap_err().to_string();
        assert!(error.contains("`drain_limit_s`") && error.contains("week"), "{error}");
    }
}
