//! What becomes of what is not listed: an answer, silence, or in an audit nothing.

use std::io::ErrorKind;

use gateway::firewall::{Deny, Firewall, KernelFirewall, KernelOptions, Mode, Policy, close_forwarding};

use crate::net::{CLIENT, CLIENT_V6, GATEWAY, GATEWAY_V6, Net, command, elements, exchange};
use crate::passing::{connect, is_prohibited};

fn with(mode: Mode, deny: Deny) -> KernelOptions {
    KernelOptions { policy: Policy { mode, deny, ..Policy::default() }, ..KernelOptions::default() }
}

fn started(options: &KernelOptions) -> KernelFirewall {
    close_forwarding(options).unwrap();
    let mut firewall = KernelFirewall::new(options).unwrap();
    firewall.install().unwrap();
    firewall
}

#[test]
fn a_denied_connection_is_answered_as_prohibited_or_not_at_all() {
    let net = Net::new();
    let mut firewall = started(&with(Mode::Enforce, Deny::Reject));
    for address in ["9.9.9.9:443", "[2a01:4f8::9]:443"] {
        assert!(is_prohibited(&net.client, address), "{address}");
    }
    let denied = firewall.denied().unwrap();
    assert_eq!(denied.bytes_v4, denied.packets_v4 * 60);
    assert_eq!(denied.bytes_v6, denied.packets_v6 * 80);
    assert!(denied.packets_v4 >= 1 && denied.packets_v6 >= 1, "{denied:?}");
    drop(firewall);

    let mut firewall = started(&with(Mode::Enforce, Deny::Drop));
    for address in ["9.9.9.9:443", "[2a01:4f8::9]:443"] {
        assert_eq!(connect(&net.client, address).unwrap_err(), ErrorKind::TimedOut, "{address}");
    }
    assert_eq!(
        firewall.denied().unwrap().packets_v4,
        denied.packets_v4 + 1,
        "the count goes on across a restart"
    );
    assert_eq!(firewall.repair().unwrap(), []);
}

#[test]
fn an_audit_blocks_nothing_and_counts_what_would_have_been_blocked() {
    let net = Net::new();
    let mut firewall = started(&with(Mode::Audit, Deny::Reject));
    firewall.replace(&elements(&["8.8.8.8/32"])).unwrap();
    let client = net.client.udp(CLIENT, 0);
    let (listed, unlisted) = (net.internet.udp("8.8.8.8", 9), net.internet.udp("9.9.9.9", 9));
    let unlisted_v6 = net.internet.udp("2a01:4f8::9", 9);
    assert_eq!(exchange(&client, &listed).ip().to_string(), GATEWAY);
    assert_eq!(exchange(&client, &unlisted).ip().to_string(), GATEWAY);
    assert_eq!(exchange(&net.client.udp(CLIENT_V6, 0), &unlisted_v6).ip().to_string(), GATEWAY_V6);
    // There and back.
    let counted = firewall.denied().unwrap();
    assert_eq!((counted.packets_v4, counted.packets_v6), (2, 2));
    assert_eq!(counted.bytes_v4, 8 + 6 + 2 * 28);
    // The gateway's own traffic keeps its address, and repairs block nothing either.
    let own = net.gateway.udp("10.9.0.1", 0);
    own.send_to(b"x", (CLIENT, 9)).unwrap();
    command("iptables", &["-F", "OG-FORWARD"]);
    command("iptables", &["-t", "nat", "-F", "OG-NAT"]);
    assert_eq!(firewall.repair().unwrap().len(), 2);
    assert_eq!(firewall.repair().unwrap(), []);
    assert_eq!(exchange(&client, &unlisted).ip().to_string(), GATEWAY);
    let revoked = elements(&["8.8.8.8/32"]).into_iter().collect();
    firewall.apply(&allowlist::Change { revision: 2, revoked, ..Default::default() }).unwrap();
    exchange(&client, &listed);
    drop(firewall);

    // From audit to enforcement and back, without a trace of the other.
    let mut firewall = started(&with(Mode::Enforce, Deny::Reject));
    firewall.replace(&elements(&["8.8.8.8/32"])).unwrap();
    assert!(net.passes(&net.internet.udp("9.9.9.9", 10), &net.internet.udp("8.8.8.8", 7)).is_none());
    exchange(&client, &listed);
    drop(firewall);
    started(&with(Mode::Audit, Deny::Reject));
    exchange(&client, &unlisted);
}
