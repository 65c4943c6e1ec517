//! The real agent against a real kernel: what it sets, what it leaves, what it survives.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod world;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use world::{World, agent_as_nobody};

const V4: &str = "--gateway=10.2.0.1";
const V6: &str = "--gateway=fd00:2::1";

/// Lines of the dry run that set routes of a family in a table, without the command in front.
fn planned(dry_run: &str, family: &str, table: &str) -> Vec<String> {
    let head = format!("ip {family} route replace table {table} ");
    let mut routes: Vec<String> =
        dry_run.lines().filter_map(|line| line.strip_prefix(&head)).map(str::to_owned).collect();
    routes.sort_unstable();
    routes
}

#[test]
fn the_kernel_holds_exactly_what_the_dry_run_prints() {
    let world = World::new();
    for (flags, table, v4_routes) in
        [(&[V4, V6][..], "7700", 17), (&[V4, V6, "--main-table"][..], "main", 232)]
    {
        let dry_run = world.agent_ok(&[flags, &["--dry-run"]].concat());
        world.agent_ok(&[flags, &["--once"]].concat());
        for family in ["-4", "-6"] {
            assert_eq!(world.table(family, table), planned(&dry_run, family, table));
        }
        assert_eq!(world.table("-4", table).len(), v4_routes);
        let rules: Vec<&str> =
            dry_run.lines().filter_map(|line| line.strip_prefix("ip -4 rule add pref ")).collect();
        let shown = world.ip("client", "-4 rule");
        let shown: Vec<String> = shown
            .lines()
            .filter(|line| line.contains("proto 77"))
            .map(|line| line.replace(":\tfrom all", "").replace(" proto ", " protocol "))
            .collect();
        assert_eq!(shown, rules);
    }
}

#[test]
fn applying_twice_sends_the_kernel_nothing() {
    let world = World::new();
    world.agent_ok(&[V4, V6, "--once"]);
    let mut monitor = Command::new("ip")
        .args(["-n", &world.ns("client"), "monitor", "route", "rule", "link"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(monitor.stdout.take().unwrap()).lines();
    // The monitor listens once it shows a change of ours.
    world.wait("the monitor listens", || {
        world.ip("client", "route replace 10.99.0.1 dev eth0");
        world.ip("client", "route del 10.99.0.1 dev eth0");
        std::fs::read_to_string(format!("/proc/{}/net/netlink", monitor.id()))
            .is_ok_and(|sockets| sockets.lines().any(|line| line.contains(&format!(" {} ", monitor.id()))))
    });
    world.ip("client", "route add 10.99.0.2 dev eth0");
    lines.find(|line| line.as_ref().unwrap().contains("10.99.0.2")).unwrap().unwrap();
    world.agent_ok(&[V4, V6, "--once"]);
    world.ip("client", "route add 10.99.0.3 dev eth0");
    let after = lines.next().unwrap().unwrap();
    assert!(after.contains("10.99.0.3"), "{after}");
    monitor.kill().unwrap();
    monitor.wait().unwrap();
}

#[test]
fn public_space_goes_to_the_gateway_and_everything_else_stays() {
    let world = World::new();
    assert!(world.reaches("9.9.9.3") && !world.reaches("9.9.9.1"), "before, the world goes past the gateway");
    let _agent = world.start(&[V4, V6]);
    for address in ["9.9.9.1", "2620:fe::1"] {
        assert!(world.reaches(address), "{address}");
    }
    for address in ["9.9.9.3", "2620:fe::3"] {
        assert!(!world.reaches(address), "{address} goes past the gateway");
    }
    // A directly connected network stays local, however public it looks.
    assert!(world.reaches("20.30.40.1"));
    // Special-purpose space follows the main table, its default route included.
    let lookup = |address: &str| world.ip("client", &format!("route get {address}"));
    assert!(lookup("192.168.7.7").contains("via 20.30.40.1"));
    assert!(lookup("64:ff9b::808:808").contains("via fd00:2::1"), "embeds a public address");
    assert!(lookup("fd00:99::1").contains("via 2001:db8:30::1"));
}

#[test]
fn cleanup_leaves_no_trace() {
    let world = World::new();
    let before = world.picture();
    for flags in [&[V4, V6][..], &[V4, "--main-table"], &[V4, "--table=42", "--rule-priority=100"]] {
        world.agent_ok(&[flags, &["--once"]].concat());
        assert_ne!(world.picture(), before);
        world.agent_ok(&["--cleanup"]);
        assert_eq!(world.picture(), before, "{flags:?}");
    }
    world.agent_ok(&["--cleanup"]);
}

#[test]
fn changing_table_or_mode_takes_the_old_routes_along() {
    let world = World::new();
    let before = world.picture();
    world.agent_ok(&[V4, "--once"]);
    let first = world.picture();
    world.agent_ok(&[V4, "--table=42", "--once"]);
    assert!(world.table("-4", "7700").is_empty());
    world.agent_ok(&[V4, "--main-table", "--once"]);
    assert!(world.table("-4", "42").is_empty());
    assert!(!world.ip("client", "rule").contains("proto 77"));
    world.agent_ok(&[V4, "--once"]);
    assert_eq!(world.picture(), first);
    world.agent_ok(&["--cleanup"]);
    assert_eq!(world.picture(), before);
}

#[test]
fn a_stopped_or_killed_agent_leaves_traffic_where_it_was() {
    let world = World::new();
    world.start(&[V4, V6]).terminate();
    assert!(world.reaches("9.9.9.1") && !world.reaches("9.9.9.3"));
    world.start(&[V4, V6]).kill();
    assert!(world.reaches("9.9.9.1") && !world.reaches("9.9.9.3"));
}

#[test]
fn cleanup_on_exit_leaves_no_trace() {
    let world = World::new();
    let before = world.picture();
    world.start(&[V4, V6, "--cleanup-on-exit"]).terminate();
    assert_eq!(world.picture(), before);
}

#[test]
fn the_table_of_somebody_else_is_not_taken() {
    let world = World::new();
    world.ip("client", "route add 9.9.9.0/24 via 20.30.40.1 table 7700");
    let output = world.agent(&[V4, "--once"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("holds a route of somebody else, 9.9.9.0/24"),
        "{said}"
    );
    assert!(!world.ip("client", "rule").contains("7700"));
}

#[test]
fn a_dry_run_needs_no_privilege_and_anything_else_says_which() {
    let output = agent_as_nobody(&["--gateway=10.255.255.1", "--dry-run"]);
    let plan = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(plan.contains("ip -4 route replace table 7700 throw 10.0.0.0/8 proto 77 metric 77"), "{plan}");
    for job in [&["--gateway=10.255.255.1", "--once"][..], &["--cleanup"]] {
        let output = agent_as_nobody(job);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("CAP_NET_ADMIN is missing"), "{said}");
    }
}

#[test]
fn settings_that_cannot_work_are_named_and_touch_nothing() {
    let world = World::new();
    let before = world.picture();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"gateways: [10.2.0.1]\nprobe_intervall_ms: 100\n").unwrap();
    let config = format!("--config={}", file.path().display());
    for (flags, word) in [
        (&["--gateway=gw.example.com"][..], "`gw.example.com` is not an IP address"),
        (&["--gateway=10.9.9.9"], "10.9.9.9 is not on-link"),
        (&["--gateway=10.2.0.10"], "10.2.0.10 is an address of this host"),
        (&[config.as_str()], "probe_intervall_ms"),
        (&["--config=/nonexistent.yaml"], "read /nonexistent.yaml"),
        (&[], "no gateway given"),
    ] {
        let output = world.agent(&[flags, &["--once"]].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(word), "{flags:?}: {said}");
        let last = said.lines().filter(|line| line.starts_with("outputguard-route: ")).count();
        assert_eq!(last, 1, "{said}");
    }
    assert_eq!(world.picture(), before);
}

#[test]
fn the_file_says_what_the_flags_do_not() {
    let world = World::new();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"gateways: [10.2.0.2, 'fd00:2::2']\ntable: 500\nrule_priority: 400\n").unwrap();
    let config = format!("--config={}", file.path().display());
    world.agent_ok(&[&config, "--table=501", "--once"]);
    assert!(world.ip("client", "rule").contains("401:\tfrom all lookup 501"));
    assert!(world.reaches("9.9.9.2") && world.reaches("2620:fe::2"));
}
