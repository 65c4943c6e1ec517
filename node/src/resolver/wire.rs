//! One question to one server, over whatever it speaks, with EDNS where it understands that.

mod kept;
mod plain;
mod udp;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use hickory_proto::op::{DnsRequest, DnsRequestOptions, DnsResponse, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use hickory_resolver::net::NetError;
use tokio::time::Instant;

use super::answer::Failure;
use super::endpoint::{Endpoint, Transport};
use super::trust::Trust;
use kept::Kept;
use plain::Plain;

/// Largest answer over UDP that is asked for, bytes: fits every path unfragmented (DNS flag day 2020).
const UDP_PAYLOAD_BYTES: u16 = 1_232;
/// A server that does not understand EDNS is asked without it for so long.
const EDNS_PAUSE: Duration = Duration::from_hours(1);
/// How often a question is sent over UDP before the upstream counts as silent.
const SENDS_PER_QUESTION: u8 = 3;

/// The way to one server.
pub(super) struct Wire {
    way: Way,
    timeout: Duration,
    /// Until then EDNS is left out.
    without_edns_until: Mutex<Option<Instant>>,
}

enum Way {
    Plain(Plain),
    Kept(Box<Kept>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Edns {
    On,
    Off,
}

impl Wire {
    /// Nothing is connected before the first question.
    pub(super) fn new(endpoint: Endpoint, timeout: Duration, trust: &Trust) -> Self {
        let way = match endpoint.transport {
            Transport::Plain => Way::Plain(Plain::new(endpoint.address, timeout)),
            Transport::Tls { .. } | Transport::Https { .. } => {
                Way::Kept(Box::new(Kept::new(endpoint, timeout, trust.client())))
            }
        };
        Self { way, timeout, without_edns_until: Mutex::new(None) }
    }

    /// Asks, and counts what went out in `questions`.
    pub(super) async fn ask(
        &self,
        name: &Name,
        kind: RecordType,
        questions: &mut u32,
    ) -> Result<DnsResponse, Failure> {
        let query = Query::query(name.clone(), kind);
        let edns = if self.knows_edns() { Edns::On } else { Edns::Off };
        let response = self.send(&query, edns, questions).await?;
        if edns == Edns::Off || response.metadata.response_code != ResponseCode::FormErr {
            return Ok(response);
        }
        // RFC 6891 section 7: so says a server that does not know EDNS.
        let without = self.send(&query, Edns::Off, questions).await?;
        if without.metadata.response_code != ResponseCode::FormErr {
            *self.without_edns_until.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(Instant::now() + EDNS_PAUSE);
        }
        Ok(without)
    }

    /// True when anything came from the server since then that shows it alive, be it too late or to no question of ours.
    pub(super) fn heard_since(&self, then: Instant) -> bool {
        match &self.way {
            Way::Plain(plain) => plain.heard_since(then),
            // What comes over a kept connection is an answer.
            Way::Kept(_) => false,
        }
    }

    async fn send(&self, query: &Query, edns: Edns, questions: &mut u32) -> Result<DnsResponse, Failure> {
        let mut options = DnsRequestOptions::default();
        options.retry_interval = self.timeout / u32::from(SENDS_PER_QUESTION);
        options.use_edns = edns == Edns::On;
        options.edns_payload_len = UDP_PAYLOAD_BYTES;
        let request = DnsRequest::from_query(query.clone(), options);
        let response = match &self.way {
            Way::Plain(plain) => plain.ask(request, questions).await?,
            Way::Kept(kept) => {
                *questions += 1;
                Box::pin(kept.ask(request)).await?
            }
        };
        if answers(&response, query) {
            Ok(response)
        } else {
            Err(Failure::Transport("it answered another question".to_owned()))
        }
    }

    fn knows_edns(&self) -> bool {
        let until = *self.without_edns_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_none_or(|until| until <= Instant::now())
    }
}

/// Questions are told apart by a number only, so what comes must also repeat the question. Who reports an error need not:
/// it may not have understood it.
fn answers(response: &DnsResponse, query: &Query) -> bool {
    match response.queries.as_slice() {
        [repeated] => repeated == query,
        [] => !matches!(response.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain),
        _ => false,
    }
}

/// The answer in a stream of at most one.
async fn first<S>(mut responses: S) -> Option<Result<DnsResponse, NetError>>
where
    S: Stream<Item = Result<DnsResponse, NetError>> + Unpin,
{
    responses.next().await
}
