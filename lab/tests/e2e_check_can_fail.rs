//! The proof of the proof: steps fail when a gateway does what it must not.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy knows only the test functions")]

use lab::check::Step;
use lab::{Lab, LabOptions, demo};

/// Runs a shell line on every gateway, behind the gateway process's back.
fn sabotage(lab: &Lab, line: &str) {
    for namespace in &lab.network.gateways {
        let output = namespace.command("sh").args(["-ec", line]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

fn failure(lab: &mut Lab, step: usize) -> String {
    format!("{:#}", Step::of(step).unwrap().prove(lab).unwrap_err())
}

#[test]
fn e2e_an_open_gateway_and_a_leaking_one_are_noticed() {
    let mut lab = Lab::start(&LabOptions::default()).unwrap();
    // Or they would put their own rule in front again.
    for gateway in &lab.gateways {
        gateway.process.pause().unwrap();
    }
    // Ahead of the gateway's own judgement, and without NAT: nobody is answered, but packets have left.
    sabotage(
        &lab,
        "iptables -t mangle -A FORWARD -j MARK --set-mark 1; iptables -I FORWARD -m mark --mark 1 -j ACCEPT",
    );
    let leak = failure(&mut lab, 1);
    assert!(leak.contains("private source"), "{leak}");
    sabotage(&lab, "iptables -t nat -A POSTROUTING -m mark --mark 1 -j MASQUERADE");
    let open = failure(&mut lab, 1);
    assert!(open.contains("should be dropped: 93.184.216.34 tcp/80: Answer"), "{open}");
}

#[test]
fn e2e_a_gateway_that_loses_one_packet_in_three_hundred_is_noticed() {
    let mut lab = Lab::start(&LabOptions::default()).unwrap();
    demo::seed_dns(&lab).unwrap();
    sabotage(
        &lab,
        "iptables -t mangle -A FORWARD -p udp -m statistic --mode nth --every 300 --packet 0 -j DROP",
    );
    let lost = failure(&mut lab, 8);
    assert!(lost.contains("datagrams to 93.184.80.1 were lost"), "{lost}");
}

#[test]
fn e2e_a_counter_that_differs_from_what_was_sent_is_noticed() {
    let mut lab = Lab::start(&LabOptions::default()).unwrap();
    // The client's own kernel sends the forty datagrams of 17 bytes twice: the gateway counts forty more than the step
    // sent, and the ICMP errors that answer the second echo of each.
    let rule = "iptables -t mangle -A OUTPUT -p udp -m length --length 45 -j TEE --gateway 10.2.0.11";
    let output = lab.network.client.command("sh").args(["-ec", rule]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let wrong = failure(&mut lab, 9);
    assert!(wrong.contains("counted, 200 and 78800 sent"), "{wrong}");
}
