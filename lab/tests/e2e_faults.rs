//! Faults beyond the demo's steps, with the real binaries.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy knows only the test functions")]

use std::net::IpAddr;
use std::time::Duration;

use lab::{Lab, LabOptions, NewEntry, Outcome, wait};

const TIMEOUT: Duration = Duration::from_secs(30);

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Adds `target` and waits until the client reaches it.
fn open(lab: &Lab, target: &str) {
    // The balancer may still believe that a server which just came back is gone.
    let api = lab.api().unwrap();
    wait::until(format!("{target} is added"), TIMEOUT, || api.add(&NewEntry::to(target))).unwrap();
    let client = lab.client().with_patience(Duration::from_millis(300));
    wait::until(format!("{target} passes"), TIMEOUT, || {
        client.tcp_echo((address(target), 7).into()).answer()
    })
    .unwrap();
}

#[test]
fn e2e_a_rebooted_gateway_enforces_its_stored_state_without_any_server() {
    let mut lab = Lab::start(&LabOptions { servers: 1, gateways: 1, port: 0 }).unwrap();
    open(&lab, "93.184.10.1");
    lab.servers[0].process.kill();
    lab.gateways[0].process.kill();
    // A reboot: the kernel forgets chains, sets and flows.
    let flush = "iptables -F; iptables -t nat -F; iptables -X; iptables -t nat -X; \
                 ip6tables -F; ip6tables -t nat -F; ip6tables -X; ip6tables -t nat -X; ipset destroy; conntrack -F";
    let output = lab.gateways[0].namespace().command("sh").args(["-c", flush]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    lab.gateways[0].process.start_again().unwrap();
    lab.gateways[0].wait_live().unwrap();
    let client = lab.client();
    wait::until("the stored entry passes", TIMEOUT, || {
        client.tcp_echo((address("93.184.10.1"), 7).into()).answer()
    })
    .unwrap();
    assert!(matches!(client.tcp_echo((address("93.184.10.2"), 7).into()), Outcome::Silence));
}

#[test]
fn e2e_a_gateway_without_server_and_without_state_passes_nothing() {
    let mut lab = Lab::start(&LabOptions { servers: 1, gateways: 1, port: 0 }).unwrap();
    open(&lab, "93.184.11.1");
    lab.servers[0].process.kill();
    lab.gateways[0].process.kill();
    let output =
        lab.gateways[0].namespace().command("sh").args(["-c", "iptables -F; iptables -t nat -F"]).output();
    assert!(output.unwrap().status.success());
    std::fs::remove_dir_all(&lab.gateways[0].state).unwrap();
    // What the kernel holds is a stored state too, so the sets must go as well.
    let sets = "iptables -X; iptables -t nat -X; ip6tables -F; ip6tables -t nat -F; ip6tables -X; \
                ip6tables -t nat -X; ipset destroy; conntrack -F";
    assert!(lab.gateways[0].namespace().command("sh").args(["-c", sets]).output().unwrap().status.success());
    lab.gateways[0].process.start_again().unwrap();
    lab.gateways[0].wait_live().unwrap();
    let client = lab.client();
    for target in ["93.184.11.1", "93.184.11.2"] {
        let outcome = client.tcp_echo((address(target), 7).into());
        assert!(matches!(outcome, Outcome::Silence), "{target}: {outcome:?}");
    }
}

#[test]
fn e2e_writes_stop_without_a_quorum_and_go_on_with_it() {
    let lab = Lab::start(&LabOptions { servers: 3, gateways: 1, port: 0 }).unwrap();
    open(&lab, "93.184.12.1");
    for server in &lab.servers[1..] {
        server.process.pause().unwrap();
    }
    let api = lab.servers[0].api().unwrap();
    let error = api.add(&NewEntry::to("93.184.12.2")).unwrap_err();
    // 503 when it never entered the log; 504 when the leader had taken it before it could know.
    assert!(matches!(error.problem().map(|problem| problem.status), Some(503 | 504)), "{error}");
    let client = lab.client();
    assert!(
        matches!(client.tcp_echo((address("93.184.12.2"), 7).into()), Outcome::Silence),
        "unconfirmed, so closed"
    );
    client.tcp_echo((address("93.184.12.1"), 7).into()).answer().unwrap();
    for server in &lab.servers[1..] {
        server.process.resume().unwrap();
    }
    wait::until("a write succeeds", TIMEOUT, || api.add(&NewEntry::to("93.184.12.3"))).unwrap();
    open(&lab, "93.184.12.3");
}

#[test]
fn e2e_a_gateway_moves_to_another_server_when_its_own_dies() {
    let mut lab = Lab::start(&LabOptions { servers: 3, gateways: 1, port: 0 }).unwrap();
    let session = |lab: &mut Lab| {
        wait::until("the gateway has a session", TIMEOUT, || {
            let statuses = lab.statuses();
            statuses
                .into_iter()
                .flat_map(|status| status.gateways)
                .find(|line| line.in_sync)
                .map(|line| line.node)
                .ok_or("none")
        })
        .unwrap()
    };
    let first = session(&mut lab);
    let index = lab.servers.iter().position(|server| server.name() == first).unwrap();
    lab.servers[index].process.kill();
    wait::until("it moves", TIMEOUT, || {
        let now = session(&mut lab);
        if now == first { Err(format!("still at {now}")) } else { Ok(()) }
    })
    .unwrap();
    let other = lab.servers[(index + 1) % 3].api().unwrap();
    wait::until("a write succeeds", TIMEOUT, || other.add(&NewEntry::to("93.184.13.1"))).unwrap();
    let client = lab.client();
    wait::until("it passes", TIMEOUT, || client.tcp_echo((address("93.184.13.1"), 7).into()).answer())
        .unwrap();
}
