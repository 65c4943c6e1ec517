//! The whole state as a file, and back into a new cluster.

use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt as _};
use raft_store::SnapshotFile;
use raft_store::command::{Command, Reply, RestorePart};
use raft_store::snapshot::{Backup, BackupError, IncomingBackup, Summary};
use raft_store::types::Snapshot;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use utoipa::ToSchema;
use uuid::Uuid;

use super::AppState;
use super::bulk::{Batches, off_the_async_threads, paced, text_bytes};
use super::once::OnceKey;
use super::problem::{Code, Problem, ProblemBody, UNAVAILABLE_RETRY_S};
use super::revision::{At, Consistency};
use crate::auth::{Admin, Caller};

/// Of the file, in hexadecimal digits: of all bytes but the last 32, which it repeats.
const SHA256_HEADER: HeaderName = HeaderName::from_static("x-outputguard-backup-sha256");
/// The cluster's id.
const CLUSTER_HEADER: HeaderName = HeaderName::from_static("x-outputguard-cluster");
/// Entries in the file.
const ENTRIES_HEADER: HeaderName = HeaderName::from_static("x-outputguard-entries");
/// How long writing a fresh snapshot may take.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(120);
/// Between two looks at whether it is written.
const SNAPSHOT_PAUSE: Duration = Duration::from_millis(20);
/// A snapshot that is being written already may be too old; another one is asked for at this interval.
const TRIGGER_INTERVAL: Duration = Duration::from_secs(1);
/// Piece of the file in one step of the stream, bytes.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces of an arriving file are put together up to this size before they are written, bytes.
const WRITE_BYTES: usize = 1024 * 1024;

/// What a restore did.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Restored {
    /// Entries that are in place.
    entries: u64,
    /// Tokens that are in place.
    tokens: u64,
    /// Tokens of the backup that were skipped: this cluster has others with these names, which stay.
    skipped_tokens: Vec<String>,
    /// Where all of it is visible.
    revision: u64,
    /// Of the cluster the backup is of; this cluster keeps its own id.
    from_cluster: Option<String>,
    /// The revision of that cluster.
    from_revision: u64,
}

/// Streams a backup of the whole state
///
/// A snapshot file of now: it holds every write that was answered before. Entries, resolutions, tokens (as hashes); also the
/// answers kept for idempotency keys, which a restore leaves out.
#[utoipa::path(get, path = "/api/v1/backup", tag = "bulk", responses(
    (status = 200, body = Vec<u8>, content_type = "application/octet-stream",
        headers(("x-outputguard-backup-sha256" = String, description = "SHA-256 of all bytes but the last 32"),
            ("x-outputguard-cluster" = String), ("x-outputguard-entries" = u64))),
    (status = 403, body = ProblemBody, content_type = "application/problem+json"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn backup(State(app): State<AppState>, Admin(caller): Admin) -> Result<Response, Problem> {
    let place = app.stream_place()?;
    let revision = app.read(Consistency::Linearizable).await?.revision();
    let file = fresh_snapshot(&app, revision).await?.snapshot;
    let of = file.clone();
    let summary = off_the_async_threads(move || of.summary()).await?;
    let summary =
        summary.map_err(|error| Problem::new(Code::Internal, format!("read the snapshot: {error}")))?;
    tracing::info!(actor = %caller.name, revision = summary.revision, bytes = file.len(), "backup sent");
    Ok(file_response(file, &summary, place))
}

fn file_response(file: SnapshotFile, summary: &Summary, place: OwnedSemaphorePermit) -> Response {
    let cluster = summary.cluster.map(|id| id.to_string()).unwrap_or_default();
    let name = format!("attachment; filename=\"outputguard-{cluster}-{}.backup\"", summary.revision);
    let sum = summary.sha256.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    let len = file.len();
    let mut response = At(summary.revision, paced::body(pieces(file), place)).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
    headers.insert(ENTRIES_HEADER, HeaderValue::from(summary.entries));
    for (header, value) in [(CONTENT_DISPOSITION, name), (SHA256_HEADER, sum), (CLUSTER_HEADER, cluster)] {
        headers.extend(HeaderValue::from_str(&value).ok().map(|value| (header, value)));
    }
    response
}

/// This node's snapshot of `revision` or later.
async fn fresh_snapshot(app: &AppState, revision: u64) -> Result<Snapshot, Problem> {
    let cluster = app.cluster();
    let deadline = Instant::now() + SNAPSHOT_TIMEOUT;
    let mut ask_at = Instant::now();
    loop {
        let fresh =
            |snapshot: &Snapshot| snapshot.meta.last_log_id.is_some_and(|last| last.index >= revision);
        if let Some(snapshot) = cluster.snapshots().newest().filter(fresh) {
            return Ok(snapshot);
        }
        let unable = |reason: &str| {
            let detail = format!("no snapshot could be made: {reason}; ask another node, or try again");
            Problem::new(Code::Unavailable, detail).retry_after(UNAVAILABLE_RETRY_S)
        };
        let now = Instant::now();
        if now >= deadline {
            return Err(unable("it takes too long"));
        }
        if now >= ask_at {
            cluster.snapshots().room_to_build().map_err(|error| unable(&error.to_string()))?;
            cluster.raft().trigger().snapshot().await.map_err(|error| unable(&error.to_string()))?;
            ask_at = now + TRIGGER_INTERVAL;
        }
        tokio::time::sleep(SNAPSHOT_PAUSE).await;
    }
}

fn pieces(file: SnapshotFile) -> impl Stream<Item = std::io::Result<Bytes>> {
    futures_util::stream::try_unfold((file, 0), |(file, offset)| async move {
        if offset >= file.len() {
            return Ok(None);
        }
        let of = file.clone();
        let read = tokio::task::spawn_blocking(move || of.read_at(offset, PIECE_BYTES)).await;
        let bytes = read.map_err(std::io::Error::other)??;
        let next = offset + bytes.len() as u64;
        Ok(Some((Bytes::from(bytes), (file, next))))
    })
}

/// Puts a backup into this new cluster
///
/// Only into a cluster without entries (a restore that broke off is finished by sending the same file again). The whole file
/// is checked first. Entries keep their ids, creators and times; this cluster keeps its own id and its own tokens.
#[utoipa::path(post, path = "/api/v1/restore", tag = "bulk",
    request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses(
    (status = 200, body = Restored),
    (status = 409, body = ProblemBody, content_type = "application/problem+json", description = "It has entries"),
    (status = 422, body = ProblemBody, content_type = "application/problem+json", description = "No usable backup"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json"),
    (status = 504, body = ProblemBody, content_type = "application/problem+json"),
    (status = 507, body = ProblemBody, content_type = "application/problem+json", description = "The disk is low")))]
pub(super) async fn restore(
    State(app): State<AppState>,
    Admin(caller): Admin,
    request: Request,
) -> Result<Json<Restored>, Problem> {
    let file = receive(&app, request.into_body()).await?;
    // It is on disk until here, and in memory from here on.
    let place = app.bulk_turn().await?;
    let (backup, place) = off_the_async_threads(move || (file.finish(), place)).await?;
    let backup = backup.map_err(|error| refused(&error))?;
    let state = app.read(Consistency::Linearizable).await?;
    let covered = off_the_async_threads(move || (backup.covers(&state), state, (backup, place))).await?;
    let (true, _, (backup, place)) = covered else {
        return Err(not_empty(&format!("this cluster has {} entries", covered.1.entries().len())));
    };
    put_in_place(&app, &caller, backup, place).await
}

async fn put_in_place(
    app: &AppState,
    caller: &Caller,
    backup: Backup,
    place: OwnedSemaphorePermit,
) -> Result<Json<Restored>, Problem> {
    let from_cluster = backup.state().cluster().map(|id| id.to_string());
    let from_revision = backup.state().revision();
    let (batches, _place) = off_the_async_threads(move || (cut(&backup), place)).await?;
    let commands = batches.into_iter().map(Command::Restore).collect();
    let once = OnceKey::own(Uuid::new_v4().to_string());
    let written = app.write_parts(caller, &once, commands).await?;
    let revision = written.revision.max(app.local().revision());
    let mut all =
        Restored { entries: 0, tokens: 0, skipped_tokens: vec![], revision, from_cluster, from_revision };
    for reply in written.replies {
        if let Reply::Restored { entries, tokens, skipped_tokens, refused } = reply {
            all.entries += entries;
            all.tokens += tokens;
            all.skipped_tokens.extend(skipped_tokens);
            if !refused.is_empty() {
                let what = format!("{} entries were added to this cluster meanwhile", refused.len());
                return Err(not_empty(&what));
            }
        }
    }
    tracing::info!(
        actor = %caller.name, entries = all.entries, tokens = all.tokens, from = ?all.from_cluster, revision, "backup restored"
    );
    Ok(Json(all))
}

fn not_empty(what: &str) -> Problem {
    let detail = format!(
        "{what}, and a backup is only restored into one without: make a new cluster and restore it there"
    );
    Problem::new(Code::NotEmpty, detail)
}

fn cut(backup: &Backup) -> Vec<Vec<RestorePart>> {
    /// An address with its upstreams, bytes.
    const ADDRESS_BYTES: usize = 128;
    let mut batches = Batches::new();
    for part in backup.parts() {
        let bytes = match &part {
            RestorePart::Entry { entry, resolution } => {
                let texts = [&*entry.comment, &*entry.owner, &*entry.ticket];
                let addresses =
                    resolution.as_ref().map_or(0, |known| known.addresses.len() + known.chain.len());
                text_bytes(texts, &*entry.labels) + addresses * ADDRESS_BYTES
            }
            RestorePart::Token(token) => token.name.len(),
        };
        batches.push(part, bytes);
    }
    batches.end()
}

/// Keeps the body on disk, as long as replication has all the room there that it needs.
async fn receive(app: &AppState, body: Body) -> Result<IncomingBackup, Problem> {
    let room = || {
        app.cluster().room().map_err(|reason| {
            let detail = format!(
                "{reason}, and a backup is kept there while it is read: make room, then send it again"
            );
            Problem::new(Code::DiskFull, detail).retry_after(UNAVAILABLE_RETRY_S)
        })
    };
    room()?;
    let snapshots = app.cluster().snapshots().clone();
    let file = off_the_async_threads(move || snapshots.receive_backup()).await?;
    let mut file = file.map_err(|error| refused(&BackupError::Io(error)))?;
    let mut pieces = body.into_data_stream();
    let mut gathered: Vec<u8> = Vec::new();
    let mut is_ours = false;
    while let Some(piece) = pieces.next().await {
        let piece =
            piece.map_err(|error| Problem::new(Code::BadRequest, format!("the body broke off: {error}")))?;
        gathered.extend_from_slice(&piece);
        if !is_ours && let Some(start) = gathered.first_chunk() {
            IncomingBackup::check_start(start).map_err(|error| refused(&error))?;
            is_ours = true;
        }
        if gathered.len() >= WRITE_BYTES {
            room()?;
            file = write(file, std::mem::take(&mut gathered)).await?;
        }
    }
    write(file, gathered).await
}

async fn write(mut file: IncomingBackup, bytes: Vec<u8>) -> Result<IncomingBackup, Problem> {
    let written = off_the_async_threads(move || file.write(&bytes).map(|()| file)).await?;
    written.map_err(|error| refused(&BackupError::Io(error)))
}

fn refused(error: &BackupError) -> Problem {
    let code = match error {
        BackupError::Other | BackupError::Version { .. } | BackupError::Damaged(_) => Code::InvalidBackup,
        BackupError::Io(_) => Code::Unavailable,
    };
    Problem::new(code, error.to_string())
}
