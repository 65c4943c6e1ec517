//! Debian's knot with a zone of the test's own on a loopback port.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const READY_TIMEOUT: Duration = Duration::from_secs(30);
const ZONE: &str = "example.test";

/// The running authority.
pub(crate) struct Knot {
    child: Child,
    socket: PathBuf,
    pub(crate) address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Knot {
    /// Serves `example.test` with `records` in zone-file form.
    pub(crate) fn start(records: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let base = directory.path().display();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let socket = directory.path().join("knot.sock");
        let mut zone =
            format!("{ZONE}. 60 SOA ns.{ZONE}. admin.{ZONE}. 1 60 60 86400 1\n{ZONE}. 60 NS ns.{ZONE}.\n");
        writeln!(zone, "ns.{ZONE}. 60 A 127.0.0.1\n{records}").expect("write to a text");
        std::fs::write(directory.path().join("zone"), zone).expect("write the zone");
        let config = directory.path().join("knot.conf");
        let text = format!(
            "server:\n    rundir: \"{base}\"\n    listen: {ip}@{port}\n    udp-workers: 1\n    tcp-workers: 1\n    background-workers: 1\n\
             control:\n    listen: \"{socket}\"\ndatabase:\n    storage: \"{base}/db\"\nlog:\n  - target: stderr\n    any: warning\n\
             template:\n  - id: default\n    storage: \"{base}\"\n    zonefile-sync: -1\n    zonefile-load: whole\n    journal-content: none\n\
             zone:\n  - domain: {ZONE}\n    file: zone\n",
            ip = address.ip(),
            port = address.port(),
            socket = socket.display(),
        );
        std::fs::write(&config, text).expect("write knot.conf");
        let child = Command::new("/usr/sbin/knotd")
            .arg("-c")
            .arg(&config)
            .stdout(Stdio::null())
            .spawn()
            .expect("start knotd (scripts/install-packages test)");
        let mut knot = Self { child, socket, address, _directory: directory };
        knot.wait_ready();
        knot
    }

    /// Changes the zone: each line is one of knotc's `zone-set` or `zone-unset` without the zone's name.
    pub(crate) fn change(&self, lines: &[&str]) {
        self.control(&["zone-begin", ZONE]);
        for line in lines {
            let mut words = line.split(' ');
            let verb = words.next().expect("a verb");
            self.control(&[&[verb, ZONE][..], &words.collect::<Vec<_>>()].concat());
        }
        self.control(&["zone-commit", ZONE]);
    }

    fn control(&self, arguments: &[&str]) {
        assert!(self.try_control(arguments), "knotc {arguments:?} failed");
    }

    fn try_control(&self, arguments: &[&str]) -> bool {
        let mut knotc = Command::new("knotc");
        knotc.arg("--blocking").arg("-s").arg(&self.socket).args(arguments);
        knotc.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    fn wait_ready(&mut self) {
        let deadline = Instant::now() + READY_TIMEOUT;
        while !self.try_control(&["zone-read", ZONE, "@", "SOA"]) {
            let ended = self.child.try_wait().expect("look at knotd");
            assert!(ended.is_none(), "knotd ended: {ended:?}");
            assert!(Instant::now() < deadline, "knotd is not ready within {READY_TIMEOUT:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Knot {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

fn free_port() -> u16 {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind a port");
    socket.local_addr().expect("a bound port").port()
}
