//! HTTP connections: accept, TLS where it belongs, hyper, and an end that lets requests under way finish.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service as _;

/// Connections of one listener at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 4_096;
/// TLS must be up within this time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A request's head must be there within this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failing accept (no file descriptors), wait this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What listeners share.
#[derive(Clone)]
pub(super) struct Serving {
    /// Ends accepting, and each connection after the request it is at.
    pub(super) stop: CancellationToken,
    /// All connections.
    pub(super) connections: TaskTracker,
}

impl Serving {
    /// Serves plain HTTP.
    pub(super) async fn plain(self, listener: TcpListener, router: Router) {
        self.accept(listener, None, router).await;
    }

    /// Serves HTTPS.
    pub(super) async fn tls(self, listener: TcpListener, acceptor: TlsAcceptor, router: Router) {
        self.accept(listener, Some(acceptor), router).await;
    }

    async fn accept(self, listener: TcpListener, acceptor: Option<TlsAcceptor>, router: Router) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let next = async {
                let place = Arc::clone(&places).acquire_owned().await.ok();
                (place, listener.accept().await)
            };
            let Some((place, accepted)) = self.stop.run_until_cancelled(next).await else { return };
            let (stream, remote) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (acceptor, router, stop) = (acceptor.clone(), router.clone(), self.stop.clone());
            self.connections.spawn(async move {
                welcome(stream, remote, acceptor, router, stop).await;
                drop(place);
            });
        }
    }
}

async fn welcome(
    stream: TcpStream,
    remote: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    router: Router,
    stop: CancellationToken,
) {
    // Answers are small and somebody waits for them.
    let _ = stream.set_nodelay(true);
    let Some(acceptor) = acceptor else { return serve(stream, remote, router, stop).await };
    match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => serve(stream, remote, router, stop).await,
        Ok(Err(error)) => tracing::debug!(%remote, %error, "TLS handshake"),
        Err(_) => tracing::debug!(%remote, "no TLS handshake in time"),
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    remote: SocketAddr,
    router: Router,
    stop: CancellationToken,
) {
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(remote));
        router.clone().call(request)
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.http2().timer(TokioTimer::new());
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%remote, %error, "connection ended");
    }
}
