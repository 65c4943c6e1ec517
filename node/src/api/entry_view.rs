//! An entry as JSON, with what DNS says of it.

use std::collections::BTreeMap;

use allowlist::{DomainName, Entry, Target};
use raft_store::command::NameStatus;
use raft_store::state::{Resolution, State};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

use crate::resolver::{Asked, Standing};

/// One line of the allowlist.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Entry)]
pub(super) struct EntryView {
    /// Names the entry for ever (UUID).
    id: String,
    /// Domain, address or CIDR block in canonical form.
    #[schema(example = "api.example.com")]
    target: String,
    kind: Kind,
    /// Such as `tcp/443` or `udp/5000-5010`; empty for every protocol and port.
    ports: Vec<String>,
    /// Protected entries can be neither deleted nor weakened.
    protected: bool,
    comment: String,
    owner: String,
    ticket: String,
    labels: BTreeMap<String, String>,
    /// Name of the token that added it.
    created_by: String,
    /// RFC 3339.
    created_at: String,
    /// RFC 3339; null for never.
    expires_at: Option<String>,
    /// What DNS says; null for addresses and networks.
    resolution: Option<ResolutionView>,
}

/// What an entry names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Domain,
    Wildcard,
    Address,
    Network,
}

/// What DNS says of a domain.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Resolution)]
pub(super) struct ResolutionView {
    #[serde(flatten)]
    said: Said,
    /// The published addresses.
    addresses: Vec<AddressView>,
    /// CNAME chain, the name itself first; empty when there is none.
    chain: Vec<String>,
}

/// How a domain stands with DNS, and since when.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Said {
    state: Standing,
    /// The first error, or who gave what was refused.
    detail: Option<String>,
    /// When it became so, RFC 3339; null when not yet known.
    since: Option<String>,
}

/// A published address of a domain.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ResolvedAddress)]
pub(super) struct AddressView {
    address: String,
    /// RFC 3339.
    first_seen: String,
    /// Time to live of the answer that brought it, seconds.
    ttl_s: u32,
    /// The upstreams that gave it.
    upstreams: Vec<String>,
    /// The name is asked of several upstreams (by the settings of the node that answers), and only this one gives it.
    single_upstream: bool,
}

impl EntryView {
    /// `entry` as it stands in `state`.
    pub(super) fn new(entry: &Entry, state: &State, asked: &Asked) -> Self {
        let (kind, resolution) = match &entry.target {
            Target::Domain(name) => {
                let pending = Resolution::default();
                let found = state.resolutions().get(name).map_or(&pending, |found| &**found);
                (Kind::Domain, Some(ResolutionView::new(name, found, state, asked)))
            }
            Target::Wildcard { .. } => (Kind::Wildcard, None),
            Target::Address(_) => (Kind::Address, None),
            Target::Network(_) => (Kind::Network, None),
        };
        Self {
            id: entry.id.to_string(),
            target: entry.target.to_string(),
            kind,
            ports: entry.ports.ranges().iter().map(ToString::to_string).collect(),
            protected: entry.protected,
            comment: entry.comment.to_string(),
            owner: entry.owner.to_string(),
            ticket: entry.ticket.to_string(),
            labels: BTreeMap::clone(&entry.labels),
            created_by: entry.created_by.to_string(),
            created_at: rfc3339(entry.created_at_ms),
            expires_at: entry.expires_at_ms.map(rfc3339),
            resolution,
        }
    }
}

impl ResolutionView {
    fn new(name: &DomainName, resolution: &Resolution, state: &State, asked: &Asked) -> Self {
        let several = asked.count(name) > 1;
        let addresses = resolution.addresses.iter().map(|(address, seen)| AddressView {
            address: address.to_string(),
            first_seen: rfc3339(seen.first_seen_ms),
            ttl_s: seen.ttl_s,
            upstreams: seen.upstreams.iter().cloned().collect(),
            single_upstream: several && seen.upstreams.len() == 1,
        });
        Self {
            said: Said::of(name, resolution, state),
            addresses: addresses.collect(),
            chain: resolution.chain.iter().map(ToString::to_string).collect(),
        }
    }
}

impl Said {
    pub(super) fn of(name: &DomainName, resolution: &Resolution, state: &State) -> Self {
        let (detail, since_ms) = match &resolution.status {
            NameStatus::Stale { since_ms, error } => (Some(error.clone()), *since_ms),
            NameStatus::Refused { reason } | NameStatus::Mixed { reason } => {
                (Some(reason.clone()), resolution.changed_at_ms)
            }
            NameStatus::Pending | NameStatus::Ok | NameStatus::NoSuchName => (None, resolution.changed_at_ms),
        };
        let since = (since_ms > 0).then(|| rfc3339(since_ms));
        Self { state: Standing::of(name, resolution, state), detail, since }
    }
}

/// A time of the state as text.
pub(super) fn rfc3339(unix_ms: u64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000);
    let text = time.ok().and_then(|time| time.format(&Rfc3339).ok());
    // RFC 3339 ends with the year 9999; its last instant stands for "very late".
    text.unwrap_or_else(|| "9999-12-31T23:59:59.999Z".to_owned())
}

/// A time as people write it (RFC 3339), Unix milliseconds; one before 1970 is 0.
pub(super) fn unix_ms(text: &str) -> Option<u64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    Some(u64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use raft_store::command::SeenAddress;

    use super::*;
    use crate::resolver::{Metrics, Resolver, Settings};

    #[test]
    fn an_address_that_one_of_several_upstreams_gives_is_marked() {
        let upstreams = ["192.0.2.1:53", "192.0.2.2:53"];
        let asked_of = |count: usize| {
            let upstreams = upstreams[..count].iter().map(|text| text.parse().unwrap()).collect();
            let settings = Settings { upstreams, ..Settings::default() };
            Resolver::new(settings, Metrics::new().unwrap()).unwrap().asked()
        };
        let given_by = |upstreams: &[&str]| {
            let upstreams = upstreams.iter().map(|name| (*name).to_owned()).collect();
            let seen = SeenAddress { first_seen_ms: 1, ttl_s: 30, upstreams };
            Resolution { addresses: [([9, 9, 9, 9].into(), seen)].into(), ..Resolution::default() }
        };
        let is_marked = |resolution: &Resolution, asked: &Asked| {
            let name = "api.example.com".parse().unwrap();
            ResolutionView::new(&name, resolution, &State::default(), asked).addresses[0].single_upstream
        };
        assert!(is_marked(&given_by(&upstreams[..1]), &asked_of(2)));
        assert!(!is_marked(&given_by(&upstreams), &asked_of(2)));
        assert!(!is_marked(&given_by(&upstreams[..1]), &asked_of(1)), "there is no other to give it");
    }

    #[test]
    fn a_time_is_told_to_the_millisecond_and_never_fails() {
        assert_eq!(rfc3339(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(rfc3339(u64::MAX), "9999-12-31T23:59:59.999Z");
    }
}
