//! The receiving half of a session. Frames are handled as they come, so there is no queue to fill; a gateway that
//! sends faster than that is slowed down by TCP.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use allowlist::codec;
use allowlist::feed::{Hello, ToServer};
use axum::extract::ws::{Message, WebSocket, close_code};
use futures_util::StreamExt;
use futures_util::stream::SplitStream;
use tokio::sync::mpsc;

use super::outbound::Digests;
use super::session::End;
use super::sessions::Reporter;

/// Most characters in a gateway's name: that of the longest host name.
const MAX_NAME_CHARS: usize = 253;
/// Most characters of a gateway's version and of its reasons that are kept.
const MAX_TEXT_CHARS: usize = 200;

/// When the gateway was last heard of.
#[derive(Clone)]
pub(super) struct LastHeard(Arc<Mutex<Instant>>);

/// The receiving half after its last frame.
pub(super) struct Finished {
    pub(super) end: End,
    stream: SplitStream<WebSocket>,
    /// The stream stands in the middle of a frame and cannot be read on.
    broken: bool,
}

/// Waits for the first frame.
pub(super) async fn hello(stream: &mut SplitStream<WebSocket>) -> Result<Hello, (End, bool)> {
    loop {
        match next(stream).await? {
            None => {}
            Some(ToServer::Hello(hello)) => return check(hello).map_err(|end| (end, false)),
            Some(_) => return Err((End::protocol("the first frame of a session must be a hello"), false)),
        }
    }
}

/// Takes reports until the session ends.
pub(super) async fn receive(
    mut stream: SplitStream<WebSocket>,
    reporter: Reporter,
    digests: Digests,
    resync: mpsc::Sender<()>,
    heard: LastHeard,
) -> Finished {
    loop {
        let frame = match next(&mut stream).await {
            Ok(frame) => frame,
            Err((end, broken)) => return Finished { end, stream, broken },
        };
        heard.now();
        match frame {
            None => {}
            Some(ToServer::Hello(_)) => {
                return Finished {
                    end: End::protocol("a second hello in one session"),
                    stream,
                    broken: false,
                };
            }
            Some(ToServer::Applied(report)) => {
                let in_sync = digests.agrees(report.revision, report.digest);
                if in_sync == Some(false) {
                    tracing::warn!(
                        gateway = reporter.name(),
                        revision = report.revision,
                        "the gateway's digest disagrees"
                    );
                }
                if !report.refused.is_empty() {
                    tracing::warn!(
                        gateway = reporter.name(),
                        revision = report.revision,
                        refused = report.refused.len(),
                        "the gateway refused elements"
                    );
                }
                reporter.applied(&report, in_sync);
            }
            Some(ToServer::Traffic(deltas)) => {
                reporter.metrics().traffic(reporter.name(), &deltas);
                reporter.book().elements(reporter.name(), &deltas);
            }
            Some(ToServer::Sources(deltas)) => reporter.book().sources(reporter.name(), &deltas),
            Some(ToServer::Denied(flows)) => reporter.denied(&flows),
            Some(ToServer::Cut(report)) => reporter.cut(report),
            Some(ToServer::ResyncRequest { reason }) => {
                let reason: String = reason.chars().take(MAX_TEXT_CHARS).collect();
                tracing::warn!(gateway = reporter.name(), %reason, "the gateway asks for a snapshot");
                reporter.out_of_sync();
                reporter.metrics().resync_requested();
                // Full means that a snapshot is about to be sent: one serves both requests.
                let _ = resync.try_send(());
            }
        }
    }
}

impl Finished {
    pub(super) fn new(stream: SplitStream<WebSocket>, (end, broken): (End, bool)) -> Self {
        Self { end, stream, broken }
    }

    /// Reads on until the other side closes, at most `limit`: a connection dropped with unread bytes is reset, and
    /// our last words would be lost on the way.
    pub(super) async fn linger(mut self, limit: Duration) {
        let closed = async {
            if self.broken {
                std::future::pending::<()>().await;
            }
            while let Some(Ok(_)) = self.stream.next().await {}
        };
        let _ = tokio::time::timeout(limit, closed).await;
    }
}

impl LastHeard {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

/// The next frame; `None` for pings and pongs, which the WebSocket layer answers itself. The error says whether the
/// stream is broken.
async fn next(stream: &mut SplitStream<WebSocket>) -> Result<Option<ToServer>, (End, bool)> {
    match stream.next().await {
        None | Some(Ok(Message::Close(_))) => Err((End::Closed, false)),
        Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(None),
        Some(Ok(Message::Text(_))) => {
            let reason = "a text message; this feed speaks binary frames";
            Err((End::Protocol { code: close_code::UNSUPPORTED, reason: reason.to_owned() }, false))
        }
        Some(Ok(Message::Binary(bytes))) => {
            codec::decode(&bytes).map(Some).map_err(|error| (End::protocol(error.to_string()), false))
        }
        Some(Err(error)) => Err((broken(&error.to_string()), true)),
    }
}

/// An error of the WebSocket layer: a frame over the limit, a broken frame, or a lost connection.
fn broken(error: &str) -> End {
    let text = error.to_lowercase();
    if text.contains("too long") || text.contains("too big") {
        let reason = format!("{error}; a frame has at most {} bytes", codec::MAX_FRAME_BYTES);
        End::Protocol { code: close_code::SIZE, reason }
    } else if text.contains("protocol") && !text.contains("without closing handshake") {
        End::protocol(error)
    } else {
        End::Lost(error.to_owned())
    }
}

fn check(mut hello: Hello) -> Result<Hello, End> {
    let length = hello.name.chars().count();
    if length == 0 || length > MAX_NAME_CHARS || !hello.name.chars().all(|c| c.is_ascii_graphic()) {
        let reason = format!("a gateway's name has 1 to {MAX_NAME_CHARS} visible ASCII characters");
        return Err(End::protocol(reason));
    }
    hello.version = hello.version.chars().filter(|c| !c.is_control()).take(MAX_TEXT_CHARS).collect();
    Ok(hello)
}
