//! Reading a page of Prometheus metrics.

use std::collections::BTreeMap;

/// The samples of one page.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Reads the text format; lines it does not understand are left out.
    pub fn parse(text: &str) -> Self {
        Self { samples: text.lines().filter(|line| !line.starts_with('#')).filter_map(parse_line).collect() }
    }

    /// Sum of all samples of `name` that carry `labels`; `None` when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut matching = self
            .samples
            .iter()
            .filter(|sample| sample.name == name)
            .filter(|sample| {
                labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|have| have == value))
            })
            .peekable();
        matching.peek()?;
        Some(matching.map(|sample| sample.value).sum())
    }
}

fn parse_line(line: &str) -> Option<Sample> {
    let (series, value) = match line.find('}') {
        Some(end) => line.split_at(end + 1),
        None => line.split_once(' ')?,
    };
    let value = value.split_whitespace().next()?.parse().ok()?;
    let (name, labels) = match series.split_once('{') {
        None => (series, BTreeMap::new()),
        // Label values of ours hold no quotes, commas or braces.
        Some((name, labels)) => (
            name,
            labels
                .trim_end_matches('}')
                .split(',')
                .filter_map(|pair| pair.split_once('='))
                .map(|(key, value)| (key.trim().to_owned(), value.trim_matches('"').to_owned()))
                .collect(),
        ),
    };
    Some(Sample { name: name.trim().to_owned(), labels, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_name_and_labels() {
        let page = "# HELP a b\na{ip=\"1.1.1.1/32\",type=\"OUTPUT\"} 3\na{ip=\"1.1.1.1/32\",type=\"INPUT\"} 4\nb 1.5 1700000\n";
        let metrics = Metrics::parse(page);
        assert_eq!(metrics.sum("a", &[("ip", "1.1.1.1/32"), ("type", "OUTPUT")]), Some(3.0));
        assert_eq!(metrics.sum("a", &[("ip", "1.1.1.1/32")]), Some(7.0));
        assert_eq!(metrics.sum("b", &[]), Some(1.5));
        assert_eq!(metrics.sum("a", &[("ip", "1.1.1.2/32")]), None);
    }
}
