//! Certificates: where they are, how they are followed, what is asked of peers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, Flags};
use crate::tls::reload::{CHECK_INTERVAL, Intervals, RENEWAL_INTERVAL};

/// How certificates are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// CA and node certificates.
    pub dir: PathBuf,
    /// How often files are looked at.
    pub intervals: Intervals,
    /// Whether a peer's certificate must name the member it says it is.
    pub verify_peer_names: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct TlsSection {
    dir: Option<PathBuf>,
    check_interval_s: Option<u64>,
    renewal_interval_s: Option<u64>,
    verify_peer_names: Option<bool>,
}

pub(super) fn tls(section: TlsSection, flags: &Flags, data_dir: &Path) -> Result<TlsConfig, ConfigError> {
    let seconds = |key, given: Option<u64>, default| match given {
        Some(0) => Err(ConfigError::Value {
            key,
            problem: "0 s".to_owned(),
            remedy: "use 1 or more seconds, or leave it out for the default",
        }),
        given => Ok(given.map_or(default, Duration::from_secs)),
    };
    Ok(TlsConfig {
        dir: flags.tls_dir.clone().or(section.dir).unwrap_or_else(|| data_dir.join("tls")),
        intervals: Intervals {
            check: seconds("tls.check_interval_s", section.check_interval_s, CHECK_INTERVAL)?,
            renewal: seconds("tls.renewal_interval_s", section.renewal_interval_s, RENEWAL_INTERVAL)?,
        },
        verify_peer_names: flags.tls_verify_peer_names.or(section.verify_peer_names).unwrap_or(true),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn certificates_are_followed_and_peers_named_unless_told_otherwise() {
        let flags = Flags::try_parse_from(["s"]).unwrap();
        let given = |section| tls(section, &flags, Path::new("/x"));
        let defaults = given(TlsSection::default()).unwrap();
        assert_eq!(defaults.dir, Path::new("/x/tls"));
        assert_eq!(defaults.intervals, Intervals { check: CHECK_INTERVAL, renewal: RENEWAL_INTERVAL });
        assert!(defaults.verify_peer_names);
        let section = TlsSection {
            renewal_interval_s: Some(7),
            verify_peer_names: Some(false),
            ..TlsSection::default()
        };
        let set = given(section).unwrap();
        assert_eq!((set.intervals.renewal, set.verify_peer_names), (Duration::from_secs(7), false));
        let error = given(TlsSection { check_interval_s: Some(0), ..TlsSection::default() }).unwrap_err();
        assert!(error.to_string().contains("tls.check_interval_s"), "{error}");
    }
}
