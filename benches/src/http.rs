//! A client for HTTP/1.1 over one kept-open TLS connection, as light as it can be: one write and, as a rule, one read a
//! request. It understands what the server sends: answers with a `content-length`.

use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::tls::Connector;

/// Header lines of an answer that are looked at.
const MAX_HEADERS: usize = 32;
/// An answer larger than this is not one of ours, bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

pub(crate) struct HttpClient {
    stream: TlsStream<TcpStream>,
    host: String,
    sent: Vec<u8>,
    received: Vec<u8>,
}

/// An answer; its body stays in the client's buffer until the next request.
pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    pub(crate) body: &'a [u8],
}

impl Answer<'_> {
    /// The body as text, for messages.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(self.body).chars().take(500).collect()
    }
}

impl HttpClient {
    pub(crate) async fn connect(connector: &Connector, address: IpAddr, port: u16) -> Result<Self> {
        let stream = connector.connect(address, port).await?;
        Ok(Self { stream, host: format!("{address}:{port}"), sent: Vec::new(), received: Vec::new() })
    }

    /// Sends one request and reads its answer. `headers` are whole lines, each with its end.
    pub(crate) async fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: &[u8],
    ) -> Result<Answer<'_>> {
        self.sent.clear();
        self.sent.extend_from_slice(
            format!(
                "{method} {path} HTTP/1.1\r\nhost: {}\r\n{headers}content-length: {}\r\n\r\n",
                self.host,
                body.len()
            )
            .as_bytes(),
        );
        self.sent.extend_from_slice(body);
        self.stream.write_all(&self.sent).await.context("send a request")?;
        self.stream.flush().await.context("send a request")?;

        self.received.clear();
        loop {
            let read = self.stream.read_buf(&mut self.received).await.context("read an answer")?;
            ensure!(read > 0, "{} closed the connection before it answered", self.host);
            if let Some(Head { status, start, end }) = head(&self.received)? {
                while self.received.len() < end {
                    let read = self.stream.read_buf(&mut self.received).await.context("read an answer")?;
                    ensure!(read > 0, "{} closed the connection within an answer", self.host);
                }
                return Ok(Answer { status, body: &self.received[start..end] });
            }
        }
    }
}

struct Head {
    status: u16,
    start: usize,
    end: usize,
}

/// The head of an answer, once all of it is there.
fn head(received: &[u8]) -> Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut answer = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(start) = answer.parse(received).context("read the head of an answer")?
    else {
        return Ok(None);
    };
    let status = answer.code.unwrap_or_default();
    let length = answer.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = match length {
        Some(length) => std::str::from_utf8(length.value)?.parse::<usize>().context("content-length")?,
        None if status == 204 || status == 304 => 0,
        None => bail!("an answer without content-length (status {status})"),
    };
    ensure!(length <= MAX_ANSWER_BYTES, "an answer of {length} bytes");
    Ok(Some(Head { status, start, end: start + length }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_when_its_head_is_and_says_where_its_body_ends() {
        let answer = b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\n\r\nhello";
        assert!(head(&answer[..20]).unwrap().is_none());
        let found = head(answer).unwrap().unwrap();
        assert_eq!((found.status, &answer[found.start..found.end]), (201, &b"hello"[..]));
        assert!(head(b"HTTP/1.1 200 OK\r\n\r\n").is_err(), "no length");
        assert_eq!(head(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap().map(|head| head.end), Some(27));
    }
}
