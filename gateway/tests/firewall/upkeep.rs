//! Repair of what others did to us, and leaving no trace.

use gateway::firewall::{
    Firewall, FirewallError, KernelFirewall, KernelOptions, check_forwarding, check_host,
};

use crate::counting::many;
use crate::net::{Net, PATIENCE, command, counted, element, elements, until};

pub(crate) fn installed() -> KernelFirewall {
    let mut firewall = KernelFirewall::new(&KernelOptions::default()).unwrap();
    firewall.install().unwrap();
    firewall
}

/// Runs one repair and returns what it found, after making sure that a second finds nothing.
fn repaired(firewall: &mut KernelFirewall) -> String {
    let found: Vec<String> = firewall.repair().unwrap().into_iter().map(|repair| repair.what).collect();
    assert_eq!(firewall.repair().unwrap(), []);
    found.join("; ")
}

#[test]
fn what_somebody_broke_is_named_and_works_again() {
    let net = Net::new();
    let mut firewall = installed();
    firewall.replace(&elements(&["8.8.8.8/32", "9.9.9.9/32 udp/53", "2a01:4f8::/32"])).unwrap();
    let beacon = net.internet.udp("8.8.8.8", 7);
    let unlisted = net.internet.udp("9.9.9.9", 99);
    assert_eq!(firewall.repair().unwrap(), []);

    for (program, sabotage, name) in [
        ("iptables", "-F OG-FORWARD", "filter OG-FORWARD (v4): rules were not ours"),
        ("ip6tables", "-I OG-FORWARD 1 -j ACCEPT", "filter OG-FORWARD (v6): rules were not ours"),
        ("iptables", "-D FORWARD -j OG-FORWARD", "filter FORWARD (v4): jump to OG-FORWARD was missing"),
        (
            "iptables",
            "-I FORWARD 1 -j ACCEPT",
            "filter FORWARD (v4): jump to OG-FORWARD was not in its place",
        ),
        ("iptables", "-t nat -F OG-NAT", "nat OG-NAT (v4): rules were not ours"),
        ("ip6tables", "-t nat -D POSTROUTING -j OG-NAT", "nat POSTROUTING (v6): jump to OG-NAT was missing"),
        (
            "iptables",
            "-t nat -I POSTROUTING 1 -j ACCEPT",
            "nat POSTROUTING (v4): jump to OG-NAT was not in its place",
        ),
    ] {
        command(program, &sabotage.split(' ').collect::<Vec<_>>());
        assert_eq!(repaired(&mut firewall), name);
        assert!(net.passes(&unlisted, &beacon).is_none(), "{sabotage}");
        let seen = net.passes(&net.internet.udp("9.9.9.9", 53), &beacon);
        assert_eq!(seen.unwrap().to_string(), crate::net::GATEWAY, "{sabotage}");
    }

    command("ipset", &["del", "og4o", "8.8.8.8"]);
    command("ipset", &["del", "og4ip", "9.9.9.9,udp:53"]);
    command("ipset", &["add", "og4i", "9.9.0.0/16"]);
    let found = repaired(&mut firewall);
    assert!(found.contains("ipset og4o: 8.8.8.8/32 was missing"), "{found}");
    assert!(found.contains("ipset og4ip: 9.9.9.9/32,udp:53 was missing"), "{found}");
    assert!(found.contains("ipset og4i: 9.9.0.0/16 was not ours"), "{found}");
    assert!(net.passes(&net.internet.udp("9.9.9.9", 53), &beacon).is_some());

    // A set can only go when no rule needs it any more.
    command("iptables", &["-F", "OG-FORWARD"]);
    command("iptables", &["-t", "nat", "-F", "OG-NAT"]);
    destroy("og4o");
    let found = repaired(&mut firewall);
    assert!(found.contains("ipset og4o was missing"), "{found}");
    assert!(net.passes(&unlisted, &beacon).is_none());

    for chain in [["filter", "OG-FORWARD"], ["nat", "OG-NAT"]] {
        command("iptables", &["-t", chain[0], "-F", chain[1]]);
    }
    destroy("og4o");
    command("ipset", &["create", "og4o", "hash:net"]);
    command("ipset", &["add", "og4o", "9.9.0.0/16"]);
    assert!(repaired(&mut firewall).contains("ipset og4o was of another kind"));
    for name in ["og4deny", "og6cut"] {
        let (program, chain) =
            if name.starts_with("og4") { ("iptables", "OG-FORWARD") } else { ("ip6tables", "OG-FORWARD") };
        command(program, &["-F", chain]);
        destroy(name);
        command("ipset", &["create", name, "hash:ip"]);
        let found = repaired(&mut firewall);
        assert!(found.contains(&format!("ipset {name} was of another kind")), "{found}");
    }
    assert!(net.passes(&unlisted, &beacon).is_none());
}

/// The kernel lets go of a set some time after its rule.
fn destroy(set: &str) {
    let deadline = std::time::Instant::now() + crate::net::PATIENCE;
    while !std::process::Command::new("ipset").args(["destroy", set]).output().unwrap().status.success() {
        assert!(std::time::Instant::now() < deadline, "{set} stays in use");
        std::thread::yield_now();
    }
}

#[test]
fn counts_do_not_fall_when_somebody_empties_a_set() {
    let net = Net::new();
    let mut firewall = installed();
    firewall.replace(&elements(&["8.8.8.8/32"])).unwrap();
    let target = net.internet.udp("8.8.8.8", 9);
    let beacon = net.internet.udp("8.8.8.8", 7);
    assert!(net.passes(&target, &beacon).is_some());
    let before = counted(&mut firewall, element("8.8.8.8/32")).packets_out;
    command("ipset", &["flush", "og4o"]);
    assert!(repaired(&mut firewall).contains("og4o: 8.8.8.8/32 was missing"));
    assert_eq!(counted(&mut firewall, element("8.8.8.8/32")).packets_out, before);
    assert!(net.passes(&target, &beacon).is_some());
    assert!(counted(&mut firewall, element("8.8.8.8/32")).packets_out > before);
}

#[test]
fn clean_up_leaves_everything_as_it_was() {
    let _net = Net::new();
    for program in ["iptables", "ip6tables"] {
        command(
            program,
            &[
                "-A",
                "FORWARD",
                "-s",
                if program == "iptables" { "1.2.3.4" } else { "2a00::1" },
                "-j",
                "ACCEPT",
            ],
        );
        command(program, &["-t", "nat", "-A", "POSTROUTING", "-p", "tcp", "-j", "RETURN"]);
    }
    command("ipset", &["create", "og4other", "hash:net"]);
    let picture = || {
        let saved = [command("iptables-save", &[]), command("ip6tables-save", &[])].concat();
        // Comments carry the time, built-in chains what they counted.
        let rules: Vec<String> = saved
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split(" [").next().unwrap_or_default().to_owned())
            .collect();
        (rules, command("ipset", &["list", "-n"]))
    };
    let before = picture();
    let mut firewall = installed();
    firewall.replace(&elements(&["8.8.8.8/32", "9.9.9.9/32 udp/53", "2a01:4f8::/32"])).unwrap();
    assert_ne!(picture(), before);
    firewall.cleanup().unwrap();
    assert_eq!(picture(), before);
    // Nothing there is no error, and the same driver can begin again.
    firewall.cleanup().unwrap();
    assert!(firewall.install().unwrap().is_empty());
    firewall.replace(&elements(&["8.8.8.8/32"])).unwrap();
    firewall.cleanup().unwrap();
    assert_eq!(picture(), before);
}

#[test]
fn clean_up_goes_on_past_what_it_cannot_remove_and_names_it() {
    let _net = Net::new();
    let mut firewall = installed();
    command("iptables", &["-A", "INPUT", "-m", "set", "--match-set", "og4i", "src", "-j", "ACCEPT"]);
    let Err(FirewallError::Cleanup(left)) = firewall.cleanup() else { panic!("og4i is in use") };
    assert_eq!(left, ["destroy ipset og4i: the set is in use by a rule"]);
    assert_eq!(command("ipset", &["list", "-n"]).trim(), "og4i");
}

#[test]
fn sets_of_another_kind_give_way_at_installation() {
    let net = Net::new();
    command("ipset", &["create", "og4o", "hash:ip"]);
    command("ipset", &["create", "og6i", "hash:net", "family", "inet6"]);
    command("iptables", &["-N", "OG-FORWARD"]);
    command("iptables", &["-A", "OG-FORWARD", "-m", "set", "--match-set", "og4o", "dst", "-j", "ACCEPT"]);
    let mut firewall = installed();
    firewall.replace(&elements(&["8.8.8.8/32"])).unwrap();
    let beacon = net.internet.udp("8.8.8.8", 7);
    assert!(net.passes(&net.internet.udp("8.8.8.8", 8), &beacon).is_some());
    assert_eq!(firewall.repair().unwrap(), []);
}

#[test]
fn members_that_would_open_private_space_are_not_adopted() {
    let _net = Net::new();
    let mut first = installed();
    first.replace(&elements(&["8.8.8.8/32"])).unwrap();
    drop(first);
    command("ipset", &["add", "og4o", "10.0.0.0/8"]);
    command("ipset", &["add", "og4op", "8.8.4.4,sctp:80"]);
    let mut second = KernelFirewall::new(&KernelOptions::default()).unwrap();
    assert_eq!(second.install().unwrap(), elements(&["8.8.8.8/32"]));
    assert!(!command("ipset", &["list", "og4o"]).contains("10.0.0.0"));
    assert!(!command("ipset", &["list", "og4op"]).contains("8.8.4.4"));
}

#[test]
fn a_set_that_cannot_grow_keeps_nothing_revoked_open_and_holds_up_no_other_set() {
    let _net = Net::new();
    let mut firewall =
        KernelFirewall::new(&KernelOptions { set_capacity: 2, ..KernelOptions::default() }).unwrap();
    firewall.install().unwrap();
    let revoked = ["8.8.8.8/32", "9.9.9.9/32 udp/53", "2a01:4f8::/32"];
    firewall.replace(&elements(&revoked)).unwrap();
    // A set that is in use cannot make way for the bigger table.
    command("ipset", &["create", "og4i-new", "hash:net"]);
    command("iptables", &["-A", "INPUT", "-m", "set", "--match-set", "og4i-new", "src", "-j", "DROP"]);
    let too_many = ["8.8.4.1/32", "8.8.4.2/32", "8.8.4.3/32"];
    let in_set = |set: &str, member: &str| {
        std::process::Command::new("ipset").args(["test", set, member]).output().unwrap().status.success()
    };
    let mut added: Vec<_> = elements(&too_many).into_iter().collect();
    added.push(element("2a01:4f9::/32"));
    let revoked = elements(&revoked).into_iter().collect();
    let change = allowlist::Change { revision: 2, added, revoked, ..Default::default() };
    let error = firewall.apply(&change).unwrap_err().to_string();
    assert!(error.contains("og4i-new"), "{error}");
    let closed = |set: &str, member: &str| assert!(!in_set(set, member), "{member} is still in {set}");
    for (set, member) in [("og4o", "8.8.8.8"), ("og4op", "9.9.9.9,udp:53"), ("og6o", "2a01:4f8::/32")] {
        closed(set, member);
    }
    assert!(in_set("og6o", "2a01:4f9::/32"));

    let mut wanted = elements(&too_many);
    wanted.insert(element("9.9.9.9/32 udp/54"));
    firewall.replace(&wanted).unwrap_err();
    closed("og6o", "2a01:4f9::/32");
    assert!(in_set("og4op", "9.9.9.9,udp:54"));
    command("iptables", &["-F", "INPUT"]);
    destroy("og4i-new");
    firewall.replace(&wanted).unwrap();
    assert!(in_set("og4o", "8.8.4.3"));
    assert_eq!(firewall.repair().unwrap(), []);
}

/// Runs the real program, which lacks its token; gives what it said.
fn failing_start() -> String {
    let nowhere = tempfile::tempdir().unwrap();
    let path = |name: &str| nowhere.path().join(name);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_outputguard-gateway"))
        .args(["--server", "wss://127.0.0.1:1/ws", "--metrics", "0.0.0.0:0"])
        .arg("--token-file")
        .arg(path("token"))
        .arg("--ca-file")
        .arg(path("ca.pem"))
        .arg("--state-dir")
        .arg(path("state"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_gateway_that_cannot_start_leaves_a_booted_machine_closed_and_a_working_one_alone() {
    let net = Net::new();
    let said = failing_start();
    assert!(said.contains("read token"), "{said}");
    for program in ["iptables", "ip6tables"] {
        assert!(command(program, &["-S", "FORWARD"]).contains("-A FORWARD -j OG-FORWARD\n"));
        assert_eq!(command(program, &["-S", "OG-FORWARD"]), "-N OG-FORWARD\n-A OG-FORWARD -j DROP\n");
    }

    let mut firewall = installed();
    firewall.replace(&elements(&["8.8.8.8/32"])).unwrap();
    let before = command("iptables-save", &["-t", "filter"]).lines().count();
    assert!(failing_start().contains("read token"));
    assert_eq!(command("iptables-save", &["-t", "filter"]).lines().count(), before);
    let beacon = net.internet.udp("8.8.8.8", 7);
    assert!(net.passes(&net.internet.udp("8.8.8.8", 8), &beacon).is_some());
    assert_eq!(firewall.repair().unwrap(), []);
}

#[test]
fn a_host_without_forwarding_is_told_the_command() {
    let _net = Net::new();
    check_host().and_then(|()| check_forwarding()).unwrap();
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
    let error = check_forwarding().unwrap_err().to_string();
    assert_eq!(
        error,
        "forwarding is off; run `sysctl -w net.ipv4.ip_forward=1` and keep it in /etc/sysctl.d/"
    );
}

#[test]
fn what_somebody_took_out_of_a_large_set_is_seen_soon() {
    let _net = Net::new();
    let mut firewall = installed();
    // So many that they are not counted each time.
    let wanted = many(250_000);
    let one = wanted.first().unwrap().prefix.addr().to_string();
    firewall.replace(&wanted).unwrap();
    let seen = |firewall: &mut KernelFirewall| {
        until("it to be seen", PATIENCE, || {
            let found = firewall.repair_what_was_seen().unwrap();
            found.into_iter().next().map(|repair| repair.what)
        })
    };
    assert_eq!(firewall.repair_what_was_seen().unwrap(), []);
    for set in ["og4o", "og4i"] {
        command("ipset", &["del", set, &one]);
        assert_eq!(seen(&mut firewall), format!("ipset {set}: {one}/32 was missing"));
    }
    command("ipset", &["flush", "og4o"]);
    assert!(seen(&mut firewall).contains("og4o: "));
    assert_eq!(firewall.repair().unwrap(), []);
}

/// What the gateway's loop calls: chains are compared by another thread.
#[test]
fn what_somebody_broke_is_seen_and_repaired_soon_although_rules_are_not_listed_each_time() {
    let net = Net::new();
    let mut firewall = installed();
    firewall.replace(&elements(&["8.8.8.8/32", "9.9.9.9/32 udp/53"])).unwrap();
    let beacon = net.internet.udp("8.8.8.8", 7);
    let unlisted = net.internet.udp("9.9.9.9", 99);
    assert_eq!(firewall.repair_what_was_seen().unwrap(), []);
    for (sabotage, name) in [
        ("-I OG-FORWARD 1 -j ACCEPT", "filter OG-FORWARD (v4): rules were not ours"),
        ("-D FORWARD -j OG-FORWARD", "filter FORWARD (v4): jump to OG-FORWARD was missing"),
        ("-t nat -F OG-NAT", "nat OG-NAT (v4): rules were not ours"),
    ] {
        command("iptables", &sabotage.split(' ').collect::<Vec<_>>());
        let found = until(sabotage, PATIENCE, || {
            Some(firewall.repair_what_was_seen().unwrap()).filter(|found| !found.is_empty())
        });
        assert_eq!(found.iter().map(|repair| repair.what.as_str()).collect::<Vec<_>>(), [name]);
        assert!(net.passes(&unlisted, &beacon).is_none(), "{sabotage}");
        assert!(net.passes(&net.internet.udp("9.9.9.9", 53), &beacon).is_some(), "{sabotage}");
    }
    // Sets are compared by the call itself.
    command("ipset", &["del", "og4o", "8.8.8.8"]);
    assert_eq!(firewall.repair_what_was_seen().unwrap().len(), 1);
    assert_eq!(firewall.repair_what_was_seen().unwrap(), []);
}

#[test]
fn a_set_that_counts_nothing_in_the_place_of_ours_is_seen_although_only_types_are_asked_for_each_time() {
    let net = Net::new();
    let mut firewall = installed();
    firewall.replace(&elements(&["8.8.8.8/32"])).unwrap();
    firewall.repair_what_was_seen().unwrap();
    assert_eq!(firewall.repair_what_was_seen().unwrap(), []);
    command("ipset", &["create", "other", "hash:net", "family", "inet"]);
    command("ipset", &["add", "other", "8.8.8.8"]);
    command("ipset", &["swap", "other", "og4o"]);
    until("the set to give way", PATIENCE, || {
        let found = firewall.repair_what_was_seen().unwrap();
        found.iter().any(|repair| repair.what == "ipset og4o was of another kind").then_some(())
    });
    assert!(command("ipset", &["list", "-t", "og4o"]).contains("counters"));
    let target = net.internet.udp("8.8.8.8", 9);
    assert!(net.passes(&target, &net.internet.udp("8.8.8.8", 7)).is_some());
    assert_eq!(firewall.repair_what_was_seen().unwrap(), []);
}
