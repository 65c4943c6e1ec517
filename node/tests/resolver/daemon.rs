//! A DNS server of Debian's, which ends with its test.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// The running program.
pub(crate) struct Daemon(Child);

impl Daemon {
    /// Starts it and waits until it is `ready`.
    pub(crate) fn start(mut command: Command, ready: impl Fn() -> bool) -> Self {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.stdout(Stdio::null()).spawn();
        let mut daemon = Self(child.unwrap_or_else(|error| {
            panic!("start {program} (scripts/install-packages test): {error}");
        }));
        let deadline = Instant::now() + READY_TIMEOUT;
        while !ready() {
            let ended = daemon.0.try_wait().expect("look at the program");
            assert!(ended.is_none(), "{program} ended: {ended:?}");
            assert!(Instant::now() < deadline, "{program} is not ready within {READY_TIMEOUT:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

/// A loopback port that is free over UDP and TCP at the moment.
pub(crate) fn free_port() -> u16 {
    loop {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind a port");
        let address = tcp.local_addr().expect("a bound port");
        if UdpSocket::bind(address).is_ok() {
            return address.port();
        }
    }
}
