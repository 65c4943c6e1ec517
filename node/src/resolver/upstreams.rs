//! Which upstreams a name is asked of.

use std::collections::BTreeMap;
use std::sync::Arc;

use allowlist::DomainName;

use super::answer::MAX_UPSTREAMS;
use super::endpoint::Endpoint;
use super::judge::{GIVEN_COUNTS, Rules};
use super::lookup::{Bounds, Upstream};
use super::trust::Trust;
use super::zone::Zones;
use super::{Settings, SettingsError, ZoneSettings};

/// Most domains with upstreams of their own.
pub const MAX_ZONES: usize = 64;

/// All upstreams, in groups: one for names in general, and one for each domain that has its own.
#[derive(Debug)]
pub(super) struct Upstreams {
    /// Each server once, however many groups it is in.
    all: Vec<Upstream>,
    general: Group,
    zones: Zones<Group>,
}

/// Upstreams that are asked together, and how their answers are judged.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) upstreams: Arc<[Upstream]>,
    pub(super) rules: Rules,
}

impl Upstreams {
    /// `general` is for names that lie in none of the settings' zones.
    pub(super) fn new(general: &[Endpoint], settings: &Settings) -> Result<Self, SettingsError> {
        let lists = || std::iter::once(general).chain(settings.zones.iter().map(|zone| &zone.upstreams[..]));
        let trust = if lists().flatten().any(Endpoint::is_encrypted) {
            Trust::load(settings.ca_file.as_deref())?
        } else {
            Trust::nobody()?
        };
        let mut servers = Servers { settings, trust, known: BTreeMap::new(), all: Vec::new() };
        let general = servers.group("resolver.upstreams", general)?;
        if settings.zones.len() > MAX_ZONES {
            return Err(SettingsError::TooManyZones(settings.zones.len()));
        }
        let mut zones = Zones::default();
        for ZoneSettings { domain, upstreams } in &settings.zones {
            if upstreams.is_empty() {
                return Err(SettingsError::EmptyZone(domain.to_string()));
            }
            let group = servers.group("resolver.zones", upstreams)?;
            if !zones.add(domain.clone(), group) {
                return Err(SettingsError::ZoneTwice(domain.to_string()));
            }
        }
        Ok(Self { all: servers.all, general, zones })
    }

    /// All of them, each once.
    pub(super) fn all(&self) -> &[Upstream] {
        &self.all
    }

    /// Whom `name` is asked of, and nobody else.
    pub(super) fn of(&self, name: &DomainName) -> &Group {
        self.zones.find(name).unwrap_or(&self.general)
    }
}

struct Servers<'a> {
    settings: &'a Settings,
    trust: Trust,
    known: BTreeMap<String, Upstream>,
    all: Vec<Upstream>,
}

impl Servers<'_> {
    fn group(&mut self, key: &'static str, endpoints: &[Endpoint]) -> Result<Group, SettingsError> {
        let mut upstreams: Vec<Upstream> = Vec::new();
        for endpoint in endpoints {
            let upstream = self.server(endpoint);
            if upstreams.iter().all(|other| other.name() != upstream.name()) {
                upstreams.push(upstream);
            }
        }
        if upstreams.len() > MAX_UPSTREAMS {
            return Err(SettingsError::TooManyUpstreams { key, count: upstreams.len() });
        }
        let rules = Rules {
            linger: self.settings.linger,
            word_counts: self.settings.linger.max(GIVEN_COUNTS),
            upstreams: upstreams.iter().map(|upstream| upstream.name().to_owned()).collect(),
            tells_mixed: false,
            quorum: self.settings.quorum,
        };
        Ok(Group { upstreams: upstreams.into(), rules })
    }

    fn server(&mut self, endpoint: &Endpoint) -> Upstream {
        let upstream = self.known.entry(format!("{endpoint:?}")).or_insert_with(|| {
            let bounds = Bounds {
                timeout: self.settings.timeout,
                questions_per_second: self.settings.questions_per_second,
            };
            let upstream = Upstream::new(endpoint.clone(), bounds, &self.trust);
            self.all.push(upstream.clone());
            upstream
        });
        upstream.clone()
    }
}
