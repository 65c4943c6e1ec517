//! What is there when nobody writes any more, and what a backup held: read whole, and checked like any other list.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result};

use super::archive::Saved;
use super::crowd::epoch_at;
use super::ground::{Ground, RECOVERY_TIMEOUT};
use super::history::{Answer, Call, Id, Key, Moment, Record};
use crate::api::Api;
use crate::wait;

/// The client that reads last: what it does not find is lost.
pub(super) const READER: u16 = u16::MAX;
/// The client that reads a backup.
const ARCHIVIST: u16 = u16::MAX - 1;
/// Largest page of the API.
const PAGE_ENTRIES: usize = 1_000;

/// Reads everything once more from each server, linearizably.
///
/// # Errors
/// When a server does not answer, or shows what nobody wrote.
pub(super) fn reads(ground: &Ground, start: Instant) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for (node, server) in ground.servers.iter().enumerate() {
        let invoked = Moment(start.elapsed());
        let found = everything(&server.api()?, server.name())?;
        let returned = Moment(start.elapsed());
        let seen = Seen { client: READER, node, invoked, returned, revision: None };
        records.extend(lists(&seen, found));
    }
    Ok(records)
}

/// What a backup held when it is put into a new cluster, and how many entries: all that was answered before it was asked
/// for, and exactly what its revision says.
///
/// # Errors
/// When it cannot be put back.
pub(super) fn restored(ground: &Ground, backup: Saved) -> Result<(Vec<Record>, usize)> {
    let Saved { node, invoked, returned, revision, bytes } = backup;
    let found = ground.restored(bytes, |api| everything(api, "the new cluster"))?;
    let entries = found.values().map(Vec::len).sum();
    let seen = Seen { client: ARCHIVIST, node, invoked, returned, revision: Some(revision) };
    Ok((lists(&seen, found), entries))
}

/// All entries by epoch.
fn everything(api: &Api, whose: &str) -> Result<BTreeMap<u16, Vec<(Key, Id)>>> {
    let mut found: BTreeMap<u16, Vec<(Key, Id)>> = BTreeMap::new();
    let mut cursor = String::new();
    loop {
        // Reads of a loaded machine may take too long for the server; the last ones must come.
        let page = wait::until(format!("{whose} shows everything"), RECOVERY_TIMEOUT, || {
            api.get_text(&format!("/api/v1/entries?limit={PAGE_ENTRIES}{cursor}"))
        })?;
        let page: serde_json::Value = serde_json::from_str(&page).context("read a page of entries")?;
        for entry in page["entries"].as_array().into_iter().flatten() {
            let key = entry["target"].as_str().and_then(Key::of_target).context("a strange target")?;
            let id = entry["id"].as_str().and_then(Id::parse).context("a strange id")?;
            found.entry(key.epoch).or_default().push((key, id));
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(found),
        }
    }
}

/// Who saw it, and when.
struct Seen {
    client: u16,
    node: usize,
    invoked: Moment,
    returned: Moment,
    revision: Option<u64>,
}

/// What was found as a list of each epoch there was.
fn lists(seen: &Seen, mut found: BTreeMap<u16, Vec<(Key, Id)>>) -> Vec<Record> {
    let Seen { client, node, invoked, returned, revision } = *seen;
    let list = |epoch| {
        let answer = Answer::Listed(found.remove(&epoch).unwrap_or_default());
        Record { client, node, invoked, returned, call: Call::List(epoch), answer, revision }
    };
    (0..=epoch_at(returned)).map(list).collect()
}
