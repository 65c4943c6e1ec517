//! CSV (RFC 4180): a line of names, then one record per entry. Ports are separated by spaces, labels are a JSON object.

use std::collections::BTreeMap;

use raft_store::command::NewEntry;

use super::{Line, Reading};
use crate::api::entries::AddEntry;
use crate::api::problem::{Code, LineError, Problem};

const COLUMNS: [&str; 8] =
    ["target", "ports", "protected", "comment", "owner", "ticket", "labels", "expires_at"];

pub(super) fn begin() -> String {
    COLUMNS.join(",") + "\r\n"
}

pub(super) fn write(line: &Line<'_>, text: &mut String) {
    // A map of texts always serialises.
    let labels = match line.labels.is_empty() {
        true => String::new(),
        false => serde_json::to_string(line.labels).unwrap_or_default(),
    };
    let protected = if line.protected { "true" } else { "" };
    let ends = line.expires_at.as_deref().unwrap_or_default();
    let ports = line.ports.join(" ");
    let fields = [&line.target, &ports, protected, line.comment, line.owner, line.ticket, &labels, ends];
    for (number, field) in fields.into_iter().enumerate() {
        text.push_str(if number == 0 { "" } else { "," });
        // An empty first column would make an empty line of the record; a target never is empty.
        if field.contains([',', '"', '\r', '\n']) || field != field.trim() {
            text.push('"');
            text.push_str(&field.replace('"', "\"\""));
            text.push('"');
        } else {
            text.push_str(field);
        }
    }
    text.push_str("\r\n");
}

pub(super) fn read(text: &str) -> Result<Vec<NewEntry>, Vec<LineError>> {
    let mut reading = Reading::default();
    let mut records = Records { text, line: 1 };
    let columns = match records.next() {
        Some(Ok((_, names))) => names,
        Some(Err((line, problem))) => {
            reading.wrong(line, &problem);
            return reading.end();
        }
        None => vec![],
    };
    if let Some(problem) = wrong_header(&columns) {
        reading.wrong(1, &problem);
        return reading.end();
    }
    for record in records {
        let go_on = match record {
            // A broken quote swallows the rest: what comes after it would be nonsense.
            Err((line, problem)) => {
                reading.wrong(line, &problem);
                false
            }
            Ok((line, fields)) => match asked(&columns, fields) {
                Ok(asked) => reading.push(line, asked),
                Err(problem) => reading.wrong(line, &problem),
            },
        };
        if !go_on {
            break;
        }
    }
    reading.end()
}

fn wrong_header(columns: &[String]) -> Option<Problem> {
    let unknown = columns.iter().find(|name| !COLUMNS.contains(&name.trim()));
    let twice = columns.iter().enumerate().find(|(number, name)| columns[..*number].contains(name));
    let what = match (unknown, twice) {
        _ if !columns.iter().any(|name| name.trim() == "target") => {
            "the column `target` is missing".to_owned()
        }
        (Some(name), _) => format!("there is no column `{}`", name.chars().take(64).collect::<String>()),
        (None, Some((_, name))) => format!("the column `{name}` is there twice"),
        (None, None) => return None,
    };
    let detail = format!("{what}; the first line names the columns, which are {}", COLUMNS.join(", "));
    Some(Problem::new(Code::InvalidBody, detail))
}

fn asked(columns: &[String], fields: Vec<String>) -> Result<AddEntry, Problem> {
    let wrong = |detail: String| Problem::new(Code::InvalidBody, detail);
    if fields.len() != columns.len() {
        return Err(wrong(format!("{} fields, but {} columns", fields.len(), columns.len())));
    }
    let mut asked = AddEntry::default();
    for (name, field) in columns.iter().zip(fields) {
        match name.trim() {
            "target" => asked.target = field,
            "ports" => asked.ports = field.split_whitespace().map(str::to_owned).collect(),
            "protected" => {
                asked.protected = match field.trim() {
                    "true" => true,
                    "false" | "" => false,
                    other => {
                        return Err(wrong(format!("protected is `{other}`; write true, false or nothing")));
                    }
                };
            }
            "comment" => asked.comment = field,
            "owner" => asked.owner = field,
            "ticket" => asked.ticket = field,
            "expires_at" => asked.expires_at = Some(field.trim().to_owned()).filter(|time| !time.is_empty()),
            "labels" if field.trim().is_empty() => {}
            "labels" => {
                asked.labels = serde_json::from_str::<BTreeMap<String, String>>(&field)
                    .map_err(|error| wrong(format!("labels are a JSON object of texts: {error}")))?;
            }
            _ => {}
        }
    }
    Ok(asked)
}

/// Cuts a text into records; each comes with the line it begins in. Empty lines are skipped.
struct Records<'a> {
    text: &'a str,
    line: u64,
}

type Record = Result<(u64, Vec<String>), (u64, Problem)>;

impl Iterator for Records<'_> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        while let Some(rest) = self.text.strip_prefix("\r\n").or_else(|| self.text.strip_prefix('\n')) {
            self.text = rest;
            self.line += 1;
        }
        if self.text.is_empty() {
            return None;
        }
        let begin = self.line;
        let mut fields = Vec::new();
        loop {
            let field = match self.text.strip_prefix('"') {
                Some(rest) => match self.quoted(rest) {
                    Some(field) => field,
                    None => {
                        let detail = "a quote is opened and not closed before a comma or the end of the line";
                        return Some(Err((begin, Problem::new(Code::InvalidBody, detail))));
                    }
                },
                None => {
                    let end = self.text.find([',', '\n']).unwrap_or(self.text.len());
                    let (field, rest) = self.text.split_at(end);
                    self.text = rest;
                    let at_line_end = rest.is_empty() || rest.starts_with('\n');
                    let field = if at_line_end { field.strip_suffix('\r').unwrap_or(field) } else { field };
                    field.to_owned()
                }
            };
            fields.push(field);
            if let Some(rest) = self.text.strip_prefix(',') {
                self.text = rest;
                continue;
            }
            if let Some(rest) = self.text.strip_prefix("\r\n").or_else(|| self.text.strip_prefix('\n')) {
                self.text = rest;
                self.line += 1;
            }
            return Some(Ok((begin, fields)));
        }
    }
}

impl Records<'_> {
    /// The field that begins after an opening quote; `None` when it does not end as it must.
    fn quoted(&mut self, mut rest: &str) -> Option<String> {
        let whole = self.text;
        let mut field = String::new();
        loop {
            let (piece, after) = rest.split_once('"')?;
            self.line += piece.matches('\n').count() as u64;
            field.push_str(piece);
            match after.strip_prefix('"') {
                Some(after) => {
                    field.push('"');
                    rest = after;
                }
                None => {
                    let ends =
                        after.is_empty() || after.starts_with([',', '\n']) || after.starts_with("\r\n");
                    self.text = &whole[whole.len() - after.len()..];
                    return ends.then_some(field);
                }
            }
        }
    }
}
