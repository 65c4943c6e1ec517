//! The real program on the real kernel: ended and killed under traffic, and as a user without any other power.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use allowlist::{Digest, feed::FeedState};
use gateway::firewall::{Firewall, KernelFirewall, KernelOptions};
use gateway::state::StateDir;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, chown};

use crate::common::{CLUSTER, Cluster, DEADLINE};
use crate::counting::under_traffic;
use crate::net::{self, CLIENT, Net, counted, element, elements, exchange};
use crate::passing::is_prohibited;

/// `nobody` of Debian.
const NOBODY: u32 = 65_534;
/// Runs its arguments as that user with the two capabilities and no way to get others, with a /run of its own.
const AS_NOBODY: &str = "mount -t tmpfs none /run && mkdir -m 700 /run/outputguard && chown 65534 /run/outputguard && \
    exec setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs --bounding-set=-all,+net_admin,+net_raw \
    --inh-caps=-all,+net_admin,+net_raw --ambient-caps=-all,+net_admin,+net_raw \"$0\" \"$@\"";

/// A state file with these elements.
fn store(dir: &Path, listed: &[&str]) {
    let elements = elements(listed);
    let mut digest = Digest::default();
    elements.iter().for_each(|element| digest.toggle(element));
    let mut store = StateDir::open(dir).unwrap().store(&prometheus::Registry::new()).unwrap();
    store.append_whole(FeedState { cluster: CLUSTER, revision: 7, digest }, &elements);
    store.close();
}

fn arguments(cluster: &Cluster, state_dir: &Path) -> Vec<OsString> {
    let fixed = ["--server", "wss://127.0.0.1:1/ws", "--metrics", "127.0.0.1:9900"].map(OsString::from);
    fixed.into_iter().chain(cluster.arguments(state_dir)).collect()
}

fn started(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits until it says that it enforces.
fn wait_until_ready(child: &mut Child) {
    net::until("the gateway to be ready", DEADLINE, || {
        assert_eq!(child.try_wait().unwrap(), None, "it ended");
        let page = Command::new("curl").args(["-s", "http://127.0.0.1:9900/readyz"]).output().unwrap().stdout;
        String::from_utf8(page).unwrap().contains("\"ready\":true").then_some(())
    });
}

fn end(child: &mut Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    child.wait().unwrap();
}

#[test]
fn twenty_restarts_and_crashes_lose_no_packet_and_no_count() {
    let net = Net::new();
    net.gateway.run(|| net::command("ip", &["link", "set", "lo", "up"]));
    let (cluster, state) = (Cluster::new(), tempfile::tempdir().unwrap());
    store(state.path(), &["8.8.8.8/32", "9.9.9.9/32 udp/53"]);
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outputguard-gateway"));
        command.args(arguments(&cluster, state.path()));
        let mut child = started(command);
        wait_until_ready(&mut child);
        child
    };
    let mut gateway = start();
    let sent = under_traffic(&net, |flowing| {
        for round in 0..20 {
            end(&mut gateway, if round % 2 == 0 { Signal::SIGTERM } else { Signal::SIGKILL });
            flowing();
            gateway = start();
            flowing();
        }
    });
    end(&mut gateway, Signal::SIGTERM);
    let mut firewall = KernelFirewall::new(&KernelOptions::default()).unwrap();
    firewall.install().unwrap();
    let counters = counted(&mut firewall, element("8.8.8.8/32"));
    assert_eq!((counters.packets_out, counters.packets_in), (sent, sent));
}

#[test]
fn a_user_with_two_capabilities_and_no_other_power_runs_a_gateway() {
    let net = Net::new();
    net.gateway.run(|| net::command("ip", &["link", "set", "lo", "up"]));
    // Not in the way of whoever may not enter the directory that this was built in.
    let (cluster, home) = (Cluster::new(), tempfile::tempdir().unwrap());
    let (state, program) = (home.path().join("state"), home.path().join("gateway"));
    std::fs::create_dir(&state).unwrap();
    store(&state, &["8.8.8.8/32"]);
    std::fs::copy(env!("CARGO_BIN_EXE_outputguard-gateway"), &program).unwrap();
    let files = std::fs::read_dir(&state).unwrap().map(|file| file.unwrap().path());
    let own = [home.path().to_owned(), state.clone(), cluster.token_file(), cluster.ca_file()];
    let cluster_dir = cluster.ca_file().parent().unwrap().to_owned();
    for path in files.chain(own).chain([cluster_dir]) {
        chown(&path, Some(Uid::from_raw(NOBODY)), Some(Gid::from_raw(NOBODY))).unwrap();
    }
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", AS_NOBODY]).arg(&program).args(arguments(&cluster, &state));
    let mut gateway = started(command);
    wait_until_ready(&mut gateway);
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.id())).unwrap();
    assert!(status.contains("Uid:\t65534\t65534\t65534\t65534"), "{status}");
    assert!(status.contains("CapEff:\t0000000000003000"), "{status}");
    let (client, server) = (net.client.udp(CLIENT, 0), net.internet.udp("8.8.8.8", 9));
    assert_eq!(exchange(&client, &server).ip().to_string(), net::GATEWAY);
    assert!(is_prohibited(&net.client, "9.9.9.9:80"));
    // It mends what others break, as root would.
    net::command("iptables", &["-F", "OG-FORWARD"]);
    net::until("the chain to be repaired", DEADLINE, || {
        net::command("iptables", &["-S", "OG-FORWARD"]).contains("og4o").then_some(())
    });
    end(&mut gateway, Signal::SIGTERM);
}
