//! `outputguardctl audit`: who changed what; and `outputguardctl cuts`: what became of connections then.

use anyhow::Context;
use clap::Args as ClapArgs;
use serde_json::Value;

use crate::args::Output;
use crate::client::Client;
use crate::print;

/// Which changes.
#[derive(Debug, ClapArgs)]
pub(crate) struct Audit {
    /// Only what the holder of this token did, or this part of the servers (resolver, expiry, bootstrap).
    #[arg(long)]
    actor: Option<String>,
    /// Only what is older than this revision.
    #[arg(long)]
    before: Option<u64>,
    /// About so many, 1 to 1,000.
    #[arg(short = 'n', long, default_value_t = 50)]
    limit: u32,
}

/// Which cut connections.
#[derive(Debug, ClapArgs)]
pub(crate) struct Cuts {
    /// Only of this gateway.
    #[arg(long)]
    gateway: Option<String>,
    /// Only of this revision and later ones.
    #[arg(long)]
    since: Option<u64>,
    /// At most so many, 1 to 200.
    #[arg(short = 'n', long, default_value_t = 50)]
    limit: u32,
}

pub(crate) async fn audit(client: &Client, output: Output, wanted: &Audit) -> anyhow::Result<()> {
    let filters = [
        ("limit", Some(wanted.limit.to_string())),
        ("actor", wanted.actor.clone()),
        ("before", wanted.before.map(|before| before.to_string())),
    ];
    let keys = ["at", "revision", "actor", "remote", "kind", "subject"];
    let Some(answer) = show(client, output, "/audit", &filters, "events", &keys).await? else {
        return Ok(());
    };
    match answer.get("next_before").and_then(Value::as_u64) {
        Some(before) => print::progress(&format!("older: --before {before}")),
        // A node keeps the newest part in memory.
        None => {
            let from = print::field(&answer, "complete_after");
            print::progress(&format!("older than revision {from}: not kept"));
        }
    }
    Ok(())
}

pub(crate) async fn cuts(client: &Client, output: Output, wanted: &Cuts) -> anyhow::Result<()> {
    let filters = [
        ("limit", Some(wanted.limit.to_string())),
        ("gateway", wanted.gateway.clone()),
        ("since", wanted.since.map(|since| since.to_string())),
    ];
    let keys = ["gateway", "revision", "cause", "flows", "bytes_out", "bytes_in"];
    let answer = show(client, output, "/receipts/cuts", &filters, "receipts", &keys).await?;
    if answer.is_some_and(|answer| answer.get("next_cursor").is_some_and(Value::is_string)) {
        print::progress("there are more; narrow the search, or raise --limit");
    }
    Ok(())
}

/// Prints the list `list` of what `path` answers, a column for each of `keys`. Gives the answer unless it was printed as it
/// is.
async fn show(
    client: &Client,
    output: Output,
    path: &str,
    filters: &[(&str, Option<String>)],
    list: &str,
    keys: &[&str],
) -> anyhow::Result<Option<Value>> {
    let query: Vec<(&str, &str)> =
        filters.iter().filter_map(|(key, value)| Some((*key, value.as_deref()?))).collect();
    let answer = client.get_where(path, &query).await?;
    if output == Output::Json {
        print::value(&answer);
        return Ok(None);
    }
    rows(&answer, list, keys)?;
    Ok(Some(answer))
}

fn rows(answer: &Value, list: &str, keys: &[&str]) -> anyhow::Result<()> {
    let items = answer.get(list).and_then(Value::as_array).context("the server sent no list")?;
    let headers: Vec<String> = keys.iter().map(|key| key.to_uppercase().replace('_', " ")).collect();
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    let row = |item: &Value| keys.iter().map(|key| print::field(item, key)).collect();
    print::table(&headers, items.iter().map(row).collect());
    Ok(())
}
