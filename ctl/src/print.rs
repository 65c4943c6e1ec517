//! Answers as a table or as JSON.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is the program's output")]

use std::path::Path;

use serde_json::{Value, json};

use crate::args::Output;
use crate::transfer::Saved;

/// Widest a column of free text gets, characters.
const MAX_COLUMN_CHARS: usize = 60;

pub(crate) fn error(error: &anyhow::Error) {
    eprintln!("outputguardctl: {error:#}");
}

pub(crate) fn value(value: &Value) {
    println!("{value:#}");
}

pub(crate) fn secret(output: Output, answer: &Value, token: &str) {
    match output {
        Output::Json => value(answer),
        Output::Table => println!("{token}"),
    }
}

pub(crate) fn entries(output: Output, entries: &[Value]) {
    if output == Output::Json {
        value(&json!({ "entries": entries }));
        return;
    }
    let rows = entries.iter().map(|entry| {
        let ports = list(entry.get("ports"));
        let resolution = entry.get("resolution");
        let state = match resolution.and_then(|found| found.get("state")) {
            Some(state) => text(Some(state)),
            None => "published".into(),
        };
        let addresses = resolution
            .and_then(|found| found.get("addresses"))
            .and_then(Value::as_array)
            .map(|seen| seen.iter().map(|one| text(one.get("address"))).collect::<Vec<_>>().join(" "))
            .unwrap_or_default();
        vec![
            text(entry.get("id")),
            text(entry.get("target")),
            if ports.is_empty() { "all".into() } else { ports },
            if entry.get("protected") == Some(&Value::Bool(true)) { "yes".into() } else { String::new() },
            text(entry.get("expires_at")),
            state,
            addresses,
            text(entry.get("comment")),
        ]
    });
    table(&["ID", "TARGET", "PORTS", "PROTECTED", "ENDS", "STATE", "ADDRESSES", "COMMENT"], rows.collect());
}

/// How far a change came, when that was waited for.
pub(crate) fn receipt(output: Output, answer: &Value) {
    let Some(receipt) = answer.get("receipt").filter(|_| output == Output::Table) else { return };
    let gateways: Vec<&Value> =
        receipt.get("gateways").and_then(Value::as_array).into_iter().flatten().collect();
    let (hold, lack): (Vec<&Value>, Vec<&Value>) =
        gateways.iter().partition(|gateway| gateway.get("applied") == Some(&Value::Bool(true)));
    let ms = text(receipt.get("waited_ms"));
    match receipt.get("resolved") {
        Some(Value::Bool(false)) => println!("not live yet: DNS has not answered after {ms} ms"),
        _ if !list(receipt.get("silent_nodes")).is_empty() => {
            println!(
                "not known: {} did not say which gateways have a session",
                list(receipt.get("silent_nodes"))
            );
        }
        _ if gateways.is_empty() => println!("not live: no gateway has a session"),
        _ if lack.is_empty() => {
            println!("live on {} of {} gateways after {ms} ms", hold.len(), gateways.len())
        }
        _ => {
            let names: Vec<_> = lack.iter().map(|gateway| text(gateway.get("name"))).collect();
            println!(
                "live on {} of {} gateways after {ms} ms; not yet on {}",
                hold.len(),
                gateways.len(),
                names.join(", ")
            );
        }
    }
}

/// What a removal would do.
pub(crate) fn impact(output: Output, impact: &Value) {
    if output == Output::Json {
        value(impact);
        return;
    }
    let mut rows = Vec::new();
    for (list, what) in [("removed", "goes, flows are cut"), ("drained", "left DNS; flows are cut")] {
        let elements = impact.get(list).and_then(Value::as_array);
        rows.extend(elements.into_iter().flatten().map(|element| vec![text(Some(element)), what.into()]));
    }
    for kept in impact.get("kept").and_then(Value::as_array).into_iter().flatten() {
        let owners = kept.get("because_of").and_then(Value::as_array);
        let owners: Vec<_> = owners.into_iter().flatten().map(|owner| text(owner.get("target"))).collect();
        rows.push(vec![text(kept.get("element")), format!("stays because of {}", owners.join(", "))]);
    }
    if impact.get("protected") == Some(&Value::Bool(true)) {
        println!("{} is protected and cannot be removed", text(impact.get("target")));
    }
    table(&["ELEMENT", "WHAT WOULD BECOME OF IT"], rows);
}

/// How the addresses of a name changed.
pub(crate) fn history(output: Output, history: &Value) {
    if output == Output::Json {
        value(history);
        return;
    }
    let changes = history.get("changes").and_then(Value::as_array);
    let row = |change: &Value| {
        vec![
            text(change.get("at")),
            text(change.get("revision")),
            list(change.get("added")),
            list(change.get("retired")),
        ]
    };
    table(&["AT", "REVISION", "ADDED", "RETIRED"], changes.into_iter().flatten().map(row).collect());
}

pub(crate) fn imported(output: Output, answer: &Value) {
    if output == Output::Json {
        value(answer);
        return;
    }
    let would = if answer.get("dry_run") == Some(&Value::Bool(true)) { "would be " } else { "" };
    let (created, existing) = (text(answer.get("created")), text(answer.get("existing")));
    println!(
        "{created} {would}added, {existing} were there already (revision {})",
        text(answer.get("revision"))
    );
}

pub(crate) fn saved(output: Output, file: &Path, saved: &Saved) {
    let Saved { cluster, revision, entries, sha256 } = saved;
    match output {
        Output::Json => value(&json!({
            "file": file, "cluster": cluster, "revision": revision, "entries": entries, "sha256": sha256,
        })),
        Output::Table => {
            println!("cluster   {cluster}\nrevision  {revision}\nentries   {entries}\nsha256    {sha256}");
        }
    }
}

pub(crate) fn restored(output: Output, answer: &Value) {
    if output == Output::Json {
        value(answer);
        return;
    }
    let (entries, tokens) = (text(answer.get("entries")), text(answer.get("tokens")));
    println!(
        "{entries} entries and {tokens} tokens are in place (revision {})",
        text(answer.get("revision"))
    );
    let skipped = list(answer.get("skipped_tokens"));
    if !skipped.is_empty() {
        println!("tokens of this cluster that stay instead of the backup's: {skipped}");
    }
}

pub(crate) fn status(output: Output, status: &Value) {
    if output == Output::Json {
        value(status);
        return;
    }
    let leader = match status.get("leader") {
        Some(Value::String(name)) => name.clone(),
        _ => "none: writes are refused until a majority is back".into(),
    };
    println!("cluster    {}", text(status.get("cluster")));
    println!("leader     {leader}");
    println!("revision   {}", text(status.get("revision")));
    println!(
        "entries    {}, published elements {}",
        text(status.get("entries")),
        text(status.get("published"))
    );
    println!();
    columns(
        status.get("nodes"),
        &["name", "reachable", "role", "voter", "address", "term", "applied", "version"],
    );
    println!();
    columns(status.get("gateways"), &["name", "in_sync", "applied", "node", "remote", "refused", "version"]);
}

pub(crate) fn members(output: Output, answer: &Value) {
    if output == Output::Json {
        value(answer);
        return;
    }
    columns(
        answer.get("members"),
        &["name", "id", "address", "reachable", "role", "voter", "term", "applied", "version"],
    );
}

/// What giving the majority up for lost would mean.
pub(crate) fn recovery(output: Output, plan: &Value) {
    if output == Output::Json {
        value(plan);
        return;
    }
    let cluster = field(plan, "cluster");
    println!("cluster    {cluster}");
    println!("node       {}", field(plan, "node"));
    println!("revision   {}, newest entry in its log {}", field(plan, "revision"), field(plan, "logged"));
    println!("entries    {}", field(plan, "entries"));
    println!();
    columns(plan.get("voters"), &["name", "address", "reachable", "logged"]);
    println!();
    match plan.get("obstacle").and_then(Value::as_str) {
        Some(obstacle) => println!("Recovering is refused: {}", one_line(obstacle)),
        None => println!(
            "Recovering keeps all of this. Writes that the lost nodes acknowledged and this one never got are gone, and\n\
             the lost nodes can only come back with empty disks. To go on:\n  --yes-i-lost-the-majority {cluster}"
        ),
    }
}

/// What a change came to: a sentence for people, the server's JSON for programs.
pub(crate) fn outcome(output: Output, answer: &Value, sentence: &str) {
    match output {
        Output::Json => value(answer),
        Output::Table => println!("{sentence}"),
    }
}

/// What is going on, beside the output.
pub(crate) fn progress(sentence: &str) {
    eprintln!("{sentence}");
}

/// A text of an answer, or `-`.
pub(crate) fn field(answer: &Value, key: &str) -> String {
    shorten(&text(answer.get(key)))
}

fn columns(list: Option<&Value>, keys: &[&str]) {
    let headers: Vec<String> = keys.iter().map(|key| key.to_uppercase()).collect();
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    let rows = list
        .and_then(Value::as_array)
        .map(|items| items.iter().map(|item| keys.iter().map(|key| text(item.get(*key))).collect()).collect())
        .unwrap_or_default();
    table(&headers, rows);
}

pub(crate) fn table(headers: &[&str], rows: Vec<Vec<String>>) {
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|row| row.iter().map(|cell| shorten(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([headers[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..headers.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        println!("{}", padded.join("  ").trim_end());
    };
    line(&mut headers.iter().copied());
    for row in &rows {
        line(&mut row.iter().map(String::as_str));
    }
}

/// One line of printable text: what others wrote must not steer the reader's terminal.
fn shorten(cell: &str) -> String {
    let clean = one_line(cell);
    if clean.chars().count() <= MAX_COLUMN_CHARS {
        return clean;
    }
    clean.chars().take(MAX_COLUMN_CHARS - 1).chain("…".chars()).collect()
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn list(value: Option<&Value>) -> String {
    value
        .and_then(Value::as_array)
        .map(|items| items.iter().map(|item| text(Some(item))).collect::<Vec<_>>().join(","))
        .unwrap_or_default()
}

fn text(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".into(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(true)) => "yes".into(),
        Some(Value::Bool(false)) => "no".into(),
        Some(other) => other.to_string(),
    }
}
