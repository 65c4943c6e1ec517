//! A process of the lab: started inside a namespace, logged to a file, gone with us whatever happens.

mod spawn;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::namespace::Namespace;
use crate::wait;
use spawn::spawn;

/// How long a process may take to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of a log's end is read for [`Process::log_tail`].
const TAIL_BYTES: u64 = 64 * 1024;
/// Environment variables that configure our programs.
const OWN_VARIABLES: &str = "OUTPUTGUARD_";
/// How often a process is looked at while waiting for its end.
const EXIT_POLL_INTERVAL: Duration = Duration::from_millis(3);

/// What to start.
#[derive(Debug, Clone)]
pub struct Program {
    /// Name in messages, and of the log file.
    pub name: String,
    /// The executable.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Its environment beside ours.
    pub environment: Vec<(String, String)>,
    /// The namespace it runs in; `None` for the host's.
    pub namespace: Option<Arc<Namespace>>,
    /// Descriptors it inherits under the same number.
    pub inherits: Vec<Arc<OwnedFd>>,
    /// Where its standard output and error go; several starts append.
    pub log: PathBuf,
}

impl Program {
    /// A program named `name` in `namespace`, logging to `<directory>/<name>.log`.
    pub fn new(name: &str, path: impl Into<PathBuf>, namespace: &Arc<Namespace>, directory: &Path) -> Self {
        Self {
            name: name.to_owned(),
            path: path.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            namespace: Some(Arc::clone(namespace)),
            inherits: Vec::new(),
            log: directory.join(format!("{name}.log")),
        }
    }

    /// Adds arguments.
    pub fn arguments<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Adds an environment variable.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Lets it inherit `descriptor`.
    pub fn inherit(mut self, descriptor: Arc<OwnedFd>) -> Self {
        self.inherits.push(descriptor);
        self
    }

    fn command(&self) -> Result<Command> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("open log {}", self.log.display()))?;
        let mut command = Command::new(&self.path);
        // What the caller set for programs of its own must not reach into the lab.
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with(OWN_VARIABLES))
        {
            command.env_remove(name);
        }
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            // Logs are files, read with plain tools.
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("duplicate log")?)
            .stderr(log)
            // A group of its own, so that Ctrl-C reaches us alone and we stop things in order.
            .process_group(0);
        if let Some(namespace) = &self.namespace {
            namespace.enter_before_exec(&mut command);
        }
        let inherits = self.inherits.clone();
        let parent = std::process::id();
        let prepare = move || {
            for descriptor in &inherits {
                fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have died before the line above.
            if std::os::unix::process::parent_id() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        };
        // SAFETY: between fork and exec only system calls are made; nothing is allocated or locked.
        unsafe { command.pre_exec(prepare) };
        Ok(command)
    }
}

/// A started [`Program`]. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    program: Program,
    child: Option<Child>,
    last_exit: Option<ExitStatus>,
}

impl Process {
    /// Starts it.
    ///
    /// # Errors
    /// When the executable is missing or the namespace cannot be entered.
    pub fn start(program: Program) -> Result<Self> {
        let mut process = Self { program, child: None, last_exit: None };
        process.start_again()?;
        Ok(process)
    }

    /// Starts it again after it ended; does nothing while it runs.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_again(&mut self) -> Result<()> {
        if self.is_running() {
            return Ok(());
        }
        let child = spawn(self.program.command()?)
            .with_context(|| format!("start {} ({})", self.program.name, self.program.path.display()))?;
        tracing::debug!(name = self.program.name, pid = child.id(), "started");
        self.child = Some(child);
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.program.name
    }

    /// What it was started from; changes count from the next start.
    pub fn program_mut(&mut self) -> &mut Program {
        &mut self.program
    }

    /// Its process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        let Some(child) = &mut self.child else { return false };
        match child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) => {
                self.last_exit = Some(status);
                self.child = None;
                false
            }
            Err(_) => {
                self.child = None;
                false
            }
        }
    }

    /// How it ended last.
    pub fn last_exit(&self) -> Option<ExitStatus> {
        self.last_exit
    }

    /// SIGTERM, then waits for its end. One that is not gone in ten seconds is killed.
    ///
    /// # Errors
    /// When it had to be killed, with its last log lines.
    pub fn stop(&mut self) -> Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        self.signal(Signal::SIGTERM)?;
        if self.wait(STOP_TIMEOUT).is_err() {
            self.kill();
            bail!(
                "{} did not end {STOP_TIMEOUT:?} after SIGTERM; its log ends:\n{}",
                self.name(),
                self.log_tail(20)
            );
        }
        Ok(())
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            self.last_exit = child.wait().ok();
        }
    }

    /// SIGSTOP: it stays, but does nothing.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// SIGCONT: goes on after [`Self::pause`].
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Stops it (SIGTERM) and starts it again.
    ///
    /// # Errors
    /// As [`Self::stop`] and [`Self::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start_again()
    }

    /// Sends `signal`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().with_context(|| format!("send {signal} to {}: it does not run", self.name()))?;
        let pid = Pid::from_raw(i32::try_from(pid).context("process id")?);
        kill(pid, signal).with_context(|| format!("send {signal} to {}", self.name()))
    }

    /// Waits until it ended by itself.
    ///
    /// # Errors
    /// When it still runs after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<ExitStatus>> {
        let start = Instant::now();
        while self.is_running() {
            if start.elapsed() >= timeout {
                bail!("{} still runs after {timeout:?}", self.name());
            }
            thread::sleep(EXIT_POLL_INTERVAL);
        }
        Ok(self.last_exit)
    }

    /// Waits until `ready` succeeds; gives up at once when the process ends.
    ///
    /// # Errors
    /// With its last log lines.
    pub fn wait_ready<T>(&mut self, timeout: Duration, mut ready: impl FnMut() -> Result<T>) -> Result<T> {
        let what = format!("{} is ready", self.name());
        let attempt = || match ready() {
            // An ended process will never be ready: an inner error stops the waiting.
            Err(_) if !self.is_running() => Ok(Err(anyhow::anyhow!(
                "{} ended ({})",
                self.name(),
                self.last_exit.map_or_else(|| "unknown status".to_owned(), |status| status.to_string())
            ))),
            other => other.map(Ok),
        };
        wait::until(what, timeout, attempt).and_then(|result| result).map_err(|error| {
            anyhow::anyhow!("{error:#}\nlog of {} ends:\n{}", self.name(), self.log_tail(20))
        })
    }

    /// The last `lines` lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.program.log, lines)
            .unwrap_or_else(|error| format!("{}: {error}", self.program.log.display()))
    }

    /// Its log file.
    pub fn log_path(&self) -> &Path {
        &self.program.log
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn tail(path: &Path, lines: usize) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    Ok(all[all.len().saturating_sub(lines)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Run;

    fn shell(run: &Run, name: &str, script: &str) -> Program {
        Program {
            name: name.to_owned(),
            path: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            environment: Vec::new(),
            namespace: None,
            inherits: Vec::new(),
            log: run.directory().join(format!("{name}.log")),
        }
    }

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it_and_dies_with_its_handle() {
        let run = Run::begin().unwrap();
        let program = shell(&run, "sleeper", "exec sleep 1000");
        let mut process = thread::spawn(|| Process::start(program).unwrap()).join().unwrap();
        let pid = process.pid().unwrap();
        // Pausing and going on proves it is alive and ours.
        process.pause().unwrap();
        process.resume().unwrap();
        assert!(process.is_running());
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_process_that_ends_early_is_reported_with_its_log() {
        let run = Run::begin().unwrap();
        let mut process = Process::start(shell(&run, "failing", "echo the reason; exit 3")).unwrap();
        let error =
            process.wait_ready(Duration::from_secs(10), || -> Result<()> { bail!("not yet") }).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("the reason") && text.contains("exit status: 3"), "{text}");
    }

    #[test]
    fn restart_appends_to_the_log_and_changes_the_process() {
        let run = Run::begin().unwrap();
        let mut process = Process::start(shell(&run, "again", "echo up; exec sleep 1000")).unwrap();
        let first = process.pid();
        let ups = |process: &Process, count: usize| {
            wait::until_true("it says up", Duration::from_secs(10), || {
                process.log_tail(10).matches("up").count() == count
            })
        };
        ups(&process, 1).unwrap();
        process.restart().unwrap();
        ups(&process, 2).unwrap();
        assert_ne!(first, process.pid());
        assert!(process.last_exit().is_some());
    }
}
