//! The other side: three processes of Debian's etcd with its defaults, and clients that speak gRPC.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use lab::Process;

use crate::contender::{Contender, READY_TIMEOUT, until};
use crate::grpc::{GrpcClient, message};
use crate::load::Client;
use crate::seat::Seat;
use crate::tls::{Connector, Protocol};

const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
/// Value of a key, bytes.
pub(crate) const VALUE_BYTES: usize = 256;
/// The default of 2 GiB would end a long run; it does not change how fast it is.
const QUOTA_BYTES: u64 = 8 * 1024 * 1024 * 1024;
/// Puts in one transaction: etcd's default `--max-txn-ops`.
pub(crate) const MAX_TXN_OPS: u64 = 128;
/// Where Debian puts it.
const BINARY: &str = "/usr/bin/etcd";

/// A cluster of etcd.
pub(crate) struct Etcd {
    seats: Vec<Seat>,
    processes: Vec<Process>,
    connector: Connector,
    /// Connections to each node that its clients share.
    connections: usize,
}

impl Etcd {
    /// Starts three nodes with data below `directory` and waits until they serve. `tls` holds the certificates that our
    /// side uses as well.
    pub(crate) async fn start(
        seats: Vec<Seat>,
        directory: &Path,
        tls: &Path,
        connections: usize,
    ) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let binary = PathBuf::from(BINARY);
        ensure!(
            binary.is_file(),
            "{BINARY} is missing: install Debian's etcd-server (scripts/install-packages bench)"
        );
        let processes = seats
            .iter()
            .map(|seat| Process::start(program(seat, &seats, directory, tls, &binary)))
            .collect::<Result<_>>()?;
        let connector = Connector::new(&tls.join("ca.pem"), Protocol::Http2)?;
        let cluster = Self { seats, processes, connector, connections };
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    async fn grpc(&self, node: usize) -> Result<GrpcClient> {
        GrpcClient::connect(&self.connector, self.seats[node].address, CLIENT_PORT).await
    }
}

fn program(seat: &Seat, all: &[Seat], directory: &Path, tls: &Path, binary: &Path) -> lab::Program {
    let (name, address) = (&seat.name, seat.address);
    let cluster: Vec<_> =
        all.iter().map(|peer| format!("{}=https://{}:{PEER_PORT}", peer.name, peer.address)).collect();
    let (ca, cert, key) =
        (tls.join("ca.pem"), tls.join(format!("{name}.pem")), tls.join(format!("{name}.key")));
    let (ca, cert, key) = (ca.display(), cert.display(), key.display());
    seat.program(&format!("etcd-{name}"), binary, directory).arguments([
        format!("--name={name}"),
        format!("--data-dir={}", directory.join(name).display()),
        format!("--listen-client-urls=https://{address}:{CLIENT_PORT}"),
        format!("--advertise-client-urls=https://{address}:{CLIENT_PORT}"),
        format!("--listen-peer-urls=https://{address}:{PEER_PORT}"),
        format!("--initial-advertise-peer-urls=https://{address}:{PEER_PORT}"),
        format!("--initial-cluster={}", cluster.join(",")),
        "--initial-cluster-state=new".to_owned(),
        format!("--cert-file={cert}"),
        format!("--key-file={key}"),
        format!("--peer-cert-file={cert}"),
        format!("--peer-key-file={key}"),
        format!("--peer-trusted-ca-file={ca}"),
        "--peer-client-cert-auth".to_owned(),
        "--logger=zap".to_owned(),
        "--log-level=error".to_owned(),
        format!("--quota-backend-bytes={QUOTA_BYTES}"),
    ])
}

impl Contender for Etcd {
    type Client = KvClient;

    fn name(&self) -> &'static str {
        "etcd"
    }

    fn process(&mut self, node: usize) -> &mut Process {
        &mut self.processes[node]
    }

    async fn leader(&self) -> Result<usize> {
        until("etcd has a leader", READY_TIMEOUT, async || {
            for node in 0..self.seats.len() {
                let Ok(mut grpc) = self.grpc(node).await else { continue };
                if let Ok(status) = grpc.call(message::STATUS, b"").await
                    && message::leads(&status)?
                {
                    return Ok(node);
                }
            }
            bail!("no member says that it leads")
        })
        .await
    }

    async fn wait_ready(&self) -> Result<()> {
        for node in 0..self.seats.len() {
            until(&format!("etcd {} is ready", self.seats[node].name), READY_TIMEOUT, async || {
                // A linearizable read needs a leader and a majority.
                self.grpc(node).await?.call(message::RANGE, &message::range(b"ready")).await.map(drop)
            })
            .await?;
        }
        Ok(())
    }

    async fn connect(&self, node: usize, count: usize) -> Result<Vec<KvClient>> {
        let mut shared = Vec::new();
        for _ in 0..self.connections.min(count) {
            shared.push(self.grpc(node).await?);
        }
        let clients = (0..count).map(|index| KvClient {
            grpc: shared[index % shared.len()].clone(),
            own: None,
            updates: 0,
        });
        Ok(clients.collect())
    }
}

/// A program that writes keys.
pub(crate) struct KvClient {
    grpc: GrpcClient,
    /// The key it wrote first.
    own: Option<Vec<u8>>,
    updates: u64,
}

/// The `number`th key.
fn key(number: u64) -> Vec<u8> {
    format!("entries/{number:08}").into_bytes()
}

fn value(number: u64) -> Vec<u8> {
    format!("{number:0>VALUE_BYTES$}").into_bytes()
}

impl KvClient {
    /// Writes `count` new keys, the first being `number`, in one transaction.
    pub(crate) async fn put_many(&mut self, number: u64, count: u64) -> Result<()> {
        let pairs: Vec<_> = (number..number + count).map(|number| (key(number), value(number))).collect();
        let pairs = pairs.iter().map(|(key, value)| (key.as_slice(), value.as_slice()));
        self.grpc.call(message::TXN, &message::puts(pairs)).await.map(drop)
    }
}

impl Client for KvClient {
    async fn put(&mut self, number: u64) -> Result<()> {
        let key = key(number);
        self.grpc.call(message::PUT, &message::put(&key, &value(number))).await?;
        self.own.get_or_insert(key);
        Ok(())
    }

    async fn update(&mut self) -> Result<()> {
        let own = self.own.as_deref().context("no key to write again")?;
        self.updates += 1;
        let put = message::put(own, &value(self.updates));
        self.grpc.call(message::PUT, &put).await.map(drop)
    }

    async fn read(&mut self) -> Result<()> {
        let own = self.own.as_deref().context("no key to read")?;
        let answer = self.grpc.call(message::RANGE, &message::range(own)).await?;
        ensure!(message::found(&answer)?, "the key is not there");
        Ok(())
    }
}
