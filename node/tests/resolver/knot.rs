//! Debian's knot with a zone of the test's own on a loopback port.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::daemon::{Daemon, free_port};

const ZONE: &str = "example.test";

/// The running authority.
pub(crate) struct Knot {
    /// Ends before its directory goes.
    _daemon: Daemon,
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
        let mut knotd = Command::new("/usr/sbin/knotd");
        knotd.arg("-c").arg(&config);
        let ready = || control(&socket, &["zone-read", ZONE, "@", "SOA"]);
        Self { _daemon: Daemon::start(knotd, ready), socket, address, _directory: directory }
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
        assert!(control(&self.socket, arguments), "knotc {arguments:?} failed");
    }
}

fn control(socket: &Path, arguments: &[&str]) -> bool {
    let mut knotc = Command::new("knotc");
    knotc.arg("--blocking").arg("-s").arg(socket).args(arguments);
    knotc.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
