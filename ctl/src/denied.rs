//! `outputguardctl denied`: why was I blocked?

use anyhow::Context;
use clap::Args as ClapArgs;
use serde_json::Value;

use crate::args::Output;
use crate::client::Client;
use crate::print;

/// Rows shown unless more are wanted.
const DEFAULT_ROWS: &str = "50";

/// Which denied packets.
#[derive(Debug, ClapArgs)]
pub(crate) struct Denied {
    /// Only from this address or network.
    #[arg(long)]
    source: Option<String>,
    /// Only to this address or network, or to the addresses of a domain that an entry names.
    #[arg(long)]
    destination: Option<String>,
    /// Only of this gateway.
    #[arg(long)]
    gateway: Option<String>,
    /// Only what was seen at this time or later, such as 2026-01-31T13:00:00Z.
    #[arg(long)]
    since: Option<String>,
    /// At most so many, 1 to 500.
    #[arg(long, default_value = DEFAULT_ROWS)]
    limit: String,
}

pub(crate) async fn run(client: &Client, output: Output, wanted: &Denied) -> anyhow::Result<()> {
    let Denied { source, destination, gateway, since, limit } = wanted;
    let filters = [
        ("source", source.as_ref()),
        ("destination", destination.as_ref()),
        ("gateway", gateway.as_ref()),
        ("since", since.as_ref()),
        ("limit", Some(limit)),
    ];
    let query: Vec<(&str, &str)> =
        filters.iter().filter_map(|(key, value)| value.map(|value| (*key, value.as_str()))).collect();
    let answer = client.get_where("/denied", &query).await?;
    if output == Output::Json {
        print::value(&answer);
        return Ok(());
    }
    let rows = answer.get("denied").and_then(Value::as_array).context("the server sent no list")?;
    print::table(
        &["LAST SEEN", "SOURCE", "DESTINATION", "SERVICE", "PACKETS", "GATEWAY", "NOW"],
        rows.iter().map(row).collect(),
    );
    let silent: Vec<String> = answer
        .get("nodes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|node| node.get("answered") != Some(&Value::Bool(true)))
        .map(|node| print::field(node, "name"))
        .collect();
    if !silent.is_empty() {
        print::progress(&format!("rows may be missing: {} did not answer", silent.join(", ")));
    }
    Ok(())
}

fn row(denied: &Value) -> Vec<String> {
    let several = |key: &str| match denied.get(key) {
        None | Some(Value::Null) => "several".to_owned(),
        Some(_) => print::field(denied, key),
    };
    let protocol = print::field(denied, "protocol");
    let service = match denied.get("port") {
        None | Some(Value::Null) => protocol,
        Some(port) => format!("{protocol}/{port}"),
    };
    vec![
        print::field(denied, "last_seen"),
        several("source"),
        several("destination"),
        service,
        print::field(denied, "packets"),
        print::field(denied, "gateway"),
        now(denied),
    ]
}

/// What the list says today.
fn now(denied: &Value) -> String {
    let targets = |key: &str| {
        let entries = denied.get(key).and_then(Value::as_array).into_iter().flatten();
        entries.map(|entry| print::field(entry, "target")).collect::<Vec<_>>().join(",")
    };
    match (targets("entries"), targets("other_ports")) {
        (entries, _) if !entries.is_empty() => format!("allowed by {entries}"),
        (_, other) if !other.is_empty() => format!("other ports only: {other}"),
        _ => "not listed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_says_who_wanted_what_and_how_it_stands_now() {
        let mut denied = json!({
            "gateway": "gw-1", "source": "10.0.0.7", "destination": "9.9.9.9", "protocol": "tcp", "port": 443,
            "packets": 3, "last_seen": "2026-01-31T13:00:00Z", "entries": [], "other_ports": [],
        });
        assert_eq!(
            row(&denied),
            ["2026-01-31T13:00:00Z", "10.0.0.7", "9.9.9.9", "tcp/443", "3", "gw-1", "not listed"]
        );
        denied["other_ports"] = json!([{ "target": "9.9.9.9" }]);
        assert_eq!(now(&denied), "other ports only: 9.9.9.9");
        denied["entries"] = json!([{ "target": "9.9.0.0/16" }]);
        assert_eq!(now(&denied), "allowed by 9.9.0.0/16");
        denied["port"] = Value::Null;
        denied["source"] = Value::Null;
        assert_eq!(row(&denied)[1..4], ["several", "9.9.9.9", "tcp"]);
    }
}
