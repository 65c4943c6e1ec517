//! `outputguardctl names`: how the domains of the list stand with DNS.

use anyhow::Context;
use clap::Args as ClapArgs;
use serde_json::Value;

use crate::args::Output;
use crate::client::Client;
use crate::print;

/// Which names.
#[derive(Debug, ClapArgs)]
pub(crate) struct Names {
    /// Only names that contain this.
    query: Option<String>,
    /// Only names in these states: pending, never_resolved, ok, stale, no_such_name, refused, mixed.
    #[arg(long, value_delimiter = ',')]
    state: Vec<String>,
    /// At most so many, 1 to 1,000.
    #[arg(short = 'n', long, default_value_t = 100)]
    limit: u32,
}

pub(crate) async fn run(client: &Client, output: Output, wanted: &Names) -> anyhow::Result<()> {
    let (states, limit) = (wanted.state.join(","), wanted.limit.to_string());
    let mut query = vec![("limit", limit.as_str())];
    query.extend(wanted.query.as_deref().map(|text| ("q", text)));
    if !states.is_empty() {
        query.push(("state", &states));
    }
    let answer = client.get_where("/names", &query).await?;
    if output == Output::Json {
        print::value(&answer);
        return Ok(());
    }
    let names = answer.get("names").and_then(Value::as_array).context("the server sent no list")?;
    print::table(
        &["NAME", "STATE", "SINCE", "ADDRESSES", "LAST ANSWER", "NEXT TRY", "WHY"],
        names.iter().map(row).collect(),
    );
    if answer.get("next_cursor").is_some_and(Value::is_string) {
        print::progress("there are more; narrow the search, or raise --limit");
    }
    if answer.get("leader_answered") != Some(&Value::Bool(true)) {
        print::progress("the leader did not say how its lookups go");
    }
    Ok(())
}

fn row(name: &Value) -> Vec<String> {
    let lookups = name.get("lookups").cloned().unwrap_or_default();
    let why = match (name.get("detail"), lookups.get("last_error")) {
        (Some(detail), _) if detail.is_string() => print::field(name, "detail"),
        (_, Some(failed)) if failed.is_object() => {
            format!("{}: {}", print::field(failed, "upstream"), print::field(failed, "error"))
        }
        _ => String::new(),
    };
    let mut row: Vec<String> =
        ["name", "state", "since", "addresses"].map(|key| print::field(name, key)).into();
    row.extend(["last_answer", "next_try"].map(|key| print::field(&lookups, key)));
    row.push(why);
    row
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_is_told_with_why_it_stands_so() {
        let lookups = json!({
            "last_answer": null, "next_try": "T2",
            "last_error": {"upstream": "u:53", "error": "no answer in time", "at": "T1"}
        });
        let name = json!({
            "name": "a.io", "state": "pending", "since": null, "detail": null, "addresses": 0, "lookups": lookups
        });
        assert_eq!(row(&name)[..2], ["a.io", "pending"]);
        assert_eq!(row(&name)[5..], ["T2", "u:53: no answer in time"]);
        let name = json!({"name": "a.io", "state": "stale", "detail": "d", "addresses": 2, "lookups": null});
        assert_eq!(row(&name)[6], "d");
    }
}
