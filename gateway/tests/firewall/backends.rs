//! What only the nft backend of iptables can show: its events, and leftovers in the other one.

use std::io::{BufRead, BufReader};

use gateway::firewall::Firewall;

use crate::net::{Net, command, elements};
use crate::upkeep::installed;

#[test]
fn chains_of_ours_in_the_other_backend_are_reported_and_removed() {
    let _net = Net::new();
    let mut firewall = installed();
    assert!(firewall.leftovers().is_empty());
    command("iptables-legacy", &["-N", "OG-FORWARD"]);
    command("iptables-legacy", &["-A", "OG-FORWARD", "-j", "DROP"]);
    command("iptables-legacy", &["-A", "FORWARD", "-j", "OG-FORWARD"]);
    assert!(firewall.leftovers()[0].starts_with("iptables-legacy still holds chains of ours"));
    firewall.cleanup().unwrap();
    assert!(firewall.leftovers().is_empty());
    assert!(!command("iptables-legacy", &["-S"]).contains("OG-"));
}

#[test]
fn rules_of_a_former_version_are_exchanged_without_a_closed_moment() {
    let _net = Net::new();
    installed().replace(&elements(&["8.8.8.8/32", "9.9.9.9/32 udp/53"])).unwrap();
    let rules = command("iptables", &["-S", "OG-FORWARD"]);
    command("iptables", &["-D", "OG-FORWARD", "5"]);
    // Every rule that comes and goes, as the kernel tells it, line by line and not for ever.
    let mut monitor = std::process::Command::new("timeout")
        .args(["20", "stdbuf", "-oL", "xtables-monitor", "--event", "-4"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(monitor.stdout.take().unwrap()).lines().map(Result::unwrap);
    let listening = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The mark, until the monitor that is starting has seen one.
            for _ in 0..1_000 {
                if listening.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                command("iptables", &["-A", "INPUT", "-s", "1.2.3.4", "-j", "ACCEPT"]);
            }
        });
        let seen = lines.find(|line| line.contains("1.2.3.4"));
        listening.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(seen.is_some(), "the monitor says nothing");
    });
    installed();
    command("iptables", &["-A", "INPUT", "-s", "4.3.2.1", "-j", "ACCEPT"]);
    let drops = lines
        .take_while(|line| !line.contains("4.3.2.1"))
        .filter(|line| line.contains("-A OG-FORWARD -j DROP") && !line.contains("-D "))
        .count();
    // Not by SIGKILL, which would leave its child behind.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(monitor.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    monitor.wait().unwrap();
    assert_eq!(drops, 1, "the drop at the end of the new rules, and none before");
    assert_eq!(command("iptables", &["-S", "OG-FORWARD"]), rules);
}
