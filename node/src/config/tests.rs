//! What a configuration may say, and what is answered when it may not.

use std::time::Duration;

use clap::Parser;

use super::*;

const WHOLE: &str = r#"
node: { name: server-1, data_dir: /data }
listen: { api: "127.0.0.1:1", feed: "127.0.0.1:2", raft: "127.0.0.1:3" }
cluster: { advertise: "10.1.0.1:8081", peers: ["10.1.0.2:8081", "10.1.0.1:8081"], snapshot_after_entries: 500, entries_kept: 0 }
tls: { dir: /tls, check_interval_s: 2, renewal_interval_s: 60, verify_peer_names: false }
auth: { admin_token_file: /token }
resolver:
  upstreams: ["10.1.0.53:53", "fd00::53", "tls://1.1.1.1#one.example"]
  zones: [{ domain: Corp.example., upstreams: ["10.9.0.53", "https://10.9.0.54/q#dns.corp.example"] }]
  quorum: majority
  ca_file: /ca.pem
  min_interval_s: 1
  max_interval_s: 2
  linger_s: 3
  questions_per_second: 4
"#;

fn load(text: &str, flags: &[&str]) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server.yaml");
    std::fs::write(&path, text).unwrap();
    let args = ["outputguard-server", "--config", path.to_str().unwrap()];
    let flags = Flags::try_parse_from(args.iter().chain(flags)).map_err(|error| error.to_string())?;
    Config::load(flags).map_err(|error| error.to_string())
}

#[test]
fn a_whole_file_fills_every_value() {
    let config = load(WHOLE, &[]).unwrap();
    assert_eq!(config.name, "server-1");
    assert_eq!(config.peers, ["10.1.0.1:8081", "10.1.0.2:8081"], "sorted");
    assert_eq!((config.tuning.snapshot_after_entries, config.tuning.entries_kept), (500, 0));
    assert_eq!(config.tls.dir, Path::new("/tls"));
    assert_eq!(config.resolver.upstreams[1].to_string(), "[fd00::53]:53");
    assert_eq!(config.resolver.upstreams[2].to_string(), "tls://1.1.1.1:853");
    let zone = &config.resolver.zones[0];
    assert_eq!(zone.domain.to_string(), "corp.example");
    assert_eq!(zone.upstreams[1].to_string(), "https://10.9.0.54:443/q");
    assert_eq!(config.resolver.quorum, crate::resolver::Quorum::Majority);
    assert_eq!(config.resolver.ca_file.as_deref(), Some(Path::new("/ca.pem")));
    assert_eq!(config.resolver.questions_per_second, 4);
    assert_eq!(config.resolver.linger, Duration::from_secs(3));
}

#[test]
fn an_empty_file_is_a_cluster_of_one_with_defaults_below_the_data_directory() {
    let config = load("", &["--data-dir", "/x", "--node-name", "a"]).unwrap();
    assert_eq!(config.advertise, "a:8081");
    assert_eq!(config.tls.dir, Path::new("/x/tls"));
    assert_eq!(config.admin_token_file, Path::new("/x/admin.token"));
}

#[test]
fn flags_win_over_the_file() {
    let config = load(WHOLE, &["--node-name", "other", "--listen-api", "127.0.0.1:9"]).unwrap();
    assert_eq!((config.name.as_str(), config.listen_api.port()), ("other", 9));
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let error = load("node:\n  name: a\n  datadir: /x\n", &[]).unwrap_err();
    assert!(error.contains("datadir") && error.contains("line 3"), "{error}");
    let error = load("nodes: {}\n", &[]).unwrap_err();
    assert!(error.contains("nodes"), "{error}");
}

#[test]
fn a_wrong_value_names_its_key_and_what_would_be_right() {
    let cases = [
        ("listen: { api: '8080' }", "listen.api", "IP:port"),
        ("cluster: { peers: ['a:8081'] }", "cluster.advertise", "host:port"),
        ("cluster: { advertise: 'b:1', peers: ['a:8081'] }", "cluster.advertise", "this one included"),
        ("cluster: { advertise: 'b', peers: ['b'] }", "cluster.peers", "host:port"),
        ("cluster: { snapshot_after_entries: 9 }", "cluster.snapshot_after_entries", "100 or more"),
        ("resolver: { upstreams: [dns.example] }", "resolver.upstreams", "IP:port"),
        ("resolver: { upstreams: ['tls://dns.example'] }", "resolver.upstreams", "tls://1.1.1.1:853#"),
        ("resolver: { upstreams: ['quic://1.1.1.1'] }", "resolver.upstreams", "tls://IP:port"),
        (
            "resolver: { zones: [{ domain: '*.a.test', upstreams: [1.1.1.1] }] }",
            "resolver.zones",
            "corp.example",
        ),
        ("resolver: { zones: [{ domain: a.test, upstreams: [] }] }", "resolver.zones", "at least one"),
        ("resolver: { zones: [{ domain: a.test, upstreams: [b] }] }", "resolver.zones", "IP:port"),
        ("resolver: { zones: [{ domain: a.test, upstreams: [1.1.1.1], ttl: 1 }] }", "ttl", "unknown field"),
        ("resolver: { zones: [{ domain: a.test }] }", "upstreams", "missing field"),
        ("resolver: { quorum: all }", "resolver.quorum", "majority"),
        ("resolver: { questions_per_second: 0 }", "resolver.questions_per_second", "1 or more"),
        ("resolver: { min_interval_s: 0 }", "resolver.min_interval_s", "1 or more"),
        ("node: { name: 'a b' }", "node.name", "letters"),
    ];
    for (text, key, remedy) in cases {
        let error = load(text, &[]).unwrap_err();
        assert!(error.contains(key) && error.contains(remedy), "{text}: {error}");
    }
}

#[test]
fn malformed_yaml_names_file_and_line() {
    let error = load("node: {\n", &[]).unwrap_err();
    assert!(error.contains("server.yaml") && error.contains("line"), "{error}");
}
