//! Flows are cut when what let them pass is gone, and it is told what they had moved.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};

use allowlist::feed::CutCause;
use allowlist::{Change, Element};
use gateway::firewall::{Firewall, KernelOptions};

use crate::net::{
    CLIENT, CLIENT_V6, GATEWAY, Net, command, element, elements, exchange, installed_with_reports, patiently,
};
use crate::passing::connect;

const QUESTION_BYTES: u64 = 8 + 28;
const ANSWER_BYTES: u64 = 6 + 28;

fn revoke(revision: u64, what: &[&str]) -> Change {
    Change { revision, revoked: what.iter().map(|text| element(text)).collect(), ..Change::default() }
}

fn add(revision: u64, what: &[&str]) -> Change {
    Change { revision, added: what.iter().map(|text| element(text)).collect(), ..Change::default() }
}

/// A connection through the gateway over which something went both ways.
pub(crate) fn talking(net: &Net, address: &str) -> (TcpStream, TcpStream) {
    let (host, port) = address.split_once(':').unwrap();
    let server = net.internet.tcp(host, port.parse().unwrap());
    let mut client = connect(&net.client, address).unwrap();
    let (mut accepted, _) = server.accept().unwrap();
    for stream in [&client, &accepted] {
        stream.set_read_timeout(Some(crate::net::PATIENCE)).unwrap();
    }
    say(&mut client, &mut accepted);
    say(&mut accepted, &mut client);
    (client, accepted)
}

pub(crate) fn say(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"word").unwrap();
    to.read_exact(&mut [0; 4]).unwrap();
}

#[test]
fn a_revocation_cuts_its_flows_and_reports_the_bytes_they_had_moved() {
    let net = Net::new();
    let (mut firewall, reports) = installed_with_reports(&KernelOptions::default());
    let listed = ["8.8.8.8/32", "8.8.4.0/24", "2a01:4f8::/32", "9.9.9.9/32"];
    firewall.replace(&elements(&listed)).unwrap();
    let client = net.client.udp(CLIENT, 0);
    let server = net.internet.udp("8.8.8.8", 9);
    let beside = (net.client.udp(CLIENT, 0), net.internet.udp("9.9.9.9", 9));
    for _ in 0..5 {
        exchange(&client, &server);
        exchange(&beside.0, &beside.1);
    }
    firewall.apply(&revoke(7, &["8.8.8.8/32"])).unwrap();
    let report = reports.next(CutCause::Revoked);
    assert_eq!((report.revision, report.flows, report.uncounted), (7, 1, 0));
    assert_eq!((report.bytes_out, report.bytes_in), (5 * QUESTION_BYTES, 5 * ANSWER_BYTES));
    assert_eq!(report.elements.len(), 1);
    assert_eq!(report.elements[0].element, element("8.8.8.8/32"));

    // Networks and IPv6, two elements in one change, one listing.
    let v6 = (net.client.udp(CLIENT_V6, 0), net.internet.udp("2a01:4f8::5", 9));
    let (near, far) = (net.internet.udp("8.8.4.4", 9), net.internet.udp("8.8.4.5", 9));
    exchange(&v6.0, &v6.1);
    exchange(&client, &near);
    exchange(&client, &far);
    firewall.apply(&revoke(8, &["8.8.4.0/24", "2a01:4f8::/32"])).unwrap();
    let report = reports.next(CutCause::Revoked);
    assert_eq!((report.revision, report.flows), (8, 3));
    assert_eq!(report.elements.iter().map(|element| element.flows).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(report.bytes_out, 2 * QUESTION_BYTES + QUESTION_BYTES + 20);

    // What nobody revoked goes on in the same flow; what had no flow is answered too.
    let source = exchange(&beside.0, &beside.1);
    assert_eq!(source.ip().to_string(), GATEWAY);
    firewall.apply(&revoke(9, &["9.9.9.9/32"])).unwrap();
    let report = reports.next(CutCause::Revoked);
    assert_eq!((report.flows, report.bytes_out), (1, 6 * QUESTION_BYTES));
    firewall.apply(&add(10, &["9.9.9.9/32"])).unwrap();
    firewall.apply(&revoke(11, &["9.9.9.9/32"])).unwrap();
    let report = reports.next(CutCause::Revoked);
    assert_eq!((report.revision, report.flows, report.elements), (11, 0, vec![]));
}

#[test]
fn what_another_element_still_lets_pass_is_not_cut() {
    let net = Net::new();
    let (mut firewall, reports) = installed_with_reports(&KernelOptions::default());
    firewall.replace(&elements(&["8.8.8.8/32", "8.8.0.0/16 udp/9", "9.9.9.9/32"])).unwrap();
    let client = net.client.udp(CLIENT, 0);
    let (kept, cut) = (net.internet.udp("8.8.8.8", 9), net.internet.udp("8.8.8.8", 10));
    let source = exchange(&client, &kept);
    exchange(&client, &cut);
    firewall.apply(&revoke(2, &["8.8.8.8/32"])).unwrap();
    assert_eq!(reports.next(CutCause::Revoked).flows, 1);
    assert_eq!(exchange(&client, &kept), source);
}

#[test]
fn the_gateways_own_flows_and_those_of_other_networks_are_not_cut() {
    let net = Net::new();
    let options =
        KernelOptions { internal_cidrs: vec!["10.9.0.0/28".parse().unwrap()], ..KernelOptions::default() };
    let (mut firewall, reports) = installed_with_reports(&options);
    firewall.replace(&elements(&["8.8.8.8/32"])).unwrap();
    net.client.run(|| command("ip", &["addr", "add", "10.9.0.99/24", "dev", "eth0"]));
    let server = net.internet.udp("8.8.8.8", 9);
    let others = [net.gateway.udp(GATEWAY, 0), net.client.udp("10.9.0.99", 0)];
    let ours = net.client.udp(CLIENT, 0);
    for client in others.iter().chain([&ours]) {
        exchange(client, &server);
    }
    firewall.apply(&revoke(2, &["8.8.8.8/32"])).unwrap();
    let report = reports.next(CutCause::Revoked);
    assert_eq!((report.flows, report.bytes_out), (1, QUESTION_BYTES));
}

#[test]
fn an_element_added_again_does_not_revive_a_connection_that_was_cut() {
    let net = Net::new();
    let (mut firewall, reports) = installed_with_reports(&KernelOptions::default());
    firewall.replace(&elements(&["8.8.8.8/32", "9.9.9.9/32"])).unwrap();
    let beacon = net.internet.udp("9.9.9.9", 7);
    let (mut client, mut accepted) = talking(&net, "8.8.8.8:443");
    firewall.apply(&revoke(2, &["8.8.8.8/32"])).unwrap();
    assert_eq!(reports.next(CutCause::Revoked).flows, 1);
    firewall.apply(&add(3, &["8.8.8.8/32"])).unwrap();
    let before = firewall.denied().unwrap().packets_v4;
    client.write_all(b"more").unwrap();
    assert!(net.passes(&net.internet.udp("8.8.8.8", 8), &beacon).is_some());
    accepted.set_nonblocking(true).unwrap();
    assert_eq!(accepted.read(&mut [0; 4]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert!(firewall.denied().unwrap().packets_v4 > before, "it is counted as denied");
    talking(&net, "8.8.8.8:443");
    // A connection that nobody cut goes on even when the kernel forgot it.
    let (mut other, mut peer) = talking(&net, "9.9.9.9:443");
    command("conntrack", &["-F"]);
    say(&mut other, &mut peer);
}

#[test]
fn flows_begun_while_the_nat_rules_were_gone_are_cut_by_the_repair() {
    let net = Net::new();
    let (mut firewall, reports) = installed_with_reports(&KernelOptions::default());
    firewall.replace(&elements(&["8.8.8.8/32"])).unwrap();
    let server = net.internet.udp("8.8.8.8", 9);
    let (client, before) = (net.client.udp(CLIENT, 0), net.client.udp(CLIENT, 0));
    let hidden = exchange(&before, &server);
    command("iptables", &["-t", "nat", "-F", "OG-NAT"]);
    assert_eq!(exchange(&client, &server).ip().to_string(), CLIENT, "the test sees what it looks for");
    assert_eq!(firewall.repair().unwrap().len(), 1);
    let report = reports.next(CutCause::SourceShown);
    assert_eq!((report.flows, report.bytes_out), (1, QUESTION_BYTES));
    assert_eq!(exchange(&client, &server).ip().to_string(), GATEWAY);
    assert_eq!(exchange(&before, &server), hidden, "what was in order is left alone");
}

#[test]
fn flows_from_before_the_gateway_are_cut_when_it_starts() {
    let net = Net::new();
    let server = net.internet.udp("8.8.8.8", 9);
    let unlisted = net.internet.udp("9.9.9.9", 9);
    let client = net.client.udp(CLIENT, 0);
    // Conntrack begins with the first rule that needs it.
    command("iptables", &["-A", "INPUT", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"]);
    assert_eq!(exchange(&client, &server).ip().to_string(), CLIENT);
    exchange(&client, &unlisted);
    let (mut firewall, reports) = installed_with_reports(&KernelOptions::default());
    firewall.replace(&elements(&["8.8.8.8/32"])).unwrap();
    let stale = reports.next(CutCause::Stale);
    assert_eq!((stale.flows, stale.uncounted), (1, 1), "begun before accounting was on");
    assert_eq!(reports.next(CutCause::SourceShown).flows, 1);
    assert_eq!(exchange(&client, &server).ip().to_string(), GATEWAY);
}

#[test]
fn an_element_removed_between_forward_and_nat_shows_no_private_source() {
    let net = Net::new();
    let (mut firewall, _reports) = installed_with_reports(&KernelOptions::default());
    let network = "8.8.0.0/16";
    net.internet.run(|| command("iptables", &["-A", "INPUT", "-s", "10.9.0.0/24", "-j", "DROP"]));
    let client = net.client.udp(CLIENT, 0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut sent = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                // Each to another address: a flow of its own, so that NAT is asked for each.
                let address = std::net::Ipv4Addr::from(0x0808_0000 + sent % 0xff00);
                // A prohibition that was answered is an error of the next call.
                let _ = client.send_to(b"x", (address, 9));
                sent += 1;
            }
        });
        for round in 0..60 {
            firewall.apply(&add(2 * round, &[network])).unwrap();
            firewall.apply(&revoke(2 * round + 1, &[network])).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let counted = net.internet.run(|| command("iptables", &["-nvxL", "INPUT"]));
    let shown = counted.lines().find(|line| line.contains("10.9.0.0/24")).unwrap();
    assert_eq!(shown.split_whitespace().next(), Some("0"), "{counted}");
}

#[test]
fn thousands_of_flows_are_cut_in_one_go() {
    const FLOWS: u32 = 20_000;
    let net = Net::new();
    let (mut firewall, reports) = installed_with_reports(&KernelOptions::default());
    let listed: Vec<Element> =
        (0..100).map(|third| element(&format!("8.8.{third}.0/24"))).chain([element("9.9.9.9/32")]).collect();
    firewall.replace(&listed.iter().copied().collect()).unwrap();
    let beacon = net.internet.udp("9.9.9.9", 7);
    let client = net.client.udp(CLIENT, 0);
    for number in 0..FLOWS {
        let address = std::net::Ipv4Addr::from(0x0808_0000 + number / 200 * 256 + number % 200 + 1);
        client.send_to(b"x", (address, 9)).unwrap_or_default();
    }
    let revoked = listed[..100].to_vec();
    firewall.apply(&Change { revision: 2, revoked, ..Change::default() }).unwrap();
    // Closed when the call returns, whatever the table holds.
    assert!(net.passes(&net.internet.udp("8.8.8.8", 8), &beacon).is_none());
    let report = reports.next(CutCause::Revoked);
    assert!(report.flows >= u64::from(FLOWS) / 2, "{} flows", report.flows);
    assert_eq!(report.bytes_out, report.flows * 29);
    assert_eq!(report.elements.len(), 100);
    let mut rest = [0; 8];
    client.set_nonblocking(true).unwrap();
    assert!(patiently(|| client.recv(&mut rest)).is_err());
}

#[test]
fn a_restart_with_neighbouring_ports_revokes_nothing() {
    let net = Net::new();
    let listed = elements(&["8.8.8.8/32 udp/9", "8.8.8.8/32 udp/10", "9.9.9.9/32"]);
    let (mut first, _) = installed_with_reports(&KernelOptions::default());
    first.replace(&listed).unwrap();
    let (client, server) = (net.client.udp(CLIENT, 0), net.internet.udp("8.8.8.8", 9));
    let source = exchange(&client, &server);
    drop(first);
    let (mut second, reports) = installed_with_reports(&KernelOptions::default());
    second.hold(&listed, &Change { revision: 7, ..Change::default() }).unwrap();
    assert_eq!(exchange(&client, &server), source);
    // The first report of a removal is about this one.
    let rest = elements(&["8.8.8.8/32 udp/10", "9.9.9.9/32"]);
    second.hold(&rest, &Change { revision: 8, ..Change::default() }).unwrap();
    let report = reports.next(CutCause::Revoked);
    assert_eq!((report.revision, report.flows), (8, 1));
    assert_eq!(report.elements[0].element, element("8.8.8.8/32 udp/9"));
}
