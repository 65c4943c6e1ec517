//! Links that flap, hosts that die, people who flush tables.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod world;

use std::process::Command;
use std::time::{Duration, Instant};

use world::World;

const BOTH: [&str; 5] = [
    "--gateway=10.2.0.1",
    "--gateway=10.2.0.2",
    "--gateway=fd00:2::1",
    "--gateway=fd00:2::2",
    "--probe-interval-ms=100",
];

/// The gateway the kernel would use for a public address. False while there is none: then `ip route get` fails.
fn goes_via(world: &World, gateway: &str) -> bool {
    let public = if gateway.contains(':') { "2620:fe::99" } else { "9.9.9.99" };
    let output =
        Command::new("ip").args(["-n", &world.ns("client"), "route", "get", public]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).contains(&format!("via {gateway} "))
}

#[test]
fn a_link_flap_closes_the_way_and_is_repaired_at_once() {
    let world = World::new();
    let _agent = world.start(&["--gateway=10.2.0.1", "--gateway=fd00:2::1"]);
    assert!(world.reaches("9.9.9.1"));
    world.ip("client", "link set eth0 down");
    assert!(!world.reaches("9.9.9.3"), "the flap opened a way past the gateway");
    assert!(!world.reaches("2620:fe::3"), "the flap opened a way past the gateway");
    world.ip("client", "link set eth0 up");
    // Taking a link down drops its global v6 addresses (`keep_addr_on_down` is off by default).
    world.ip("client", "addr replace fd00:2::10/64 dev eth0 nodad");
    let start = Instant::now();
    world.wait("the default routes are back", || {
        world.table("-4", "7700").iter().any(|route| route.starts_with("default via"))
            && world.table("-6", "7700").iter().any(|route| route.starts_with("default via"))
    });
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    world.wait("packets flow again", || world.reaches("9.9.9.1") && world.reaches("2620:fe::1"));
}

#[test]
fn an_agent_that_starts_before_its_link_closes_the_host_and_opens_the_way_later() {
    let world = World::new();
    world.ip("client", "link set eth0 down");
    let _agent = world.start(&["--gateway=10.2.0.1"]);
    assert!(!world.reaches("9.9.9.3"), "the host's own default route carried what a gateway should judge");
    world.ip("client", "link set eth0 up");
    world.wait("packets flow through the gateway", || world.reaches("9.9.9.1"));
}

#[test]
fn what_somebody_flushed_is_restored() {
    let world = World::new();
    let _agent = world.start(&["--gateway=10.2.0.1", "--gateway=fd00:2::1"]);
    let before = world.picture();
    world.ip("client", "route flush table 7700");
    world.wait("the table is back", || world.picture() == before);
    world.ip("client", "rule del pref 30101");
    world.ip("client", "-6 rule del pref 30100");
    world.wait("the rules are back", || world.picture() == before);
    world.ip("client", "route add default via 20.30.40.1 table 7700");
    world.wait("a way past the gateway is removed", || world.picture() == before);
    world.ip("client", "route replace default via 10.2.0.2 metric 77 proto 77 table 7700");
    world.wait("the gateway is put right", || world.picture() == before);
}

#[test]
fn when_a_gateway_host_dies_its_clients_move_and_stay() {
    let world = World::new();
    let _agent = world.start(&BOTH);
    assert!(world.reaches("9.9.9.1") && world.reaches("2620:fe::1"));
    world.ip("gw1", "link set eth0 down");
    world.wait("v4 moves", || goes_via(&world, "10.2.0.2"));
    world.wait("v6 moves", || goes_via(&world, "fd00:2::2"));
    assert!(world.reaches("9.9.9.2") && world.reaches("2620:fe::2"));

    // The first comes back and is found alive; it gets no traffic until the second dies.
    world.ip("gw1", "link set eth0 up");
    world.ip("gw1", "addr replace fd00:2::1/64 dev eth0 nodad");
    world.ip("gw1", "route replace default via 10.2.0.10 dev eth0");
    world.ip("gw1", "-6 route replace default via fd00:2::10 dev eth0");
    world.wait("gw1 is back", || world.reaches("10.2.0.1") && world.reaches("fd00:2::1"));
    assert!(goes_via(&world, "10.2.0.2") && goes_via(&world, "fd00:2::2"));
    world.ip("gw2", "link set eth0 down");
    world.wait("traffic moves back", || goes_via(&world, "10.2.0.1") && goes_via(&world, "fd00:2::1"));
    assert!(world.reaches("9.9.9.1") && world.reaches("2620:fe::1"));
}

#[test]
fn a_preferred_gateway_takes_over_again_when_asked_to() {
    let world = World::new();
    let _agent = world.start(&[&BOTH[..], &["--prefer-first"]].concat());
    world.ip("gw1", "link set eth0 down");
    world.wait("v4 moves", || goes_via(&world, "10.2.0.2"));
    world.ip("gw1", "link set eth0 up");
    world.wait("v4 moves back", || goes_via(&world, "10.2.0.1"));
}

#[test]
fn a_switch_over_never_leaves_a_moment_without_a_route() {
    let world = World::new();
    world.agent_ok(&["--gateway=10.2.0.1", "--gateway=fd00:2::1", "--once"]);
    let ns = world.ns("client");
    let mut monitor = std::process::Command::new("ip")
        .args(["-n", &ns, "monitor", "route"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(monitor.stdout.take().unwrap()));
    world.wait("the monitor listens", || {
        std::fs::read_to_string(format!("/proc/{}/net/netlink", monitor.id()))
            .is_ok_and(|sockets| sockets.lines().any(|line| line.contains(&format!(" {} ", monitor.id()))))
    });
    world.agent_ok(&["--gateway=10.2.0.2", "--gateway=fd00:2::2", "--once"]);
    world.ip("client", "route add 10.99.0.1 dev eth0");
    let mut seen = Vec::new();
    loop {
        let line = lines.next().unwrap().unwrap();
        if line.contains("10.99.0.1") {
            break;
        }
        seen.push(line);
    }
    monitor.kill().unwrap();
    monitor.wait().unwrap();
    assert!(seen.iter().any(|line| line.contains("via 10.2.0.2")), "{seen:?}");
    assert!(seen.iter().all(|line| !line.starts_with("Deleted")), "{seen:?}");
}

#[test]
fn when_every_gateway_dies_nothing_passes_and_nothing_moves() {
    let world = World::new();
    let _agent = world.start(&BOTH);
    world.ip("gw1", "link set eth0 down");
    world.wait("v4 moves", || goes_via(&world, "10.2.0.2"));
    world.ip("gw2", "link set eth0 down");
    for _ in 0..3 {
        assert!(!world.reaches("9.9.9.3") && !world.reaches("2620:fe::3"), "the main default route was used");
    }
    assert!(goes_via(&world, "10.2.0.2"), "the last gateway is kept");
    assert!(world.reaches("20.30.40.1"));
    world.ip("gw2", "link set eth0 up");
    world.wait("the world is back with the gateway", || world.reaches("9.9.9.2"));
}

#[test]
fn a_family_without_a_gateway_is_closed() {
    let world = World::new();
    assert!(world.reaches("2620:fe::3"));
    let _agent = world.start(&["--gateway=10.2.0.1"]);
    assert!(world.reaches("9.9.9.1"));
    assert!(!world.reaches("2620:fe::3"));
}

#[test]
fn a_restart_keeps_the_gateway_that_is_in_use() {
    let world = World::new();
    world.agent_ok(&["--gateway=10.2.0.2", "--once"]);
    let _agent = world.start(&BOTH);
    world.wait("v6 goes to its first gateway", || goes_via(&world, "fd00:2::1"));
    assert!(goes_via(&world, "10.2.0.2"));
}

#[test]
fn a_link_local_gateway_works_with_its_device() {
    let world = World::new();
    let shown = world.ip("gw1", "-6 -o addr show dev eth0 scope link");
    let address = shown.split_whitespace().nth(3).unwrap().split('/').next().unwrap().to_owned();
    world.agent_ok(&[&format!("--gateway={address}%eth0"), "--once"]);
    world.wait("packets flow", || world.reaches("2620:fe::1"));
    assert!(goes_via(&world, &address));
}
