//! The real gateway process on a machine of a row, out of every server's reach: it enforces what it stored or what it
//! finds in the kernel, and does all it does beside that.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::{Binaries, Namespace, Process, Program, Run};

use crate::usage::Usage;

const BINARY: &str = "outputguard-gateway";
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9_900);
/// Nobody listens there.
const SERVER: &str = "wss://127.0.0.1:9/ws";
/// With a million elements there is much to read.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// A running gateway.
#[derive(Debug)]
pub(crate) struct Daemon {
    process: Process,
    namespace: Arc<Namespace>,
}

impl Daemon {
    /// Starts it with the state in `state` and waits until its firewall stands.
    pub(crate) fn start(run: &Run, namespace: &Arc<Namespace>, name: &str, state: &Path) -> Result<Self> {
        let file = |suffix: &str, text: &str| -> Result<PathBuf> {
            let path = run.directory().join(format!("{name}.{suffix}"));
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            Ok(path)
        };
        let token = file("token", &"0".repeat(64))?;
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).context("protect the token")?;
        let certificate =
            rcgen::generate_simple_self_signed([name.to_owned()]).context("make a certificate")?;
        let ca = file("ca", &certificate.cert.pem())?;
        let config = format!(
            "name: {name}\nservers: [\"{SERVER}\"]\ntoken_file: {}\nca_file: {}\nstate_dir: {}\nmetrics: \"{METRICS}\"\n",
            token.display(),
            ca.display(),
            state.display()
        );
        let config = file("yaml", &config)?;
        let binary = Binaries::find()?.path(BINARY)?;
        let program = Program::new(name, binary, namespace, run.directory())
            .arguments(["--config".into(), config.into_os_string()]);
        let mut process = Process::start(program)?;
        process.wait_ready(READY_TIMEOUT, || {
            namespace.enter(|| TcpStream::connect(METRICS).map(drop).context("connect to its metrics"))
        })?;
        Ok(Self { process, namespace: Arc::clone(namespace) })
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of(self.process.pid().context("the gateway does not run")?)
    }

    /// Its metrics page.
    pub(crate) fn metrics(&self) -> Result<String> {
        use std::io::{Read as _, Write as _};
        self.namespace.enter(|| {
            let mut stream = TcpStream::connect(METRICS).context("connect to its metrics")?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").context("ask for its metrics")?;
            let mut page = String::new();
            stream.read_to_string(&mut page).context("read its metrics")?;
            Ok(page)
        })
    }

    /// Ends it the polite way.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.process.stop()
    }
}
