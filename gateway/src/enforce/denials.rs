//! Who was denied what, on its way to a server: gathered by source, destination and service, and kept, within bounds, while
//! no server is in reach.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use allowlist::feed::{DeniedFlow, MAX_ELEMENTS_PER_FRAME};
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::firewall::{DenialNews, DenialSink, DeniedPacket, LogLoss};
use crate::metrics::registered;

/// Most flows kept apart until a server was told of them.
pub const MAX_DENIED_FLOWS: usize = 10_000;
/// Most sources whose further flows are kept together, without destination; what goes beyond them is kept as one for each
/// family.
pub const MAX_FOLDED_SOURCES: usize = 1_000;
/// A server is told of denied flows no more often than this.
pub const DENIAL_INTERVAL: Duration = Duration::from_secs(3);

/// Whether denied packets are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DenialLogHealth {
    /// Nothing was heard of it yet.
    Starting,
    /// They are.
    Up,
    /// They are not; says why and what would help.
    Down(String),
}

/// What is gathered. Clones share it.
#[derive(Debug, Clone)]
pub struct Denials {
    gathered: Arc<Mutex<Gathered>>,
    bell: Arc<Notify>,
    seen: IntCounterVec,
    lost: IntCounterVec,
    folded: IntCounter,
    up: IntGauge,
}

#[derive(Debug)]
struct Gathered {
    flows: HashMap<Flow, Seen>,
    folded: HashMap<Flow, Seen>,
    health: DenialLogHealth,
    /// When a server was told last.
    told: Option<Instant>,
}

/// Source, destination, protocol, port.
type Flow = (IpAddr, IpAddr, u8, u16);

#[derive(Debug, Clone, Copy)]
struct Seen {
    packets: u64,
    first_ms: u64,
    last_ms: u64,
}

impl Denials {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let family = |name: &str, help: &str, label: &str| {
            registered(registry, IntCounterVec::new(Opts::new(name, help), &[label]))
        };
        let seen = family(
            "outputguard_denied_log_packets_total",
            "Packets read from the kernel's log of denied packets; outputguard_unlisted_packets_total minus these is what \
             the log's limits swallowed.",
            "family",
        )?;
        let lost = family(
            "outputguard_denied_log_lost_total",
            "Packets the kernel logged that are not among those: lost because too many waited (overrun), not understood \
             (unreadable), or logged to our group by somebody else's rule (foreign).",
            "reason",
        )?;
        for version in ["ipv4", "ipv6"] {
            seen.with_label_values(&[version]);
        }
        for loss in [LogLoss::Overrun, LogLoss::Unreadable, LogLoss::Foreign] {
            lost.with_label_values(&[word(loss)]);
        }
        let folded = IntCounter::new(
            "outputguard_denied_log_folded_total",
            "Packets reported without their destination, because too many different flows waited for a server.",
        );
        let folded = registered(registry, folded)?;
        let up =
            IntGauge::new("outputguard_denied_log_up", "1 while the kernel's log of denied packets is read.");
        let up = registered(registry, up)?;
        let gathered = Gathered {
            flows: HashMap::new(),
            folded: HashMap::new(),
            health: DenialLogHealth::Starting,
            told: None,
        };
        let gathered = Arc::new(Mutex::new(gathered));
        Ok(Self { gathered, bell: Arc::default(), seen, lost, folded, up })
    }

    /// Gathers news.
    pub(super) fn sink(&self) -> DenialSink {
        let denials = self.clone();
        Arc::new(move |news| match news {
            DenialNews::Packet(packet) => denials.add(packet, now_ms()),
            DenialNews::Lost(loss, count) => denials.lost.with_label_values(&[word(loss)]).inc_by(count),
            DenialNews::Up => denials.show(DenialLogHealth::Up),
            DenialNews::Down(reason) => denials.show(DenialLogHealth::Down(reason)),
        })
    }

    /// Whether denied packets are read.
    pub fn health(&self) -> DenialLogHealth {
        self.lock().health.clone()
    }

    /// Waits until there is something to tell and `interval` is over since a server was told, and gives as much as goes
    /// into one frame. It stays gathered until [`Self::told`].
    pub async fn due(&self, interval: Duration) -> Vec<DeniedFlow> {
        loop {
            let rung = self.bell.notified();
            let (flows, due_at) = {
                let gathered = self.lock();
                (gathered.frame(), gathered.told.map(|told| told + interval))
            };
            match due_at {
                _ if flows.is_empty() => rung.await,
                Some(at) if at > Instant::now() => tokio::time::sleep_until(at).await,
                _ => return flows,
            }
        }
    }

    /// A server was told of `flows`.
    pub fn told(&self, flows: &[DeniedFlow]) {
        let mut gathered = self.lock();
        let Gathered { flows: apart, folded, .. } = &mut *gathered;
        for flow in flows {
            let key = (flow.source, flow.destination, flow.protocol, flow.port);
            for kept in [&mut *apart, &mut *folded] {
                let Some(seen) = kept.get_mut(&key) else { continue };
                seen.packets = seen.packets.saturating_sub(flow.packets);
                // What came meanwhile came after it.
                seen.first_ms = seen.first_ms.max(flow.last_ms);
                if seen.packets == 0 {
                    kept.remove(&key);
                }
            }
        }
        gathered.told = Some(Instant::now());
    }

    fn add(&self, packet: DeniedPacket, at_ms: u64) {
        let DeniedPacket { source, destination, protocol, port } = packet;
        self.seen.with_label_values(&[if source.is_ipv4() { "ipv4" } else { "ipv6" }]).inc();
        let mut gathered = self.lock();
        if gathered.add((source, destination, protocol, port), at_ms) {
            self.folded.inc();
        }
        self.bell.notify_one();
    }

    fn show(&self, health: DenialLogHealth) {
        self.up.set((health == DenialLogHealth::Up).into());
        self.lock().health = health;
    }

    fn lock(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gathered {
    /// True when there was no room to keep it apart.
    fn add(&mut self, flow: Flow, at_ms: u64) -> bool {
        if self.flows.len() < MAX_DENIED_FLOWS || self.flows.contains_key(&flow) {
            note(&mut self.flows, flow, at_ms);
            return false;
        }
        let (source, ..) = flow;
        let several: IpAddr =
            if source.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let of_source = (source, several, 0, 0);
        let has_room = self.folded.len() < MAX_FOLDED_SOURCES || self.folded.contains_key(&of_source);
        note(&mut self.folded, if has_room { of_source } else { (several, several, 0, 0) }, at_ms);
        true
    }

    fn frame(&self) -> Vec<DeniedFlow> {
        let all = self.flows.iter().chain(&self.folded);
        all.take(MAX_ELEMENTS_PER_FRAME)
            .map(|(&(source, destination, protocol, port), seen)| DeniedFlow {
                source,
                destination,
                protocol,
                port,
                packets: seen.packets,
                first_ms: seen.first_ms,
                last_ms: seen.last_ms,
            })
            .collect()
    }
}

fn note(kept: &mut HashMap<Flow, Seen>, flow: Flow, at_ms: u64) {
    let seen = kept.entry(flow).or_insert(Seen { packets: 0, first_ms: at_ms, last_ms: at_ms });
    seen.packets += 1;
    // The clock may have been set back.
    seen.last_ms = seen.last_ms.max(at_ms);
}

fn word(loss: LogLoss) -> &'static str {
    match loss {
        LogLoss::Overrun => "overrun",
        LogLoss::Unreadable => "unreadable",
        LogLoss::Foreign => "foreign",
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denials() -> Denials {
        Denials::register(&Registry::new()).unwrap()
    }

    fn packet(source: u32, destination: u32, port: u16) -> DeniedPacket {
        DeniedPacket {
            source: Ipv4Addr::from(source).into(),
            destination: Ipv4Addr::from(destination).into(),
            protocol: 6,
            port,
        }
    }

    #[tokio::test]
    async fn packets_of_one_flow_are_one_and_are_told_once() {
        let denials = denials();
        for at_ms in [5, 9, 7] {
            denials.add(packet(1, 2, 443), at_ms);
        }
        denials.add(packet(1, 2, 80), 6);
        let mut flows = denials.due(Duration::ZERO).await;
        flows.sort_by_key(|flow| flow.port);
        let said: Vec<_> =
            flows.iter().map(|flow| (flow.port, flow.packets, flow.first_ms, flow.last_ms)).collect();
        assert_eq!(said, [(80, 1, 6, 6), (443, 3, 5, 9)]);
        // One more comes between looking and telling.
        denials.add(packet(1, 2, 443), 12);
        denials.told(&flows);
        let rest = denials.due(Duration::ZERO).await;
        let said: Vec<_> = rest.iter().map(|flow| (flow.port, flow.packets, flow.first_ms)).collect();
        assert_eq!(said, [(443, 1, 9)]);
        denials.told(&rest);
        assert!(denials.lock().flows.is_empty());
    }

    #[tokio::test]
    async fn what_was_not_told_is_due_again_and_a_server_is_not_told_too_often() {
        const INTERVAL: Duration = Duration::from_millis(60);
        let denials = denials();
        denials.add(packet(1, 2, 443), 5);
        let flows = denials.due(INTERVAL).await;
        assert_eq!(denials.due(INTERVAL).await, flows, "the link broke");
        let before = Instant::now();
        denials.told(&flows);
        denials.add(packet(1, 2, 443), 6);
        assert_eq!(denials.due(INTERVAL).await.len(), 1);
        assert!(before.elapsed() >= INTERVAL);
    }

    #[tokio::test]
    async fn a_flood_of_flows_is_bounded_and_every_packet_stays_counted() {
        let denials = denials();
        let flood = u32::try_from(MAX_DENIED_FLOWS).unwrap() + 500;
        for destination in 0..flood {
            denials.add(packet(1, destination, 443), 5);
        }
        for source in 0..u32::try_from(MAX_FOLDED_SOURCES).unwrap() + 500 {
            denials.add(packet(100 + source, 7, 443), 5);
        }
        {
            let gathered = denials.lock();
            assert_eq!(gathered.flows.len(), MAX_DENIED_FLOWS);
            assert_eq!(gathered.folded.len(), MAX_FOLDED_SOURCES + 1);
        }
        let mut packets = 0;
        while !denials.lock().frame().is_empty() {
            let flows = denials.due(Duration::ZERO).await;
            assert!(flows.len() <= MAX_ELEMENTS_PER_FRAME);
            packets += flows.iter().map(|flow| flow.packets).sum::<u64>();
            denials.told(&flows);
        }
        assert_eq!(packets, u64::from(flood) + MAX_FOLDED_SOURCES as u64 + 500);
        assert_eq!(denials.folded.get(), 500 + MAX_FOLDED_SOURCES as u64 + 500);
    }

    #[test]
    fn a_full_frame_of_flows_fits() {
        let flow = DeniedFlow {
            source: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap(),
            destination: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap(),
            protocol: 255,
            port: u16::MAX,
            packets: u64::MAX,
            first_ms: u64::MAX,
            last_ms: u64::MAX,
        };
        let frame = allowlist::feed::ToServer::Denied(vec![flow; MAX_ELEMENTS_PER_FRAME]);
        allowlist::codec::encode(&frame).unwrap();
    }
}
