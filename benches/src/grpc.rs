//! Unary gRPC calls over one TLS connection, straight on the `h2` crate: what tonic does without its layers, so that
//! etcd's client costs no more than it must. Many calls share a connection, as etcd's own clients do.

pub(crate) mod message;

use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, StatusCode};

use crate::tls::Connector;

/// Flow-control windows of the connection and of each call, bytes: answers never wait for a window.
const WINDOW_BYTES: u32 = 1024 * 1024;
/// In front of a message: one flag byte and its length.
const PREFIX_BYTES: usize = 5;

/// A connection; clones share it. It ends when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct GrpcClient {
    requests: SendRequest<Bytes>,
    authority: String,
}

impl GrpcClient {
    pub(crate) async fn connect(connector: &Connector, address: IpAddr, port: u16) -> Result<Self> {
        let stream = connector.connect(address, port).await?;
        let (requests, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .handshake(stream)
            .await
            .context("HTTP/2 handshake")?;
        // Its error reaches whoever waits for an answer on it.
        tokio::spawn(connection);
        Ok(Self { requests, authority: format!("{address}:{port}") })
    }

    /// Calls `path` with an encoded message; returns the encoded answer.
    pub(crate) async fn call(&mut self, path: &str, message: &[u8]) -> Result<Bytes> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("https://{}{path}", self.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let mut frame = BytesMut::with_capacity(PREFIX_BYTES + message.len());
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.len()).context("a message is too large")?);
        frame.put_slice(message);

        let mut requests = self.requests.clone().ready().await.context("open a stream")?;
        let (answer, mut body) = requests.send_request(request, false).context("send a request")?;
        body.send_data(frame.freeze(), true).context("send a request")?;
        let answer = answer.await.context("read an answer")?;
        ensure!(answer.status() == StatusCode::OK, "{path}: HTTP status {}", answer.status());
        check_status(path, answer.headers())?;
        let mut body = answer.into_body();
        let mut received = BytesMut::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk.context("read an answer")?;
            body.flow_control().release_capacity(chunk.len())?;
            received.extend_from_slice(&chunk);
        }
        if let Some(trailers) = body.trailers().await.context("read an answer")? {
            check_status(path, &trailers)?;
        }
        ensure!(received.len() >= PREFIX_BYTES, "{path}: an answer without a message");
        Ok(received.freeze().slice(PREFIX_BYTES..))
    }
}

/// An error comes in the trailers, or in the headers when there is nothing else to say.
fn check_status(path: &str, headers: &HeaderMap) -> Result<()> {
    match headers.get("grpc-status").map(|status| status.as_bytes()) {
        None | Some(b"0") => Ok(()),
        Some(status) => {
            let status = String::from_utf8_lossy(status);
            let message = headers.get("grpc-message").map(|text| String::from_utf8_lossy(text.as_bytes()));
            bail!("{path}: gRPC status {status}: {}", message.unwrap_or_default())
        }
    }
}
