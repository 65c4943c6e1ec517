//! HTTP connections: accept, TLS where it belongs, hyper, and an end that lets requests under way finish.
//!
//! HTTP/1.1 only: the feed's WebSocket needs it, and its parser closes connections on which no request comes. A mix of
//! versions has to wait for the first bytes to tell them apart, for ever if none come.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, StatusCode};
use futures_util::FutureExt as _;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service as _;

use crate::tls::NodeTls;

/// Connections of one listener at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 4_096;
/// TLS must be up within this time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A request's head must be there within this time, counted from the start of the connection or the end of the
/// answer before.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection on which no request comes for this long after accepting ended is closed. A client that is about to send
/// one on an idle connection should find it open.
const IDLE_FAREWELL: Duration = Duration::from_secs(1);
/// After a failing accept (no file descriptors), wait this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What listeners share.
#[derive(Clone)]
pub(super) struct Serving {
    /// Ends each connection after the next answer, which says so; new ones still come in.
    pub(super) leave: CancellationToken,
    /// Ends accepting.
    pub(super) stop: CancellationToken,
    /// All connections.
    pub(super) connections: TaskTracker,
    /// [`HEADER_TIMEOUT`], unless a test has less time.
    pub(super) header_timeout: Duration,
}

impl Serving {
    /// Serves plain HTTP.
    pub(super) async fn plain(self, listener: TcpListener, router: Router) {
        self.accept(listener, None, router).await;
    }

    /// Serves HTTPS.
    pub(super) async fn tls(self, listener: TcpListener, tls: NodeTls, router: Router) {
        self.accept(listener, Some(tls), router).await;
    }

    async fn accept(self, listener: TcpListener, tls: Option<NodeTls>, router: Router) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let next = async {
                let place = Arc::clone(&places).acquire_owned().await.ok();
                (place, listener.accept().await)
            };
            let Some((place, accepted)) = self.stop.run_until_cancelled(next).await else { break };
            let (stream, remote) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            self.spawn(stream, remote, &tls, &router, place);
        }
        // Who is in the kernel's queue has been promised an answer.
        while let Some(Ok((stream, remote))) = listener.accept().now_or_never() {
            self.spawn(stream, remote, &tls, &router, None);
        }
    }

    fn spawn(
        &self,
        stream: TcpStream,
        remote: SocketAddr,
        tls: &Option<NodeTls>,
        router: &Router,
        place: Option<OwnedSemaphorePermit>,
    ) {
        let (router, serving) = (router.clone(), self.clone());
        // As of now: certificates change.
        let acceptor = tls.as_ref().map(|tls| TlsAcceptor::from(tls.feed()));
        self.connections.spawn(async move {
            serving.welcome(stream, remote, acceptor, router).await;
            drop(place);
        });
    }

    async fn welcome(
        &self,
        stream: TcpStream,
        remote: SocketAddr,
        acceptor: Option<TlsAcceptor>,
        router: Router,
    ) {
        // Answers are small and somebody waits for them.
        let _ = stream.set_nodelay(true);
        let Some(acceptor) = acceptor else { return self.serve(stream, remote, router).await };
        match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => self.serve(stream, remote, router).await,
            Ok(Err(error)) => tracing::debug!(%remote, %error, "TLS handshake"),
            Err(_) => tracing::debug!(%remote, "no TLS handshake in time"),
        }
    }

    async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        remote: SocketAddr,
        router: Router,
    ) {
        let leave = self.leave.clone();
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(remote));
            let (answer, leave) = (router.clone().call(request), leave.clone());
            async move {
                let mut answer = answer.await?;
                // A WebSocket says goodbye in its own words.
                if leave.is_cancelled() && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer)
            }
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(self.header_timeout);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service).with_upgrades());
        let idle = async {
            self.stop.cancelled().await;
            tokio::time::sleep(IDLE_FAREWELL).await;
        };
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = idle => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%remote, %error, "connection ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn connections_on_which_no_request_comes_are_closed_in_time() {
        let serving = Serving {
            leave: CancellationToken::new(),
            stop: CancellationToken::new(),
            connections: TaskTracker::new(),
            header_timeout: Duration::from_millis(50),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let router = Router::new().route("/", get(|| async { "here" }));
        let server = tokio::spawn(serving.clone().plain(listener, router));

        // Nothing at all, the beginning of HTTP/2, half a head, and nothing after an answer.
        for sent in
            ["", "PRI * HTTP/2.0\r\n", "GET / HTTP/1.1\r\nhost: a", "GET / HTTP/1.1\r\nhost: a\r\n\r\n"]
        {
            let mut client = TcpStream::connect(address).await.expect("connect");
            client.write_all(sent.as_bytes()).await.expect("send");
            let mut answer = String::new();
            let closed = timeout(PATIENCE, client.read_to_string(&mut answer)).await;
            closed.unwrap_or_else(|_| panic!("never closed after {sent:?}")).expect("read to the end");
            assert_eq!(answer.ends_with("here"), sent.ends_with("\r\n\r\n"), "{answer}");
        }
        serving.connections.close();
        timeout(PATIENCE, serving.connections.wait()).await.expect("no connection is left");
        serving.stop.cancel();
        server.await.expect("the listener ends");
    }
}
