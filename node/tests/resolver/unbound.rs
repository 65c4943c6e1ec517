//! Debian's unbound, which answers over TLS and HTTPS with a certificate of a CA made for the test.

use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::daemon::{Daemon, free_port};

/// The name in the certificate.
pub(crate) const SERVER_NAME: &str = "dns.example.test";
/// Where it answers over HTTPS.
pub(crate) const PATH: &str = "/dns-query";

/// The running server.
pub(crate) struct Unbound {
    /// Ends before its directory goes.
    _daemon: Daemon,
    directory: tempfile::TempDir,
    pub(crate) tls_port: u16,
    pub(crate) https_port: u16,
}

impl Unbound {
    /// Starts it with `records` in zone-file form, and waits until it takes connections.
    pub(crate) fn start(records: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (tls_port, https_port) = (free_port(), free_port());
        make_certificates(directory.path());
        let data: String = records.iter().map(|record| format!("  local-data: \"{record}\"\n")).collect();
        let text = format!(
            "server:\n  directory: \"{dir}\"\n  chroot: \"\"\n  username: \"\"\n  pidfile: \"\"\n  use-syslog: no\n  \
             do-daemonize: no\n  num-threads: 1\n  interface: 127.0.0.1@{tls_port}\n  interface: 127.0.0.1@{https_port}\n  \
             tls-port: {tls_port}\n  https-port: {https_port}\n  http-endpoint: \"{PATH}\"\n  \
             tls-service-key: \"server.key\"\n  tls-service-pem: \"server.pem\"\n  incoming-num-tcp: 200\n  \
             local-zone: \"test.\" static\n{data}remote-control:\n  control-enable: no\n",
            dir = directory.path().display(),
        );
        let config = directory.path().join("unbound.conf");
        std::fs::write(&config, text).expect("write unbound.conf");
        let mut unbound = Command::new("unbound");
        unbound.args(["-d", "-c"]).arg(&config);
        let answers = |port: u16| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
        let daemon = Daemon::start(unbound, || answers(tls_port) && answers(https_port));
        Self { _daemon: daemon, directory, tls_port, https_port }
    }

    /// The CA that its certificate is from.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }
}

/// A CA in `ca.pem`, and what it vouches for in `server.pem` and `server.key`.
pub(crate) fn make_certificates(directory: &Path) {
    let write = |file: &str, text: String| {
        std::fs::write(directory.join(file), text).expect("write a certificate");
    };
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::new(Vec::new()).expect("parameters");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    write("ca.pem", ca.self_signed(&ca_key).expect("a CA").pem());
    let key = KeyPair::generate().expect("a key");
    let server = CertificateParams::new(vec![SERVER_NAME.to_owned()]).expect("parameters");
    let issuer = Issuer::new(ca, ca_key);
    write("server.pem", server.signed_by(&key, &issuer).expect("a certificate").pem());
    write("server.key", key.serialize_pem());
}
