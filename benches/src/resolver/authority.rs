//! An authority whose records change on command and that remembers when it gave each answer last: with that, a delay can
//! be counted from the moment the old answer had to be asked for again.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hickory_proto::op::{Message, Metadata, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use lab::Namespace;

/// How often it looks whether it should end.
const RECEIVE_TIMEOUT: Duration = Duration::from_millis(200);
const MAX_QUESTION_BYTES: usize = 1_500;

/// The running authority; dropping it ends it.
pub(super) struct Authority {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

struct Shared {
    ttl_s: u32,
    names: Mutex<HashMap<String, Held>>,
    stop: AtomicBool,
}

/// A name's record.
#[derive(Debug, Clone, Copy)]
struct Held {
    address: Ipv4Addr,
    given: Option<Instant>,
}

impl Authority {
    /// Listens on `address` inside `namespace`; every answer may be kept for `ttl_s`.
    pub(super) fn start(namespace: &Arc<Namespace>, address: SocketAddr, ttl_s: u32) -> Result<Self> {
        let socket = namespace.enter(|| {
            let socket = UdpSocket::bind(address).with_context(|| format!("bind {address}"))?;
            socket.set_read_timeout(Some(RECEIVE_TIMEOUT)).context("set a time limit")?;
            Ok(socket)
        })?;
        let shared =
            Arc::new(Shared { ttl_s, names: Mutex::new(HashMap::new()), stop: AtomicBool::new(false) });
        let thread = thread::Builder::new().name("authority".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || serve(&socket, &shared)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Sets the one address of `name`. Gives the moment the former one was last given.
    pub(super) fn set(&self, name: &str, address: Ipv4Addr) -> Option<Instant> {
        let mut names = self.shared.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.insert(name.to_owned(), Held { address, given: None })?.given
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, shared: &Shared) -> Result<()> {
    let mut buffer = [0; MAX_QUESTION_BYTES];
    while !shared.stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let Ok(question) = Message::from_vec(&buffer[..length]) else { continue };
        if let Some(answer) = shared.answer(&question) {
            socket.send_to(&answer.to_vec().context("write an answer")?, from).context("send an answer")?;
        }
    }
    Ok(())
}

impl Shared {
    fn answer(&self, question: &Message) -> Option<Message> {
        let query = question.queries.first()?;
        let mut metadata = Metadata::response_from_request(&question.metadata);
        metadata.authoritative = true;
        let key = query.name().to_ascii();
        let mut answer = Message::response(metadata.id, metadata.op_code);
        answer.add_query(query.clone());
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        match names.get_mut(key.trim_end_matches('.')) {
            Some(held) if query.query_type() == RecordType::A => {
                held.given = Some(Instant::now());
                answer.add_answer(Record::from_rdata(
                    query.name().clone(),
                    self.ttl_s,
                    RData::A(A(held.address)),
                ));
            }
            Some(_) => {
                answer.add_authority(soa(self.ttl_s)?);
            }
            None => {
                metadata.response_code = ResponseCode::NXDomain;
                answer.add_authority(soa(self.ttl_s)?);
            }
        }
        answer.metadata = metadata;
        Some(answer)
    }
}

fn soa(ttl_s: u32) -> Option<Record> {
    let name = |text| Name::from_ascii(text).ok();
    let soa = SOA::new(name("ns.bench.test.")?, name("admin.bench.test.")?, 1, 60, 60, 60, ttl_s);
    Some(Record::from_rdata(name("bench.test.")?, ttl_s, RData::SOA(soa)))
}

/// Where it listens on the lab's machine for DNS.
pub(super) fn address(ip: impl Into<IpAddr>) -> SocketAddr {
    SocketAddr::new(ip.into(), 53)
}
