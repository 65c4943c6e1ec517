//! YAML: `entries:` and a list.

use std::fmt::{self, Write as _};

use raft_store::command::NewEntry;
use raft_store::state::State;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::{Budget, Options, Spanned};

use super::{Line, Reading};
use crate::api::bulk::{MAX_IMPORT_BYTES, MAX_IMPORT_ENTRIES};
use crate::api::entries::AddEntry;
use crate::api::problem::{Code, LineError, Problem};

/// Nodes of one entry: itself, its keys and values, and ports and labels at their limits.
const MAX_NODES_PER_ENTRY: usize = 128;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    entries: Checked,
}

/// Checks each entry as it comes, so that no more than the allowed ones are ever in memory.
struct Checked(Reading);

impl<'de> Deserialize<'de> for Checked {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_seq(Checking)
    }
}

struct Checking;

impl<'de> Visitor<'de> for Checking {
    type Value = Checked;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Checked, A::Error> {
        let mut reading = Reading::default();
        while let Some(entry) = list.next_element::<Spanned<AddEntry>>()? {
            if !reading.push(entry.referenced.line(), entry.value) {
                // The rest is only looked through.
                while list.next_element::<IgnoredAny>()?.is_some() {}
                break;
            }
        }
        Ok(Checked(reading))
    }
}

pub(super) fn read(text: &str) -> Result<Vec<NewEntry>, Vec<LineError>> {
    let mut budget = Budget::default();
    // The list is bounded by its bytes; nobody needs an alias in it.
    budget.max_nodes = MAX_IMPORT_ENTRIES * MAX_NODES_PER_ENTRY;
    budget.max_events = 2 * MAX_IMPORT_ENTRIES * MAX_NODES_PER_ENTRY;
    budget.max_total_scalar_bytes = MAX_IMPORT_BYTES;
    budget.max_aliases = 0;
    let mut options = Options::default();
    options.budget = Some(budget);
    match serde_saphyr::from_str_with_options::<List>(text, options) {
        Ok(List { entries: Checked(reading) }) => reading.end(),
        Err(error) => {
            let error = error.without_snippet();
            let line = error.location().map_or(1, |location| location.line());
            let mut reading = Reading::default();
            reading.wrong(line, &Problem::new(Code::InvalidBody, error.to_string()));
            reading.end()
        }
    }
}

pub(super) fn begin(state: &State) -> String {
    if state.entries().is_empty() { "entries: []\n".to_owned() } else { "entries:\n".to_owned() }
}

pub(super) fn write(line: &Line<'_>, text: &mut String) {
    text.push_str("  - target: ");
    quote(&line.target, text);
    text.push('\n');
    if !line.ports.is_empty() {
        text.push_str("    ports: [");
        for (number, port) in line.ports.iter().enumerate() {
            text.push_str(if number == 0 { "" } else { ", " });
            quote(port, text);
        }
        text.push_str("]\n");
    }
    if line.protected {
        text.push_str("    protected: true\n");
    }
    for (name, value) in [("comment", line.comment), ("owner", line.owner), ("ticket", line.ticket)] {
        if !value.is_empty() {
            text.push_str("    ");
            text.push_str(name);
            text.push_str(": ");
            quote(value, text);
            text.push('\n');
        }
    }
    if let Some(ends) = &line.expires_at {
        text.push_str("    expires_at: ");
        quote(ends, text);
        text.push('\n');
    }
    if !line.labels.is_empty() {
        text.push_str("    labels:\n");
        for (key, value) in line.labels {
            text.push_str("      ");
            quote(key, text);
            text.push_str(": ");
            quote(value, text);
            text.push('\n');
        }
    }
}

/// In double quotes, which can hold every text. What cannot be printed is escaped (YAML 1.2.2, section 5.7).
fn quote(value: &str, text: &mut String) {
    text.push('"');
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            '\r' => text.push_str("\\r"),
            c if c.is_control()
                || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') =>
            {
                // Writing to a string does not fail.
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push('"');
}
