//! What a bench leaves: a flat JSON object for machines, a table for people.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Width of the columns after the first.
const COLUMN: usize = 14;

/// Numbers of one bench.
pub(crate) struct Report {
    name: &'static str,
    values: BTreeMap<String, Value>,
    lines: Vec<Line>,
    /// Title of the column of whoever it is measured beside.
    peer: &'static str,
}

/// A line of the table.
#[derive(Debug, Default)]
pub(crate) struct Line {
    pub(crate) what: String,
    pub(crate) ours: Option<f64>,
    pub(crate) peer: Option<f64>,
    /// The number that has an aim; it is the one in the JSON.
    pub(crate) result: Option<f64>,
    pub(crate) aim: &'static str,
}

impl Report {
    /// For `target/bench/<name>.json`.
    pub(crate) fn new(name: &'static str, profile: &str, rounds: usize) -> Self {
        let values = BTreeMap::from([
            ("machine".to_owned(), json!(machine())),
            ("profile".to_owned(), json!(profile)),
            ("rounds".to_owned(), json!(rounds)),
        ]);
        Self { name, values, lines: Vec::new(), peer: "etcd" }
    }

    /// Names what stands beside us, where that is not etcd.
    pub(crate) fn beside(mut self, peer: &'static str) -> Self {
        self.peer = peer;
        self
    }

    /// A number (or a word) under `key`.
    pub(crate) fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.values.insert(key.to_owned(), value.into());
    }

    /// The number `key`, a line about it, and how busy the machine was meanwhile: with others at work on it, only ratios
    /// mean anything.
    pub(crate) fn result(&mut self, key: &str, line: Line) {
        if let Some(result) = line.result {
            self.set(key, rounded(result));
        }
        self.set(&format!("{key}_loadavg"), load_average());
        self.line(Line { what: if line.what.is_empty() { key.to_owned() } else { line.what }, ..line });
    }

    /// A line that is only for people.
    pub(crate) fn line(&mut self, line: Line) {
        self.lines.push(line);
    }

    /// Prints the table and writes the JSON into `directory`.
    pub(crate) fn finish(&self, directory: &Path) -> Result<()> {
        let mut out = std::io::stdout().lock();
        let words = |key: &str| match self.values.get(key) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        };
        writeln!(out, "\n{} ({}, {} rounds)", words("machine"), words("profile"), words("rounds"))?;
        writeln!(
            out,
            "{:<44}{:>COLUMN$}{:>COLUMN$}{:>COLUMN$}  aim",
            "", "outputguard", self.peer, "result"
        )?;
        for line in &self.lines {
            let cell = |value: Option<f64>| value.map(shown).unwrap_or_default();
            writeln!(
                out,
                "{:<44}{:>COLUMN$}{:>COLUMN$}{:>COLUMN$}  {}",
                line.what,
                cell(line.ours),
                cell(line.peer),
                cell(line.result),
                line.aim
            )?;
        }
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let path = directory.join(format!("{}.json", self.name));
        let text = serde_json::to_string_pretty(&self.values)? + "\n";
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        writeln!(out, "\n{}", path.display())?;
        Ok(())
    }
}

/// Tells the person in front what is going on.
pub(crate) fn progress(text: &str) {
    // Nobody may be listening.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Enough digits for a person.
fn shown(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// To three digits after the point.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Processes that ran or wanted to, mean of the last minute.
fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or_default()
}

fn machine() -> String {
    let line = |path: &str, key: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let found = text.lines().find_map(|line| line.strip_prefix(key)?.split_once(':'));
        found.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = line("/proc/meminfo", "MemTotal");
    let memory_kib: u64 = memory.split(' ').next().and_then(|kib| kib.parse().ok()).unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{cores} × {}, {} GiB, Linux {}",
        line("/proc/cpuinfo", "model name"),
        memory_kib.div_ceil(1024 * 1024),
        kernel.trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_is_flat_and_names_machine_rounds_and_load() {
        let directory = std::env::temp_dir().join(format!("outputguard-report-{}", std::process::id()));
        let mut report = Report::new("raft", "release", 5);
        report.result("put_c64_vs_etcd", Line { result: Some(2.34567), ..Line::default() });
        report.finish(&directory).unwrap();
        let text = fs::read_to_string(directory.join("raft.json")).unwrap();
        fs::remove_dir_all(&directory).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["put_c64_vs_etcd"], json!(2.346));
        assert_eq!(value["rounds"], json!(5));
        assert!(value["machine"].is_string() && value["put_c64_vs_etcd_loadavg"].is_number());
        assert!(value.as_object().unwrap().values().all(|value| !value.is_object() && !value.is_array()));
    }
}
