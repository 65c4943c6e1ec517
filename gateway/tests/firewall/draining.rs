//! What left DNS drains: flows that are there may finish, none begins.

use std::time::{Duration, Instant};

use allowlist::Change;
use allowlist::feed::CutCause;
use gateway::firewall::{DrainLimits, Firewall, KernelOptions};

use crate::counting::under_traffic;
use crate::cutting::{say, talking};
use crate::net::{CLIENT, Net, counted, element, elements, exchange, installed_with_reports};
use crate::passing::is_prohibited;

const IDLE: Duration = Duration::from_secs(600);
const LIMIT: Duration = Duration::from_secs(6_000);

fn options(record: Option<std::path::PathBuf>) -> KernelOptions {
    KernelOptions { drain: DrainLimits { idle: IDLE, limit: LIMIT, record }, ..KernelOptions::default() }
}

fn retire(revision: u64, what: &str) -> Change {
    Change { revision, retired: vec![element(what)], ..Change::default() }
}

#[test]
fn established_flows_go_on_until_they_are_idle_and_no_new_one_begins() {
    let net = Net::new();
    let (mut firewall, reports) = installed_with_reports(&options(None));
    firewall.replace(&elements(&["8.8.8.8/32", "8.8.4.4/32 udp/53", "9.9.9.9/32"])).unwrap();
    let beacon = net.internet.udp("9.9.9.9", 7);
    let (client, server) = (net.client.udp(CLIENT, 0), net.internet.udp("8.8.8.8", 9));
    let source = exchange(&client, &server);
    let (other, resolver) = (net.client.udp(CLIENT, 0), net.internet.udp("8.8.4.4", 53));
    exchange(&other, &resolver);
    let (mut stream, mut peer) = talking(&net, "8.8.8.8:443");
    let retired = vec![element("8.8.8.8/32"), element("8.8.4.4/32 udp/53")];
    assert_eq!(firewall.apply(&Change { revision: 2, retired, ..Change::default() }).unwrap().removed, 2);

    for _ in 0..3 {
        assert_eq!(exchange(&client, &server), source);
        exchange(&other, &resolver);
        say(&mut stream, &mut peer);
        say(&mut peer, &mut stream);
        firewall.end_draining(Instant::now()).unwrap();
    }
    assert!(net.passes(&net.internet.udp("8.8.8.8", 10), &beacon).is_none());
    let _listening = net.internet.tcp("8.8.8.8", 80);
    assert!(is_prohibited(&net.client, "8.8.8.8:80"));
    // Counted as before, to the packet.
    assert_eq!(counted(&mut firewall, element("8.8.4.4/32 udp/53")).packets_out, 4);
    assert_eq!(firewall.repair().unwrap(), []);

    // Traffic keeps the one draining, the other is idle.
    let later = Instant::now() + IDLE / 2;
    exchange(&client, &server);
    firewall.end_draining(later).unwrap();
    firewall.end_draining(later + IDLE * 3 / 4).unwrap();
    let report = reports.next(CutCause::Drained);
    assert_eq!((report.flows, report.elements[0].element), (1, element("8.8.4.4/32 udp/53")));
    exchange(&client, &server);
    // No flow goes on for ever.
    firewall.end_draining(Instant::now() + LIMIT).unwrap();
    let report = reports.next(CutCause::Drained);
    assert_eq!((report.flows, report.elements[0].element), (2, element("8.8.8.8/32")));
    client.send_to(b"question", "8.8.8.8:9").unwrap();
    assert!(net.passes(&server, &beacon).is_none());
    assert_eq!(firewall.repair().unwrap(), []);
}

#[test]
fn an_address_that_comes_back_while_draining_loses_no_packet_and_no_count() {
    let net = Net::new();
    let (mut firewall, _reports) = installed_with_reports(&options(None));
    firewall.replace(&elements(&["8.8.8.8/32"])).unwrap();
    let sent = under_traffic(&net, |flowing| {
        for round in 0..25 {
            firewall.apply(&retire(2 * round, "8.8.8.8/32")).unwrap();
            flowing();
            let added = vec![element("8.8.8.8/32")];
            firewall.apply(&Change { revision: 2 * round + 1, added, ..Change::default() }).unwrap();
            flowing();
        }
    });
    // What passed between a set's last reading and a removal from it is not counted.
    let counters = counted(&mut firewall, element("8.8.8.8/32"));
    assert!(counters.packets_out <= sent && counters.packets_out + 50 * 20 >= sent, "{counters:?} of {sent}");
    assert!(net.passes(&net.internet.udp("8.8.8.8", 10), &net.internet.udp("8.8.8.8", 7)).is_some());
    assert_eq!(firewall.repair().unwrap(), []);
}

#[test]
fn a_restart_goes_on_draining_to_the_same_end() {
    let net = Net::new();
    let dir = tempfile::tempdir().unwrap();
    let options = options(Some(dir.path().join("draining")));
    let (mut first, _) = installed_with_reports(&options);
    first.replace(&elements(&["8.8.8.8/32", "9.9.9.9/32"])).unwrap();
    let (client, server) = (net.client.udp(CLIENT, 0), net.internet.udp("8.8.8.8", 9));
    exchange(&client, &server);
    first.apply(&retire(2, "8.8.8.8/32")).unwrap();
    drop(first);
    exchange(&client, &server);

    let (mut second, reports) = installed_with_reports(&options);
    second.replace(&elements(&["9.9.9.9/32"])).unwrap();
    exchange(&client, &server);
    assert!(net.passes(&net.internet.udp("8.8.8.8", 10), &net.internet.udp("9.9.9.9", 7)).is_none());
    second.end_draining(Instant::now()).unwrap();
    exchange(&client, &server);
    second.end_draining(Instant::now() + LIMIT).unwrap();
    assert_eq!(reports.next(CutCause::Drained).flows, 1);
}

#[test]
fn what_a_person_removes_while_it_drains_is_cut_at_once() {
    let net = Net::new();
    let (mut firewall, reports) = installed_with_reports(&options(None));
    firewall.replace(&elements(&["8.8.8.8/32", "9.9.9.9/32"])).unwrap();
    let (client, server) = (net.client.udp(CLIENT, 0), net.internet.udp("8.8.8.8", 9));
    exchange(&client, &server);
    firewall.apply(&retire(2, "8.8.8.8/32")).unwrap();
    exchange(&client, &server);
    let revoked = vec![element("8.8.8.8/32")];
    firewall.apply(&Change { revision: 3, revoked, ..Change::default() }).unwrap();
    client.send_to(b"question", "8.8.8.8:9").unwrap();
    assert!(net.passes(&server, &net.internet.udp("9.9.9.9", 7)).is_none());
    assert_eq!(reports.next(CutCause::Revoked).flows, 1);
}

#[test]
fn what_a_person_removes_ends_the_draining_of_what_is_within_it() {
    let net = Net::new();
    let (mut firewall, reports) = installed_with_reports(&options(None));
    firewall.replace(&elements(&["8.8.8.8/32", "8.8.8.0/24", "8.8.4.4/32", "9.9.9.9/32"])).unwrap();
    let beacon = net.internet.udp("9.9.9.9", 7);
    let (client, server) = (net.client.udp(CLIENT, 0), net.internet.udp("8.8.8.8", 9));
    let (other, beside) = (net.client.udp(CLIENT, 0), net.internet.udp("8.8.4.4", 9));
    exchange(&client, &server);
    exchange(&other, &beside);
    firewall.apply(&retire(2, "8.8.8.8/32")).unwrap();
    firewall.apply(&retire(3, "8.8.4.4/32")).unwrap();
    exchange(&client, &server);
    let revoked = vec![element("8.8.8.0/24")];
    firewall.apply(&Change { revision: 4, revoked, ..Change::default() }).unwrap();
    client.send_to(b"question", "8.8.8.8:9").unwrap();
    assert!(net.passes(&server, &beacon).is_none());
    let report = reports.next(CutCause::Revoked);
    assert_eq!((report.revision, report.flows), (4, 1));
    exchange(&other, &beside);
    assert_eq!(firewall.repair().unwrap(), []);
}

/// A step that failed, or a snapshot, is followed by the whole set; what is known of the way there is not lost.
#[test]
fn with_the_whole_set_what_is_known_to_be_retired_drains_and_the_rest_is_cut() {
    let net = Net::new();
    let (mut firewall, reports) = installed_with_reports(&options(None));
    firewall.replace(&elements(&["8.8.8.8/32", "8.8.4.4/32", "9.9.9.9/32"])).unwrap();
    let beacon = net.internet.udp("9.9.9.9", 7);
    let (client, server) = (net.client.udp(CLIENT, 0), net.internet.udp("8.8.8.8", 9));
    let (other, removed) = (net.client.udp(CLIENT, 0), net.internet.udp("8.8.4.4", 9));
    exchange(&client, &server);
    exchange(&other, &removed);
    let way = Change { revision: 5, ..retire(5, "8.8.8.8/32") };
    assert_eq!(firewall.hold(&elements(&["9.9.9.9/32"]), &way).unwrap().removed, 2);
    let report = reports.next(CutCause::Revoked);
    assert_eq!((report.revision, report.flows, report.elements.len()), (5, 1, 1));
    assert_eq!(report.elements[0].element, element("8.8.4.4/32"));
    exchange(&client, &server);
    assert!(net.passes(&net.internet.udp("8.8.8.8", 10), &beacon).is_none());
    assert!(net.passes(&removed, &beacon).is_none());
    assert_eq!(firewall.repair().unwrap(), []);
}

#[test]
fn what_was_retired_a_moment_ago_can_come_back_or_be_removed() {
    let net = Net::new();
    let (mut firewall, reports) = installed_with_reports(&options(None));
    firewall.replace(&elements(&["8.8.8.8/32", "8.8.4.4/32 tcp/80-82", "8.8.4.4/32 tcp/82-84"])).unwrap();
    let beacon = net.internet.udp("8.8.8.8", 7);
    let retired = vec![element("8.8.8.8/32"), element("8.8.4.4/32 tcp/80-82")];
    firewall.apply(&Change { revision: 2, retired, ..Change::default() }).unwrap();
    let change = Change {
        revision: 3,
        added: vec![element("8.8.8.8/32")],
        revoked: vec![element("8.8.4.4/32 tcp/80-82")],
        ..Change::default()
    };
    let outcome = firewall.apply(&change).unwrap();
    assert_eq!((outcome.added, outcome.removed), (1, 0));
    assert_eq!(reports.next(CutCause::Revoked).revision, 3);
    firewall.end_draining(Instant::now()).unwrap();
    assert_eq!(firewall.repair().unwrap(), []);
    assert!(net.passes(&net.internet.udp("8.8.8.8", 9), &beacon).is_some());
    let _listening = [80, 82, 84].map(|port| net.internet.tcp("8.8.4.4", port));
    assert!(is_prohibited(&net.client, "8.8.4.4:80"));
    crate::passing::connect(&net.client, "8.8.4.4:82").unwrap();
    crate::passing::connect(&net.client, "8.8.4.4:84").unwrap();
}

/// A gateway that was busy merges changes.
#[test]
fn a_network_removed_in_the_moment_in_which_an_address_within_it_leaves_dns_cuts_its_flows() {
    let net = Net::new();
    let (mut firewall, reports) = installed_with_reports(&options(None));
    firewall.replace(&elements(&["8.8.8.8/32", "8.8.8.0/24", "9.9.9.9/32"])).unwrap();
    let beacon = net.internet.udp("9.9.9.9", 7);
    let (client, server) = (net.client.udp(CLIENT, 0), net.internet.udp("8.8.8.8", 9));
    exchange(&client, &server);
    let revoked = vec![element("8.8.8.0/24")];
    firewall.apply(&Change { revoked, ..retire(3, "8.8.8.8/32") }).unwrap();
    assert_eq!(reports.next(CutCause::Revoked).flows, 1);
    client.send_to(b"question", "8.8.8.8:9").unwrap();
    assert!(net.passes(&server, &beacon).is_none());
    firewall.end_draining(Instant::now()).unwrap();
    assert_eq!(firewall.repair().unwrap(), []);
}

#[test]
fn what_a_person_removed_on_the_way_to_a_whole_set_drains_no_more() {
    let net = Net::new();
    let (mut firewall, reports) = installed_with_reports(&options(None));
    firewall.replace(&elements(&["8.8.8.8/32", "9.9.9.9/32"])).unwrap();
    let beacon = net.internet.udp("9.9.9.9", 7);
    let (client, server) = (net.client.udp(CLIENT, 0), net.internet.udp("8.8.8.8", 9));
    exchange(&client, &server);
    firewall.apply(&retire(2, "8.8.8.8/32")).unwrap();
    exchange(&client, &server);
    let way = Change { revision: 4, revoked: vec![element("8.8.8.8/32")], ..Change::default() };
    firewall.hold(&elements(&["9.9.9.9/32"]), &way).unwrap();
    assert_eq!(reports.next(CutCause::Revoked).flows, 1);
    client.send_to(b"question", "8.8.8.8:9").unwrap();
    assert!(net.passes(&server, &beacon).is_none());
}
