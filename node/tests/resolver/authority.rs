//! A DNS server on a loopback port whose answers a test can change at any time, faults included.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{HeaderCounts, Metadata, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::net::{TcpListener, UdpSocket};

/// How the server deals with one name.
#[derive(Debug, Clone)]
pub(crate) enum Behaviour {
    /// Answers with the records of the asked type; with a proper "no data" when there are none.
    Records { addresses: Vec<IpAddr>, ttl: u32 },
    /// As `Records`, but each answer carries only one of them, the next one each time.
    Rotating { addresses: Vec<IpAddr>, ttl: u32 },
    /// An alias; the chain inside this server is answered as far as it goes.
    Alias { target: String, ttl: u32 },
    /// An alias that is answered alone, as an authority for another zone would.
    BareAlias { target: String, ttl: u32 },
    /// An error code.
    Code(ResponseCode),
    /// Points elsewhere.
    Referral,
    /// Says nothing at all.
    Silent,
    /// As `Records` to those who leave EDNS out; FORMERR to all others, as servers older than EDNS say.
    NoEdns { addresses: Vec<IpAddr>, ttl: u32 },
}

/// The running server. Its tasks end with the test's runtime.
pub(crate) struct Authority {
    pub(crate) address: SocketAddr,
    zone: Arc<Zone>,
    server: hickory_server::Server<Handler>,
}

#[derive(Default)]
struct Zone {
    names: Mutex<BTreeMap<String, Behaviour>>,
    questions: Mutex<BTreeMap<(String, RecordType), usize>>,
    over_tcp: AtomicUsize,
    turn: AtomicUsize,
}

struct Handler(Arc<Zone>);

impl Authority {
    pub(crate) async fn start() -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// On a port that was some other server's.
    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        let zone = Arc::new(Zone::default());
        let mut server = hickory_server::Server::new(Handler(Arc::clone(&zone)));
        let tcp = TcpListener::bind(address).await.expect("bind a TCP port");
        let address = tcp.local_addr().expect("a bound port");
        let udp = UdpSocket::bind(address).await.expect("bind the same UDP port");
        server.register_socket(udp);
        server.register_listener(tcp, Duration::from_secs(5), 16);
        Self { address, zone, server }
    }

    pub(crate) fn set(&self, name: &str, behaviour: Behaviour) {
        self.zone.names.lock().expect("zone").insert(name.to_owned(), behaviour);
    }

    pub(crate) fn set_addresses(&self, name: &str, addresses: &[&str], ttl: u32) {
        let addresses = addresses.iter().map(|text| text.parse().expect("an address")).collect();
        self.set(name, Behaviour::Records { addresses, ttl });
    }

    /// How often a name was asked for, all types.
    pub(crate) fn questions(&self, name: &str) -> usize {
        let questions = self.zone.questions.lock().expect("zone");
        questions.iter().filter(|((asked, _), _)| asked == name).map(|(_, count)| count).sum()
    }

    /// Answers that went out over TCP.
    pub(crate) fn over_tcp(&self) -> usize {
        self.zone.over_tcp.load(Ordering::SeqCst)
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.server.shutdown_token().cancel();
    }
}

#[derive(Default)]
struct Response {
    code: Option<ResponseCode>,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    authoritative: bool,
}

impl Zone {
    fn answer(&self, asked: &Name, kind: RecordType, edns: bool) -> Option<Response> {
        let names = self.names.lock().expect("zone");
        let mut response = Response { authoritative: true, ..Response::default() };
        let mut name = asked.clone();
        loop {
            let key = name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
            let record = |ttl, data| Record::from_rdata(name.clone(), ttl, data);
            let addresses = |addresses: &[IpAddr], ttl| {
                let data = addresses.iter().filter_map(|address| match (address, kind) {
                    (IpAddr::V4(v4), RecordType::A) => Some(RData::A(A(*v4))),
                    (IpAddr::V6(v6), RecordType::AAAA) => Some(RData::AAAA(AAAA(*v6))),
                    _ => None,
                });
                data.map(|data| record(ttl, data)).collect::<Vec<_>>()
            };
            let target = match names.get(&key) {
                None => {
                    response.code = Some(ResponseCode::NXDomain);
                    response.authorities.push(soa());
                    return Some(response);
                }
                Some(Behaviour::Silent) => return None,
                Some(Behaviour::Code(code)) => {
                    response.code = Some(*code);
                    return Some(response);
                }
                Some(Behaviour::Referral) => {
                    response.authoritative = false;
                    response.authorities.push(record(60, RData::NS(NS(parse("ns.elsewhere.test")))));
                    return Some(response);
                }
                Some(Behaviour::NoEdns { .. }) if edns => {
                    response.code = Some(ResponseCode::FormErr);
                    return Some(response);
                }
                Some(
                    Behaviour::Records { addresses: all, ttl } | Behaviour::NoEdns { addresses: all, ttl },
                ) => {
                    response.answers.extend(addresses(all, *ttl));
                    if response.answers.is_empty() || response.answers.iter().all(|a| a.record_type() != kind)
                    {
                        response.authorities.push(soa());
                    }
                    return Some(response);
                }
                Some(Behaviour::Rotating { addresses: all, ttl }) => {
                    let mut records = addresses(all, *ttl);
                    if records.is_empty() {
                        response.authorities.push(soa());
                    } else {
                        let turn = self.turn.fetch_add(1, Ordering::SeqCst);
                        response.answers.push(records.swap_remove(turn % records.len()));
                    }
                    return Some(response);
                }
                Some(Behaviour::BareAlias { target, ttl }) => {
                    response.answers.push(record(*ttl, RData::CNAME(CNAME(parse(target)))));
                    return Some(response);
                }
                Some(Behaviour::Alias { target, ttl }) => {
                    response.answers.push(record(*ttl, RData::CNAME(CNAME(parse(target)))));
                    parse(target)
                }
            };
            if response.answers.iter().any(|answer| answer.name == target) {
                return Some(response);
            }
            name = target;
        }
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response_handle: R,
    ) -> ResponseInfo {
        let (name, kind) = {
            let query = request.request_info().expect("one question").query;
            (Name::from(query.name().clone()), query.query_type())
        };
        let key = name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
        *self.0.questions.lock().expect("zone").entry((key, kind)).or_default() += 1;
        let mut metadata = Metadata::response_from_request(&request.metadata);
        let Some(response) = self.0.answer(&name, kind, request.edns.is_some()) else {
            return hickory_proto::op::Header { metadata, counts: HeaderCounts::default() }.into();
        };
        if request.protocol() == Protocol::Tcp {
            self.0.over_tcp.fetch_add(1, Ordering::SeqCst);
        }
        metadata.response_code = response.code.unwrap_or(ResponseCode::NoError);
        metadata.authoritative = response.authoritative;
        // Without EDNS in the response, UDP answers over 512 bytes are truncated.
        let message = MessageResponseBuilder::from_message_request(request).build(
            metadata,
            &response.answers,
            &response.authorities,
            [],
            [],
        );
        response_handle.send_response(message).await.expect("send the response")
    }
}

fn parse(name: &str) -> Name {
    let mut name = Name::from_ascii(name).expect("a DNS name");
    name.set_fqdn(true);
    name
}

fn soa() -> Record {
    let soa = SOA::new(parse("ns.test"), parse("hostmaster.test"), 1, 60, 60, 60, 30);
    Record::from_rdata(parse("test"), 60, RData::SOA(soa))
}
