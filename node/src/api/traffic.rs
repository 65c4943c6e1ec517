//! Who eats the bandwidth: source hosts and entries with most traffic, over all gateways.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use allowlist::{Element, EntryId};
use axum::Json;
use axum::extract::State;
use raft_store::state::State as AllowlistState;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::input::Params;
use super::problem::{Code, Problem, ProblemBody};
use super::{AppState, paging};
use crate::auth::Viewer;
use crate::cluster::ClusterTraffic;
use crate::feed::traffic::{MAX_WINDOW_MINUTES, Moved, TrafficSums, Window};

const DEFAULT_ROWS: usize = 10;
const MAX_ROWS: usize = 100;
const DEFAULT_WINDOW: Window = Window::Minutes(10);
/// How many of the other kind are named in a row.
const MAX_PARTS: usize = 3;
/// Most owners of one element that its traffic is told of; an address of a large content network may have thousands.
const MAX_OWNERS: usize = 10;
/// How long each other node has to say what it knows.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// What to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// Sums of source hosts (the default) or of entries.
    #[param(required = false)]
    by: Option<By>,
    /// Only through this gateway.
    #[param(required = false)]
    gateway: Option<String>,
    /// The last minutes up to an hour, such as `10m` or `1h`, or `all` since each node started; `10m` when left out.
    #[param(required = false, example = "10m")]
    window: Option<String>,
    /// At most so many, from 1 to 100; 10 when left out.
    #[param(required = false, minimum = 1, maximum = 100)]
    limit: Option<usize>,
}

/// What is summed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = TrafficBy)]
pub(super) enum By {
    /// Hosts that began flows, as the gateways' conntrack counts them.
    Source,
    /// Entries, as the counters of the gateways' kernel sets have it. What several entries own counts for each.
    Entry,
}

/// Those with most bytes, both directions together.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TopTraffic {
    by: By,
    /// The window in minutes; null since each node started.
    window_minutes: Option<u64>,
    /// Most bytes first.
    rows: Vec<Row>,
    /// Everything, also what has no row.
    total: MovedView,
    /// Nodes that did not answer: what gateways told them is missing.
    silent_nodes: Vec<String>,
}

/// A source host or an entry.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TrafficRow)]
struct Row {
    /// The host's address, or the entry's target (a prefix when no entry owns it any more); null for all that the gateways
    /// do not name.
    name: Option<String>,
    /// The entry's id; null for a host, and for what no entry owns any more.
    entry: Option<String>,
    #[serde(flatten)]
    moved: MovedView,
    /// The gateways it went through.
    gateways: Vec<String>,
    /// Of a host the entries, of an entry the hosts, with most bytes: at most 3.
    with: Vec<Part>,
}

/// A part of a row.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TrafficPart)]
struct Part {
    /// As in a row.
    name: Option<String>,
    /// As in a row.
    entry: Option<String>,
    /// In both directions.
    bytes: u64,
}

/// Packets and bytes (IP length), seen from the clients.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TrafficMoved)]
struct MovedView {
    packets_out: u64,
    bytes_out: u64,
    packets_in: u64,
    bytes_in: u64,
}

/// Shows who moves most
///
/// Gateways report every ten seconds; each node keeps an hour in memory, and the answering node asks all others.
#[utoipa::path(get, path = "/api/v1/traffic/top", tag = "about", params(Filter), responses(
    (status = 200, body = TopTraffic),
    (status = 400, body = ProblemBody, content_type = "application/problem+json"),
    (status = 401, body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn top(
    State(app): State<AppState>,
    _: Viewer,
    Params(filter): Params<Filter>,
) -> Result<Json<TopTraffic>, Problem> {
    let limit = paging::limit(filter.limit, DEFAULT_ROWS, MAX_ROWS)?;
    let window = filter.window.as_deref().map_or(Ok(DEFAULT_WINDOW), read_window)?;
    let by = filter.by.unwrap_or(By::Source);
    let ClusterTraffic { sums, silent } =
        app.cluster().traffic(window, filter.gateway.as_deref(), ASK_TIMEOUT).await;
    let names = Names(&app.local());
    let mut rows = match by {
        By::Source => by_source(&sums, &names),
        By::Entry => by_entry(&sums, &names),
    };
    let mut total = Moved::default();
    match by {
        By::Source => sums.sources.iter().for_each(|(_, moved)| total.add(*moved)),
        By::Entry => sums.elements.iter().for_each(|(_, moved)| total.add(*moved)),
    }
    rows.truncate(limit);
    Ok(Json(TopTraffic {
        by,
        window_minutes: match window {
            Window::Minutes(minutes) => Some(minutes),
            Window::SinceStart => None,
        },
        rows,
        total: total.into(),
        silent_nodes: silent,
    }))
}

fn read_window(text: &str) -> Result<Window, Problem> {
    let wrong = || {
        let detail = format!(
            "window is `{}`; write minutes such as `10m`, `1h`, or `all` (at most {MAX_WINDOW_MINUTES} minutes are kept)",
            text.chars().take(20).collect::<String>()
        );
        Problem::new(Code::InvalidQuery, detail)
    };
    if text == "all" {
        return Ok(Window::SinceStart);
    }
    let (number, factor) = match (text.strip_suffix('m'), text.strip_suffix('h')) {
        (Some(number), _) => (number, 1),
        (None, Some(number)) => (number, 60),
        (None, None) => return Err(wrong()),
    };
    let minutes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    let minutes = minutes.filter(|minutes| (1..=MAX_WINDOW_MINUTES).contains(minutes));
    minutes.map(Window::Minutes).ok_or_else(wrong)
}

/// Who a row is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Subject {
    Host(IpAddr),
    Entry(EntryId),
    /// Owned by no entry any more.
    Unowned(Element),
    /// All that the gateways do not name.
    Unnamed,
}

/// Finds entries by element, and their names.
struct Names<'a>(&'a AllowlistState);

impl Names<'_> {
    fn owners(&self, element: Option<Element>) -> Vec<Subject> {
        let Some(element) = element else { return vec![Subject::Unnamed] };
        let owners: Vec<_> =
            self.0.published().owners(&element).take(MAX_OWNERS).map(Subject::Entry).collect();
        if owners.is_empty() { vec![Subject::Unowned(element)] } else { owners }
    }

    /// Name and entry id.
    fn of(&self, subject: &Subject) -> (Option<String>, Option<String>) {
        match subject {
            Subject::Host(address) => (Some(address.to_string()), None),
            Subject::Entry(id) => {
                (self.0.entry(*id).map(|entry| entry.target.to_string()), Some(id.to_string()))
            }
            Subject::Unowned(element) => (Some(element.to_string()), None),
            Subject::Unnamed => (None, None),
        }
    }
}

#[derive(Default)]
struct Sum {
    moved: Moved,
    gateways: BTreeSet<Arc<str>>,
    with: HashMap<Subject, u64>,
}

fn by_source(sums: &TrafficSums, names: &Names<'_>) -> Vec<Row> {
    let mut found = BTreeMap::<Subject, Sum>::new();
    for (line, moved) in &sums.sources {
        let sum = found.entry(line.source.map_or(Subject::Unnamed, Subject::Host)).or_default();
        sum.moved.add(*moved);
        sum.gateways.insert(Arc::clone(&line.gateway));
        for owner in names.owners(line.element) {
            add(&mut sum.with, owner, moved.bytes());
        }
    }
    rows(found, names)
}

fn by_entry(sums: &TrafficSums, names: &Names<'_>) -> Vec<Row> {
    let mut found = BTreeMap::<Subject, Sum>::new();
    for (line, moved) in &sums.elements {
        for owner in names.owners(line.element) {
            let sum = found.entry(owner).or_default();
            sum.moved.add(*moved);
            sum.gateways.insert(Arc::clone(&line.gateway));
        }
    }
    // Who it was is known from the flows; how much it was, from the sets.
    for (line, moved) in sums.sources.iter().filter(|(line, _)| line.element.is_some()) {
        for owner in names.owners(line.element) {
            if let Some(sum) = found.get_mut(&owner) {
                add(&mut sum.with, line.source.map_or(Subject::Unnamed, Subject::Host), moved.bytes());
            }
        }
    }
    rows(found, names)
}

fn add<K: Eq + Hash>(sums: &mut HashMap<K, u64>, key: K, bytes: u64) {
    let sum = sums.entry(key).or_default();
    *sum = sum.saturating_add(bytes);
}

/// Most bytes first.
fn rows(found: BTreeMap<Subject, Sum>, names: &Names<'_>) -> Vec<Row> {
    let mut found: Vec<_> = found.into_iter().collect();
    found.sort_by_key(|(_, sum)| Reverse(sum.moved.bytes()));
    // Only these can be wanted; names are not looked up for the others.
    found.truncate(MAX_ROWS);
    let row = |(subject, sum): (Subject, Sum)| {
        let mut with: Vec<_> = sum.with.into_iter().collect();
        with.sort_by(|one, other| (Reverse(one.1), &one.0).cmp(&(Reverse(other.1), &other.0)));
        let part = |(subject, bytes): (Subject, u64)| {
            let (name, entry) = names.of(&subject);
            Part { name, entry, bytes }
        };
        let (name, entry) = names.of(&subject);
        Row {
            name,
            entry,
            moved: sum.moved.into(),
            gateways: sum.gateways.iter().map(|gateway| gateway.as_ref().to_owned()).collect(),
            with: with.into_iter().take(MAX_PARTS).map(part).collect(),
        }
    };
    found.into_iter().map(row).collect()
}

impl From<Moved> for MovedView {
    fn from(moved: Moved) -> Self {
        let Moved { packets_out, bytes_out, packets_in, bytes_in } = moved;
        Self { packets_out, bytes_out, packets_in, bytes_in }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_minutes_hours_or_all() {
        assert_eq!(read_window("10m").unwrap(), Window::Minutes(10));
        assert_eq!(read_window("1h").unwrap(), Window::Minutes(60));
        assert_eq!(read_window("all").unwrap(), Window::SinceStart);
        for wrong in ["", "m", "0m", "61m", "2h", "10", "10s", "-1m", "99999999999999999999h"] {
            assert!(read_window(wrong).is_err(), "{wrong}");
        }
    }
}
