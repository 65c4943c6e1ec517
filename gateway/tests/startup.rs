//! The real binary's first seconds: one clear message and an exit code for everything that keeps it from starting.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Cluster, DEADLINE};

fn program(cluster: &Cluster, state_dir: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outputguard-gateway"));
    command
        .env_clear()
        .args(["--firewall", "dry-run", "--server", "wss://127.0.0.1:1/ws", "--metrics", "127.0.0.1:0"])
        .args(cluster.arguments(state_dir))
        .args(more);
    command
}

/// A gateway over the real kernel, in a network namespace that ends with the calling thread.
fn on_the_kernel(cluster: &Cluster, state_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outputguard-gateway"));
    command.args(["--firewall", "kernel", "--server", "wss://127.0.0.1:1/ws", "--metrics", "0.0.0.0:0"]);
    command.args(cluster.arguments(state_dir));
    command
}

/// Moves the calling thread into a network namespace of its own, which forwards.
fn leave_the_machine() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{switch}"), "1").unwrap();
    }
}

/// Runs to the end; gives the last line of what it said.
fn refused(mut command: Command) -> String {
    let Output { status, stderr, .. } =
        ended(command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
    let said = String::from_utf8(stderr).unwrap();
    assert!(!status.success(), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    said.lines().last().unwrap_or_default().to_owned()
}

fn ended(mut child: Child) -> Output {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > DEADLINE {
            child.kill().unwrap();
            panic!("it did not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

struct Fixture {
    cluster: Cluster,
    state: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self { cluster: Cluster::new(), state: tempfile::tempdir().unwrap() }
    }

    fn refused(&self, more: &[&str]) -> String {
        refused(program(&self.cluster, self.state.path(), more))
    }
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let fixture = Fixture::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_outputguard-gateway"));
    command.env_clear().args([
        "--firewall",
        "dry-run",
        "--server",
        "wss://127.0.0.1:1/ws",
        "--metrics",
        &address,
    ]);
    command.args(fixture.cluster.arguments(fixture.state.path()));
    let said = refused(command);
    assert!(said.contains(&address) && said.contains("in use"), "{said}");
}

#[test]
fn an_unknown_key_in_the_file_is_named() {
    let fixture = Fixture::new();
    let file = fixture.state.path().join("gateway.yaml");
    std::fs::write(&file, "name: gw-1\nmetric: \"0.0.0.0:9900\"\n").unwrap();
    let mut command = program(&fixture.cluster, fixture.state.path(), &[]);
    let said = refused({
        command.arg("-server-conf-path").arg(&file);
        command
    });
    assert!(said.contains("metric") || said.contains("unknown"), "{said}");
}

#[test]
fn an_unreadable_token_is_named() {
    let fixture = Fixture::new();
    std::fs::remove_file(fixture.cluster.token_file()).unwrap();
    let said = fixture.refused(&[]);
    assert!(said.contains("read token") && said.contains("No such file"), "{said}");
    std::fs::write(fixture.cluster.token_file(), "\n").unwrap();
    assert!(fixture.refused(&[]).contains("must hold one line"));
}

#[test]
fn a_ca_file_that_is_none_is_named() {
    let fixture = Fixture::new();
    std::fs::write(fixture.cluster.ca_file(), "no certificate").unwrap();
    let said = fixture.refused(&[]);
    assert!(said.contains("CA certificate") && said.contains("ca.pem"), "{said}");
}

#[test]
fn a_state_directory_that_is_none_is_named() {
    let fixture = Fixture::new();
    let file = fixture.state.path().join("file");
    std::fs::write(&file, "").unwrap();
    leave_the_machine();
    let said = refused(on_the_kernel(&fixture.cluster, &file.join("state")));
    assert!(said.contains("state directory") && said.contains("file/state"), "{said}");
}

#[test]
fn a_plain_text_server_is_refused() {
    let said =
        Fixture::new().refused(&["-iptables-gateway", "-iptables-wss-server", "ws://127.0.0.1:8080/ws"]);
    assert!(said.contains("not encrypted") && said.contains("wss://"), "{said}");
}

#[test]
fn a_second_gateway_and_a_clean_up_refuse_while_the_first_runs_and_it_ends_on_sigterm() {
    let fixture = Fixture::new();
    leave_the_machine();
    let mut first = on_the_kernel(&fixture.cluster, fixture.state.path());
    let mut first = first.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while !fixture.state.path().join("state.log.1").exists() {
        // Until the first has its lock, the second would be the first.
        assert!(started.elapsed() < DEADLINE && first.try_wait().unwrap().is_none(), "the first must run");
        std::thread::sleep(Duration::from_millis(10));
    }
    // Its state directory is its own, the machine is not.
    let elsewhere = tempfile::tempdir().unwrap();
    let all = || String::from_utf8(Command::new("iptables-save").output().unwrap().stdout).unwrap();
    let rules_of =
        |saved: String| saved.lines().filter(|l| l.starts_with("-A")).map(str::to_owned).collect::<Vec<_>>();
    let before = rules_of(all());
    let mut second = on_the_kernel(&fixture.cluster, elsewhere.path());
    // Its rules would be others.
    second.args(["--internal-cidr", "10.0.0.0/8"]);
    let said = refused(second);
    assert!(said.contains("another gateway process is running in this network namespace"), "{said}");
    assert_eq!(rules_of(all()), before, "what stands is the first's");
    let clean_up = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outputguard-gateway"));
        command.arg("--cleanup").stderr(Stdio::piped()).stdout(Stdio::null());
        command
    };
    assert!(refused(clean_up()).contains("another gateway process is running"));
    let rules = || String::from_utf8(Command::new("iptables").arg("-S").output().unwrap().stdout).unwrap();
    assert!(rules().contains("OG-FORWARD"));

    let pid = nix::unistd::Pid::from_raw(i32::try_from(first.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(ended(first).status.success());
    assert!(ended(clean_up().spawn().unwrap()).status.success());
    assert!(!rules().contains("OG-FORWARD"));
}

/// Everybody may bind names of the abstract namespace.
#[test]
fn no_other_user_can_keep_the_gateway_from_starting() {
    use std::os::linux::net::SocketAddrExt;
    let fixture = Fixture::new();
    leave_the_machine();
    let name = std::os::unix::net::SocketAddr::from_abstract_name("outputguard-gateway").unwrap();
    let _bound = std::os::unix::net::UnixListener::bind_addr(&name).unwrap();
    let mut gateway = on_the_kernel(&fixture.cluster, fixture.state.path());
    let mut gateway = gateway.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while !fixture.state.path().join("state.log.1").exists() {
        assert!(started.elapsed() < DEADLINE && gateway.try_wait().unwrap().is_none(), "it must run");
        std::thread::sleep(Duration::from_millis(10));
    }
    gateway.kill().unwrap();
    gateway.wait().unwrap();
}

#[test]
fn a_gateway_that_finds_the_lock_taken_closes_forwarding_before_it_ends() {
    let fixture = Fixture::new();
    leave_the_machine();
    // Root does hold it, and does nothing.
    let _idle = gateway::single::OnlyGateway::become_it(fixture.state.path()).unwrap();
    let said = refused(on_the_kernel(&fixture.cluster, fixture.state.path()));
    assert!(said.contains("another gateway process is running"), "{said}");
    for program in ["iptables", "ip6tables"] {
        let rules = Command::new(program).arg("-S").output().unwrap().stdout;
        let rules = String::from_utf8(rules).unwrap();
        assert!(rules.contains("-A FORWARD -j OG-FORWARD\n-A OG-FORWARD -j DROP"), "{rules}");
    }
}

#[test]
fn clean_up_needs_no_forwarding() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_outputguard-gateway"));
    let child = command.arg("--cleanup").stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let Output { status, stderr, .. } = ended(child);
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
}

#[test]
fn a_missing_capability_is_named_with_the_way_to_give_it() {
    const CAP_NET_ADMIN: libc::c_ulong = 12;
    let fixture = Fixture::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_outputguard-gateway"));
    command.args(["--firewall", "kernel", "--server", "wss://127.0.0.1:1/ws", "--metrics", "127.0.0.1:0"]);
    command.args(fixture.cluster.arguments(fixture.state.path()));
    // SAFETY: both are single system calls, which are safe between fork and exec. The network namespace makes sure
    // that a gateway that did start would not touch this machine.
    unsafe {
        command.pre_exec(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
            match libc::prctl(libc::PR_CAPBSET_DROP, CAP_NET_ADMIN, 0, 0, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let said = refused(command);
    assert!(said.contains("CAP_NET_ADMIN is missing") && said.contains("AmbientCapabilities"), "{said}");
}

#[test]
fn a_dry_run_prints_its_plan_and_clean_up_without_root() {
    let fixture = Fixture::new();
    let mut command = program(&fixture.cluster, fixture.state.path(), &["--cleanup"]);
    let Output { status, stdout, .. } = ended(command.stdout(Stdio::piped()).spawn().unwrap());
    assert!(status.success());
    assert!(String::from_utf8(stdout).unwrap().contains("ipset destroy og4o"));
}
