//! Who moves most.

use serde_json::Value;

use crate::args::{Output, Top};
use crate::client::Client;
use crate::print;

/// Names for amounts, each 1,000 times the one before.
const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];

pub(crate) async fn run(client: &Client, output: Output, top: &Top) -> anyhow::Result<()> {
    let limit = top.limit.to_string();
    let mut query = vec![("by", top.by.as_str()), ("window", &top.window), ("limit", &limit)];
    query.extend(top.gateway.as_deref().map(|gateway| ("gateway", gateway)));
    let answer = client.get_where("/traffic/top", &query).await?;
    if output == Output::Json {
        print::value(&answer);
        return Ok(());
    }
    let list =
        |value: &Value, key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let rows = list(&answer, "rows").into_iter().map(|row| {
        let with = list(&row, "with");
        let with: Vec<_> =
            with.iter().map(|part| format!("{} {}", name(part), amount(part, "bytes"))).collect();
        let gateways = list(&row, "gateways");
        let gateways: Vec<_> = gateways.iter().filter_map(Value::as_str).collect();
        vec![
            name(&row),
            amount(&row, "bytes_in"),
            amount(&row, "bytes_out"),
            gateways.join(","),
            with.join(", "),
        ]
    });
    let (who, with) = match top.by.as_str() {
        "entry" => ("ENTRY", "HOSTS"),
        _ => ("SOURCE", "ENTRIES"),
    };
    print::table(&[who, "IN", "OUT", "GATEWAYS", with], rows.collect());
    if let Some(total) = answer.get("total") {
        print::progress(&format!(
            "total: {} in, {} out",
            amount(total, "bytes_in"),
            amount(total, "bytes_out")
        ));
    }
    for node in list(&answer, "silent_nodes").iter().filter_map(Value::as_str) {
        print::progress(&format!("{node} did not answer: what gateways told it is missing"));
    }
    Ok(())
}

fn name(row: &Value) -> String {
    match row.get("name").and_then(Value::as_str) {
        Some(name) => name.to_owned(),
        None => "(not named)".to_owned(),
    }
}

/// `1.5 GB`.
fn amount(value: &Value, key: &str) -> String {
    let bytes = value.get(key).and_then(Value::as_u64).unwrap_or_default();
    let (mut shown, mut unit) = (bytes as f64, 0);
    while shown >= 999.5 && unit + 1 < UNITS.len() {
        shown /= 1_000.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && shown < 99.95);
    format!("{shown:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn amounts_have_three_digits_and_a_unit() {
        let shown = |bytes: u64| amount(&json!({ "bytes": bytes }), "bytes");
        assert_eq!(
            [0, 999, 1_000, 99_949, 999_499, 999_500, 1_500_000_000].map(shown),
            ["0 B", "999 B", "1.0 kB", "99.9 kB", "999 kB", "1.0 MB", "1.5 GB"]
        );
        assert_eq!(shown(u64::MAX), "18447 PB");
    }
}
