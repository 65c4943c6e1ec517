//! Our side: three `outputguard-server` processes and clients of their HTTPS API.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use lab::{Binaries, Process};

use crate::contender::{Contender, READY_TIMEOUT, until};
use crate::http::HttpClient;
use crate::load::Client;
use crate::seat::Seat;
use crate::tls::{Connector, Protocol};

const API_PORT: u16 = 8080;
const HTTPS_PORT: u16 = 8443;
const RAFT_PORT: u16 = 8081;
/// Nobody answers there.
const NO_UPSTREAM: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9);

/// Length of an entry's comment, bytes. With id, target, audit fields (actor, address, request id) a logged entry then
/// has about 275 bytes: as much as etcd's key and value together ([`crate::etcd::VALUE_BYTES`]).
pub(crate) const COMMENT_BYTES: usize = 200;
/// What an entry of the benches says, bytes: the part of [`crate::report`]'s live state that people wrote.
pub(crate) const LIVE_BYTES_PER_ENTRY: u64 = 275;

/// Entries are addresses from here on: public space without reserved ranges, so that no name has to be resolved.
const FIRST_TARGET: u32 = u32::from_be_bytes([20, 0, 0, 0]);

/// A cluster of ours.
pub(crate) struct OutputGuard {
    seats: Vec<Seat>,
    processes: Vec<Process>,
    directory: PathBuf,
    connector: Connector,
    token: String,
}

/// The certificates all nodes of both sides use.
pub(crate) fn certificates(directory: &Path) -> PathBuf {
    directory.join("tls")
}

/// The `number`th target.
pub(crate) fn target(number: u64) -> Result<Ipv4Addr> {
    let offset = u32::try_from(number).ok().filter(|offset| *offset < 60 << 24);
    let offset = offset.context("no public addresses are left for more entries")?;
    Ok(Ipv4Addr::from_bits(FIRST_TARGET + offset))
}

/// A comment that differs by `number` and is so long.
pub(crate) fn comment(number: u64, bytes: usize) -> String {
    format!("{number:0>bytes$}")
}

/// New entries with these numbers and comments of so many bytes, as one import takes them.
pub(crate) fn import_body(numbers: Range<u64>, comment_bytes: usize) -> Result<String> {
    let mut body = String::new();
    for number in numbers {
        let (target, comment) = (target(number)?, comment(number, comment_bytes));
        writeln!(body, r#"{{"target":"{target}","comment":"{comment}"}}"#)?;
    }
    Ok(body)
}

impl OutputGuard {
    /// Starts three nodes with data below `directory` and waits until they serve. They resolve nothing.
    pub(crate) async fn start(seats: Vec<Seat>, directory: &Path) -> Result<Self> {
        Self::start_with_upstreams(seats, directory, &[NO_UPSTREAM]).await
    }

    /// As [`OutputGuard::start`], with DNS servers to ask.
    pub(crate) async fn start_with_upstreams(
        seats: Vec<Seat>,
        directory: &Path,
        upstreams: &[SocketAddr],
    ) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let binary = Binaries::find()?.path("outputguard-server")?;
        let processes = seats
            .iter()
            .map(|seat| Process::start(program(seat, &seats, directory, &binary, upstreams)?))
            .collect::<Result<_>>()?;
        let token_file = directory.join("admin.token");
        let token = until("the administrator's token", READY_TIMEOUT, async || {
            let token = fs::read_to_string(&token_file).context("no token yet")?;
            ensure!(token.ends_with('\n') || token.len() > 64, "not all of the token is there yet");
            Ok(token.trim().to_owned())
        })
        .await?;
        let connector = Connector::new(&certificates(directory).join("ca.pem"), Protocol::Http1)?;
        let cluster = Self { seats, processes, directory: directory.to_owned(), connector, token };
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    /// Where node `node` keeps its data.
    pub(crate) fn data(&self, node: usize) -> PathBuf {
        self.directory.join(&self.seats[node].name)
    }

    /// A plain connection to the API of `node`.
    pub(crate) async fn http(&self, node: usize) -> Result<HttpClient> {
        HttpClient::connect(&self.connector, self.seats[node].address, HTTPS_PORT).await
    }

    /// The header lines every request carries.
    pub(crate) fn headers(&self, content_type: &str) -> String {
        format!("authorization: Bearer {}\r\ncontent-type: {content_type}\r\n", self.token)
    }

    /// Adds the entries of one body.
    pub(crate) async fn import(&self, http: &mut HttpClient, body: &str) -> Result<()> {
        let headers = self.headers("application/x-ndjson");
        let answer = http.request("POST", "/api/v1/import", &headers, body.as_bytes()).await?;
        ensure!(answer.status == 200, "import: status {}: {}", answer.status, answer.text());
        Ok(())
    }

    /// One number of `node`'s `/metrics`.
    pub(crate) async fn metric(&self, node: usize, name: &str) -> Result<f64> {
        let mut http = self.http(node).await?;
        let page = http.request("GET", "/metrics", "", b"").await?.body.to_vec();
        let page = String::from_utf8(page)?;
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.with_context(|| format!("no metric {name}"))?.parse().context("a metric")
    }

    /// Waits until `node` answers `/readyz` with 200.
    pub(crate) async fn wait_node_ready(&self, node: usize) -> Result<()> {
        until(&format!("{} is ready", self.seats[node].name), READY_TIMEOUT, async || {
            let mut http = self.http(node).await?;
            let answer = http.request("GET", "/readyz", "", b"").await?;
            ensure!(answer.status == 200, "{}", answer.text());
            Ok(())
        })
        .await
    }
}

fn program(
    seat: &Seat,
    all: &[Seat],
    directory: &Path,
    binary: &Path,
    upstreams: &[SocketAddr],
) -> Result<lab::Program> {
    let upstreams: Vec<_> = upstreams.iter().map(|upstream| format!("\"{upstream}\"")).collect();
    let peers: Vec<_> = all.iter().map(|peer| format!("\"{}:{RAFT_PORT}\"", peer.address)).collect();
    let data = directory.join(&seat.name);
    let config = directory.join(format!("{}.yaml", seat.name));
    let (name, address) = (&seat.name, seat.address);
    fs::write(
        &config,
        format!(
            "node: {{ name: {name}, data_dir: {data} }}\n\
             listen: {{ api: \"{address}:{API_PORT}\", feed: \"{address}:{HTTPS_PORT}\", raft: \"{address}:{RAFT_PORT}\" }}\n\
             cluster: {{ advertise: \"{address}:{RAFT_PORT}\", peers: [{peers}] }}\n\
             tls: {{ dir: {tls} }}\n\
             auth: {{ admin_token_file: {token} }}\n\
             resolver: {{ upstreams: [{upstreams}] }}\n",
            data = data.display(),
            peers = peers.join(", "),
            upstreams = upstreams.join(", "),
            tls = certificates(directory).display(),
            token = directory.join("admin.token").display(),
        ),
    )
    .with_context(|| format!("write {}", config.display()))?;
    Ok(seat
        .program(&format!("outputguard-{name}"), binary, directory)
        .arguments(["--config".into(), config.into_os_string()]))
}

impl Contender for OutputGuard {
    type Client = ApiClient;

    fn name(&self) -> &'static str {
        "outputguard"
    }

    fn process(&mut self, node: usize) -> &mut Process {
        &mut self.processes[node]
    }

    async fn leader(&self) -> Result<usize> {
        until("a leader", READY_TIMEOUT, async || {
            for node in 0..self.seats.len() {
                if self.metric(node, "outputguard_raft_role{role=\"leader\"}").await.unwrap_or_default()
                    == 1.0
                {
                    return Ok(node);
                }
            }
            bail!("no node says that it leads")
        })
        .await
    }

    async fn wait_ready(&self) -> Result<()> {
        for node in 0..self.seats.len() {
            self.wait_node_ready(node).await?;
        }
        Ok(())
    }

    async fn connect(&self, node: usize, count: usize) -> Result<Vec<ApiClient>> {
        let headers = self.headers("application/json");
        let mut clients = Vec::with_capacity(count);
        for _ in 0..count {
            clients.push(ApiClient {
                http: self.http(node).await?,
                headers: headers.clone(),
                own: None,
                updates: 0,
            });
        }
        Ok(clients)
    }
}

/// A person or program that adds entries.
pub(crate) struct ApiClient {
    http: HttpClient,
    headers: String,
    /// Path of the entry it added first.
    own: Option<String>,
    updates: u64,
}

impl Client for ApiClient {
    async fn put(&mut self, number: u64) -> Result<()> {
        let body =
            format!(r#"{{"target":"{}","comment":"{}"}}"#, target(number)?, comment(number, COMMENT_BYTES));
        let answer = self.http.request("POST", "/api/v1/entries", &self.headers, body.as_bytes()).await?;
        ensure!(answer.status == 201, "adding entry {number}: status {}: {}", answer.status, answer.text());
        if self.own.is_none() {
            let entry: serde_json::Value = serde_json::from_slice(answer.body)?;
            let id = entry["id"].as_str().context("an entry without id")?;
            self.own = Some(format!("/api/v1/entries/{id}"));
        }
        Ok(())
    }

    async fn update(&mut self) -> Result<()> {
        let own = self.own.as_deref().context("no entry to update")?;
        self.updates += 1;
        let body = format!(r#"{{"comment":"{}"}}"#, comment(self.updates, COMMENT_BYTES));
        let answer = self.http.request("PATCH", own, &self.headers, body.as_bytes()).await?;
        ensure!(answer.status == 200, "updating {own}: status {}: {}", answer.status, answer.text());
        Ok(())
    }

    async fn read(&mut self) -> Result<()> {
        let own = self.own.as_deref().context("no entry to read")?;
        let answer = self.http.request("GET", own, &self.headers, b"").await?;
        ensure!(answer.status == 200, "reading {own}: status {}: {}", answer.status, answer.text());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_public_addresses_until_they_run_out() {
        assert_eq!(target(0).unwrap(), Ipv4Addr::new(20, 0, 0, 0));
        assert_eq!(target((60 << 24) - 1).unwrap(), Ipv4Addr::new(79, 255, 255, 255));
        assert!(target(60 << 24).is_err());
        assert_eq!(comment(7, 20).len(), 20);
    }
}
