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
    let (limit, before) = (wanted.limit.to_string(), wanted.before.map(|before| before.to_string()));
    let mut query = vec![("limit", limit.as_str())];
    query.extend(wanted.actor.as_deref().map(|actor| ("actor", actor)));
    query.extend(before.as_deref().map(|before| ("before", before)));
    let answer = client.get_where("/audit", &query).await?;
    if output == Output::Json {
        print::value(&answer);
        return Ok(());
    }
    rows(&answer, "events", &["at", "revision", "actor", "remote", "kind", "subject"])?;
    match answer.get("next_before").and_then(Value::as_u64) {
        Some(before) => print::progress(&format!("older: --before {before}")),
        // A node keeps the newest part in memory.
        None => {
            print::progress(&format!(
                "older than revision {}: not kept",
                print::field(&answer, "complete_after")
            ));
        }
    }
    Ok(())
}

pub(crate) async fn cuts(client: &Client, output: Output, wanted: &Cuts) -> anyhow::Result<()> {
    let (limit, since) = (wanted.limit.to_string(), wanted.since.map(|since| since.to_string()));
    let mut query = vec![("limit", limit.as_str())];
    query.extend(wanted.gateway.as_deref().map(|gateway| ("gateway", gateway)));
    query.extend(since.as_deref().map(|since| ("since", since)));
    let answer = client.get_where("/receipts/cuts", &query).await?;
    if output == Output::Json {
        print::value(&answer);
        return Ok(());
    }
    rows(&answer, "receipts", &["gateway", "revision", "cause", "flows", "bytes_out", "bytes_in"])?;
    if answer.get("next_cursor").is_some_and(Value::is_string) {
        print::progress("there are more; narrow the search, or raise --limit");
    }
    Ok(())
}

fn rows(answer: &Value, list: &str, keys: &[&str]) -> anyhow::Result<()> {
    let items = answer.get(list).and_then(Value::as_array).context("the server sent no list")?;
    let headers: Vec<String> = keys.iter().map(|key| key.to_uppercase().replace('_', " ")).collect();
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    let row = |item: &Value| keys.iter().map(|key| print::field(item, key)).collect();
    print::table(&headers, items.iter().map(row).collect());
    Ok(())
}
