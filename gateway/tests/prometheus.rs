//! A real Prometheus scrapes a real gateway that forwards real packets, and the dashboard's queries come to the right
//! numbers.
//!
//! Needs root, and the Debian package `prometheus`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
#[allow(dead_code, reason = "made for the tests of the driver")]
#[path = "firewall/net.rs"]
mod net;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gateway::firewall::{Firewall, KernelFirewall, KernelOptions};
use serde_json::Value;

use net::{CLIENT, CLIENT_V6, Net, elements, exchange, until};

const METRICS: &str = "127.0.0.1:9900";
const PROMETHEUS: &str = "127.0.0.1:9090";
const HOST: &str = "gw-test";
const DASHBOARD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/grafana/outputguard.json");
/// Starting Prometheus on a loaded machine takes its time.
const PATIENCE: Duration = Duration::from_secs(60);
/// Scrapes that have to be in the window: Prometheus stretches an increase by at most 1.1 intervals at either end.
const SCRAPES: f64 = 60.0;
/// IP and UDP headers.
const HEADERS_V4_BYTES: u64 = 28;
const HEADERS_V6_BYTES: u64 = 48;
/// Payloads of [`exchange`].
const QUESTION_BYTES: u64 = 8;
const ANSWER_BYTES: u64 = 6;

/// The system's default backend of iptables.
fn choose_backend() {}

/// Ended with the value.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Body of an answer; `None` when nobody answers.
fn fetch(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: here\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

/// What a query comes to, by the label `ip`.
fn query(text: &str) -> Vec<(String, f64)> {
    let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let Some(body) = fetch(PROMETHEUS, &format!("/api/v1/query?query={encoded}")) else { return Vec::new() };
    // While it starts, it says so in words.
    let Ok(answer) = serde_json::from_str::<Value>(&body) else { return Vec::new() };
    assert_eq!(answer["status"], "success", "{text}: {answer}");
    let samples = answer["data"]["result"].as_array().unwrap().iter();
    let value = |sample: &Value| sample["value"][1].as_str().unwrap().parse::<f64>().unwrap();
    samples
        .map(|sample| (sample["metric"]["ip"].as_str().unwrap_or_default().to_owned(), value(sample)))
        .collect()
}

fn of(samples: &[(String, f64)], ip: &str) -> Option<f64> {
    samples.iter().find(|(name, _)| name == ip).map(|(_, value)| *value)
}

/// The seed's four queries as the dashboard has them.
fn dashboard_queries() -> Vec<String> {
    fn collect(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(text)) = fields.get("expr")
                    && text.contains("iptables_")
                    && text.contains("increase")
                {
                    found.push(text.replace("$host", HOST));
                }
                fields.values().for_each(|value| collect(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    let dashboard = std::fs::read_to_string(DASHBOARD).unwrap();
    let mut found = Vec::new();
    collect(&serde_json::from_str(&dashboard).unwrap(), &mut found);
    found
}

fn start_gateway(cluster: &common::Cluster, state_dir: &Path) -> Program {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outputguard-gateway"));
    command
        .args(["--name", HOST, "--server", "wss://127.0.0.1:1/ws", "--metrics", METRICS])
        .args(cluster.arguments(state_dir))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Program(command.spawn().unwrap())
}

fn start_prometheus(directory: &Path) -> Program {
    let config = directory.join("prometheus.yml");
    let text = format!(
        "global: {{ scrape_interval: 200ms, scrape_timeout: 200ms }}\n\
         scrape_configs: [{{ job_name: gateways, static_configs: [{{ targets: [\"{METRICS}\"] }}] }}]\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new("prometheus");
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
        .arg(format!("--web.listen-address={PROMETHEUS}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Program(command.spawn().expect("the package `prometheus` is installed (scripts/install-packages test)"))
}

#[test]
fn prometheus_evaluates_the_dashboards_four_queries_to_what_was_sent() {
    let net = Net::new();
    for namespace in [&net.gateway, &net.client] {
        namespace.run(|| net::command("ip", &["link", "set", "lo", "up"]));
    }
    let (v4, v6) = ("8.8.8.8/32", "2a01:4f8::/32");
    // What a gateway adopts when no server answers; the sets are what it would have made itself.
    let mut former = KernelFirewall::new(&KernelOptions::default()).unwrap();
    former.install().unwrap();
    former.replace(&elements(&[v4, v6])).unwrap();
    drop(former);

    let (cluster, directory) = (common::Cluster::new(), tempfile::tempdir().unwrap());
    let _gateway = start_gateway(&cluster, &directory.path().join("state"));
    until("the gateway's page", PATIENCE, || fetch(METRICS, "/metrics").filter(|page| page.contains(v6)));
    let _prometheus = start_prometheus(directory.path());
    let counted = |kind: &str| query(&format!("iptables_bytes_count{{type=\"{kind}\"}}"));
    // An increase counts from the first scrape on: both series have to be there before anything is sent.
    until("a first scrape", PATIENCE, || {
        let samples = counted("OUTPUT");
        (of(&samples, v4) == Some(0.0) && of(&samples, v6) == Some(0.0)).then_some(())
    });

    let (there, there_v6) = (net.internet.udp("8.8.8.8", 9), net.internet.udp("2a01:4f8::5", 9));
    let (client, client_v6) = (net.client.udp(CLIENT, 0), net.client.udp(CLIENT_V6, 0));
    for _ in 0..300 {
        exchange(&client, &there);
    }
    for _ in 0..120 {
        exchange(&client_v6, &there_v6);
    }
    let bytes_out = [300 * (QUESTION_BYTES + HEADERS_V4_BYTES), 120 * (QUESTION_BYTES + HEADERS_V6_BYTES)];
    let bytes_in = [300 * (ANSWER_BYTES + HEADERS_V4_BYTES), 120 * (ANSWER_BYTES + HEADERS_V6_BYTES)];
    for (kind, [first, second]) in [("OUTPUT", bytes_out), ("INPUT", bytes_in)] {
        until("the counters to the byte", PATIENCE, || {
            let samples = counted(kind);
            (of(&samples, v4) == Some(first as f64) && of(&samples, v6) == Some(second as f64)).then_some(())
        });
    }
    until("scrapes enough", PATIENCE, || {
        let samples = query("min(count_over_time(iptables_bytes_count[2m]))");
        samples.first().filter(|(_, count)| *count >= SCRAPES).map(drop)
    });

    let queries = dashboard_queries();
    assert_eq!(queries.len(), 4, "{queries:?}");
    for text in &queries {
        let wanted = match (text.contains("bytes"), text.contains("OUTPUT")) {
            (true, true) => bytes_out,
            (true, false) => bytes_in,
            (false, _) => [300, 120],
        };
        let samples = query(text);
        assert_eq!(samples.len(), 2, "{text}: {samples:?}");
        for (ip, wanted) in [(v4, wanted[0] as f64), (v6, wanted[1] as f64)] {
            let got = of(&samples, ip).unwrap();
            let most = wanted * (1.0 + 2.2 / (SCRAPES - 1.0));
            assert!((wanted..=most).contains(&got), "{text}: {got} of {ip}, {wanted} were sent");
        }
    }
    // Who sent it is read from conntrack every ten seconds.
    for (source, wanted) in [(CLIENT, bytes_out[0]), (CLIENT_V6, bytes_out[1])] {
        let text = format!("outputguard_source_bytes_total{{source=\"{source}\",direction=\"out\"}}");
        until("who sent it", PATIENCE, || {
            query(&text).first().filter(|(_, bytes)| *bytes == wanted as f64).map(drop)
        });
    }
    check_names(&fetch(METRICS, "/metrics").unwrap());
}

/// Our own families are named as Prometheus wants it; the seed's are as the seed named them.
fn check_names(page: &str) {
    let ours: String =
        page.lines().filter(|line| line.contains("outputguard_")).map(|line| format!("{line}\n")).collect();
    let mut check = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(ours.as_bytes()).unwrap();
    let said = check.wait_with_output().unwrap();
    assert!(
        said.status.success(),
        "{}{}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );
}
