//! UDP, and TCP for what does not fit.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::{DnsRequest, DnsResponse};
use hickory_resolver::net::DnsHandle;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::tcp::TcpClientStream;
use tokio::time::Instant;

use super::first;
use super::udp::Udp;
use crate::resolver::answer::Failure;

pub(super) struct Plain {
    address: SocketAddr,
    timeout: Duration,
    udp: Udp,
    provider: TokioRuntimeProvider,
}

impl Plain {
    pub(super) fn new(address: SocketAddr, timeout: Duration) -> Self {
        Self { address, timeout, udp: Udp::new(address, timeout), provider: TokioRuntimeProvider::new() }
    }

    pub(super) async fn ask(&self, request: DnsRequest, questions: &mut u32) -> Result<DnsResponse, Failure> {
        *questions += 1;
        let response = self.udp.ask(&request).await?;
        if !response.metadata.truncation {
            return Ok(response);
        }
        *questions += 1;
        // Rare, and large: it should not weigh on every lookup.
        Box::pin(self.over_tcp(request)).await
    }

    pub(super) fn heard_since(&self, then: Instant) -> bool {
        self.udp.heard_since(then)
    }

    async fn over_tcp(&self, request: DnsRequest) -> Result<DnsResponse, Failure> {
        let connection =
            TcpClientStream::exchange(self.address, None, self.timeout, None, self.provider.clone());
        let tcp = tokio::time::timeout(self.timeout, connection)
            .await
            .map_err(|_| Failure::Timeout)?
            .map_err(|error| Failure::Transport(format!("ask over TCP: {error}")))?;
        let response = tokio::time::timeout(self.timeout, first(tcp.send(request))).await;
        answer(response.map_err(|_| Failure::Timeout)?)
    }
}

fn answer(
    response: Option<Result<DnsResponse, hickory_resolver::net::NetError>>,
) -> Result<DnsResponse, Failure> {
    match response {
        Some(Ok(response)) => Ok(response),
        Some(Err(error)) => Err(Failure::Transport(error.to_string())),
        // This is how hickory says that the time is over.
        None => Err(Failure::Timeout),
    }
}
