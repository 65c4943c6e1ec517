//! Snapshots on their way: sent in chunks on a connection of their own, received into a file, then handed to raft,
//! which verifies and installs it.

use std::time::Duration;

use openraft::raft::SnapshotResponse;
use raft_store::types::{Snapshot, Vote};
use raft_store::{IncomingSnapshot, SnapshotFile, TypeConfig};
use tokio::time::{Instant, timeout};

use super::Raft;
use super::link::{CallError, Link};
use super::wire::{Blob, Refusal, Request, Response, SNAPSHOT_CHUNK_BYTES};
use crate::cluster::Cluster;

/// A chunk that cannot be handed to the connection for this long ends the transfer.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a snapshot was not sent.
#[derive(Debug)]
pub(crate) enum SendError {
    /// Our own file cannot be read.
    Read(std::io::Error),
    /// The peer.
    Call(CallError),
}

impl From<CallError> for SendError {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

/// Sends `snapshot` and returns what the peer's raft says to it, once it is installed there.
pub(crate) async fn send(
    link: &Link,
    vote: Vote,
    snapshot: Snapshot,
    install_timeout: Duration,
) -> Result<SnapshotResponse<TypeConfig>, SendError> {
    let file = snapshot.snapshot;
    let (len, started) = (file.len(), Instant::now());
    tracing::info!(peer = link.address(), bytes = len, "sending a snapshot");
    let connection = link.own_connection().await?;
    let mut pending = connection.submit(Request::SnapshotBegin { vote, len }).await?;
    let slow = || CallError::Timeout(link.address().to_owned());
    let mut offset = 0;
    while offset < len {
        let chunk = read_chunk(file.clone(), offset).await.map_err(SendError::Read)?;
        offset += chunk.len() as u64;
        tokio::select! {
            biased;
            // The peer only speaks before the end to refuse.
            early = pending.answer(Instant::now() + CHUNK_TIMEOUT) => return finish(link, early),
            sent = timeout(CHUNK_TIMEOUT, connection.send(Request::SnapshotChunk(Blob(chunk)))) => {
                sent.map_err(|_| slow())??;
            }
        }
    }
    timeout(CHUNK_TIMEOUT, connection.send(Request::SnapshotEnd)).await.map_err(|_| slow())??;
    let answer = pending.answer(Instant::now() + install_timeout).await;
    let response = finish(link, answer)?;
    tracing::info!(
        peer = link.address(),
        bytes = len,
        ms = started.elapsed().as_millis(),
        "snapshot installed"
    );
    Ok(response)
}

fn finish(
    link: &Link,
    answer: Result<Response, CallError>,
) -> Result<SnapshotResponse<TypeConfig>, SendError> {
    match answer? {
        Response::Snapshot(response) => Ok(response),
        _ => Err(CallError::Lost(link.address().to_owned()).into()),
    }
}

async fn read_chunk(file: SnapshotFile, offset: u64) -> std::io::Result<Vec<u8>> {
    tokio::task::spawn_blocking(move || file.read_at(offset, SNAPSHOT_CHUNK_BYTES))
        .await
        .map_err(std::io::Error::other)?
}

/// A snapshot that is being received. Dropped before it is installed, it leaves nothing behind.
pub(crate) struct Incoming {
    /// Of the request that began it, to answer in the end.
    pub(crate) sequence: u64,
    vote: Vote,
    len: u64,
    /// `None` only while a chunk is being written.
    file: Option<IncomingSnapshot>,
}

impl Incoming {
    pub(crate) async fn begin(
        cluster: &Cluster,
        sequence: u64,
        vote: Vote,
        len: u64,
    ) -> Result<Self, Refusal> {
        tracing::info!(bytes = len, "receiving a snapshot");
        let (snapshots, reader) = (cluster.snapshots().clone(), cluster.reader().clone());
        let file = off_the_async_threads(move || snapshots.receive(&reader)).await?;
        Ok(Self { sequence, vote, len, file: Some(file) })
    }

    pub(crate) async fn chunk(&mut self, bytes: Vec<u8>) -> Result<(), Refusal> {
        let Some(mut file) = self.file.take() else { return Err(broken()) };
        if file.len() + bytes.len() as u64 > self.len {
            return Err(Refusal::Malformed("a snapshot longer than announced".to_owned()));
        }
        let file = off_the_async_threads(move || file.write(&bytes).map(|()| file)).await?;
        self.file = Some(file);
        Ok(())
    }

    pub(crate) async fn install(mut self, raft: &Raft) -> Result<SnapshotResponse<TypeConfig>, Refusal> {
        let Some(file) = self.file.take() else { return Err(broken()) };
        if file.len() != self.len {
            let problem = format!("a snapshot of {} bytes, announced were {}", file.len(), self.len);
            return Err(Refusal::Malformed(problem));
        }
        let snapshot = off_the_async_threads(move || file.finish()).await?;
        raft.install_full_snapshot(self.vote, snapshot)
            .await
            .map_err(|error| Refusal::Unable(format!("install snapshot: {error}")))
    }
}

fn broken() -> Refusal {
    Refusal::Unable("receiving the snapshot failed before".to_owned())
}

async fn off_the_async_threads<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(std::io::Error::other)
        .flatten()
        .map_err(|error| Refusal::Unable(format!("receive snapshot: {error}")))
}
