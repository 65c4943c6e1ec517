//! A network namespace: made, entered, removed.

use std::fs::{self, File};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

/// Where `ip netns` keeps its namespaces.
pub(crate) const MOUNT_DIRECTORY: &str = "/run/netns";
/// Where `ip netns exec` looks for a namespace's own files of `/etc`.
const ETC_DIRECTORY: &str = "/etc/netns";

/// A named network namespace (`ip netns list` shows it). Dropping it removes it with all that is in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// Makes it, with loopback up, forwarding off, and no waiting for duplicate address detection.
    ///
    /// # Errors
    /// When the name is taken or we may not make namespaces.
    pub fn create(name: &str) -> Result<Arc<Self>> {
        output(Command::new("ip").args(["netns", "add", name]))
            .with_context(|| format!("make namespace {name} (needs root)"))?;
        let path = Path::new(MOUNT_DIRECTORY).join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) => {
                remove(name);
                return Err(error).with_context(|| format!("open {}", path.display()));
            }
        };
        let namespace = Arc::new(Self { name: name.to_owned(), file });
        namespace.sysctls(&[
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv6/conf/all/disable_ipv6", "0"),
            ("net/ipv6/conf/default/disable_ipv6", "0"),
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
            ("net/ipv6/conf/default/keep_addr_on_down", "1"),
        ])?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread inside the namespace. Sockets it makes stay in the namespace, wherever they are used.
    ///
    /// # Errors
    /// `work`'s, or that of entering.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = thread::Builder::new().spawn_scoped(scope, || {
                self.enter_this_thread()?;
                work()
            })?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into the namespace for good; threads it starts are inside as well.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter_this_thread(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter namespace {}", self.name))
    }

    /// A command that will run inside the namespace.
    pub fn command(self: &Arc<Self>, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        self.enter_before_exec(&mut command);
        command
    }

    /// Lets `command` enter the namespace before it executes.
    pub(crate) fn enter_before_exec(self: &Arc<Self>, command: &mut Command) {
        let namespace = Arc::clone(self);
        let enter = move || setns(&namespace.file, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from);
        // SAFETY: between fork and exec only one system call is made; nothing is allocated or locked.
        unsafe { command.pre_exec(enter) };
    }

    /// Runs `ip` commands (one a line, without the word `ip`) inside the namespace, all in one process.
    ///
    /// # Errors
    /// With what `ip` said, which names the line.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start ip (package iproute2)")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(lines.as_bytes()).context("write to ip")?;
        }
        let output = child.wait_with_output().context("wait for ip")?;
        ensure!(
            output.status.success(),
            "ip in {}: {} (of: {lines})",
            self.name,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// Sets kernel parameters of this namespace: path below `/proc/sys`, value.
    ///
    /// # Errors
    /// With the path that could not be written.
    pub fn sysctls(&self, values: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (key, value) in values {
                // /proc/sys/net shows the namespace of the thread that looks.
                fs::write(Path::new("/proc/sys").join(key), value)
                    .with_context(|| format!("set {key}={value}"))?;
            }
            Ok(())
        })
    }

    /// Makes `ip netns exec` show a `resolv.conf` that names `resolver`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_resolver(&self, resolver: IpAddr) -> Result<()> {
        let directory = Path::new(ETC_DIRECTORY).join(&self.name);
        fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        fs::write(directory.join("resolv.conf"), format!("nameserver {resolver}\n"))
            .with_context(|| format!("write resolv.conf in {}", directory.display()))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Removes the namespace `name` and its files, if there.
pub(crate) fn remove(name: &str) {
    let _ = output(Command::new("ip").args(["netns", "del", name]));
    let etc = Path::new(ETC_DIRECTORY);
    if fs::remove_dir_all(etc.join(name)).is_ok() {
        // Ours if empty now; the system does without it.
        let _ = fs::remove_dir(etc);
    }
}

/// Runs `command` to its end and returns what it printed.
///
/// # Errors
/// When it cannot start or fails, with what it said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {program}"))?;
    if !output.status.success() {
        bail!(
            "{program}: {}: {} {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim(),
            String::from_utf8_lossy(&output.stdout).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Run;

    #[test]
    fn a_namespace_appears_holds_commands_and_vanishes() {
        let run = Run::begin().unwrap();
        let namespace = Namespace::create(&run.namespace_name("one")).unwrap();
        let path = Path::new(MOUNT_DIRECTORY).join(namespace.name());
        assert!(path.exists());
        namespace.set_resolver("10.1.0.53".parse().unwrap()).unwrap();
        let links = output(namespace.command("ip").args(["-br", "link"])).unwrap();
        assert_eq!(links.lines().count(), 1, "only loopback: {links}");
        let etc = Path::new(ETC_DIRECTORY).join(namespace.name());
        assert!(etc.exists());
        drop(namespace);
        assert!(!path.exists());
        assert!(!etc.exists());
    }

    #[test]
    fn a_wrong_ip_command_is_reported_with_its_words() {
        let run = Run::begin().unwrap();
        let namespace = Namespace::create(&run.namespace_name("two")).unwrap();
        let error = namespace.ip("link set nothere up").unwrap_err().to_string();
        assert!(error.contains("nothere"), "{error}");
    }
}
