//! The same questions, asked by others: what a name costs them in processor time.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt as _, stream};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use lab::{Namespace, Process, Program, Run};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

use super::zone::{ZONE, Zone, name};
use crate::report::progress;
use crate::shell;
use crate::usage::Usage;

/// Names on their way at the same time, as many as the server allows itself.
const AT_ONCE: usize = 128;
const UNBOUND_PORT: u16 = 5_301;
const DNSMASQ_PORT: u16 = 5_302;
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// Of dnsmasq's sets: room for every name.
const SET_ROOM: u32 = 1 << 20;

/// Names a processor second of each peer.
pub(super) fn run(run: &Run, namespace: &Arc<Namespace>, zone: &Zone) -> Result<Vec<(&'static str, f64)>> {
    let rate = |busy: Duration| f64::from(zone.names) / busy.as_secs_f64();
    let looped = ask_all(namespace, zone.address, zone.names)?;
    progress(&format!("a plain loop: {:.0} names a processor second", rate(looped)));
    let forwarded = {
        let unbound = unbound(run, namespace, zone.address)?;
        taken_by(&unbound, || ask_all(namespace, local(UNBOUND_PORT), zone.names))?
    };
    progress(&format!("unbound: {:.0}", rate(forwarded)));
    let filled = {
        let dnsmasq = dnsmasq(run, namespace, zone.address)?;
        let taken = taken_by(&dnsmasq, || ask_all(namespace, local(DNSMASQ_PORT), zone.names))?;
        let listed = shell::run(namespace.command("ipset").args(["list", "-t", "names4"]), "")?;
        let count = listed.lines().find_map(|line| line.strip_prefix("Number of entries: "));
        let count: u32 = count.context("no count of the set")?.parse()?;
        ensure!(count == zone.names, "dnsmasq put {count} of {} addresses into its set", zone.names);
        taken
    };
    progress(&format!("dnsmasq with sets: {:.0}", rate(filled)));
    Ok(vec![("plain_loop", rate(looped)), ("unbound", rate(forwarded)), ("dnsmasq_ipset", rate(filled))])
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Asks `upstream` for both families of every name once, without a cache. Gives the processor time that took.
fn ask_all(namespace: &Arc<Namespace>, upstream: SocketAddr, names: u32) -> Result<Duration> {
    namespace.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let before = thread_time()?;
        runtime.block_on(async {
            let resolver = plain(upstream)?;
            let failed = stream::iter(0..names)
                .map(|number| {
                    let resolver = &resolver;
                    async move {
                        let name = format!("{}.", name(number));
                        let (v4, v6) = tokio::join!(
                            resolver.ipv4_lookup(name.as_str()),
                            resolver.ipv6_lookup(name.as_str())
                        );
                        v4.is_err() || v6.is_err()
                    }
                })
                .buffer_unordered(AT_ONCE)
                .filter(|failed| std::future::ready(*failed))
                .count()
                .await;
            ensure!(failed == 0, "{failed} of {names} names were not answered by {upstream}");
            Ok(())
        })?;
        Ok(thread_time()? - before)
    })
}

fn plain(upstream: SocketAddr) -> Result<TokioResolver> {
    let mut connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
    connections.iter_mut().for_each(|connection| connection.port = upstream.port());
    let server = NameServerConfig::new(upstream.ip(), true, connections.to_vec());
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    builder.options_mut().cache_size = 0;
    builder.build().context("make a plain resolver")
}

/// Of the calling thread.
fn thread_time() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).context("read the processor time")?;
    let us = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(us).context("processor time runs backwards")?))
}

/// Processor time of `process` during `work`.
fn taken_by<T>(process: &Process, work: impl FnOnce() -> Result<T>) -> Result<Duration> {
    let pid = process.pid().with_context(|| format!("{} has ended", process.name()))?;
    let before = Usage::of(pid)?;
    work()?;
    Ok(Usage::of(pid)?.busy - before.busy)
}

/// Forwards every question and keeps no answer.
fn unbound(run: &Run, namespace: &Arc<Namespace>, upstream: SocketAddr) -> Result<Process> {
    let directory = run.directory().join("unbound");
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let config = directory.join("unbound.conf");
    let text = format!(
        "server:\n  do-daemonize: no\n  username: \"\"\n  chroot: \"\"\n  directory: \"{base}\"\n  pidfile: \"\"\n  use-syslog: no\n  logfile: \"\"\n\
         \x20 num-threads: 1\n  interface: 127.0.0.1\n  port: {UNBOUND_PORT}\n  module-config: \"iterator\"\n  do-not-query-localhost: no\n\
         \x20 cache-max-ttl: 0\n  local-zone: \"test.\" nodefault\n\
         forward-zone:\n  name: \".\"\n  forward-addr: {ip}@{port}\n  forward-no-cache: yes\n\
         remote-control:\n  control-enable: no\n",
        base = directory.display(),
        ip = upstream.ip(),
        port = upstream.port(),
    );
    fs::write(&config, text).context("write unbound's settings")?;
    // Debian's AppArmor profile lets the installed program read only its own directories; it goes by the path.
    let program = directory.join("unbound");
    shell::run(Command::new("cp").arg("/usr/sbin/unbound").arg(&program), "").context("copy unbound")?;
    start(
        Program::new("unbound", program, namespace, run.directory()).arguments([
            "-d".into(),
            "-c".into(),
            config.into_os_string(),
        ]),
        namespace,
        UNBOUND_PORT,
    )
}

/// Forwards every question, keeps no answer, and puts the addresses into sets, as people do who build an allowlist of it.
fn dnsmasq(run: &Run, namespace: &Arc<Namespace>, upstream: SocketAddr) -> Result<Process> {
    let sets = format!(
        "create names4 hash:ip family inet maxelem {SET_ROOM}\ncreate names6 hash:ip family inet6 maxelem {SET_ROOM}\n"
    );
    shell::run(namespace.command("ipset").arg("restore"), &sets)?;
    let arguments = [
        "--keep-in-foreground".to_owned(),
        "--conf-file=/dev/null".to_owned(),
        "--pid-file=".to_owned(),
        "--user=root".to_owned(),
        "--no-resolv".to_owned(),
        "--no-hosts".to_owned(),
        "--log-facility=-".to_owned(),
        "--listen-address=127.0.0.1".to_owned(),
        "--bind-interfaces".to_owned(),
        format!("--port={DNSMASQ_PORT}"),
        format!("--server={}#{}", upstream.ip(), upstream.port()),
        "--cache-size=0".to_owned(),
        "--dns-forward-max=10000".to_owned(),
        format!("--ipset=/{ZONE}/names4,names6"),
    ];
    let program = Program::new("dnsmasq", Path::new("/usr/sbin/dnsmasq"), namespace, run.directory())
        .arguments(arguments);
    start(program, namespace, DNSMASQ_PORT)
}

fn start(program: Program, namespace: &Arc<Namespace>, port: u16) -> Result<Process> {
    let mut process = Process::start(program)?;
    process.wait_ready(READY_TIMEOUT, || ask_all(namespace, local(port), 1))?;
    Ok(process)
}
