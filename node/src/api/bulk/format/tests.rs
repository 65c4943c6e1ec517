use allowlist::{EntryId, Ports};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const FORMATS: [Format; 3] = [Format::Ndjson, Format::Yaml, Format::Csv];

fn entry() -> impl Strategy<Value = Entry> {
    let target = prop_oneof![
        "[a-z]{1,9}\\.example\\.com",
        (1..250_u8).prop_map(|last| format!("9.9.9.{last}")),
        Just("9.9.9.0/24".to_owned()),
        Just("2606:4700::1111".to_owned()),
    ];
    let ports = prop_oneof![Just(vec![]), Just(vec!["tcp/443"]), Just(vec!["tcp/80", "udp/5000-5010"])];
    let text = prop_oneof![
        ".{0,12}",
        Just("say \"hi\", twice\nthen\r\n\tleave".to_owned()),
        Just(" # no: comment ".to_owned()),
        Just("\u{85}\u{2028}\u{0}\u{7f}\u{feff}'{}[]".to_owned()),
        Just("null".to_owned()),
        Just("4711".to_owned()),
    ];
    let labels = btree_map(text.clone(), text.clone(), 0..3);
    // Of the year 2100 and later.
    let ends = proptest::option::of(4_102_444_800_000..200_000_000_000_000_u64);
    (target, ports, any::<bool>(), [text.clone(), text.clone(), text], labels, ends).prop_map(
        |(target, ports, protected, [comment, owner, ticket], labels, ends)| Entry {
            id: EntryId(Uuid::nil()),
            target: target.parse().unwrap(),
            ports: Ports::new(ports.iter().map(|range| range.parse().unwrap()).collect()).unwrap(),
            protected,
            comment: comment.into(),
            owner: owner.into(),
            ticket: ticket.into(),
            labels: labels.into(),
            created_by: "".into(),
            created_at_ms: 0,
            expires_at_ms: ends.filter(|_| !protected),
        },
    )
}

fn written(format: Format, entries: &[Entry]) -> String {
    let mut text = match format {
        Format::Yaml if entries.is_empty() => "entries: []\n".to_owned(),
        Format::Yaml => "entries:\n".to_owned(),
        format => format.begin(&State::default()),
    };
    entries.iter().for_each(|entry| format.write(entry, &mut text));
    text
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn what_is_written_is_read_back_to_the_same(entries in vec(entry(), 0..6)) {
        for format in FORMATS {
            let text = written(format, &entries);
            let read = format.read(text.as_bytes()).map_err(|errors| TestCaseError::fail(format!("{errors:?}\n{text}")))?;
            prop_assert_eq!(read.len(), entries.len());
            for (new, entry) in read.iter().zip(&entries) {
                prop_assert_eq!(new.expires_at_ms, entry.expires_at_ms);
                prop_assert_eq!((&new.target, &new.ports, new.protected), (&entry.target, &entry.ports, entry.protected));
                prop_assert_eq!(
                    (&new.comment, &new.owner, &new.ticket, &new.labels),
                    (&entry.comment, &entry.owner, &entry.ticket, &entry.labels), "{}", text
                );
            }
        }
    }
}

fn lines(format: Format, text: &str) -> Vec<(u64, &'static str)> {
    format.read(text.as_bytes()).unwrap_err().iter().map(|error| (error.line, error.code)).collect()
}

#[test]
fn every_wrong_line_is_named_in_every_format() {
    let ndjson = "{\"target\":\"9.9.9.9\"}\n\n{\"target\":\"10.0.0.1\"}\n{\"target\":1}\n{\n{\"target\":\"8.8.8.8\",\"ports\":[\"x\"]}\n";
    let found = lines(Format::Ndjson, ndjson);
    assert_eq!(found, [(3, "not_public"), (4, "invalid_body"), (5, "invalid_json"), (6, "invalid_ports")]);
    let yaml = "# a list\nentries:\n  - target: 9.9.9.9\n    comment: |\n      two\n      lines\n  - target: 10.0.0.1\n  - target: 8.8.8.8\n    ports: [x]\n";
    assert_eq!(lines(Format::Yaml, yaml), [(7, "not_public"), (8, "invalid_ports")]);
    let csv = "comment,target\n\"two\nlines\",9.9.9.9\n\n,10.0.0.1\nx\n,*.example.com\n";
    let found = lines(Format::Csv, csv);
    assert_eq!(found, [(5, "not_public"), (6, "invalid_body"), (7, "wildcard_unsupported")]);
}

#[test]
fn a_list_of_another_shape_is_refused_with_its_line() {
    assert_eq!(
        lines(Format::Yaml, "entries:\n  - target: 9.9.9.9\n    colour: red\n"),
        [(3, "invalid_body")]
    );
    assert_eq!(
        lines(Format::Yaml, "entries: [\n"),
        [(lines(Format::Yaml, "entries: [\n")[0].0, "invalid_body")]
    );
    assert_eq!(lines(Format::Csv, "target,colour\n9.9.9.9,red\n"), [(1, "invalid_body")]);
    assert_eq!(lines(Format::Csv, "target,target\n"), [(1, "invalid_body")]);
    assert_eq!(lines(Format::Csv, ""), [(1, "invalid_body")]);
    assert_eq!(lines(Format::Csv, "target,comment\n9.9.9.9,\"open\n8.8.8.8,x\n"), [(2, "invalid_body")]);
    assert_eq!(Format::Ndjson.read(b"\n\n\xff").unwrap_err()[0].line, 3);
}

#[test]
fn no_more_than_the_first_hundred_errors_and_no_more_entries_than_allowed() {
    let errors = Format::Ndjson.read("{\n".repeat(500).as_bytes()).unwrap_err();
    assert_eq!((errors.len(), errors[99].line), (100, 100));
    let errors = Format::Ndjson.read("{\"target\":\"9.9.9.9\"}\n".repeat(200_001).as_bytes()).unwrap_err();
    assert_eq!((errors.len(), errors[0].line, errors[0].code), (1, 200_001, "body_too_large"));
    let yaml = format!("entries:\n{}", "- {target: 9.9.9.9}\n".repeat(200_001));
    let errors = Format::Yaml.read(yaml.as_bytes()).unwrap_err();
    assert_eq!((errors.len(), errors[0].line, errors[0].code), (1, 200_002, "body_too_large"));
    let yaml = format!("entries:\n{}", "- {target: 10.0.0.1}\n".repeat(500));
    assert_eq!(Format::Yaml.read(yaml.as_bytes()).unwrap_err().len(), 100);
}
