//! The lab itself, without OutputGuard: networks, DNS and the internet do what the other tests rely on.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy knows only the test functions")]

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::addresses::{Net, gateway, hundred};
use lab::{Client, Forward, Lab, LabOptions, Outcome, RecordType, UdpStream, wait};

fn bare() -> Lab {
    Lab::bare(&LabOptions { servers: 1, gateways: 2, port: 0 }).unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// What the host has of its own: links, rules, addresses, namespaces outside of labs.
fn host_state() -> String {
    [
        "ip -br addr",
        "ip rule",
        "ip -6 rule",
        "ip route",
        "ip -6 route",
        "iptables-save",
        "ip6tables-save",
        "ipset list -n",
    ]
    .iter()
    .map(|line| {
        let output = Command::new("sh").arg("-c").arg(line).output().unwrap();
        // Counters and times of the host's own traffic are not ours.
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with(['#', ':'])).collect();
        format!("{line}\n{}\n", kept.join("\n"))
    })
    .collect()
}

#[test]
fn the_internet_answers_gateways_on_every_public_address_in_every_way() {
    let lab = bare();
    for (index, namespace) in lab.network.gateways.iter().enumerate() {
        let own: [IpAddr; 2] = [Net::Public.v4(gateway(index)).into(), Net::Public.v6(gateway(index)).into()];
        let client = Client::new(namespace);
        for (text, own) in [("93.184.216.34", own[0]), ("1.1.1.1", own[0]), ("2606:4700::1111", own[1])] {
            let target = address(text);
            client.ping(target).answer().unwrap();
            client.tcp_echo((target, 7).into()).answer().unwrap();
            client.udp_echo((target, 7).into(), b"hello").answer().unwrap();
            for port in [80, 443, 8080] {
                let seen = client.who((target, port).into()).answer().unwrap();
                assert_eq!((seen.asked, seen.source.ip()), ((target, port).into(), own));
            }
            let seen = client.udp_who(target).answer().unwrap();
            assert_eq!((seen.asked.ip(), seen.source.ip()), (target, own));
        }
    }
    assert_eq!(lab.internet.private_source_packets().unwrap(), 0);
}

#[test]
fn a_client_without_routes_reaches_nothing_and_a_forwarded_private_source_is_counted() {
    let lab = bare();
    let client = lab.client();
    let target = address("93.184.216.34");
    assert!(matches!(client.tcp((target, 80).into()), Outcome::Unreachable(_)));
    // A gateway that forwards without NAT is just what the counter is for.
    lab.network
        .client
        .ip(&format!(
            "route add default via {}\nroute add default via {}\n",
            Net::Lan.v4(gateway(0)),
            Net::Lan.v6(gateway(0))
        ))
        .unwrap();
    assert!(matches!(client.udp_echo((target, 7).into(), b"leak"), Outcome::Silence));
    assert_eq!(lab.internet.private_source_packets().unwrap(), 1);
    assert!(matches!(client.udp_echo((address("2606:4700::1"), 7).into(), b"leak"), Outcome::Silence));
    assert_eq!(lab.internet.private_source_packets().unwrap(), 2);
}

#[test]
fn a_changed_record_shows_behind_the_resolver_when_its_ttl_ends() {
    let lab = bare();
    let client = lab.client();
    let resolver = lab::Dns::address_on(Net::Lan);
    let ask = |kind| {
        let mut answers = client.resolve(resolver, "api.example.test", kind).unwrap();
        answers.sort_unstable();
        answers.into_iter().map(|(address, _)| address).collect::<Vec<_>>()
    };
    assert_eq!(ask(RecordType::A), [] as [IpAddr; 0], "no such name yet");
    let first = [address("93.184.216.34"), address("93.184.216.35")];
    lab.dns.set("api", RecordType::A, 2, &first).unwrap();
    wait::until_true("the new name resolves", Duration::from_secs(5), || ask(RecordType::A) == first)
        .unwrap();
    let answers = client.resolve(resolver, "api.example.test", RecordType::A).unwrap();
    assert!(answers.iter().all(|(_, ttl)| *ttl <= 2), "{answers:?}");

    lab.dns.set("api", RecordType::A, 2, &[address("93.184.216.36")]).unwrap();
    lab.dns.set("api", RecordType::Aaaa, 2, &[address("2606:2800::36")]).unwrap();
    wait::until_true("the change shows", Duration::from_secs(5), || {
        ask(RecordType::A) == [address("93.184.216.36")]
    })
    .unwrap();
    wait::until_true("v6 shows", Duration::from_secs(5), || {
        ask(RecordType::Aaaa) == [address("2606:2800::36")]
    })
    .unwrap();
    lab.dns.set_alias("www", 2, "api.example.test").unwrap();
    wait::until_true("the alias resolves", Duration::from_secs(5), || {
        client.resolve(resolver, "www.example.test", RecordType::A).unwrap().len() == 1
    })
    .unwrap();
    lab.dns.remove("api", RecordType::A).unwrap();
    wait::until_true("the removal shows", Duration::from_secs(5), || ask(RecordType::A).is_empty()).unwrap();
    // The host has the same resolver by name.
    let shown = lab.network.client.name();
    let output = Command::new("ip")
        .args(["netns", "exec", shown, "getent", "ahosts", "www.example.test"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("2606:2800::36"), "{output:?}");
}

#[test]
fn two_labs_run_side_by_side_leave_the_host_alone_and_vanish() {
    let before = host_state();
    let (one, two) = (bare(), bare());
    assert_eq!(host_state(), before);
    let mut paths = Vec::new();
    for lab in [&one, &two] {
        let target = address("1.1.1.1");
        Client::new(&lab.network.gateways[0]).who((target, 80).into()).answer().unwrap();
        paths.push(lab.directory().to_owned());
        paths
            .extend(lab.network.namespaces().map(|namespace| Path::new("/run/netns").join(namespace.name())));
    }
    assert!(paths.iter().all(|path| path.exists()));
    let names: std::collections::BTreeSet<_> = paths.iter().collect();
    assert_eq!(names.len(), paths.len(), "no name is used twice");
    drop(one);
    Client::new(&two.network.gateways[0]).who((address("1.1.1.1"), 80).into()).answer().unwrap();
    two.stop().unwrap();
    assert!(paths.iter().all(|path| !path.exists()), "{paths:?}");
    assert_eq!(host_state(), before);
}

#[test]
fn a_pulled_cable_silences_a_gateway_and_a_plugged_one_brings_it_back() {
    let lab = bare();
    let gateway = Client::new(&lab.network.gateways[1]).with_patience(Duration::from_millis(500));
    let targets = [address("1.1.1.1"), address("2606:4700::1111")];
    for target in targets {
        gateway.who((target, 80).into()).answer().unwrap();
    }
    lab.network.set_gateway_plugged(1, false).unwrap();
    for target in targets {
        assert!(!gateway.who((target, 80).into()).answered());
    }
    lab.network.set_gateway_plugged(1, true).unwrap();
    for target in targets {
        wait::until("it answers again", Duration::from_secs(10), || {
            gateway.who((target, 80).into()).answer()
        })
        .unwrap();
    }
}

#[test]
fn a_forward_leads_from_the_host_into_a_namespace_until_dropped() {
    let lab = bare();
    let target = (address("93.184.1.1"), 80).into();
    let forward = Forward::new(&lab.network.gateways[0], target).unwrap();
    let host = forward.address();
    let ask = || -> std::io::Result<String> {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect_timeout(&host, Duration::from_secs(1))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let answer = ask().unwrap();
    assert!(answer.contains("93.184.1.1:80") && answer.contains("203.0.114.11"), "{answer}");
    drop(forward);
    assert!(ask().is_err());
}

#[test]
fn a_stream_of_datagrams_reports_exactly_what_was_lost() {
    let lab = bare();
    let gateway = Client::new(&lab.network.gateways[0]);
    let target = (address("93.184.5.5"), 7).into();
    let stream = UdpStream::start(&gateway, target, 500).unwrap();
    wait::until_true("it flows", Duration::from_secs(5), || stream.answered() > 100).unwrap();
    assert_eq!(stream.finish().unwrap().missing, [] as [u64; 0]);

    let stream = UdpStream::start(&gateway, target, 500).unwrap();
    wait::until_true("it flows", Duration::from_secs(5), || stream.answered() > 100).unwrap();
    // Every tenth datagram is dropped from now on; the rule counts how many that were.
    let in_internet = |arguments: &str| {
        let output = lab.network.internet.command("iptables").args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    in_internet("-A INPUT -p udp --dport 7 -m statistic --mode nth --every 10 --packet 0 -j DROP");
    let answered = stream.answered();
    wait::until_true("it flows on", Duration::from_secs(5), || stream.answered() > answered + 100).unwrap();
    let report = stream.finish().unwrap();
    let rules = in_internet("-nvxL INPUT");
    let dropped = rules.lines().nth(2).unwrap().split_whitespace().next().unwrap().parse::<usize>().unwrap();
    assert!(dropped >= 10, "{rules}");
    assert_eq!(report.missing.len(), dropped);
}

#[test]
fn a_download_is_paced_and_counted() {
    let lab = bare();
    let gateway = Client::new(&lab.network.gateways[0]);
    let start = std::time::Instant::now();
    let download = gateway.download((address("93.184.5.5"), 80).into(), 300_000, 200_000).unwrap();
    wait::until_true("it flows", Duration::from_secs(5), || download.received() > 0).unwrap();
    assert!(!download.ended());
    download.finish().unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn a_taken_port_is_said_in_one_sentence() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = Lab::bare(&LabOptions { servers: 1, gateways: 1, port }).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("port {port} of 127.0.0.1 is in use; choose another one with --port")
    );
}

#[test]
fn everybody_on_the_lan_has_a_neighbour_in_both_families() {
    let lab = bare();
    let client = lab.client();
    for number in [gateway(0), gateway(1), hundred()] {
        client.ping(Net::Lan.v4(number).into()).answer().unwrap();
        client.ping(Net::Lan.v6(number).into()).answer().unwrap();
    }
}
