//! Asks one upstream for one family of one name: UDP, TCP when the answer was truncated, aliases followed.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use allowlist::DomainName;
use futures_util::{Stream, StreamExt};
use hickory_proto::op::{DnsRequest, DnsRequestOptions, DnsResponse, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::tcp::TcpClientStream;
use hickory_resolver::net::udp::UdpClientStream;
use hickory_resolver::net::xfer::DnsRequestSender;
use hickory_resolver::net::{DnsHandle, NetError};

use super::answer::{Answer, Failure, Family};

/// Most aliases (CNAME) in a row that are followed.
pub const MAX_ALIASES: usize = 16;

/// Longest time an answer may be kept. A zone's slip of the pen must not pin an address, or put off the next question,
/// for years; resolvers of others bound it alike.
pub const MAX_TTL: Duration = Duration::from_hours(24);
/// RFC 2181 section 8: a TTL is a number of 31 bits, and one above counts as zero.
const LARGEST_TTL_S: u32 = (1 << 31) - 1;

/// How often a question is sent over UDP before the upstream counts as silent.
const SENDS_PER_QUESTION: u8 = 3;
/// A lookup may ask several questions (aliases, TCP); this many times one question's patience bounds them all.
const QUESTIONS_OF_PATIENCE: u32 = 4;

/// A recursive DNS server that is asked.
#[derive(Clone)]
pub struct Upstream {
    address: SocketAddr,
    name: String,
    timeout: Duration,
    provider: TokioRuntimeProvider,
}

/// An answer and what it cost.
#[derive(Debug)]
pub struct Lookup {
    /// What the upstream said.
    pub answer: Answer,
    /// Questions put to it.
    pub questions: u32,
}

impl Upstream {
    /// An upstream at `address` that has `timeout` to answer a question.
    pub fn new(address: SocketAddr, timeout: Duration) -> Self {
        Self { address, name: address.to_string(), timeout, provider: TokioRuntimeProvider::new() }
    }

    /// Its address and port as text: how it is named in the replicated state, logs and metrics.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks for the addresses of `domain` in `family`. Never fails: a failure is an answer too.
    pub async fn lookup(&self, domain: &DomainName, family: Family) -> Lookup {
        let mut questions = 0;
        let patience = self.timeout * QUESTIONS_OF_PATIENCE;
        let answer = match tokio::time::timeout(patience, self.follow(domain, family, &mut questions)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(failure)) => Answer::Failed(failure),
            Err(_) => Answer::Failed(Failure::Timeout),
        };
        Lookup { answer, questions }
    }

    async fn follow(
        &self,
        domain: &DomainName,
        family: Family,
        questions: &mut u32,
    ) -> Result<Answer, Failure> {
        let mut path = Path::from(domain)?;
        loop {
            *questions += 1;
            let response = self.ask(path.end(), family, questions).await?;
            match path.read(&response, family)? {
                Step::Addresses(addresses) => {
                    return Ok(Answer::Addresses { addresses, chain: path.into_chain() });
                }
                Step::Nothing => return Ok(Answer::Nothing { chain: path.into_chain() }),
                Step::AskOn => {}
            }
        }
    }

    async fn ask(&self, name: &Name, family: Family, questions: &mut u32) -> Result<DnsResponse, Failure> {
        let kind = match family {
            Family::V4 => RecordType::A,
            Family::V6 => RecordType::AAAA,
        };
        let mut options = DnsRequestOptions::default();
        options.retry_interval = self.timeout / u32::from(SENDS_PER_QUESTION);
        let request = DnsRequest::from_query(Query::query(name.clone(), kind), options);

        // Each send has a socket and a random port of its own, so that answers are hard to forge.
        let mut udp = UdpClientStream::builder(self.address, self.provider.clone())
            .with_timeout(Some(self.timeout))
            .with_max_retries(SENDS_PER_QUESTION)
            .with_os_port_selection(true)
            .build();
        let response = first(udp.send_message(request.clone())).await?;
        if !response.metadata.truncation {
            return Ok(response);
        }
        *questions += 1;
        let connection =
            TcpClientStream::exchange(self.address, None, self.timeout, None, self.provider.clone());
        let tcp = tokio::time::timeout(self.timeout, connection)
            .await
            .map_err(|_| Failure::Timeout)?
            .map_err(|error| Failure::Transport(format!("ask over TCP: {error}")))?;
        tokio::time::timeout(self.timeout, first(tcp.send(request))).await.map_err(|_| Failure::Timeout)?
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Upstream({})", self.name)
    }
}

async fn first<S>(mut responses: S) -> Result<DnsResponse, Failure>
where
    S: Stream<Item = Result<DnsResponse, NetError>> + Unpin,
{
    match responses.next().await {
        Some(Ok(response)) => Ok(response),
        Some(Err(error)) => Err(Failure::Transport(error.to_string())),
        // This is how hickory says that the time is over.
        None => Err(Failure::Timeout),
    }
}

/// The way from a name over its aliases.
struct Path {
    /// The name itself first; never empty.
    names: Vec<Name>,
    /// The smallest TTL of the aliases passed so far.
    ttl_s: u32,
}

enum Step {
    Addresses(BTreeMap<IpAddr, u32>),
    Nothing,
    /// The upstream stopped at an alias: ask it for what that points to.
    AskOn,
}

impl Path {
    fn from(domain: &DomainName) -> Result<Self, Failure> {
        let mut name = Name::from_ascii(domain.as_str())
            .map_err(|error| Failure::Transport(format!("put {domain} into a DNS question: {error}")))?;
        name.set_fqdn(true);
        Ok(Self { names: vec![name], ttl_s: u32::MAX })
    }

    fn end(&self) -> &Name {
        // `names` starts with one element and only grows.
        &self.names[self.names.len() - 1]
    }

    /// Goes on as far as `response` carries.
    fn read(&mut self, response: &Message, family: Family) -> Result<Step, Failure> {
        let code = response.metadata.response_code;
        if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
            return Err(Failure::Code(code_text(code)));
        }
        let asked = self.names.len();
        loop {
            let addresses = addresses_of(response, self.end(), family, self.ttl_s);
            if !addresses.is_empty() {
                return Ok(Step::Addresses(addresses));
            }
            let Some((target, ttl_s)) = alias_of(response, self.end()) else { break };
            if self.names.contains(target) {
                return Err(Failure::AliasLoop(target.to_string()));
            }
            if self.names.len() > MAX_ALIASES {
                return Err(Failure::TooManyAliases);
            }
            self.names.push(target.clone());
            self.ttl_s = self.ttl_s.min(ttl_s);
        }
        let authority = |kind| response.authorities.iter().any(|record| record.record_type() == kind);
        let followed = self.names.len() > asked;
        match code {
            // RFC 6604: the code speaks of the last name of the chain.
            ResponseCode::NXDomain => Ok(Step::Nothing),
            // RFC 2308 section 2.2: the SOA marks a proper "no data", also behind an alias.
            _ if authority(RecordType::SOA) => Ok(Step::Nothing),
            _ if followed => Ok(Step::AskOn),
            _ if authority(RecordType::NS) && !response.metadata.authoritative => Err(Failure::Referral),
            _ => Ok(Step::Nothing),
        }
    }

    /// For people: names no entry could carry are left out.
    fn into_chain(self) -> Vec<DomainName> {
        if self.names.len() == 1 {
            return Vec::new();
        }
        self.names.iter().filter_map(|name| name.to_ascii().parse().ok()).collect()
    }
}

fn addresses_of(response: &Message, name: &Name, family: Family, ttl_s: u32) -> BTreeMap<IpAddr, u32> {
    let mut addresses = BTreeMap::new();
    for record in response.answers.iter().filter(|record| record.name == *name) {
        let address = match (&record.data, family) {
            (RData::A(a), Family::V4) => IpAddr::V4(a.0),
            (RData::AAAA(aaaa), Family::V6) => IpAddr::V6(aaaa.0),
            _ => continue,
        };
        let ttl_s = bounded_ttl_s(record.ttl).min(ttl_s);
        addresses.entry(address).and_modify(|kept: &mut u32| *kept = ttl_s.min(*kept)).or_insert(ttl_s);
    }
    addresses
}

fn alias_of<'a>(response: &'a Message, name: &Name) -> Option<(&'a Name, u32)> {
    response.answers.iter().find_map(|record| match &record.data {
        RData::CNAME(target) if record.name == *name => Some((&target.0, bounded_ttl_s(record.ttl))),
        _ => None,
    })
}

fn bounded_ttl_s(ttl_s: u32) -> u32 {
    if ttl_s > LARGEST_TTL_S {
        0
    } else {
        ttl_s.min(u32::try_from(MAX_TTL.as_secs()).unwrap_or(LARGEST_TTL_S))
    }
}

/// The names operators know from `dig`.
fn code_text(code: ResponseCode) -> String {
    match code {
        ResponseCode::FormErr => "FORMERR".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::NotImp => "NOTIMP".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        other => format!("code {} ({other})", u16::from(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_is_kept_for_a_day_at_most_and_counts_as_zero_when_it_is_none() {
        let day = u32::try_from(MAX_TTL.as_secs()).expect("a day fits");
        for (said, kept) in [(0, 0), (30, 30), (day, day), (day + 1, day), (LARGEST_TTL_S, day)] {
            assert_eq!(bounded_ttl_s(said), kept, "{said}");
        }
        assert_eq!((bounded_ttl_s(LARGEST_TTL_S + 1), bounded_ttl_s(u32::MAX)), (0, 0));
    }

    #[test]
    fn the_ttls_of_aliases_are_bounded_like_those_of_addresses() {
        use hickory_proto::op::{MessageType, OpCode};
        use hickory_proto::rr::Record;
        use hickory_proto::rr::rdata::{A, CNAME};

        let name = |text: &str| Name::from_ascii(text).expect("a name");
        let mut response = Message::new(1, MessageType::Response, OpCode::Query);
        let alias = RData::CNAME(CNAME(name("b.example.com.")));
        response.add_answer(Record::from_rdata(name("a.example.com."), u32::MAX, alias));
        let address = RData::A(A::new(1, 1, 1, 1));
        response.add_answer(Record::from_rdata(name("b.example.com."), LARGEST_TTL_S, address));
        let day = u32::try_from(MAX_TTL.as_secs()).expect("a day fits");
        let direct = addresses_of(&response, &name("b.example.com."), Family::V4, u32::MAX);
        assert_eq!(direct.into_values().collect::<Vec<_>>(), [day]);
        assert_eq!(alias_of(&response, &name("a.example.com.")), Some((&name("b.example.com."), 0)));
    }
}
