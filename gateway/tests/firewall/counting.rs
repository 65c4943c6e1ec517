//! Counts are exact and never fall.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use allowlist::{Change, Element};
use gateway::firewall::{Firewall, KernelFirewall, KernelOptions};

use crate::net::{CLIENT, CLIENT_V6, Net, PATIENCE, command, counted, echo, element, elements, patiently};

/// IP and UDP headers.
const HEADERS_V4_BYTES: u64 = 28;
const HEADERS_V6_BYTES: u64 = 48;

fn small() -> KernelFirewall {
    let options = KernelOptions { set_capacity: 64, ..KernelOptions::default() };
    let mut firewall = KernelFirewall::new(&options).unwrap();
    firewall.install().unwrap();
    firewall
}

pub(crate) fn many(count: u32) -> BTreeSet<Element> {
    (0..count)
        .map(|number| Element::host(std::net::Ipv4Addr::from(0x0808_1000 + number).into(), None))
        .collect()
}

/// Sends datagrams to an echo server one after the other; returns packets and payload bytes.
pub(crate) fn talk(client: &UdpSocket, server: &UdpSocket, sizes: &[usize]) -> (u64, u64) {
    let address = server.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| echo(server));
        let mut buffer = [0; 2048];
        let mut bytes = 0;
        for size in sizes {
            client.send_to(&vec![7; *size], address).unwrap();
            assert_eq!(patiently(|| client.recv(&mut buffer)).unwrap(), *size);
            bytes += *size as u64;
        }
        client.send_to(b"stop", address).unwrap();
        patiently(|| client.recv(&mut buffer)).unwrap();
        (sizes.len() as u64 + 1, bytes + 4)
    })
}

#[test]
fn counters_equal_what_was_sent_to_the_byte() {
    let net = Net::new();
    let mut firewall = small();
    let ranged = element("8.8.9.0/24 udp/1000-1003");
    let wanted = elements(&["8.8.8.8/32", "8.8.0.0/16", "8.8.9.0/24 udp/1000-1003", "2a01:4f8::/32"]);
    firewall.replace(&wanted).unwrap();
    let sizes: Vec<usize> = (0..200).map(|number| (number * 37) % 1400).collect();

    let client = net.client.udp(CLIENT, 0);
    let (packets, bytes) = talk(&client, &net.internet.udp("8.8.8.8", 9), &sizes);
    let host = counted(&mut firewall, element("8.8.8.8/32"));
    assert_eq!((host.packets_out, host.bytes_out), (packets, bytes + packets * HEADERS_V4_BYTES));
    assert_eq!((host.packets_in, host.bytes_in), (packets, bytes + packets * HEADERS_V4_BYTES));
    assert_eq!(
        counted(&mut firewall, element("8.8.0.0/16")).packets_out,
        0,
        "the most specific element counts"
    );

    let mut total = 0;
    for port in [1000, 1003] {
        total += talk(&client, &net.internet.udp("8.8.9.9", port), &sizes[..50]).0;
    }
    let ports = counted(&mut firewall, ranged);
    assert_eq!((ports.packets_out, ports.packets_in), (total, total));

    let client = net.client.udp(CLIENT_V6, 0);
    let (packets, bytes) = talk(&client, &net.internet.udp("2a01:4f8::5", 9), &sizes);
    let network = counted(&mut firewall, element("2a01:4f8::/32"));
    assert_eq!((network.packets_out, network.bytes_out), (packets, bytes + packets * HEADERS_V6_BYTES));
    assert_eq!((network.packets_in, network.bytes_in), (packets, bytes + packets * HEADERS_V6_BYTES));
}

/// Runs `work` while datagrams to 8.8.8.8 go back and forth without pause; returns how many did, none lost.
pub(crate) fn under_traffic(net: &Net, work: impl FnOnce(&dyn Fn())) -> u64 {
    let client = net.client.udp(CLIENT, 0);
    let server = net.internet.udp("8.8.8.8", 9);
    let (stop, exchanged) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| echo(&server));
        let sender = scope.spawn(|| {
            let mut buffer = [0; 16];
            let mut sent = 0;
            loop {
                let last = stop.load(Ordering::Relaxed);
                client.send_to(if last { b"stop" } else { b"ping" }, "8.8.8.8:9").unwrap();
                patiently(|| client.recv(&mut buffer)).unwrap();
                sent += 1;
                exchanged.store(sent, Ordering::Relaxed);
                if last {
                    return sent;
                }
            }
        });
        // Waits until traffic has gone on since it was called.
        let flowing = || {
            let (before, deadline) = (exchanged.load(Ordering::Relaxed), Instant::now() + PATIENCE);
            while exchanged.load(Ordering::Relaxed) < before + 20 {
                assert!(Instant::now() < deadline && !sender.is_finished(), "traffic stopped");
                std::thread::yield_now();
            }
        };
        flowing();
        work(&flowing);
        flowing();
        stop.store(true, Ordering::Relaxed);
        sender.join().unwrap()
    })
}

#[test]
fn a_resync_loses_no_packet_and_no_count() {
    let net = Net::new();
    let mut firewall = small();
    firewall.replace(&elements(&["8.8.8.8/32", "9.9.9.9/32"])).unwrap();
    let sent = under_traffic(&net, |flowing| {
        for round in 0..10 {
            let mut wanted = elements(&["8.8.8.8/32"]);
            wanted.extend(many(50 * (round % 3)));
            firewall.replace(&wanted).unwrap();
            flowing();
            assert_eq!(firewall.replace(&wanted).unwrap().added, 0);
        }
    });
    let counters = counted(&mut firewall, element("8.8.8.8/32"));
    assert_eq!((counters.packets_out, counters.packets_in), (sent, sent));
}

#[test]
fn enlarging_beyond_capacity_under_traffic_keeps_every_count() {
    let net = Net::new();
    let mut firewall = small();
    firewall.replace(&elements(&["8.8.8.8/32"])).unwrap();
    let sent = under_traffic(&net, |flowing| {
        for count in [100, 500, 3_000] {
            let change =
                Change { revision: 1, added: many(count).into_iter().collect(), ..Change::default() };
            assert_eq!(firewall.apply(&change).unwrap().refused, []);
            flowing();
        }
    });
    let counters = counted(&mut firewall, element("8.8.8.8/32"));
    assert_eq!((counters.packets_out, counters.packets_in), (sent, sent));
    assert_eq!(counters.bytes_out, sent * (4 + HEADERS_V4_BYTES));
    assert!(command("ipset", &["list", "-t", "og4o"]).contains("maxelem 4096"));
    assert!(!command("ipset", &["list", "-n"]).contains("-new"));

    // The next process goes on from the same sums, although the tables were exchanged.
    drop(firewall);
    let mut next = KernelFirewall::new(&KernelOptions::default()).unwrap();
    assert_eq!(next.install().unwrap().len(), 3_001);
    assert_eq!(counted(&mut next, element("8.8.8.8/32")), counters);
}

#[test]
fn a_new_driver_adopts_the_elements_and_their_counts_go_on() {
    let net = Net::new();
    let wanted = elements(&["8.8.8.8/32", "8.8.9.9/32 tcp/80-90", "8.8.9.9/32 udp/91", "2a01:4f8::/32"]);
    let client = net.client.udp(CLIENT, 0);
    let server = net.internet.udp("8.8.8.8", 9);
    let mut first = small();
    first.replace(&wanted).unwrap();
    let (before, _) = talk(&client, &server, &[10; 30]);
    drop(first);
    let (between, _) = talk(&client, &server, &[10; 30]);

    let mut second = small();
    assert_eq!(second.install().unwrap(), wanted);
    let outcome = second.replace(&wanted).unwrap();
    assert_eq!((outcome.added, outcome.removed), (0, 0));
    let (after, _) = talk(&client, &server, &[10; 30]);
    assert_eq!(counted(&mut second, element("8.8.8.8/32")).packets_in, before + between + after);
}

#[test]
fn a_change_right_after_adoption_leaves_nothing_removed_open() {
    let net = Net::new();
    let mut first = small();
    // Two elements that look like one range to whoever adopts them.
    first.replace(&elements(&["9.9.9.9/32", "8.8.8.8/32 udp/80", "8.8.8.8/32 udp/81"])).unwrap();
    drop(first);
    let mut second = small();
    let change = Change { revision: 9, revoked: vec![element("8.8.8.8/32 udp/80")], ..Change::default() };
    second.apply(&change).unwrap();
    let beacon = net.internet.udp("9.9.9.9", 7);
    assert!(net.passes(&net.internet.udp("8.8.8.8", 80), &beacon).is_none());
}

#[test]
fn counts_go_on_after_an_element_was_removed_and_added_again() {
    let net = Net::new();
    let host = element("8.8.8.8/32");
    let client = net.client.udp(CLIENT, 0);
    let server = net.internet.udp("8.8.8.8", 9);
    let mut firewall = small();
    let add = Change { revision: 1, added: vec![host], ..Change::default() };
    let remove = Change { revision: 2, revoked: vec![host], ..Change::default() };
    let mut sent = 0;
    for _ in 0..3 {
        assert_eq!(firewall.apply(&add).unwrap().added, 1);
        assert_eq!(firewall.apply(&add).unwrap().added, 0);
        sent += talk(&client, &server, &[10; 20]).0;
        assert_eq!(counted(&mut firewall, host).packets_out, sent);
        assert_eq!(firewall.apply(&remove).unwrap().removed, 1);
        assert_eq!(firewall.apply(&remove).unwrap().removed, 0);
        assert_eq!(firewall.counters().unwrap(), []);
    }
}

#[test]
fn ten_thousand_elements_are_replaced_changed_and_counted() {
    let _net = Net::new();
    let mut firewall = small();
    let wanted = many(10_000);
    assert_eq!(firewall.replace(&wanted).unwrap().added, 10_000);
    assert_eq!(firewall.counters().unwrap().len(), 10_000);
    let (gone, kept): (Vec<_>, Vec<_>) =
        wanted.iter().copied().partition(|element| element.prefix.addr().to_string().ends_with('7'));
    let added: Vec<_> = (0..5_000u32)
        .map(|number| Element::host(std::net::Ipv4Addr::from(0x0909_0000 + number).into(), None))
        .collect();
    let change = Change { revision: 2, added: added.clone(), revoked: gone.clone(), retired: Vec::new() };
    let outcome = firewall.apply(&change).unwrap();
    assert_eq!((outcome.added, outcome.removed), (added.len(), gone.len()));
    assert_eq!(firewall.repair().unwrap(), []);
    let mut next = small();
    let expected: BTreeSet<Element> = kept.into_iter().chain(added).collect();
    assert_eq!(next.install().unwrap(), expected);
}

#[test]
fn what_is_not_globally_reachable_is_refused_and_the_rest_is_applied() {
    let _net = Net::new();
    let mut firewall = small();
    let change = Change {
        revision: 1,
        added: ["8.8.8.8/32", "10.0.0.0/8", "0.0.0.0/0", "fd09::2/128", "8.8.4.4/32 tcp/1-2000"]
            .map(element)
            .to_vec(),
        ..Change::default()
    };
    let outcome = firewall.apply(&change).unwrap();
    assert_eq!((outcome.added, outcome.refused.len()), (1, 4));
    let outcome = firewall.replace(&change.added.iter().copied().collect()).unwrap();
    assert_eq!((outcome.added, outcome.refused.len()), (0, 4));
    assert_eq!(firewall.counters().unwrap().len(), 1);
}
