//! Bodies that are made while they are sent. What they are made of (a state, a file) is let go when the client does not
//! read on, and there are only so many of them at a time.

use std::future::ready;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::api::AppState;
use crate::api::problem::{Code, Problem, UNAVAILABLE_RETRY_S};

/// Exports and backups on their way at a time from one node.
pub(in crate::api) const STREAMS_AT_A_TIME: usize = 8;
/// A stream of which no piece is taken for this long ends.
const PIECE_TIMEOUT: Duration = Duration::from_secs(60);

impl AppState {
    /// A place for an export or a backup.
    pub(in crate::api) fn stream_place(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.shared.streams).try_acquire_owned().map_err(|_| {
            let detail = format!(
                "{STREAMS_AT_A_TIME} exports or backups are under way on this node; try again later, or ask another node"
            );
            Problem::new(Code::Unavailable, detail).retry_after(UNAVAILABLE_RETRY_S)
        })
    }
}

/// A body of `pieces`, which holds `place` until all of them are taken, or one is not in time.
pub(in crate::api) fn body(
    pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    place: OwnedSemaphorePermit,
) -> Body {
    within(PIECE_TIMEOUT, pieces, place)
}

fn within(
    limit: Duration,
    pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    place: OwnedSemaphorePermit,
) -> Body {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let _place = place;
        // A mark at the end: a stream that was given up must not look like one that is whole.
        let mut pieces = pin!(pieces.map_ok(Some).chain(stream::once(ready(Ok(None)))));
        while let Some(piece) = pieces.next().await {
            if sender.send_timeout(piece, limit).await.is_err() {
                return;
            }
        }
    });
    Body::from_stream(stream::try_unfold(receiver, |mut receiver| async move {
        match receiver.recv().await {
            Some(Ok(Some(bytes))) => Ok(Some((bytes, receiver))),
            Some(Ok(None)) => Ok(None),
            Some(Err(error)) => Err(error),
            None => Err(io::Error::new(io::ErrorKind::TimedOut, "a piece was not taken in time")),
        }
    }))
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn pieces(count: usize) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        stream::iter((0..count).map(|_| Ok(Bytes::from_static(b"piece"))))
    }

    async fn place(places: &Arc<Semaphore>) -> OwnedSemaphorePermit {
        let place = Arc::clone(places).acquire_owned();
        tokio::time::timeout(PATIENCE, place).await.expect("the place is given back").unwrap()
    }

    #[tokio::test]
    async fn a_stream_nobody_reads_gives_its_place_back_and_does_not_look_whole() {
        let places = Arc::new(Semaphore::new(1));
        let body = within(Duration::from_millis(1), pieces(9), place(&places).await);
        drop(place(&places).await);
        assert!(axum::body::to_bytes(body, usize::MAX).await.is_err());
    }

    #[tokio::test]
    async fn a_stream_that_is_read_or_dropped_gives_its_place_back() {
        let places = Arc::new(Semaphore::new(1));
        let body = within(PATIENCE, pieces(9), place(&places).await);
        assert_eq!(axum::body::to_bytes(body, usize::MAX).await.unwrap().len(), 9 * 5);
        drop(within(PATIENCE, pieces(9), place(&places).await));
        drop(place(&places).await);
    }
}
