//! What passes the gateway and what does not.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use allowlist::Change;
use gateway::firewall::{Firewall, KernelFirewall, KernelOptions};

use crate::net::{
    CLIENT, CLIENT_V6, GATEWAY, GATEWAY_V6, Namespace, Net, PATIENCE, command, element, elements, patiently,
};

/// How long a connection that must fail may try.
const REFUSAL_TIME: Duration = Duration::from_millis(300);

fn installed() -> KernelFirewall {
    let mut firewall = KernelFirewall::new(&KernelOptions::default()).unwrap();
    assert!(firewall.install().unwrap().is_empty());
    firewall
}

/// True when a connection fails because the way is administratively prohibited: EHOSTUNREACH, with IPv6 EACCES. On
/// one machine the answer to the first SYN may be there before the call that sent it lets go of the socket, and then that to
/// the second counts, a second later.
pub(crate) fn is_prohibited(from: &Namespace, to: &str) -> bool {
    let address: SocketAddr = to.parse().unwrap();
    let error = from.run(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap_err().kind());
    [ErrorKind::HostUnreachable, ErrorKind::PermissionDenied].contains(&error)
}

pub(crate) fn connect(from: &Namespace, to: &str) -> Result<TcpStream, ErrorKind> {
    let address: SocketAddr = to.parse().unwrap();
    from.run(|| TcpStream::connect_timeout(&address, REFUSAL_TIME).map_err(|error| error.kind()))
}

pub(crate) fn ping(from: &Namespace, to: &str) -> bool {
    from.run(|| Command::new("ping").args(["-c1", "-W1", to]).output().unwrap().status.success())
}

#[test]
fn only_listed_hosts_are_reached_and_they_see_the_gateway() {
    let net = Net::new();
    let mut firewall = installed();
    let wanted = elements(&["8.8.8.8/32", "2a01:4f8::8/128"]);
    assert_eq!(firewall.replace(&wanted).unwrap().added, 2);

    let beacon = net.internet.udp("8.8.8.8", 7);
    let listed_v6 = net.internet.udp("2a01:4f8::8", 53);
    assert_eq!(net.passes(&net.internet.udp("8.8.8.8", 53), &beacon), Some(GATEWAY.parse().unwrap()));
    assert_eq!(net.passes(&listed_v6, &beacon), Some(GATEWAY_V6.parse().unwrap()));
    assert_eq!(net.passes(&net.internet.udp("9.9.9.9", 53), &beacon), None);
    assert_eq!(net.passes(&net.internet.udp("2a01:4f8::9", 53), &beacon), None);

    for (listed, unlisted, gateway) in
        [("8.8.8.8", "9.9.9.9", GATEWAY), ("2a01:4f8::8", "2a01:4f8::9", GATEWAY_V6)]
    {
        let at = |host: &str| SocketAddr::new(host.parse().unwrap(), 443).to_string();
        let server = net.internet.tcp(listed, 443);
        let _closed = net.internet.tcp(unlisted, 443);
        connect(&net.client, &at(listed)).unwrap();
        let (_, seen) = server.accept().unwrap();
        assert_eq!(seen.ip(), gateway.parse::<IpAddr>().unwrap());
        assert!(is_prohibited(&net.client, &at(unlisted)), "{unlisted}");
        assert!(ping(&net.client, listed), "{listed}");
        assert!(!ping(&net.client, unlisted), "{unlisted}");
    }
}

#[test]
fn a_listed_host_cannot_open_connections_inwards() {
    let net = Net::new();
    let mut firewall = installed();
    firewall.replace(&elements(&["5.5.0.2/32", "8.8.8.8/32", "2a0f:5::2/128"])).unwrap();
    let _inside = net.client.tcp(CLIENT, 80);
    let _inside_v6 = net.client.tcp(CLIENT_V6, 80);
    assert!(is_prohibited(&net.internet, "10.9.0.2:80"));
    assert!(is_prohibited(&net.internet, "[fd09::2]:80"));
    assert!(!ping(&net.internet, CLIENT));
    // The way itself is open: without us the client is reached.
    firewall.cleanup().unwrap();
    connect(&net.internet, "10.9.0.2:80").unwrap();
    connect(&net.internet, "[fd09::2]:80").unwrap();
}

#[test]
fn a_port_scoped_element_passes_exactly_its_protocol_and_ports_and_a_network_passes_whole() {
    let net = Net::new();
    let mut firewall = installed();
    firewall
        .replace(&elements(&[
            "9.9.9.9/32",
            "8.8.8.8/32 udp/500-502",
            "8.8.4.0/24 tcp/443",
            "8.9.0.0/16",
            "8.8.16.0/20",
            "2a01:4f8:1::/48 udp/53",
        ]))
        .unwrap();
    let beacon = net.internet.udp("9.9.9.9", 7);
    for (host, port, passes) in [
        ("8.8.8.8", 499, false),
        ("8.8.8.8", 500, true),
        ("8.8.8.8", 502, true),
        ("8.8.8.8", 503, false),
        ("8.8.4.4", 443, false),
        ("8.8.15.255", 80, false),
        ("8.8.16.0", 80, true),
        ("8.8.31.255", 80, true),
        ("8.8.32.0", 80, false),
        ("2a01:4f8:1:2::3", 53, true),
        ("2a01:4f8:1:2::3", 54, false),
        ("2a01:4f8:2::3", 53, false),
    ] {
        let seen = net.passes(&net.internet.udp(host, port), &beacon);
        assert_eq!(seen.is_some(), passes, "{host} {port}");
        assert!(seen.is_none_or(|source| [GATEWAY, GATEWAY_V6].contains(&source.to_string().as_str())));
    }
    for (host, port, passes) in [("8.8.4.4", 443, true), ("8.8.4.4", 80, false), ("8.8.8.8", 500, false)] {
        let _server = net.internet.tcp(host, port);
        assert_eq!(connect(&net.client, &format!("{host}:{port}")).is_ok(), passes, "{host} {port}");
    }
}

#[test]
fn elements_that_share_ports_do_not_close_each_other() {
    let net = Net::new();
    let mut firewall = installed();
    let (low, high) = (element("8.8.8.8/32 udp/80-90"), element("8.8.8.8/32 udp/85-95"));
    firewall.replace(&[element("9.9.9.9/32"), low, high].into()).unwrap();
    let beacon = net.internet.udp("9.9.9.9", 7);
    let change = Change { revision: 1, revoked: vec![low], ..Change::default() };
    assert_eq!(firewall.apply(&change).unwrap().removed, 1);
    assert!(net.passes(&net.internet.udp("8.8.8.8", 84), &beacon).is_none());
    assert!(net.passes(&net.internet.udp("8.8.8.8", 85), &beacon).is_some());
    assert!(net.passes(&net.internet.udp("8.8.8.8", 90), &beacon).is_some());
    let change = Change { revision: 2, revoked: vec![high], added: vec![low], ..Change::default() };
    firewall.apply(&change).unwrap();
    assert!(net.passes(&net.internet.udp("8.8.8.8", 90), &beacon).is_some());
    assert!(net.passes(&net.internet.udp("8.8.8.8", 91), &beacon).is_none());
}

#[test]
fn removal_stops_an_established_connection_at_once() {
    let net = Net::new();
    let mut firewall = installed();
    firewall.replace(&elements(&["8.8.8.8/32", "9.9.9.9/32"])).unwrap();
    let beacon = net.internet.udp("9.9.9.9", 7);
    let server = net.internet.tcp("8.8.8.8", 443);
    let mut client = connect(&net.client, "8.8.8.8:443").unwrap();
    let (mut accepted, _) = server.accept().unwrap();
    let mut buffer = [0; 8];
    client.write_all(b"one").unwrap();
    accepted.read_exact(&mut buffer[..3]).unwrap();
    accepted.write_all(b"two").unwrap();
    client.read_exact(&mut buffer[..3]).unwrap();

    let change = Change { revision: 1, revoked: vec![element("8.8.8.8/32")], ..Change::default() };
    assert_eq!(firewall.apply(&change).unwrap().removed, 1);
    client.write_all(b"out").unwrap();
    accepted.write_all(b"in").unwrap();
    // Two packets behind the segments, which have had every chance to arrive by then.
    assert!(net.passes(&net.internet.udp("9.9.9.9", 8), &beacon).is_some());
    for stream in [&mut client, &mut accepted] {
        stream.set_read_timeout(Some(REFUSAL_TIME)).unwrap();
        // The gateway knows nothing of it any more, and answers the server with a reset.
        let error = patiently(|| stream.read(&mut buffer)).unwrap_err().kind();
        assert!([ErrorKind::WouldBlock, ErrorKind::ConnectionReset].contains(&error), "{error:?}");
    }
}

#[test]
fn packets_without_a_connection_do_not_leave_with_the_private_source() {
    let net = Net::new();
    let mut firewall = installed();
    firewall.replace(&elements(&["8.8.8.8/32"])).unwrap();
    let beacon = net.internet.udp("8.8.8.8", 7);
    let listener = raw_tcp(&net.internet, "0.0.0.0");
    let sender = raw_tcp(&net.client, CLIENT);
    sender.connect("8.8.8.8:0").unwrap();
    // RST and SYN/ACK of no connection are INVALID to conntrack.
    for (flags, port) in [0x04u8, 0x12].into_iter().cycle().zip(1000..1060) {
        sender.send(&tcp_segment(port, flags)).unwrap();
    }
    assert!(net.passes(&net.internet.udp("8.8.8.8", 8), &beacon).is_some());
    listener.set_nonblocking(true).unwrap();
    let mut buffer = [0; 128];
    assert_eq!(patiently(|| listener.recv(&mut buffer)).unwrap_err().kind(), ErrorKind::WouldBlock);

    // Without our chains they would arrive: the test sees what it looks for.
    firewall.cleanup().unwrap();
    listener.set_nonblocking(false).unwrap();
    listener.set_read_timeout(Some(PATIENCE)).unwrap();
    sender.send(&tcp_segment(1060, 0x04)).unwrap();
    patiently(|| listener.recv(&mut buffer)).unwrap();
    assert_eq!(buffer[12..16], [10, 9, 0, 2]);
}

/// A raw TCP socket behind the interface of a UDP socket, which has the calls needed.
fn raw_tcp(namespace: &Namespace, address: &str) -> UdpSocket {
    let address: std::net::Ipv4Addr = address.parse().unwrap();
    namespace.run(|| {
        // SAFETY: the call takes no pointers; the descriptor is owned from here on.
        let socket = unsafe {
            let descriptor =
                libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_TCP);
            assert!(descriptor >= 0);
            OwnedFd::from_raw_fd(descriptor)
        };
        let local = nix::sys::socket::SockaddrIn::from(std::net::SocketAddrV4::new(address, 0));
        nix::sys::socket::bind(socket.as_raw_fd(), &local).unwrap();
        UdpSocket::from(socket)
    })
}

fn tcp_segment(port: u16, flags: u8) -> [u8; 20] {
    let mut segment = [0; 20];
    segment[0..2].copy_from_slice(&port.to_be_bytes());
    segment[2..4].copy_from_slice(&443u16.to_be_bytes());
    segment[4] = 1;
    segment[12] = 5 << 4;
    segment[13] = flags;
    let pseudo = [10, 9, 0, 2, 8, 8, 8, 8, 0, 6, 0, 20];
    let words =
        pseudo.chunks(2).chain(segment.chunks(2)).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    segment[16..18].copy_from_slice(&(!u16::try_from(sum).unwrap()).to_be_bytes());
    segment
}

#[test]
fn on_a_machine_that_forwards_other_traffic_only_ours_is_judged() {
    let net = Net::new();
    let options = KernelOptions {
        internal_cidrs: vec!["10.9.0.0/28".parse().unwrap(), "fd09::2/128".parse().unwrap()],
        ..KernelOptions::default()
    };
    let mut firewall = KernelFirewall::new(&options).unwrap();
    firewall.install().unwrap();
    firewall.replace(&elements(&["9.9.9.9/32"])).unwrap();
    net.client.run(|| command("ip", &["addr", "add", "10.9.0.99/24", "dev", "eth0"]));
    let beacon = net.internet.udp("9.9.9.9", 7);
    assert!(net.passes(&net.internet.udp("8.8.8.8", 53), &beacon).is_none());
    let other = net.client.udp("10.9.0.99", 0);
    let target = net.internet.udp("8.8.8.8", 54);
    other.send_to(b"x", "8.8.8.8:54").unwrap();
    let (_, source) = patiently(|| target.recv_from(&mut [0; 8])).unwrap();
    assert_eq!(source.ip().to_string(), "10.9.0.99");
    let started = Instant::now();
    assert_eq!(firewall.repair().unwrap(), []);
    assert!(started.elapsed() < PATIENCE);
}
