//! Processes of the real binary on loopback.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// How long a test waits for something that must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// A loopback address that no other test uses, so that fixed ports are free.
pub(crate) fn own_address() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(100);
    let [.., high, low] = std::process::id().to_be_bytes();
    format!("127.{high}.{low}.{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A command without anything of this process's environment that the server reads.
pub(crate) fn server() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outputguard-server"));
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("OUTPUTGUARD_") {
            command.env_remove(key);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// A server process; killed when dropped.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it says on stderr goes to `log`.
    pub(crate) fn start(mut command: Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).unwrap();
        Self { child: command.stderr(file).spawn().unwrap(), log: log.to_owned() }
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Waits for the end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the process does not end:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Configuration of one node at `address` with everything below `dir`.
pub(crate) fn config(dir: &Path, address: &str, name: &str, peers: &[String]) -> PathBuf {
    let file = dir.join(format!("{name}.yaml"));
    let dir = dir.display();
    let text = format!(
        "node: {{ name: {name}, data_dir: {dir}/{name} }}\n\
         listen: {{ api: \"{address}:8080\", feed: \"{address}:8443\", raft: \"{address}:8081\" }}\n\
         cluster: {{ advertise: \"{address}:8081\", peers: {peers:?} }}\n\
         tls: {{ dir: {dir}/tls }}\n\
         auth: {{ admin_token_file: {dir}/{name}.token }}\n\
         resolver: {{ upstreams: [\"{address}:53\"] }}\n"
    );
    std::fs::write(&file, text).unwrap();
    file
}

/// Runs a server that must not start, and returns what it says.
pub(crate) fn refused(config: &Path, dir: &Path) -> String {
    let mut command = server();
    command.arg("--config").arg(config);
    let mut process = Process::start(command, &dir.join("stderr"));
    let status = process.end();
    let said = process.said();
    assert_eq!(status.code(), Some(1), "{said}");
    let last = said.lines().filter(|line| line.starts_with("outputguard-server: ")).collect::<Vec<_>>();
    assert_eq!(last.len(), 1, "one readable message: {said}");
    assert!(!said.contains("panicked"), "{said}");
    // Some messages have several lines (a snippet of the file).
    said[said.find("outputguard-server: ").unwrap()..].to_owned()
}

/// Takes a port.
pub(crate) fn occupy(address: &str) -> TcpListener {
    TcpListener::bind(address).unwrap()
}
