//! DNS: whom the leader asks, how often, and how long answers hold.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::ConfigError;
use super::flags::ResolverFlags;
use crate::resolver::endpoint::Endpoint;
use crate::resolver::{Quorum, Settings, ZoneSettings};

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ResolverSection {
    upstreams: Option<Vec<String>>,
    zones: Vec<ZoneSection>,
    quorum: Option<String>,
    ca_file: Option<PathBuf>,
    min_interval_s: Option<u64>,
    max_interval_s: Option<u64>,
    linger_s: Option<u64>,
    questions_per_second: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ZoneSection {
    domain: String,
    upstreams: Vec<String>,
}

pub(super) fn resolver(file: ResolverSection, flags: ResolverFlags) -> Result<Settings, ConfigError> {
    let defaults = Settings::default();
    let upstreams = flags.resolver_upstreams.or(file.upstreams).unwrap_or_default();
    let upstreams = endpoints("resolver.upstreams", &upstreams)?;
    let zones = file.zones.iter().map(zone).collect::<Result<_, _>>()?;
    let seconds = |given: Option<u64>, default: Duration| given.unwrap_or(default.as_secs());
    let min_s = seconds(flags.resolver_min_interval_s.or(file.min_interval_s), defaults.min_interval);
    let max_s = seconds(flags.resolver_max_interval_s.or(file.max_interval_s), defaults.max_interval);
    if min_s == 0 || min_s > max_s {
        return Err(ConfigError::Value {
            key: "resolver.min_interval_s",
            problem: format!("{min_s} s, with resolver.max_interval_s at {max_s} s"),
            remedy: "use 1 or more seconds, and not more than resolver.max_interval_s",
        });
    }
    let rate = flags.resolver_questions_per_second.or(file.questions_per_second);
    let questions_per_second = rate.unwrap_or(defaults.questions_per_second);
    if questions_per_second == 0 {
        return Err(ConfigError::Value {
            key: "resolver.questions_per_second",
            problem: "0, so that no name could be resolved".to_owned(),
            remedy: "use 1 or more, or leave it out for the default",
        });
    }
    let linger_s = seconds(flags.resolver_linger_s.or(file.linger_s), defaults.linger);
    Ok(Settings {
        upstreams,
        zones,
        quorum: quorum(flags.resolver_quorum.or(file.quorum).as_deref())?,
        ca_file: flags.resolver_ca_file.or(file.ca_file),
        min_interval: Duration::from_secs(min_s),
        max_interval: Duration::from_secs(max_s),
        linger: Duration::from_secs(linger_s),
        questions_per_second,
        ..defaults
    })
}

fn quorum(text: Option<&str>) -> Result<Quorum, ConfigError> {
    match text {
        None | Some("any") => Ok(Quorum::Any),
        Some("majority") => Ok(Quorum::Majority),
        Some(other) => Err(ConfigError::Value {
            key: "resolver.quorum",
            problem: format!("{other:?} is neither"),
            remedy: "write any (one upstream's word publishes an address) or majority (more than half of those that answer)",
        }),
    }
}

fn zone(section: &ZoneSection) -> Result<ZoneSettings, ConfigError> {
    let domain = section.domain.parse().map_err(|error| ConfigError::Value {
        key: "resolver.zones",
        problem: format!("{error}"),
        remedy: "write the domain whose names these upstreams know, for example corp.example",
    })?;
    if section.upstreams.is_empty() {
        return Err(ConfigError::Value {
            key: "resolver.zones",
            problem: format!("{domain} has no upstreams"),
            remedy: "name at least one, or leave the zone out",
        });
    }
    Ok(ZoneSettings { domain, upstreams: endpoints("resolver.zones", &section.upstreams)? })
}

fn endpoints(key: &'static str, texts: &[String]) -> Result<Vec<Endpoint>, ConfigError> {
    let parse = |text: &String| {
        text.trim().parse::<Endpoint>().map_err(|error| ConfigError::Value {
            key,
            problem: error.to_string(),
            remedy: error.remedy(),
        })
    };
    texts.iter().map(parse).collect()
}
