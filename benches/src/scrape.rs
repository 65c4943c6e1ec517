//! What a scrape of a gateway costs when every one of 100,000 addresses has its four series.
//!
//! The gateway stands alone in a namespace and adopts sets that are filled beforehand, as after a restart without servers.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use lab::{Binaries, Namespace, Process, Program, Run, wait};

use crate::load::median;
use crate::report::{Line, Report, progress};

const ADDRESSES: u32 = 100_000;
const QUICK_ADDRESSES: u32 = 10_000;
/// The first of them; all are public.
const FIRST_ADDRESS: u32 = 0x0808_0000;
/// Series of one address.
const SERIES: usize = 4;
const PAGE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9900);
/// Any file of certificates: no server is ever reached.
const SOME_CA: &str = "/etc/ssl/certs/ca-certificates.crt";
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Knobs of the bench.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How often it is scraped
    #[arg(long, default_value_t = 21)]
    rounds: usize,
}

/// One scrape.
struct Scrape {
    ms: f64,
    page: Vec<u8>,
    extra_mib: f64,
}

pub(crate) fn run(options: &Options, output: &Path, quick: bool, profile: &str) -> Result<()> {
    let addresses = if quick { QUICK_ADDRESSES } else { ADDRESSES };
    let rounds = options.rounds.max(1);
    let run = Run::begin()?;
    let namespace = Namespace::create(&run.namespace_name("scrape"))?;
    namespace.ip("link set lo up")?;
    namespace.sysctls(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
    fill_sets(&namespace, addresses)?;
    let gateway = start_gateway(&run, &namespace)?;
    let pid = gateway.pid().context("the gateway has ended")?;
    wait::until("the gateway to hold all addresses".to_owned(), READY_TIMEOUT, || -> Result<()> {
        let page = namespace.enter(fetch)?;
        let held = format!("outputguard_elements {addresses}\n");
        ensure!(String::from_utf8_lossy(&page).contains(&held), "they are not there yet");
        Ok(())
    })?;
    let mut scrapes = Vec::new();
    for round in 0..rounds {
        let scrape = scrape(&namespace, pid)?;
        progress(&format!("round {}: {:.0} ms", round + 1, scrape.ms));
        scrapes.push(scrape);
    }
    let page = &scrapes.last().context("no round")?.page;
    let series = page.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"iptables_")).count();
    ensure!(series == addresses as usize * SERIES, "{series} series on the page of {addresses} addresses");
    let mut report = Report::new("scrape", profile, rounds).beside("nothing");
    report.set("quick", quick);
    report.set("scrape_100k_page_mib", mib(page.len() as f64));
    // What the page would cost compressed, by a program that is good at it.
    report.set("gzip_1_of_page_ms", gzip_ms(page)?);
    let ms = median(&scrapes.iter().map(|scrape| scrape.ms).collect::<Vec<_>>());
    let extra = scrapes.iter().map(|scrape| scrape.extra_mib).fold(0.0, f64::max);
    let line = |what: String, result, aim| Line {
        what,
        ours: Some(result),
        result: Some(result),
        aim,
        ..Line::default()
    };
    report.result("scrape_100k_ms", line(format!("scrape of {addresses} addresses, ms"), ms, "≤ 150"));
    report.result("scrape_100k_extra_mib", line("memory on top meanwhile, MiB".to_owned(), extra, "≤ 64"));
    report.finish(output)
}

/// The sets as a gateway makes them.
fn fill_sets(namespace: &Arc<Namespace>, addresses: u32) -> Result<()> {
    let mut script = String::new();
    for set in ["og4o", "og4i"] {
        let size = addresses.next_power_of_two();
        script +=
            &format!("create {set} hash:net family inet hashsize {size} maxelem {} counters\n", 2 * size);
        for number in 0..addresses {
            script += &format!(
                "add {set} {} packets {number} bytes {}\n",
                Ipv4Addr::from(FIRST_ADDRESS + number),
                1_000 * u64::from(number)
            );
        }
    }
    let mut ipset = namespace.command("ipset");
    let mut restore = ipset.arg("restore").stdin(Stdio::piped()).spawn().context("start ipset")?;
    restore
        .stdin
        .take()
        .context("ipset has no input")?
        .write_all(script.as_bytes())
        .context("write to ipset")?;
    ensure!(restore.wait().context("wait for ipset")?.success(), "ipset restore failed");
    Ok(())
}

fn start_gateway(run: &Run, namespace: &Arc<Namespace>) -> Result<Process> {
    let directory = run.directory();
    let token = directory.join("token");
    fs::write(&token, "og_gateway_bench\n").context("write the token")?;
    let state = directory.join("state");
    let arguments = [
        "--name".into(),
        "bench".into(),
        "--server".into(),
        "wss://127.0.0.1:1/ws".into(),
        "--metrics".into(),
        PAGE.to_string().into(),
        "--ca-file".into(),
        SOME_CA.into(),
        "--token-file".into(),
        token.into_os_string(),
        "--state-dir".into(),
        state.into_os_string(),
    ];
    let binary = Binaries::find()?.path("outputguard-gateway")?;
    let program =
        Program::new("gateway", binary, namespace, directory).arguments::<std::ffi::OsString>(arguments);
    Process::start(program)
}

fn scrape(namespace: &Arc<Namespace>, pid: u32) -> Result<Scrape> {
    // Forgets the peak (proc(5)).
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("forget the peak of the gateway's memory")?;
    let before = memory_mib(pid, "VmRSS")?;
    let (ms, page) = namespace.enter(|| {
        let begun = Instant::now();
        let page = fetch()?;
        Ok((begun.elapsed().as_secs_f64() * 1_000.0, page))
    })?;
    Ok(Scrape { ms, page, extra_mib: (memory_mib(pid, "VmHWM")? - before).max(0.0) })
}

/// The whole answer, from connecting to its last byte.
fn fetch() -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(PAGE).context("connect to the gateway")?;
    stream.set_read_timeout(Some(READ_TIMEOUT)).context("set a limit")?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: bench\r\n\r\n").context("ask for the page")?;
    let mut page = Vec::new();
    stream.read_to_end(&mut page).context("read the page")?;
    ensure!(page.starts_with(b"HTTP/1.0 200"), "the gateway has no page");
    Ok(page)
}

fn memory_mib(pid: u32, key: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read the gateway's status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let kib: Option<f64> = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    kib.map(|kib| kib / 1024.0).with_context(|| format!("no {key} of the gateway"))
}

fn gzip_ms(page: &[u8]) -> Result<f64> {
    let begun = Instant::now();
    let mut gzip = Command::new("gzip").arg("-1").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    gzip.stdin.take().context("gzip has no input")?.write_all(page).context("write to gzip")?;
    if !gzip.wait()?.success() {
        bail!("gzip failed");
    }
    Ok((begun.elapsed().as_secs_f64() * 1_000.0).round())
}

fn mib(bytes: f64) -> f64 {
    (bytes / 1024.0 / 1024.0 * 10.0).round() / 10.0
}
