//! The three formats of a list. What [`Format::write`] writes, [`Format::read`] reads back to the same.

mod csv;
mod yaml;

use std::collections::BTreeMap;

use allowlist::Entry;
use raft_store::command::NewEntry;
use raft_store::state::State;
use serde::Serialize;

use super::MAX_IMPORT_ENTRIES;
use crate::api::entries::AddEntry;
use crate::api::entry_view::rfc3339;
use crate::api::problem::{Code, LineError, Problem};

/// Most wrong lines that are told.
const MAX_ERRORS: usize = 100;

/// How a list is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Ndjson,
    Yaml,
    Csv,
}

/// Takes entries with the lines they came from, and checks them.
#[derive(Default)]
struct Reading {
    entries: Vec<NewEntry>,
    errors: Vec<LineError>,
}

impl Reading {
    /// False when it makes no sense to go on.
    fn push(&mut self, line: u64, asked: AddEntry) -> bool {
        match asked.check() {
            Ok(_) if self.entries.len() == MAX_IMPORT_ENTRIES => {
                let detail = format!("more than {MAX_IMPORT_ENTRIES} entries; send them in several parts");
                self.errors.insert(0, LineError { line, code: Code::BodyTooLarge.as_str(), detail });
                false
            }
            Ok(entry) => {
                self.entries.push(entry);
                true
            }
            Err(problem) => self.wrong(line, &problem),
        }
    }

    fn wrong(&mut self, line: u64, problem: &Problem) -> bool {
        let detail = problem.detail().to_owned();
        self.errors.push(LineError { line, code: problem.code().as_str(), detail });
        self.errors.len() < MAX_ERRORS
    }

    fn end(self) -> Result<Vec<NewEntry>, Vec<LineError>> {
        if self.errors.is_empty() { Ok(self.entries) } else { Err(self.errors) }
    }
}

/// An entry as NDJSON writes it; what is empty is left out.
#[derive(Serialize)]
struct Line<'a> {
    target: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    protected: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    comment: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    owner: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    ticket: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
}

impl<'a> Line<'a> {
    fn new(entry: &'a Entry) -> Self {
        Self {
            target: entry.target.to_string(),
            ports: entry.ports.ranges().iter().map(ToString::to_string).collect(),
            protected: entry.protected,
            comment: &entry.comment,
            owner: &entry.owner,
            ticket: &entry.ticket,
            labels: &entry.labels,
            expires_at: entry.expires_at_ms.map(rfc3339),
        }
    }
}

impl Format {
    pub(super) fn of_media_type(text: &str) -> Option<Self> {
        match text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "application/x-ndjson" => Some(Self::Ndjson),
            "application/yaml" => Some(Self::Yaml),
            "text/csv" => Some(Self::Csv),
            _ => None,
        }
    }

    pub(super) const fn media_type(self) -> &'static str {
        match self {
            Self::Ndjson => "application/x-ndjson",
            Self::Yaml => "application/yaml",
            Self::Csv => "text/csv; charset=utf-8",
        }
    }

    pub(super) const fn file_suffix(self) -> &'static str {
        match self {
            Self::Ndjson => "ndjson",
            Self::Yaml => "yaml",
            Self::Csv => "csv",
        }
    }

    /// Reads and checks a whole list. Takes a while: call it off the async threads.
    ///
    /// # Errors
    /// The first wrong lines.
    pub(super) fn read(self, body: &[u8]) -> Result<Vec<NewEntry>, Vec<LineError>> {
        let text = std::str::from_utf8(body).map_err(|error| {
            let before = &body[..error.valid_up_to()];
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count() as u64;
            vec![LineError { line, code: Code::BadRequest.as_str(), detail: "this is not UTF-8".to_owned() }]
        })?;
        // Spreadsheets put a mark before a list.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        match self {
            Self::Ndjson => read_ndjson(text),
            Self::Yaml => yaml::read(text),
            Self::Csv => csv::read(text),
        }
    }

    /// What stands before the first entry.
    pub(super) fn begin(self, state: &State) -> String {
        match self {
            Self::Ndjson => String::new(),
            Self::Yaml => yaml::begin(state),
            Self::Csv => csv::begin(),
        }
    }

    /// Appends an entry.
    pub(super) fn write(self, entry: &Entry, text: &mut String) {
        let line = Line::new(entry);
        match self {
            Self::Ndjson => {
                // Texts, lists and a map of texts always serialise.
                text.push_str(&serde_json::to_string(&line).unwrap_or_default());
                text.push('\n');
            }
            Self::Yaml => yaml::write(&line, text),
            Self::Csv => csv::write(&line, text),
        }
    }
}

fn read_ndjson(text: &str) -> Result<Vec<NewEntry>, Vec<LineError>> {
    let mut reading = Reading::default();
    for (line, number) in text.lines().zip(1..) {
        if line.trim().is_empty() {
            continue;
        }
        let go_on = match serde_json::from_str(line) {
            Ok(asked) => reading.push(number, asked),
            Err(error) => {
                let code = if error.is_data() { Code::InvalidBody } else { Code::InvalidJson };
                // serde_json counts lines of its own.
                let text = error.to_string();
                let words = text.rsplit_once(" at line ").map_or(text.as_str(), |(words, _)| words);
                reading.wrong(number, &Problem::new(code, words.to_owned()))
            }
        };
        if !go_on {
            break;
        }
    }
    reading.end()
}

#[cfg(test)]
mod tests;
