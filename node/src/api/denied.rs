//! Why was I blocked? What gateways denied, with what the list says of it now.

use std::net::IpAddr;
use std::time::Duration;

use allowlist::{DomainName, EntryId};
use axum::Json;
use axum::extract::State;
use ipnet::IpNet;
use raft_store::state::State as ListState;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::entry_view::{rfc3339, unix_ms};
use super::input::Params;
use super::problem::{Code, Problem, ProblemBody};
use super::{AppState, paging};
use crate::auth::Viewer;
use crate::cluster::DeniedAnswer;
use crate::feed::denied::{DeniedQuery, DeniedRow, MAX_DENIED_PAGE, MAX_DENIED_PREFIXES};

const DEFAULT_PAGE_ROWS: usize = 100;
/// How long the other nodes have to say what they know.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// Most entries named beside a row, of each kind.
const MAX_ENTRIES_BESIDE: usize = 10;

/// What to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DeniedParams {
    /// Only from this address or network (CIDR).
    #[param(required = false)]
    source: Option<String>,
    /// Only to this address or network, or to the published addresses of this domain, which an entry must name.
    #[param(required = false)]
    destination: Option<String>,
    /// Only of this gateway.
    #[param(required = false)]
    gateway: Option<String>,
    /// Only what was seen at this time or later, RFC 3339.
    #[param(required = false)]
    since: Option<String>,
    /// At most so many, from 1 to 500; 100 when left out.
    #[param(required = false, minimum = 1, maximum = 500)]
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    #[param(required = false)]
    cursor: Option<String>,
}

/// A page of what was denied.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DeniedPage)]
pub(super) struct DeniedListing {
    /// Last seen first.
    denied: Vec<DeniedView>,
    /// Give it as `cursor` for the next page; null on the last page.
    next_cursor: Option<String>,
    /// False when a node did not say what it knows; then rows may be missing.
    complete: bool,
    /// The nodes that were asked, sorted by name.
    nodes: Vec<NodeAsked>,
}

/// A node that was asked for what its gateways denied.
#[derive(Debug, Serialize, ToSchema)]
struct NodeAsked {
    name: String,
    /// False when it did not answer in time, or runs a release that does not know the question.
    answered: bool,
}

/// Packets of one source to one destination that a gateway denied, or would have denied in its audit.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Denied)]
struct DeniedView {
    gateway: String,
    /// Who asked; null for several that the gateway had no room to keep apart.
    source: Option<String>,
    /// What for; null likewise.
    destination: Option<String>,
    /// `tcp`, `udp`, `icmp`, `ipv6-icmp`, or the IP protocol number.
    #[schema(example = "tcp")]
    protocol: String,
    /// Destination port; null where the protocol has none.
    port: Option<u16>,
    /// How many packets the gateway saw. It looks at a part of those it denies, so that there may have been more.
    packets: u64,
    /// RFC 3339.
    first_seen: String,
    /// RFC 3339.
    last_seen: String,
    /// True when the list lets it pass now: access was granted meanwhile.
    listed: bool,
    /// The entries that let it pass, at most 10.
    entries: Vec<EntryBeside>,
    /// Entries that cover the destination with other ports only, at most 10.
    other_ports: Vec<EntryBeside>,
}

/// An entry that has to do with a denied packet.
#[derive(Debug, Serialize, ToSchema)]
struct EntryBeside {
    id: String,
    target: String,
    /// Empty for every protocol and port.
    ports: Vec<String>,
}

/// Shows what gateways denied
///
/// Last seen first: from all nodes that answer, each of which keeps in memory, since it started, the newest of what its
/// gateways told. A gateway looks at a part of the packets it denies (so many each second, and so many of each source), and
/// an audit shows in the same way what it would deny. A gateway that moved to another node meanwhile may have a row of each.
#[utoipa::path(get, path = "/api/v1/denied", tag = "about", params(DeniedParams), responses(
    (status = 200, body = DeniedListing),
    (status = 400, body = ProblemBody, content_type = "application/problem+json"),
    (status = 401, body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<AppState>,
    _: Viewer,
    Params(params): Params<DeniedParams>,
) -> Result<Json<DeniedListing>, Problem> {
    let limit = paging::limit(params.limit, DEFAULT_PAGE_ROWS, MAX_DENIED_PAGE)?;
    let list = app.local();
    let query = DeniedQuery {
        gateway: params.gateway,
        source: params.source.as_deref().map(|text| network("source", text)).transpose()?,
        destinations: params.destination.as_deref().map(|text| destinations(text, &list)).transpose()?,
        since_ms: params.since.as_deref().map_or(Ok(0), since)?,
        behind: paging::cursor(params.cursor.as_deref())?,
        limit,
    };
    let DeniedAnswer { page, asked } = app.cluster().denied(&query, ASK_TIMEOUT).await;
    let next_cursor = page.rows.last().filter(|_| page.more).map(|row| row.place().to_string());
    Ok(Json(DeniedListing {
        denied: page.rows.iter().map(|row| view(row, &list)).collect(),
        next_cursor,
        complete: asked.iter().all(|(_, answered)| *answered),
        nodes: asked.into_iter().map(|(name, answered)| NodeAsked { name, answered }).collect(),
    }))
}

fn network(parameter: &str, text: &str) -> Result<IpNet, Problem> {
    let text = text.trim();
    let parsed = text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse());
    parsed.map(|net| net.trunc()).map_err(|_| {
        let detail = format!(
            "{parameter} is `{text}`; give an address such as 10.1.2.3 or a network such as 10.1.0.0/16"
        );
        Problem::new(Code::InvalidQuery, detail)
    })
}

/// An address or network, or what is published of a domain.
fn destinations(text: &str, list: &ListState) -> Result<Vec<IpNet>, Problem> {
    let Ok(name) = text.trim().parse::<DomainName>() else {
        return network("destination", text).map(|net| vec![net]);
    };
    // Packets carry addresses, and only those of names in the list are known.
    let resolution = list.resolutions().get(&name).ok_or_else(|| {
        let detail = format!(
            "no entry names {name}, so its addresses are not known here; give the address that the client used"
        );
        Problem::new(Code::InvalidQuery, detail)
    })?;
    Ok(resolution.addresses.keys().copied().map(IpNet::from).take(MAX_DENIED_PREFIXES).collect())
}

fn since(text: &str) -> Result<u64, Problem> {
    unix_ms(text).ok_or_else(|| {
        let detail = format!("since is `{text}`; give a time such as 2026-01-31T13:00:00Z");
        Problem::new(Code::InvalidQuery, detail)
    })
}

fn view(row: &DeniedRow, list: &ListState) -> DeniedView {
    let key = &row.key;
    let (mut entries, mut other_ports) = (Vec::new(), Vec::new());
    for (element, owners) in list.published().covering(key.destination) {
        let passes = element.ports.is_none_or(|ports| ports.contains(key.protocol, key.port));
        let named = if passes { &mut entries } else { &mut other_ports };
        for owner in owners {
            if named.len() < MAX_ENTRIES_BESIDE && !named.contains(owner) {
                named.push(*owner);
            }
        }
    }
    other_ports.retain(|other| !entries.contains(other));
    let beside = |ids: &[EntryId]| {
        let found = ids.iter().filter_map(|id| list.entry(*id));
        found
            .map(|entry| EntryBeside {
                id: entry.id.to_string(),
                target: entry.target.to_string(),
                ports: entry.ports.ranges().iter().map(ToString::to_string).collect(),
            })
            .collect()
    };
    let address = |address: IpAddr| (!address.is_unspecified()).then(|| address.to_string());
    DeniedView {
        gateway: key.gateway.clone(),
        source: address(key.source),
        destination: address(key.destination),
        protocol: protocol(key.protocol),
        port: (key.port != 0).then_some(key.port),
        packets: row.packets,
        first_seen: rfc3339(row.first_ms),
        last_seen: rfc3339(row.last_ms),
        listed: !entries.is_empty(),
        entries: beside(&entries),
        other_ports: beside(&other_ports),
    }
}

fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "ipv6-icmp".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}
