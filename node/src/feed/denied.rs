//! What gateways said of denied packets: who wanted what, and was not let. Kept in memory on the node that heard it, within
//! a bound; an answer is put together from all nodes ([`crate::cluster::Cluster::denied`]).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use allowlist::feed::DeniedFlow;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Most rows kept on one node. When more come, the source with most rows on its gateway loses the one that was silent for
/// longest: whoever scans pushes out what is its own.
pub const MAX_DENIED_ROWS: usize = 50_000;
/// Most rows in one answer of a node.
pub const MAX_DENIED_PAGE: usize = 500;
/// Most prefixes one question may name.
pub const MAX_DENIED_PREFIXES: usize = 4_096;

/// What was denied, in the order of lists when it was seen last at the same time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeniedKey {
    /// Who denied.
    pub gateway: String,
    /// Who asked; unspecified (`0.0.0.0`, `::`) for several that the gateway had no room to keep apart.
    pub source: IpAddr,
    /// What for; unspecified likewise.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, 0 where the protocol has none.
    pub port: u16,
}

/// Denied packets of one key. Goes between nodes: its bytes are frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeniedRow {
    /// Of what.
    pub key: DeniedKey,
    /// How many packets the gateway saw, which is a part of those it denied.
    pub packets: u64,
    /// First seen, Unix milliseconds.
    pub first_ms: u64,
    /// Last seen, Unix milliseconds.
    pub last_ms: u64,
}

/// A place in the list of rows, newest first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeniedPlace {
    last_ms: Reverse<u64>,
    key: DeniedKey,
}

/// Which rows are wanted. Goes between nodes: its bytes are frozen.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeniedQuery {
    /// Only of this gateway.
    pub gateway: Option<String>,
    /// Only from here.
    pub source: Option<IpNet>,
    /// Only to one of these.
    pub destinations: Option<Vec<IpNet>>,
    /// Only what was seen at this time or later, Unix milliseconds.
    pub since_ms: u64,
    /// Only what stands behind this place.
    pub behind: Option<DeniedPlace>,
    /// At most so many.
    pub limit: usize,
}

/// Rows of one node or of all, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeniedPage {
    /// What is wanted.
    pub rows: Vec<DeniedRow>,
    /// More stand behind the last.
    pub more: bool,
}

/// The rows. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct DeniedLog(Arc<Mutex<Kept>>);

/// Destination, protocol, port.
type Service = (IpAddr, u8, u16);
/// Gateway and source.
type Who = (Arc<str>, IpAddr);

#[derive(Debug, Default)]
struct Kept {
    groups: HashMap<Who, Group>,
    /// Groups by what they may lose: the largest last, and of equal ones that which was silent for longest.
    sizes: BTreeSet<(usize, Reverse<u64>, Who)>,
    rows: usize,
    /// Counts what was heard.
    clock: u64,
}

/// What one source wanted of one gateway.
#[derive(Debug, Default)]
struct Group {
    rows: HashMap<Service, Row>,
    /// Rows by when they were heard of last.
    heard: BTreeMap<u64, Service>,
    newest: u64,
}

#[derive(Debug, Clone, Copy)]
struct Row {
    packets: u64,
    first_ms: u64,
    last_ms: u64,
    heard: u64,
}

impl DeniedRow {
    /// Where it stands.
    pub fn place(&self) -> DeniedPlace {
        DeniedPlace { last_ms: Reverse(self.last_ms), key: self.key.clone() }
    }

    /// Adds what another node heard of the same.
    fn add(&mut self, other: &Self) {
        self.packets = self.packets.saturating_add(other.packets);
        self.first_ms = self.first_ms.min(other.first_ms);
        self.last_ms = self.last_ms.max(other.last_ms);
    }
}

impl DeniedQuery {
    fn wants(&self, row: &DeniedRow) -> bool {
        self.wants_who(&row.key.gateway, row.key.source)
            && self
                .destinations
                .as_ref()
                .is_none_or(|prefixes| prefixes.iter().any(|prefix| prefix.contains(&row.key.destination)))
            && row.last_ms >= self.since_ms
            && self.behind.as_ref().is_none_or(|behind| row.place() > *behind)
    }

    fn wants_who(&self, gateway: &str, source: IpAddr) -> bool {
        self.gateway.as_deref().is_none_or(|wanted| wanted == gateway)
            && self.source.is_none_or(|prefix| prefix.contains(&source))
    }
}

impl DeniedPage {
    /// One page of what several nodes answered. What a gateway told to two of them is one row, as far as both stand on
    /// the page.
    pub fn joined(answers: impl IntoIterator<Item = Self>, limit: usize) -> Self {
        let mut more = false;
        let mut rows: BTreeMap<DeniedKey, DeniedRow> = BTreeMap::new();
        // Behind the end of an answer that is not whole its node may have more: nothing behind it is shown yet.
        let mut end: Option<DeniedPlace> = None;
        for answer in answers {
            if let Some(last) = answer.rows.last().filter(|_| answer.more) {
                more = true;
                let place = last.place();
                end = Some(end.map_or(place.clone(), |end| end.min(place)));
            }
            for row in answer.rows {
                match rows.get_mut(&row.key) {
                    Some(known) => known.add(&row),
                    None => {
                        rows.insert(row.key.clone(), row);
                    }
                }
            }
        }
        let mut rows: Vec<_> = rows.into_values().collect();
        rows.sort_by_cached_key(DeniedRow::place);
        let before = rows.len();
        rows.retain(|row| end.as_ref().is_none_or(|end| row.place() <= *end));
        rows.truncate(limit);
        more |= rows.len() < before;
        Self { rows, more }
    }
}

impl DeniedLog {
    /// Adds what a gateway said at `now_ms`.
    pub fn add(&self, gateway: &str, flows: &[DeniedFlow], now_ms: u64) {
        let gateway: Arc<str> = gateway.into();
        let mut kept = self.lock();
        for flow in flows {
            kept.add(&gateway, flow, now_ms);
        }
    }

    /// The rows that `query` wants, newest first.
    pub fn page(&self, query: &DeniedQuery) -> DeniedPage {
        let mut rows = Vec::new();
        {
            let kept = self.lock();
            for ((gateway, source), group) in &kept.groups {
                if !query.wants_who(gateway, *source) {
                    continue;
                }
                let found = group.rows.iter().map(|(service, row)| shown(gateway, *source, *service, *row));
                rows.extend(found.filter(|row| query.wants(row)));
            }
        }
        rows.sort_by_cached_key(DeniedRow::place);
        let limit = query.limit.min(MAX_DENIED_PAGE);
        let more = rows.len() > limit;
        rows.truncate(limit);
        DeniedPage { rows, more }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn add(&mut self, gateway: &Arc<str>, flow: &DeniedFlow, now_ms: u64) {
        // A gateway's clock that is ahead must not keep its rows in front for ever.
        let last_ms = flow.last_ms.min(now_ms);
        let first_ms = flow.first_ms.min(last_ms);
        let who = (Arc::clone(gateway), flow.source);
        let service = (flow.destination, flow.protocol, flow.port);
        self.clock += 1;
        let heard = self.clock;
        self.change(&who, |group| {
            group.newest = heard;
            match group.rows.get_mut(&service) {
                Some(row) => {
                    group.heard.remove(&row.heard);
                    row.packets = row.packets.saturating_add(flow.packets);
                    row.first_ms = row.first_ms.min(first_ms);
                    row.last_ms = row.last_ms.max(last_ms);
                    row.heard = heard;
                }
                None => {
                    group.rows.insert(service, Row { packets: flow.packets, first_ms, last_ms, heard });
                }
            }
            group.heard.insert(heard, service);
        });
        while self.rows > MAX_DENIED_ROWS
            && let Some((_, _, who)) = self.sizes.last().cloned()
        {
            self.change(&who, |group| {
                if let Some((_, service)) = group.heard.pop_first() {
                    group.rows.remove(&service);
                }
            });
        }
    }

    /// Changes a group, and what is known of its size.
    fn change(&mut self, who: &Who, change: impl FnOnce(&mut Group)) {
        let mut group = self.groups.remove(who).unwrap_or_default();
        let before = group.rows.len();
        self.sizes.remove(&(before, Reverse(group.newest), who.clone()));
        change(&mut group);
        let after = group.rows.len();
        self.rows = self.rows + after - before;
        if after > 0 {
            self.sizes.insert((after, Reverse(group.newest), who.clone()));
            self.groups.insert(who.clone(), group);
        }
    }
}

fn shown(gateway: &Arc<str>, source: IpAddr, service: Service, row: Row) -> DeniedRow {
    let (destination, protocol, port) = service;
    let key = DeniedKey { gateway: gateway.as_ref().to_owned(), source, destination, protocol, port };
    DeniedRow { key, packets: row.packets, first_ms: row.first_ms, last_ms: row.last_ms }
}

/// The name comes last, since it may hold what parts the others.
impl std::fmt::Display for DeniedPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { last_ms: Reverse(last_ms), key } = self;
        let DeniedKey { gateway, source, destination, protocol, port } = key;
        write!(f, "{last_ms},{source},{destination},{protocol},{port},{gateway}")
    }
}

/// It is not what [`DeniedPlace`] displays as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a place in the list of denied packets")]
pub struct NoPlace;

impl FromStr for DeniedPlace {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let mut parts = text.splitn(6, ',');
        let mut next = || parts.next().ok_or(NoPlace);
        let last_ms = Reverse(next()?.parse().map_err(|_| NoPlace)?);
        let source = next()?.parse().map_err(|_| NoPlace)?;
        let destination = next()?.parse().map_err(|_| NoPlace)?;
        let protocol = next()?.parse().map_err(|_| NoPlace)?;
        let port = next()?.parse().map_err(|_| NoPlace)?;
        let gateway = next()?.to_owned();
        Ok(Self { last_ms, key: DeniedKey { gateway, source, destination, protocol, port } })
    }
}

#[cfg(test)]
mod tests;
