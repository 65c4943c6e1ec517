use super::*;

fn flags(arguments: &[&str]) -> Flags {
    let program = ["outputguard-gateway"].iter().chain(arguments).map(OsString::from);
    Flags::from_arguments(program).unwrap()
}

fn complete(more: &[&str]) -> Flags {
    let mut all = vec!["--token-file", "/t", "--ca-file", "/c", "--server", "wss://10.1.0.1:8443/ws"];
    all.extend(more);
    flags(&all)
}

fn file(text: &str) -> (tempfile::TempDir, Flags) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gateway.yaml");
    fs::write(&path, text).unwrap();
    let flags = flags(&["--config", path.to_str().unwrap()]);
    (dir, flags)
}

fn error(flags: &Flags) -> String {
    Config::load(flags).unwrap_err().to_string()
}

#[test]
fn a_file_gives_every_value_and_flags_go_before_it() {
    let (_dir, mut flags) = file(
        "name: gw-1\nservers: [\"wss://10.1.0.1:8443/ws\", \"wss://[2001:db8::1]:8443\"]\ntoken_file: /t\nca_file: /c\n\
         state_dir: /s\nmetrics: \"127.0.0.1:9901\"\nfirewall: dry-run\ninternal_cidrs: [\"10.0.0.0/8\"]\n",
    );
    let config = Config::load(&flags).unwrap();
    assert_eq!(config.name, "gw-1-dry-run", "no server takes it for gw-1");
    assert_eq!(config.servers[1].to_string(), "wss://[2001:db8::1]:8443/ws");
    assert_eq!(config.firewall, FirewallKind::DryRun);
    assert_eq!(config.internal_cidrs, ["10.0.0.0/8".parse().unwrap()]);
    flags.name = Some("gw-2".into());
    flags.firewall = Some(FirewallKind::Kernel);
    flags.servers = vec!["wss://server.example.com/feed".into()];
    let config = Config::load(&flags).unwrap();
    assert_eq!(config.name, "gw-2");
    let url = ServerUrl { host: "server.example.com".into(), port: 443, path: "/feed".into() };
    assert_eq!(config.servers, [Arc::new(url)]);
}

#[test]
fn what_nobody_set_has_a_default() {
    let config = Config::load(&complete(&[])).unwrap();
    assert_eq!(config.state_dir, PathBuf::from("/var/lib/outputguard-gateway"));
    assert_eq!(config.metrics, "0.0.0.0:9900".parse().unwrap());
    assert_eq!(config.firewall, FirewallKind::Kernel);
    assert!(!config.name.is_empty(), "the host name");
}

#[test]
fn the_seeds_flags_work_with_one_dash() {
    let old = flags(&[
        "-iptables-gateway",
        "-iptables-wss-server",
        "wss://a.example.com/ws",
        "-server-conf-path=/f",
    ]);
    assert_eq!(old.servers, ["wss://a.example.com/ws"]);
    assert_eq!(old.config, Some("/f".into()));
    let equal = flags(&["-iptables-wss-server=wss://a.example.com/ws,wss://b.example.com/ws"]);
    assert_eq!(equal.servers.len(), 2);
}

#[test]
fn an_unknown_key_is_named() {
    let (_dir, flags) = file("name: gw-1\nserver_list: []\n");
    let error = error(&flags);
    assert!(error.contains("server_list") && error.contains("gateway.yaml"), "{error}");
}

#[test]
fn a_value_of_the_wrong_kind_is_named_with_its_place() {
    let (_dir, flags) = file("name: gw-1\nfirewall: open\n");
    let error = error(&flags);
    assert!(error.contains("open") && error.contains("dry-run"), "{error}");
}

#[test]
fn what_is_missing_is_named_with_its_remedy() {
    assert!(error(&flags(&[])).contains("`servers` is not set: list the feed URLs"));
    let servers = ["--server", "wss://10.1.0.1:8443/ws"];
    assert!(error(&flags(&servers)).contains("`token_file` is not set: name the file"));
    let token = [servers[0], servers[1], "--token-file", "/t"];
    assert!(error(&flags(&token)).contains("`ca_file` is not set: copy ca.pem"));
    assert!(error(&flags(&["--config", "/nowhere.yaml"])).contains("read configuration /nowhere.yaml"));
}

#[test]
fn wrong_values_say_what_would_be_right() {
    for (arguments, words) in [
        (["--server", "ws://10.1.0.1:8080/ws"], "not encrypted"),
        (["--server", "10.1.0.1:8443"], "write e.g. wss://"),
        (["--server", "wss://user@10.1.0.1/ws"], "token_file"),
        (["--metrics", "9900"], "write e.g. 0.0.0.0:9900"),
        (["--name", "two words"], "letters, digits"),
        (["--internal-cidr", "10.0.0.0"], "write e.g. 10.0.0.0/8"),
        (["--internal-cidr", "0.0.0.0/0"], "leave it out to cover everything"),
        (["--internal-cidr", "::/0"], "leave it out to cover everything"),
    ] {
        let error = error(&complete(&arguments));
        assert!(error.contains(words), "{arguments:?}: {error}");
    }
}
