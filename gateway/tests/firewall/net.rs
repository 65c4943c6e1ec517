//! Three network namespaces in a row, and sockets inside them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use allowlist::Element;
use allowlist::feed::{CutCause, CutReport};
use gateway::firewall::{ElementCounters, Firewall, KernelFirewall, KernelOptions};
use nix::sched::{CloneFlags, setns};

pub(crate) const CLIENT: &str = "10.9.0.2";
pub(crate) const CLIENT_V6: &str = "fd09::2";
pub(crate) const GATEWAY: &str = "5.5.0.1";
pub(crate) const GATEWAY_V6: &str = "2a0f:5::1";

/// How long something that has to arrive may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A network namespace, removed with the value.
pub(crate) struct Namespace(String);

impl Namespace {
    fn new(role: &str) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("ogfw-{}-{number}-{role}", std::process::id());
        command("ip", &["netns", "add", &name]);
        Self(name)
    }

    /// Moves the calling thread, and what it starts, into the namespace.
    pub(crate) fn enter(&self) {
        let handle = File::open(format!("/run/netns/{}", self.0)).unwrap();
        setns(handle, CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// Runs `work` inside. Sockets it returns stay inside.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                self.enter();
                work()
            });
            worker.join().unwrap()
        })
    }

    /// A UDP socket; port 0 takes any.
    pub(crate) fn udp(&self, address: &str, port: u16) -> UdpSocket {
        let address = SocketAddr::new(address.parse().unwrap(), port);
        let socket = self.run(|| UdpSocket::bind(address).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    pub(crate) fn tcp(&self, address: &str, port: u16) -> TcpListener {
        let address = SocketAddr::new(address.parse().unwrap(), port);
        self.run(|| TcpListener::bind(address).unwrap())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

/// The row. Everything in 8.8.0.0/16, 9.9.0.0/16 and 2a01:4f8::/32 is a host of this internet.
pub(crate) struct Net {
    pub(crate) client: Namespace,
    pub(crate) gateway: Namespace,
    pub(crate) internet: Namespace,
}

impl Net {
    /// Builds it and moves the calling thread into the gateway.
    pub(crate) fn new() -> Self {
        crate::choose_backend();
        let net =
            Self { client: Namespace::new("c"), gateway: Namespace::new("g"), internet: Namespace::new("i") };
        for namespace in [&net.client, &net.gateway, &net.internet] {
            namespace.run(|| {
                for (key, value) in [
                    ("ipv4/conf/all/rp_filter", "0"),
                    ("ipv4/conf/default/rp_filter", "0"),
                    ("ipv6/conf/default/accept_dad", "0"),
                    ("ipv6/conf/all/accept_dad", "0"),
                ] {
                    std::fs::write(format!("/proc/sys/net/{key}"), value).unwrap();
                }
            });
        }
        let Net { client: Namespace(client), gateway: Namespace(gateway), internet: Namespace(internet) } =
            &net;
        let ip = |namespace: &str, line: &str| {
            let mut arguments = vec!["-n", namespace];
            arguments.extend(line.split(' '));
            command("ip", &arguments);
        };
        ip(gateway, &format!("link add inside type veth peer name eth0 netns {client}"));
        ip(gateway, &format!("link add outside type veth peer name eth0 netns {internet}"));
        for line in [
            "link set lo up",
            "addr add 10.9.0.2/24 dev eth0",
            "addr add fd09::2/64 dev eth0 nodad",
            "link set eth0 up",
            "route add default via 10.9.0.1",
            "route add default via fd09::1",
        ] {
            ip(client, line);
        }
        for line in [
            "link set lo up",
            "addr add 10.9.0.1/24 dev inside",
            "addr add fd09::1/64 dev inside nodad",
            "addr add 5.5.0.1/24 dev outside",
            "addr add 2a0f:5::1/64 dev outside nodad",
            "link set inside up",
            "link set outside up",
            "route add default via 5.5.0.2",
            "route add default via 2a0f:5::2",
        ] {
            ip(gateway, line);
        }
        for line in [
            "link set lo up",
            "addr add 5.5.0.2/24 dev eth0",
            "addr add 2a0f:5::2/64 dev eth0 nodad",
            "link set eth0 up",
            "addr add 8.8.0.1/16 dev lo",
            "addr add 9.9.0.1/16 dev lo",
            "-6 route add local 2a01:4f8::/32 dev lo",
            "route add 10.9.0.0/24 via 5.5.0.1",
            "route add fd09::/64 via 2a0f:5::1",
        ] {
            ip(internet, line);
        }
        net.internet.run(|| std::fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1").unwrap());
        net.gateway.run(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        });
        // Neighbours are found before the first probe, which would otherwise wait for them and be overtaken.
        net.gateway.run(|| {
            for host in [CLIENT, CLIENT_V6, "5.5.0.2", "2a0f:5::2"] {
                command("ping", &["-c1", "-i0.1", "-w20", host]);
            }
        });
        net.gateway.enter();
        net
    }

    /// Sends one datagram from the client; true when it arrived, with the source the internet saw. What is sent next to
    /// `beacon`, which has to be listed, proves that the first was on its way long enough.
    pub(crate) fn passes(&self, target: &UdpSocket, beacon: &UdpSocket) -> Option<IpAddr> {
        let address = target.local_addr().unwrap();
        let client = self.client.udp(if address.is_ipv4() { CLIENT } else { CLIENT_V6 }, 0);
        client.send_to(b"probe", address).unwrap();
        let other = self.client.udp(CLIENT, 0);
        let mut buffer = [0; 16];
        for _ in 0..3 {
            other.send_to(b"beacon", beacon.local_addr().unwrap()).unwrap();
            assert_eq!(patiently(|| beacon.recv(&mut buffer)).unwrap(), 6, "the beacon has to be listed");
        }
        target.set_nonblocking(true).unwrap();
        let seen = match patiently(|| target.recv_from(&mut buffer)) {
            Ok((5, source)) => Some(source.ip()),
            Ok(other) => panic!("unexpected {other:?}"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                None
            }
        };
        target.set_nonblocking(false).unwrap();
        seen
    }
}

/// Repeats what a signal or a stopped machine interrupted.
pub(crate) fn patiently<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Asks again until `condition` gives something, but not for ever.
pub(crate) fn until<T>(what: &str, patience: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a program that has to succeed.
pub(crate) fn command(program: &str, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = Command::new(program).args(arguments).output().unwrap();
    assert!(status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// `8.8.8.8/32` or `8.8.8.8/32 tcp/443`.
pub(crate) fn element(text: &str) -> Element {
    let (prefix, ports) = text.split_once(' ').map_or((text, None), |(prefix, ports)| (prefix, Some(ports)));
    Element::new(prefix.parse().unwrap(), ports.map(|ports| ports.parse().unwrap()))
}

pub(crate) fn elements(texts: &[&str]) -> BTreeSet<Element> {
    texts.iter().map(|text| element(text)).collect()
}

/// What the driver counted for one element.
pub(crate) fn counted(firewall: &mut impl Firewall, wanted: Element) -> ElementCounters {
    let counters = firewall.counters().unwrap();
    assert!(counters.is_sorted_by_key(|counters| counters.element));
    *counters.iter().find(|counters| counters.element == wanted).unwrap()
}

/// A driver that is up, and the reports of what it cuts.
pub(crate) fn installed_with_reports(options: &KernelOptions) -> (KernelFirewall, Reports) {
    let mut firewall = KernelFirewall::new(options).unwrap();
    let (sender, reports) = std::sync::mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    firewall
        .report_cuts(std::sync::Arc::new(move |report| sender.lock().unwrap().send(report).unwrap_or(())));
    firewall.install().unwrap();
    (firewall, Reports(reports))
}

/// Reports of cut flows.
pub(crate) struct Reports(std::sync::mpsc::Receiver<CutReport>);

impl Reports {
    /// The next report of that cause.
    pub(crate) fn next(&self, cause: CutCause) -> CutReport {
        loop {
            let report = self.0.recv_timeout(PATIENCE).unwrap();
            if report.cause == cause {
                return report;
            }
        }
    }
}

/// One datagram there and back; the source the internet saw.
pub(crate) fn exchange(client: &UdpSocket, server: &UdpSocket) -> SocketAddr {
    let mut buffer = [0; 64];
    client.send_to(b"question", server.local_addr().unwrap()).unwrap();
    let (_, source) = patiently(|| server.recv_from(&mut buffer)).unwrap();
    server.send_to(b"answer", source).unwrap();
    assert_eq!(patiently(|| client.recv(&mut buffer)).unwrap(), 6);
    source
}

/// Answers every datagram with itself until `stop` arrives; returns how many it answered.
pub(crate) fn echo(socket: &UdpSocket) -> u64 {
    let mut buffer = [0; 2048];
    let mut answered = 0;
    loop {
        let (length, source) = patiently(|| socket.recv_from(&mut buffer)).unwrap();
        socket.send_to(&buffer[..length], source).unwrap();
        answered += 1;
        if &buffer[..length] == b"stop" {
            return answered;
        }
    }
}
