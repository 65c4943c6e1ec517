//! It is counted which host moves how much.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use allowlist::Element;
use allowlist::feed::SourceDelta;
use gateway::firewall::{
    Firewall, KernelFirewall, KernelOptions, SourceMeter, SourceOptions, SourceSum, most_specific,
};

use crate::counting::talk;
use crate::net::{CLIENT, CLIENT_V6, Net, PATIENCE, command, counted, element, elements, exchange, until};

const SECOND: &str = "10.9.0.3";
const SECOND_V6: &str = "fd09::3";
/// IP and UDP headers.
const HEADERS_V4_BYTES: u64 = 28;
const HEADERS_V6_BYTES: u64 = 48;

/// A driver that holds `listed` and counts sources, its first reading behind it.
fn watching(listed: &BTreeSet<Element>, interval: Duration, top: usize) -> (KernelFirewall, SourceMeter) {
    let options = KernelOptions { sources: SourceOptions { top, interval }, ..KernelOptions::default() };
    let mut firewall = KernelFirewall::new(&options).unwrap();
    firewall.install().unwrap();
    firewall.replace(listed).unwrap();
    let held = listed.clone();
    let covering = Arc::new(move |place| most_specific(&held, place));
    let meter = firewall.watch_sources(covering).unwrap().unwrap();
    until("the first reading", PATIENCE, || (meter.readings() > 0).then_some(()));
    (firewall, meter)
}

fn of(meter: &SourceMeter, source: &str) -> SourceSum {
    let source: IpAddr = source.parse().unwrap();
    meter.sums().named.get(&source).copied().unwrap_or_default()
}

fn both_ways(packets: u64, bytes: u64) -> SourceSum {
    SourceSum { packets_out: packets, bytes_out: bytes, packets_in: packets, bytes_in: bytes }
}

/// Sends `bytes` from `source` and as many back over one connection.
fn transfer(net: &Net, source: &str, target: SocketAddr, bytes: usize) {
    let listener = net.internet.tcp(&target.ip().to_string(), target.port());
    let source = SocketAddr::new(source.parse().unwrap(), 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut accepted, _) = listener.accept().unwrap();
            let mut received = vec![0; bytes];
            accepted.read_exact(&mut received).unwrap();
            accepted.write_all(&received).unwrap();
        });
        net.client.run(|| {
            let mut stream = bound(source, target);
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(&vec![7; bytes]).unwrap();
            stream.read_exact(&mut vec![0; bytes]).unwrap();
        });
    });
}

/// A connection from a chosen address.
fn bound(source: SocketAddr, target: SocketAddr) -> TcpStream {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};
    let family = if source.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let descriptor = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let raw = std::os::fd::AsRawFd::as_raw_fd(&descriptor);
    bind(raw, &SockaddrStorage::from(source)).unwrap();
    connect(raw, &SockaddrStorage::from(target)).unwrap();
    TcpStream::from(descriptor)
}

fn second_addresses(net: &Net) {
    net.client.run(|| {
        command("ip", &["addr", "add", "10.9.0.3/24", "dev", "eth0"]);
        command("ip", &["addr", "add", "fd09::3/64", "dev", "eth0", "nodad"]);
    });
}

#[test]
fn what_each_source_moved_is_counted_to_the_byte() {
    let net = Net::new();
    second_addresses(&net);
    let listed = elements(&["8.8.8.8/32", "9.9.9.0/24 tcp/80", "9.9.9.9/32", "2a01:4f8::/32"]);
    let (mut firewall, meter) = watching(&listed, Duration::from_millis(30), 50);

    // UDP, both families; known to the byte.
    let mut wanted = Vec::new();
    for (number, source) in [CLIENT, SECOND, CLIENT_V6, SECOND_V6].into_iter().enumerate() {
        let is_v4 = source.contains('.');
        let (target, headers) =
            if is_v4 { ("8.8.8.8", HEADERS_V4_BYTES) } else { ("2a01:4f8::5", HEADERS_V6_BYTES) };
        let sizes: Vec<usize> = (0..30 + number * 10).map(|packet| (packet * 37) % 1_200).collect();
        let server = net.internet.udp(target, 9);
        let (packets, bytes) = talk(&net.client.udp(source, 0), &server, &sizes);
        wanted.push((source, both_ways(packets, bytes + packets * headers)));
    }
    for (source, sum) in &wanted {
        until(source, PATIENCE, || (of(&meter, source) == *sum).then_some(()));
    }

    // TCP: how many packets that takes is the kernel's choice, but conntrack and the sets saw the same ones.
    let mut due = meter.take_due();
    transfer(&net, CLIENT, "9.9.9.9:80".parse().unwrap(), 300_000);
    transfer(&net, SECOND, "9.9.9.9:80".parse().unwrap(), 70_000);
    let web = element("9.9.9.0/24 tcp/80");
    until("what the sets counted of TCP", PATIENCE, || {
        due.extend(meter.take_due());
        let sum = |read: fn(&SourceDelta) -> u64| {
            due.iter().filter(|delta| delta.element == Some(web)).map(read).sum::<u64>()
        };
        let sets = counted(&mut firewall, web);
        let conntrack =
            [sum(|d| d.packets_out), sum(|d| d.bytes_out), sum(|d| d.packets_in), sum(|d| d.bytes_in)];
        (conntrack == [sets.packets_out, sets.bytes_out, sets.packets_in, sets.bytes_in]
            && sets.bytes_in > 370_000)
            .then_some(())
    });
    let moved = |source: &str| {
        let source = Some(source.parse().unwrap());
        let of_source = due.iter().filter(|delta| delta.source == source && delta.element == Some(web));
        of_source.map(|delta| delta.bytes_out).sum::<u64>()
    };
    assert!(moved(CLIENT) > 300_000 && (70_000..300_000).contains(&moved(SECOND)));
    // Each pair of source and element was reported once, with all that moved.
    let v6 = element("2a01:4f8::/32");
    let reported: u64 = due
        .iter()
        .filter(|delta| delta.element == Some(v6) && delta.source == Some(SECOND_V6.parse().unwrap()))
        .map(|delta| delta.bytes_in)
        .sum();
    assert_eq!(reported, wanted[3].1.bytes_in);
}

#[test]
fn flows_that_begin_and_end_between_two_readings_are_counted() {
    let net = Net::new();
    // Only the first reading, which finds nothing.
    let (_firewall, meter) = watching(&elements(&["8.8.8.8/32"]), Duration::from_secs(3_600), 50);
    let server = net.internet.udp("8.8.8.8", 9);
    for _ in 0..20 {
        exchange(&net.client.udp(CLIENT, 0), &server);
    }
    assert_eq!(of(&meter, CLIENT), SourceSum::default());
    command("conntrack", &["-D", "-p", "udp", "--orig-src", CLIENT]);
    let sum = SourceSum {
        packets_out: 20,
        bytes_out: 20 * (8 + HEADERS_V4_BYTES),
        packets_in: 20,
        bytes_in: 20 * (6 + HEADERS_V4_BYTES),
    };
    until("the ends of all flows", PATIENCE, || (of(&meter, CLIENT) == sum).then_some(()));
    assert_eq!(meter.readings(), 1);
}

#[test]
fn a_flow_that_outlives_a_process_counts_only_from_then_on_and_ends_once() {
    let net = Net::new();
    let listed = elements(&["8.8.8.8/32"]);
    let client = net.client.udp(CLIENT, 0);
    let server = net.internet.udp("8.8.8.8", 9);
    let (first, meter) = watching(&listed, Duration::from_millis(30), 50);
    exchange(&client, &server);
    exchange(&client, &server);
    until("the first process", PATIENCE, || (of(&meter, CLIENT).packets_out == 2).then_some(()));
    drop(first);
    let (_second, meter) = watching(&listed, Duration::from_millis(30), 50);
    exchange(&client, &server);
    until("the second process", PATIENCE, || (of(&meter, CLIENT).packets_out == 1).then_some(()));
    command("conntrack", &["-D", "-p", "udp", "--orig-src", CLIENT]);
    let readings = meter.readings();
    until("some readings more", PATIENCE, || (meter.readings() > readings + 3).then_some(()));
    assert_eq!(of(&meter, CLIENT).packets_out, 1);
}

#[test]
fn neither_the_machines_own_flows_nor_those_of_other_networks_are_counted_and_hosts_beyond_the_top_are_other()
{
    let net = Net::new();
    second_addresses(&net);
    let (_firewall, meter) = watching(&elements(&["8.8.8.8/32"]), Duration::from_millis(30), 1);
    let server = net.internet.udp("8.8.8.8", 9);
    exchange(&net.gateway.udp(crate::net::GATEWAY, 0), &server);
    exchange(&net.client.udp(CLIENT, 0), &server);
    until("the first host", PATIENCE, || (of(&meter, CLIENT).packets_out == 1).then_some(()));
    exchange(&net.client.udp(SECOND, 0), &server);
    until("the others", PATIENCE, || (meter.sums().other.packets_out == 1).then_some(()));
    assert_eq!(meter.sums().named.len(), 1);
}
