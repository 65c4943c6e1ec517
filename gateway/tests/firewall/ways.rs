//! The way out, and the machine itself.

use std::net::TcpStream;

use allowlist::Change;
use gateway::firewall::{Egress, Firewall, HostGuard, KernelFirewall, KernelOptions};

use crate::net::{CLIENT, GATEWAY, Net, command, element, elements, exchange};
use crate::passing::{connect, is_prohibited};

fn started(options: &KernelOptions) -> KernelFirewall {
    let mut firewall = KernelFirewall::new(options).unwrap();
    firewall.install().unwrap();
    firewall
}

fn through(interface: &str, snat: &[&str]) -> KernelOptions {
    let snat = snat.iter().map(|range| range.parse().unwrap()).collect();
    let egress = Egress { interface: Some(interface.parse().unwrap()), snat };
    KernelOptions { egress, ..KernelOptions::default() }
}

fn guarded() -> KernelOptions {
    let management = vec!["10.9.0.0/24".parse().unwrap()];
    KernelOptions { guard: Some(HostGuard { management }), ..KernelOptions::default() }
}

#[test]
fn clients_leave_by_the_named_interface_and_behind_the_named_address() {
    let net = Net::new();
    command("ip", &["addr", "add", "5.5.0.9/24", "dev", "outside"]);
    let mut firewall = started(&through("outs+", &["5.5.0.9"]));
    firewall.replace(&elements(&["8.8.8.8/32", "9.9.9.9/32 udp/53"])).unwrap();
    assert_eq!(firewall.repair().unwrap(), []);
    let client = net.client.udp(CLIENT, 0);
    for server in [net.internet.udp("8.8.8.8", 9), net.internet.udp("9.9.9.9", 53)] {
        assert_eq!(exchange(&client, &server).ip().to_string(), "5.5.0.9");
    }
    drop(firewall);
    // By another one nothing leaves, whatever is listed.
    let mut firewall = started(&through("inside", &[]));
    firewall.replace(&elements(&["8.8.8.8/32"])).unwrap();
    let _listening = net.internet.tcp("8.8.8.8", 80);
    assert!(is_prohibited(&net.client, "8.8.8.8:80"));
    assert_eq!(firewall.repair().unwrap(), []);
}

#[test]
fn a_guarded_machine_is_reached_by_its_managers_only_and_reaches_what_is_listed() {
    let net = Net::new();
    let mut firewall = started(&guarded());
    firewall.replace(&elements(&["8.8.8.8/32", "9.9.9.9/32 tcp/53"])).unwrap();
    assert_eq!(firewall.repair().unwrap(), []);
    let _service = net.gateway.tcp("0.0.0.0", 22);
    let _open = [("8.8.8.8", 443), ("8.8.4.4", 443), ("9.9.9.9", 53), ("9.9.9.9", 80)]
        .map(|(host, port)| net.internet.tcp(host, port));
    connect(&net.client, "10.9.0.1:22").unwrap();
    assert!(connect(&net.internet, &format!("{GATEWAY}:22")).is_err());
    for listed in ["8.8.8.8:443", "9.9.9.9:53"] {
        connect(&net.gateway, listed).unwrap();
        connect(&net.client, listed).unwrap();
    }
    for unlisted in ["8.8.4.4:443", "9.9.9.9:80"] {
        assert!(is_prohibited(&net.gateway, unlisted), "{unlisted}");
        assert!(is_prohibited(&net.client, unlisted), "{unlisted}");
    }
    // What the machine itself sent is not counted as somebody else's.
    let counted =
        |firewall: &mut KernelFirewall| crate::net::counted(firewall, element("8.8.8.8/32")).packets_out;
    let before = counted(&mut firewall);
    let own: TcpStream = connect(&net.gateway, "8.8.8.8:443").unwrap();
    assert_eq!(counted(&mut firewall), before);
    drop(own);
    let revoked = vec![element("8.8.8.8/32")];
    firewall.apply(&Change { revision: 2, revoked, ..Change::default() }).unwrap();
    assert!(is_prohibited(&net.gateway, "8.8.8.8:443"));

    command("iptables", &["-F", "OG-INPUT"]);
    command("iptables", &["-D", "OUTPUT", "-j", "OG-OUTPUT"]);
    let repaired = format!("{:?}", firewall.repair().unwrap());
    assert!(repaired.contains("filter OG-INPUT (v4): rules were not ours"), "{repaired}");
    assert!(repaired.contains("filter OUTPUT (v4): jump to OG-OUTPUT was missing"), "{repaired}");
    assert!(is_prohibited(&net.gateway, "8.8.8.8:443"));
}

#[test]
fn a_machine_that_is_not_to_be_guarded_any_more_is_as_before() {
    let net = Net::new();
    let rules = || {
        let all = ["iptables-save", "ip6tables-save"].map(|program| command(program, &[])).concat();
        all.lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = rules();
    drop(started(&guarded()));
    assert!(rules().iter().any(|rule| rule.contains("OG-INPUT")));
    let mut firewall = started(&KernelOptions::default());
    assert!(!rules().iter().any(|rule| rule.contains("OG-INPUT") || rule.contains("OG-OUTPUT")));
    connect(&net.client, "10.9.0.1:22").unwrap_err();
    drop(started(&guarded()));
    firewall.cleanup().unwrap();
    assert_eq!(rules(), before);
}
