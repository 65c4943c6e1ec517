//! Asks one upstream for one family of one name, aliases followed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use allowlist::DomainName;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::time::Instant;

use super::answer::{Answer, Failure, Family};
use super::breaker::{Breaker, CHECK_INTERVAL, Turn};
use super::endpoint::Endpoint;
use super::pace::Pace;
use super::trust::Trust;
use super::wire::Wire;

/// Most aliases (CNAME) in a row that are followed.
pub const MAX_ALIASES: usize = 16;

/// Longest time an answer may be kept. A zone's slip of the pen must not pin an address, or put off the next question,
/// for years; resolvers of others bound it alike.
pub const MAX_TTL: Duration = Duration::from_hours(24);
/// RFC 2181 section 8: a TTL is a number of 31 bits, and one above counts as zero.
const LARGEST_TTL_S: u32 = (1 << 31) - 1;

/// A lookup may ask several questions (aliases, TCP); this many times one question's patience bounds them all.
const QUESTIONS_OF_PATIENCE: u32 = 4;

/// A recursive DNS server that is asked. Clones are the same one: they share its connection, its pace, and what is known
/// of its health.
#[derive(Clone)]
pub struct Upstream(Arc<Server>);

struct Server {
    name: String,
    wire: Wire,
    patience: Duration,
    started: Instant,
    pace: Mutex<Pace>,
    /// Whoever holds it is next to ask; the others wait in line.
    turn: tokio::sync::Mutex<()>,
    breaker: Mutex<Breaker>,
}

/// What an upstream is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// How long it has to answer a question.
    pub timeout: Duration,
    /// Most questions a second.
    pub questions_per_second: u32,
}

/// An answer and what it cost.
#[derive(Debug)]
pub struct Lookup {
    /// What the upstream said.
    pub answer: Answer,
    /// Questions put to it.
    pub questions: u32,
    /// Time from the first question to the answer; without waiting for its pace.
    pub took: Duration,
}

impl Upstream {
    /// The upstream at `endpoint`, whose certificate, if it has one, is judged by `trust`.
    pub fn new(endpoint: Endpoint, bounds: Bounds, trust: &Trust) -> Self {
        Self(Arc::new(Server {
            name: endpoint.to_string(),
            wire: Wire::new(endpoint, bounds.timeout, trust),
            patience: bounds.timeout * QUESTIONS_OF_PATIENCE,
            started: Instant::now(),
            pace: Mutex::new(Pace::new(bounds.questions_per_second, Duration::ZERO)),
            turn: tokio::sync::Mutex::default(),
            breaker: Mutex::default(),
        }))
    }

    /// How it is named in the replicated state, logs and metrics; see [`Endpoint`].
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// False while it does not answer and is only checked.
    pub fn is_up(&self) -> bool {
        self.breaker().is_up()
    }

    /// Asks for the addresses of `domain` in `family`, as soon as its pace allows. Never fails: a failure is an answer
    /// too, and comes at once while the upstream is down.
    pub async fn lookup(&self, domain: &DomainName, family: Family) -> Lookup {
        if !self.is_up() {
            return Lookup::skipped();
        }
        self.wait_for_turn().await;
        // It may have gone down meanwhile.
        if self.is_up() { self.put(domain, family).await } else { Lookup::skipped() }
    }

    async fn wait_for_turn(&self) {
        let _turn = self.0.turn.lock().await;
        loop {
            let opens_at = {
                let mut pace = self.pace();
                if pace.is_open(self.0.started.elapsed()) {
                    return pace.spend(1);
                }
                pace.opens_at()
            };
            tokio::time::sleep_until(self.0.started + opens_at).await;
        }
    }

    async fn put(&self, domain: &DomainName, family: Family) -> Lookup {
        let mut questions = 0;
        let asked = Instant::now();
        let answer =
            match tokio::time::timeout(self.0.patience, self.follow(domain, family, &mut questions)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(failure)) => Answer::Failed(failure),
                Err(_) => Answer::Failed(Failure::Timeout),
            };
        self.take_note(&answer, asked);
        // The first one is paid for; the rest is a debt that holds up who comes next.
        self.pace().spend(questions.saturating_sub(1));
        Lookup { answer, questions, took: asked.elapsed() }
    }

    fn take_note(&self, answer: &Answer, asked: Instant) {
        match answer {
            // It said something to somebody meanwhile: it is the name that is silent.
            Answer::Failed(Failure::Timeout | Failure::Transport(_)) if self.0.wire.heard_since(asked) => {
                self.tell(self.breaker().answered(), "");
            }
            Answer::Failed(failure @ (Failure::Timeout | Failure::Transport(_))) => {
                if self.breaker().unanswered() {
                    self.check_until_it_answers(failure.to_string());
                }
            }
            Answer::Failed(Failure::Skipped) => {}
            Answer::Addresses { .. } | Answer::Nothing { .. } | Answer::Failed(_) => {
                self.tell(self.breaker().answered(), "");
            }
        }
    }

    /// Ends with the upstream, or its first answer.
    fn check_until_it_answers(&self, failure: String) {
        let server = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            while let Some(server) = server.upgrade() {
                if Self(server).passes_check(&failure).await {
                    return;
                }
                tokio::time::sleep(CHECK_INTERVAL).await;
            }
        });
    }

    /// Asks for the servers of the root, which every server has an answer to, be it that it refuses.
    async fn passes_check(&self, failure: &str) -> bool {
        let asked = Instant::now();
        self.pace().spend(1);
        let answer = self.0.wire.ask(&Name::root(), RecordType::NS, &mut 0).await;
        let passed = answer.is_ok() || self.0.wire.heard_since(asked);
        let turn = if passed { self.breaker().passed_check() } else { self.breaker().failed_check() };
        self.tell(turn, failure);
        passed
    }

    fn tell(&self, turn: Option<Turn>, failure: &str) {
        match turn {
            Some(Turn::Down) => {
                tracing::warn!(
                    upstream = self.name(),
                    failure,
                    "DNS server does not answer; until it does, it is only checked"
                );
            }
            Some(Turn::Up) => tracing::info!(upstream = self.name(), "DNS server answers again"),
            None => {}
        }
    }

    async fn follow(
        &self,
        domain: &DomainName,
        family: Family,
        questions: &mut u32,
    ) -> Result<Answer, Failure> {
        let mut path = Path::from(domain)?;
        let kind = match family {
            Family::V4 => RecordType::A,
            Family::V6 => RecordType::AAAA,
        };
        loop {
            let response = self.0.wire.ask(path.end(), kind, questions).await?;
            match path.read(&response, family)? {
                Step::Addresses(addresses) => {
                    return Ok(Answer::Addresses { addresses, chain: path.into_chain() });
                }
                Step::Nothing => return Ok(Answer::Nothing { chain: path.into_chain() }),
                Step::AskOn => {}
            }
        }
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.0.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.0.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lookup {
    fn skipped() -> Self {
        Self { answer: Answer::Failed(Failure::Skipped), questions: 0, took: Duration::ZERO }
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Upstream({})", self.0.name)
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
