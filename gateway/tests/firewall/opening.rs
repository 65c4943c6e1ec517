//! Pairs of sets have rules when they hold something.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use allowlist::Change;
use gateway::firewall::{Firewall, KernelFirewall, KernelOptions};

use crate::counting::under_traffic;
use crate::net::{Net, command, counted, element, elements};
use crate::tools::BrokenTools;
use crate::upkeep::installed;

/// Longer than rules stay for sets that hold nothing.
const A_WHILE: Duration = Duration::from_secs(61);

/// How often rules come and go.
const ROUNDS: u64 = 5;
/// Sent beside each probe to what is listed.
const BEACONS: u64 = 3;

/// The sets that the rules of IPv4 and IPv6 ask for, but those that are always asked.
fn asked() -> BTreeSet<String> {
    let mut rules = String::new();
    for program in ["iptables", "ip6tables"] {
        rules += &command(program, &["-S", "OG-FORWARD"]);
        rules += &command(program, &["-t", "nat", "-S", "OG-NAT"]);
    }
    let mut words = rules.split_whitespace();
    let mut asked = BTreeSet::new();
    while words.any(|word| word == "--match-set") {
        asked.extend(
            words.next().filter(|set| !set.ends_with("cut") && !set.ends_with("deny")).map(str::to_owned),
        );
    }
    asked
}

fn sets(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn change(added: &[&str], revoked: &[&str], retired: &[&str]) -> Change {
    let elements = |texts: &[&str]| elements(texts).into_iter().collect();
    Change { revision: 1, added: elements(added), revoked: elements(revoked), retired: elements(retired) }
}

#[test]
fn rules_come_before_the_first_element_and_go_after_the_last_and_no_packet_is_lost_or_counted_twice() {
    let net = Net::new();
    let mut firewall = installed();
    assert_eq!(asked(), sets(&[]));
    firewall.replace(&elements(&["8.8.8.8/32"])).unwrap();
    assert_eq!(asked(), sets(&["og4i", "og4o"]));
    let beacon = net.internet.udp("8.8.8.8", 7);
    let sent = under_traffic(&net, |flowing| {
        for _ in 0..ROUNDS {
            firewall.apply(&change(&["9.9.9.9/32 udp/53", "2a01:4f8::/32"], &[], &[])).unwrap();
            assert_eq!(asked(), sets(&["og4i", "og4o", "og4ip", "og4op", "og6i", "og6o"]));
            assert_eq!(firewall.repair().unwrap(), []);
            assert!(net.passes(&net.internet.udp("9.9.9.9", 53), &beacon).is_some());
            assert!(net.passes(&net.internet.udp("2a01:4f8::1", 53), &beacon).is_some());
            firewall.apply(&change(&[], &["2a01:4f8::/32"], &["9.9.9.9/32 udp/53"])).unwrap();
            flowing();
            // The first look ends the draining, which nothing flows in, a later one takes the rules away.
            let now = Instant::now();
            firewall.end_draining(now).unwrap();
            assert!(asked().is_superset(&sets(&["og4op", "og4dop", "og6o"])));
            firewall.end_draining(now + 10 * A_WHILE).unwrap();
            firewall.end_draining(now + 11 * A_WHILE).unwrap();
            firewall.end_draining(now + 12 * A_WHILE).unwrap();
            assert_eq!(asked(), sets(&["og4i", "og4o"]));
            assert!(net.passes(&net.internet.udp("9.9.9.9", 53), &beacon).is_none());
            assert_eq!(firewall.repair().unwrap(), []);
            flowing();
        }
    });
    let counters = counted(&mut firewall, element("8.8.8.8/32"));
    assert_eq!((counters.packets_out, counters.packets_in), (sent + ROUNDS * 3 * BEACONS, sent));
}

#[test]
fn a_process_goes_on_with_the_rules_of_the_former_and_takes_away_what_nothing_needs_later() {
    let net = Net::new();
    let mut former = installed();
    former.replace(&elements(&["8.8.8.8/32", "9.9.9.9/32 udp/53"])).unwrap();
    let beacon = net.internet.udp("8.8.8.8", 7);
    let sent = under_traffic(&net, |flowing| {
        former.apply(&change(&[], &["9.9.9.9/32 udp/53"], &[])).unwrap();
        drop(former);
        let before = asked();
        let mut next = installed();
        flowing();
        assert_eq!(asked(), before);
        let now = Instant::now();
        next.replace(&elements(&["8.8.8.8/32"])).unwrap();
        next.end_draining(now).unwrap();
        next.end_draining(now + A_WHILE).unwrap();
        assert_eq!(asked(), sets(&["og4i", "og4o"]));
        assert!(net.passes(&net.internet.udp("9.9.9.9", 53), &beacon).is_none());
        flowing();
    });
    let mut last = KernelFirewall::new(&KernelOptions::default()).unwrap();
    last.install().unwrap();
    assert_eq!(counted(&mut last, element("8.8.8.8/32")).packets_in, sent);
}

/// One repair in the words of what it found.
fn seen_and_repaired(firewall: &mut KernelFirewall) -> Vec<String> {
    firewall.repair_what_was_seen().unwrap().into_iter().map(|repair| repair.what).collect()
}

#[test]
fn rules_that_cannot_be_written_keep_nothing_revoked_open_and_are_written_later() {
    let net = Net::new();
    let mut firewall = installed();
    firewall.replace(&elements(&["8.8.8.8/32", "8.8.4.4/32"])).unwrap();
    let beacon = net.internet.udp("8.8.8.8", 7);
    let (old, new) = (net.internet.udp("8.8.4.4", 9), net.internet.udp("9.9.9.9", 53));
    let other_family = net.internet.udp("2a01:4f8::1", 53);
    let tools = BrokenTools::failing_on("og4op");
    let error =
        firewall.apply(&change(&["9.9.9.9/32 udp/53", "2a01:4f8::/32"], &["8.8.4.4/32"], &[])).unwrap_err();
    assert!(error.to_string().starts_with("write nat OG-NAT (v4)"), "{error}");
    assert!(net.passes(&other_family, &beacon).is_some(), "what the failure is nothing to");
    // However often it is tried: what is listed and has rules, as the beacon, passes all the while.
    for _ in 0..3 {
        assert!(net.passes(&old, &beacon).is_none(), "what is revoked");
        assert!(net.passes(&new, &beacon).is_none(), "what has no rules");
        let error = firewall.repair_what_was_seen().unwrap_err();
        assert!(error.to_string().starts_with("write nat OG-NAT (v4)"), "{error}");
    }
    drop(tools);
    assert_eq!(seen_and_repaired(&mut firewall), ["rules of a pair of sets were missing"]);
    assert!(net.passes(&new, &beacon).is_some());
    assert!(net.passes(&old, &beacon).is_none());
    assert_eq!(firewall.repair().unwrap(), []);
}

#[test]
fn rules_that_could_not_be_written_come_with_the_next_change() {
    let net = Net::new();
    let mut firewall = installed();
    firewall.replace(&elements(&["8.8.8.8/32", "8.8.4.4/32"])).unwrap();
    let beacon = net.internet.udp("8.8.8.8", 7);
    let new = net.internet.udp("9.9.9.9", 53);
    let tools = BrokenTools::failing_on("og4op");
    firewall.apply(&change(&["9.9.9.9/32 udp/53"], &[], &[])).unwrap_err();
    firewall.repair_what_was_seen().unwrap_err();
    assert!(net.passes(&new, &beacon).is_none());
    drop(tools);
    firewall.apply(&change(&["9.9.9.9/32 udp/53"], &[], &[])).unwrap();
    assert!(net.passes(&new, &beacon).is_some());
    // The same for what is to drain, and for the list as a whole.
    let tools = BrokenTools::failing_on("og4do");
    firewall.apply(&change(&[], &[], &["8.8.4.4/32"])).unwrap_err();
    assert!(!asked().contains("og4do"));
    drop(tools);
    firewall.replace(&elements(&["8.8.8.8/32", "9.9.9.9/32 udp/53"])).unwrap();
    assert!(asked().is_superset(&sets(&["og4do", "og4di"])));
    assert_eq!(firewall.repair().unwrap(), []);
}

#[test]
fn rules_of_which_a_part_was_written_are_written_again() {
    let net = Net::new();
    let mut firewall = installed();
    firewall.replace(&elements(&["8.8.8.8/32"])).unwrap();
    let (beacon, new) = (net.internet.udp("8.8.8.8", 7), net.internet.udp("9.9.9.9", 53));
    let tools = BrokenTools::failing_on("filter*og4op");
    let error = firewall.apply(&change(&["9.9.9.9/32 udp/53"], &[], &[])).unwrap_err();
    assert!(error.to_string().starts_with("write filter OG-FORWARD (v4)"), "{error}");
    firewall.apply(&change(&[], &["9.9.9.9/32 udp/53"], &[])).unwrap_err();
    assert!(net.passes(&new, &beacon).is_none());
    assert!(asked().contains("og4op"), "NAT was written");
    drop(tools);
    firewall.apply(&Change::default()).unwrap();
    assert_eq!(asked(), sets(&["og4i", "og4o"]));
    assert_eq!(firewall.repair().unwrap(), []);
}

#[test]
fn a_start_that_cannot_write_rules_for_all_sets_closes_nothing_that_is_open() {
    let net = Net::new();
    let mut former = installed();
    former.replace(&elements(&["8.8.8.8/32"])).unwrap();
    let (beacon, new) = (net.internet.udp("8.8.8.8", 7), net.internet.udp("9.9.9.9", 53));
    let tools = BrokenTools::failing_on("og4op");
    former.apply(&change(&["9.9.9.9/32 udp/53"], &[], &[])).unwrap_err();
    drop(former);
    let mut next = KernelFirewall::new(&KernelOptions::default()).unwrap();
    next.install().unwrap_err();
    assert!(net.passes(&new, &beacon).is_none());
    drop(tools);
    next.install().unwrap();
    assert!(net.passes(&new, &beacon).is_some());
}

#[test]
fn what_was_closed_because_nat_is_not_in_force_is_opened_by_repair_only() {
    let net = Net::new();
    let mut firewall = installed();
    firewall.replace(&elements(&["8.8.8.8/32", "9.9.9.9/32 udp/53"])).unwrap();
    firewall.apply(&change(&[], &["9.9.9.9/32 udp/53"], &[])).unwrap();
    let now = Instant::now();
    firewall.end_draining(now).unwrap();
    let tools = BrokenTools::failing_on("MASQUERADE");
    command("iptables", &["-F", "OG-FORWARD"]);
    command("iptables", &["-t", "nat", "-F", "OG-NAT"]);
    firewall.repair().unwrap_err();
    let closed = "-N OG-FORWARD\n-A OG-FORWARD -j DROP\n";
    let error = firewall.end_draining(now + A_WHILE).unwrap_err();
    assert!(error.to_string().contains("the rules of NAT are not ours"), "{error}");
    assert_eq!(command("iptables", &["-S", "OG-FORWARD"]), closed);
    drop(tools);
    firewall.repair().unwrap();
    firewall.end_draining(now + A_WHILE).unwrap();
    assert_eq!(asked(), sets(&["og4i", "og4o"]));

    command("iptables", &["-t", "nat", "-D", "POSTROUTING", "-j", "OG-NAT"]);
    let error = firewall.apply(&change(&["9.9.9.9/32 udp/53"], &["8.8.8.8/32"], &[])).unwrap_err();
    assert!(error.to_string().contains("jumps to our chains are not in their places"), "{error}");
    assert_eq!(asked(), sets(&["og4i", "og4o"]));
    let repaired = seen_and_repaired(&mut firewall);
    assert_eq!(repaired.len(), 2, "{repaired:?}");
    let (listed, revoked) = (net.internet.udp("9.9.9.9", 53), net.internet.udp("8.8.8.8", 9));
    assert!(net.passes(&revoked, &listed).is_none());
}
