//! Who was denied what: packets that the kernel logs and the driver reads.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::sync::{Arc, Mutex};

use gateway::firewall::{
    DenialNews, DeniedPacket, Deny, Firewall, KernelFirewall, KernelOptions, LogLoss, Mode, Policy,
};

use crate::net::{CLIENT, CLIENT_V6, Net, PATIENCE, command, elements, exchange, until};
use crate::passing::{connect, ping};
use crate::tools::BrokenTools;

/// Packets of a flood.
const FLOOD: u64 = 50_000;
/// What the kernel may log of one source while [`FLOOD`] packets come, however slow the machine: its burst, and ten a
/// second of two minutes.
const MOST_OF_ONE_SOURCE: usize = 40 + 10 * 120;

/// Source, destination, protocol, port.
type Seen = (String, String, u8, u16);

/// What a driver said of denied packets.
struct News(Receiver<DenialNews>);

impl News {
    fn next(&self) -> DenialNews {
        self.0.recv_timeout(PATIENCE).unwrap()
    }

    /// How often each flow was seen, up to the first of `last`.
    fn until(&self, last: &Seen) -> BTreeMap<Seen, usize> {
        let mut seen = BTreeMap::new();
        loop {
            match self.next() {
                DenialNews::Packet(DeniedPacket { source, destination, protocol, port }) => {
                    let flow = (source.to_string(), destination.to_string(), protocol, port);
                    let is_last = flow == *last;
                    *seen.entry(flow).or_default() += 1;
                    if is_last {
                        return seen;
                    }
                }
                DenialNews::Lost(LogLoss::Overrun, _) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }
}

fn flow(source: &str, destination: &str, protocol: u8, port: u16) -> Seen {
    (source.to_owned(), destination.to_owned(), protocol, port)
}

/// A driver that is up, and reads denied packets unless `group` is read by somebody else.
fn started(mode: Mode, deny: Deny) -> (KernelFirewall, News) {
    let policy = Policy { mode, deny, ..Policy::default() };
    let mut firewall = KernelFirewall::new(&KernelOptions { policy, ..KernelOptions::default() }).unwrap();
    firewall.install().unwrap();
    let (sender, news) = channel();
    let sender = Mutex::new(sender);
    firewall.report_denials(Arc::new(move |news| sender.lock().unwrap().send(news).unwrap_or(())));
    (firewall, News(news))
}

fn reading(mode: Mode, deny: Deny) -> (KernelFirewall, News) {
    let (firewall, news) = started(mode, deny);
    assert_eq!(news.next(), DenialNews::Up);
    (firewall, news)
}

/// Sends one datagram to each address.
fn knock(from: &UdpSocket, addresses: &[&str]) {
    for address in addresses {
        from.send_to(b"x", address).unwrap();
    }
}

#[test]
fn a_denied_packet_of_each_kind_is_reported_with_who_wanted_what() {
    let net = Net::new();
    for deny in [Deny::Reject, Deny::Drop] {
        let (mut firewall, news) = reading(Mode::Enforce, deny);
        firewall.replace(&elements(&["8.8.8.8/32", "2a01:4f8::8/128"])).unwrap();
        let (v4, v6) = (net.client.udp(CLIENT, 0), net.client.udp(CLIENT_V6, 0));
        // What is listed is not reported, in neither direction.
        exchange(&v4, &net.internet.udp("8.8.8.8", 53));
        connect(&net.client, "9.9.9.9:443").unwrap_err();
        connect(&net.client, "[2a01:4f8::9]:8443").unwrap_err();
        assert!(!ping(&net.client, "9.9.9.9"));
        assert!(!ping(&net.client, "2a01:4f8::9"));
        knock(&v4, &["9.9.9.9:53", "9.9.9.9:53", "9.9.9.9:53"]);
        knock(&v6, &["[2a01:4f8::9]:54"]);
        let last = flow(CLIENT, "9.9.1.1", 17, 1);
        knock(&v4, &["9.9.1.1:1"]);
        let mut seen = news.until(&last);
        // Both families are read in the order in which they gathered, so that the last of one may be before the other.
        let v6_udp = flow(CLIENT_V6, "2a01:4f8::9", 17, 54);
        if !seen.contains_key(&v6_udp) {
            seen.extend(news.until(&v6_udp));
        }
        assert_eq!(seen.remove(&flow(CLIENT, "9.9.9.9", 17, 53)), Some(3));
        for expected in [
            last,
            v6_udp,
            flow(CLIENT, "9.9.9.9", 6, 443),
            flow(CLIENT_V6, "2a01:4f8::9", 6, 8443),
            flow(CLIENT, "9.9.9.9", 1, 0),
            flow(CLIENT_V6, "2a01:4f8::9", 58, 0),
        ] {
            assert!(seen.remove(&expected).is_some_and(|times| times >= 1), "{expected:?}");
        }
        assert!(seen.is_empty(), "{seen:?}");
        assert_eq!(firewall.repair().unwrap(), []);
        drop(firewall);
    }
}

#[test]
fn a_source_that_scans_is_bounded_and_does_not_hide_another() {
    let net = Net::new();
    net.client.run(|| command("ip", &["addr", "add", "10.9.0.3/24", "dev", "eth0"]));
    let (mut firewall, news) = reading(Mode::Enforce, Deny::Reject);
    let scanner = net.client.udp(CLIENT, 0);
    let mut sent = 0;
    while sent < FLOOD {
        let [host_high, host_low, port_high, port_low] = u32::try_from(sent).unwrap().to_be_bytes();
        let port = u16::from_be_bytes([port_high, port_low]).max(1);
        // A full queue of the interface is no failure of a flood.
        if scanner.send_to(b"x", (format!("9.9.{host_high}.{host_low}"), port)).is_ok() {
            sent += 1;
        }
        if sent == FLOOD / 2 {
            knock(&net.client.udp("10.9.0.3", 0), &["9.9.9.9:443"]);
        }
    }
    let other = flow("10.9.0.3", "9.9.9.9", 17, 443);
    let scanned = news.until(&other).len();
    assert!(scanned <= MOST_OF_ONE_SOURCE, "{scanned}");
    let denied = firewall.denied().unwrap().packets_v4;
    assert!(denied > FLOOD, "all of it is counted: {denied}");
    // And the end of it is not held back behind a heap of packets.
    knock(&net.client.udp("10.9.0.3", 0), &["9.9.9.9:444"]);
    let scanned = news.until(&flow("10.9.0.3", "9.9.9.9", 17, 444)).len();
    assert!(scanned <= MOST_OF_ONE_SOURCE, "{scanned}");
}

#[test]
fn an_audit_reports_what_it_would_block_and_lets_it_pass() {
    let net = Net::new();
    let client = net.client.udp(CLIENT, 0);
    let unlisted = net.internet.udp("9.9.9.9", 443);
    // Begun before the audit.
    exchange(&client, &unlisted);
    let (mut firewall, news) = reading(Mode::Audit, Deny::Reject);
    firewall.replace(&elements(&["8.8.8.8/32"])).unwrap();
    exchange(&client, &net.internet.udp("8.8.8.8", 53));
    exchange(&client, &unlisted);
    let under_way = flow(CLIENT, "9.9.9.9", 17, 443);
    assert_eq!(news.until(&under_way), [(under_way, 1)].into());
    let v6 = net.internet.udp("2a01:4f8::9", 7);
    exchange(&net.client.udp(CLIENT_V6, 0), &v6);
    let new = flow(CLIENT_V6, "2a01:4f8::9", 17, 7);
    assert_eq!(news.until(&new), [(new, 1)].into());
    // Only the way out is shown, and more of the same beside it.
    exchange(&client, &net.internet.udp("9.9.9.8", 1));
    let other = flow(CLIENT, "9.9.9.8", 17, 1);
    assert_eq!(news.until(&other), [(other, 1)].into());
    assert_eq!(firewall.repair().unwrap(), []);
}

#[test]
fn a_group_that_somebody_else_reads_is_told_and_taken_over_when_it_is_free() {
    let net = Net::new();
    let (first, first_news) = reading(Mode::Enforce, Deny::Drop);
    let (mut second, news) = started(Mode::Enforce, Deny::Drop);
    let DenialNews::Down(reason) = news.next() else { panic!("two readers of one group") };
    assert!(reason.contains("log group 100") && reason.contains("nflog_group"), "{reason}");
    // It works all the same.
    second.replace(&elements(&["8.8.8.8/32"])).unwrap();
    let client = net.client.udp(CLIENT, 0);
    exchange(&client, &net.internet.udp("8.8.8.8", 53));
    knock(&client, &["9.9.9.9:53"]);
    let to_first = flow(CLIENT, "9.9.9.9", 17, 53);
    assert_eq!(first_news.until(&to_first), [(to_first, 1)].into());
    drop(first);
    assert_eq!(news.next(), DenialNews::Up);
    knock(&client, &["9.9.9.9:54"]);
    let to_second = flow(CLIENT, "9.9.9.9", 17, 54);
    assert_eq!(news.until(&to_second), [(to_second, 1)].into());
}

#[test]
fn a_log_whose_rule_was_refused_comes_back_when_the_kernel_takes_it() {
    let net = Net::new();
    let tools = BrokenTools::failing_on("NFLOG");
    let (mut firewall, news) = started(Mode::Enforce, Deny::Drop);
    let DenialNews::Down(reason) = news.next() else { panic!("there is no rule that logs") };
    assert!(reason.contains("out of order") && reason.contains("modprobe"), "{reason}");
    // It works all the same.
    firewall.replace(&elements(&["8.8.8.8/32"])).unwrap();
    exchange(&net.client.udp(CLIENT, 0), &net.internet.udp("8.8.8.8", 53));
    drop(tools);
    let up = until("the log to come back", PATIENCE, || {
        assert_eq!(firewall.repair_what_was_seen().unwrap(), []);
        news.0.try_recv().ok()
    });
    assert_eq!(up, DenialNews::Up);
    assert_eq!(firewall.repair().unwrap(), []);
    let client = net.client.udp(CLIENT, 0);
    knock(&client, &["9.9.9.9:53"]);
    let denied = flow(CLIENT, "9.9.9.9", 17, 53);
    assert_eq!(news.until(&denied), [(denied, 1)].into());
    net.client.udp(CLIENT_V6, 0).send_to(b"x", "[2a01:4f8::9]:53").unwrap();
    let denied = flow(CLIENT_V6, "2a01:4f8::9", 17, 53);
    assert_eq!(news.until(&denied), [(denied, 1)].into());
}

#[test]
fn packets_that_another_rule_logs_to_the_group_are_not_taken_for_ours() {
    let net = Net::new();
    let (_firewall, news) = reading(Mode::Enforce, Deny::Drop);
    command("iptables", &["-I", "INPUT", "-p", "udp", "-j", "NFLOG", "--nflog-group", "100"]);
    let client = net.client.udp(CLIENT, 0);
    knock(&client, &["10.9.0.1:99"]);
    assert_eq!(news.next(), DenialNews::Lost(LogLoss::Foreign, 1));
}

#[test]
fn cleaning_up_ends_the_reading_at_once() {
    let _net = Net::new();
    let (mut firewall, news) = reading(Mode::Enforce, Deny::Drop);
    firewall.cleanup().unwrap();
    assert_eq!(news.0.try_recv(), Err(TryRecvError::Disconnected), "its sink is gone with it");
    // Somebody else may read the group now.
    let (_again, _) = reading(Mode::Enforce, Deny::Drop);
}
