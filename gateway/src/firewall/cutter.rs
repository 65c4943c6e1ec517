//! The thread that takes flows out of the kernel's table, so that a long table holds up nobody: what is revoked passes no
//! more when its members are out of the sets, whenever its flows are cut.
//!
//! One listing serves all that waits. Whether a flow may live is asked of the sets themselves at that moment, so that
//! what another element still lets pass, or what was added again meanwhile, is left alone.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use allowlist::feed::CutCause;
use allowlist::{Element, Revision};
use ipnet::IpNet;

use super::FirewallError;
use super::conntrack::{Flow, FlowTable, Scan};
use super::covering::Place;
use super::cut::{CutSink, Orders};
use super::ipset::{Client, IpsetError};
use super::layout::{CUT_SETS, DRAIN_PAIRS, Family, Member, PAIRS, PairLayout, Scope, Service};

/// First wait after a failure; it doubles up to [`RETRY_MAX`].
const RETRY_BASE: Duration = Duration::from_millis(200);
/// Longest wait after a failure.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How long the ends of a TCP connection may go on sending into nothing (`tcp_retries2` of 15 is 924 s at the least, tcp(7)):
/// for so long a cut connection is not picked up again in its middle when its element comes back.
pub(super) const CUT_MEMORY_S: u32 = 1_800;
/// Flows that are deleted before a change of the sets may go on …
const FLOWS_AT_ONCE: usize = 64;
/// … and how long it has to begin: a lock that is given back and taken again at once is seldom got by who waits for it.
const PAUSE_FOR_CHANGES: Duration = Duration::from_micros(100);
/// Most destinations remembered in that way, for each family.
const MAX_CUT_DESTINATIONS: u32 = 1 << 20;

/// The way to the thread.
pub(super) struct Cutter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    sheet: Mutex<Sheet>,
    bell: Condvar,
}

#[derive(Default)]
struct Sheet {
    orders: Orders,
    sink: Option<CutSink>,
    stop: bool,
}

impl Cutter {
    /// Starts the thread in the network namespace of the calling thread. Flows of other traffic than that of
    /// `internal_cidrs` are not touched. `changing` is held by whoever changes the sets.
    pub(super) fn start(
        internal_cidrs: Vec<IpNet>,
        sink: Option<CutSink>,
        changing: Arc<Mutex<()>>,
    ) -> Result<Self, FirewallError> {
        let worker = Worker {
            flows: FlowTable::connect()?,
            sets: Client::connect()?,
            internal_cidrs,
            changing,
            shared: Arc::new(Shared {
                sheet: Mutex::new(Sheet { sink, ..Sheet::default() }),
                bell: Condvar::new(),
            }),
        };
        let shared = Arc::clone(&worker.shared);
        let thread = thread::Builder::new().name("flow-cutter".to_owned()).spawn(move || worker.run());
        let thread = thread.map_err(|error| FirewallError::Failed {
            action: "start the thread that cuts flows".into(),
            reason: error.to_string(),
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Cuts the flows of elements that are out of the sets.
    pub(super) fn cut(&self, elements: Vec<Element>, cause: CutCause, revision: Revision) {
        if !elements.is_empty() {
            self.shared.lock().orders.add(elements, cause, revision);
            self.shared.bell.notify_one();
        }
    }

    /// Reports go there from now on.
    pub(super) fn report_to(&self, sink: CutSink) {
        self.shared.lock().sink = Some(sink);
    }

    /// Looks at all flows: those that no element lets pass, and those that show their source, are cut.
    pub(super) fn sweep(&self) {
        self.shared.lock().orders.sweep();
        self.shared.bell.notify_one();
    }
}

impl Drop for Cutter {
    /// What waits is done first.
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.bell.notify_one();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that cuts flows ended with a panic");
        }
    }
}

impl Shared {
    /// Orders are moved or merged as a whole, hence a panic elsewhere leaves none half written.
    fn lock(&self) -> MutexGuard<'_, Sheet> {
        self.sheet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Worker {
    flows: FlowTable,
    sets: Client,
    internal_cidrs: Vec<IpNet>,
    shared: Arc<Shared>,
    /// Held by whoever changes the sets until the order about it is given.
    changing: Arc<Mutex<()>>,
}

/// A flow that has to go.
struct Doomed {
    flow: Flow,
    cause: CutCause,
    element: Option<Element>,
}

/// What became of the flows that had to go.
enum Outcome {
    Cut,
    /// So many are still there.
    Left(usize),
}

impl Worker {
    fn run(mut self) {
        let mut not_before = Instant::now();
        let mut wait = RETRY_BASE;
        while let Some((orders, sink)) = self.next(not_before) {
            match self.carry_out(&orders, sink.as_ref()) {
                Ok(Outcome::Cut) => wait = RETRY_BASE,
                Ok(Outcome::Left(number)) => {
                    tracing::error!(
                        number,
                        retry_ms = wait.as_millis(),
                        "flows stay that could not be deleted"
                    );
                    not_before = Instant::now() + wait;
                    wait = (wait * 2).min(RETRY_MAX);
                    // The orders are reported; a look at all flows finds what is left of them.
                    self.shared.lock().orders.sweep();
                }
                Err(error) => {
                    tracing::error!(%error, retry_ms = wait.as_millis(), "flows could not be cut; they do not pass");
                    not_before = Instant::now() + wait;
                    wait = (wait * 2).min(RETRY_MAX);
                    self.shared.lock().orders.put_back(orders);
                }
            }
        }
    }

    /// Waits for orders, not before `not_before`; `None` when it is time to end.
    fn next(&self, not_before: Instant) -> Option<(Orders, Option<CutSink>)> {
        let mut sheet = self.shared.lock();
        loop {
            let rest = not_before.saturating_duration_since(Instant::now());
            if !sheet.orders.is_empty() && rest.is_zero() {
                return Some((std::mem::take(&mut sheet.orders), sheet.sink.clone()));
            }
            if sheet.stop {
                return None;
            }
            sheet = if sheet.orders.is_empty() {
                self.shared.bell.wait(sheet).unwrap_or_else(PoisonError::into_inner)
            } else {
                self.shared.bell.wait_timeout(sheet, rest).unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }

    fn carry_out(&mut self, orders: &Orders, sink: Option<&CutSink>) -> Result<Outcome, FirewallError> {
        let doomed = self.doomed(orders)?;
        self.remember(&doomed)?;
        let (mut tally, mut left) = (orders.tally(), 0);
        for doomed in doomed.chunks(FLOWS_AT_ONCE) {
            thread::sleep(PAUSE_FOR_CHANGES);
            // The sets stand still for so long that what was added again meanwhile keeps its flows.
            let _changing = self.changing.lock();
            let mut judge = Judge { sets: &mut self.sets, known: HashMap::new(), failure: None };
            for Doomed { flow, cause, element } in doomed {
                let keeps = judge.passes(flow) && flow.hides_source;
                if let Some(error) = judge.failure.take() {
                    tracing::warn!(%error, "ask whether a flow passes");
                    left += 1;
                    continue;
                }
                if keeps {
                    continue;
                }
                match self.flows.delete(flow) {
                    Ok(true) => tally.count(flow, *cause, *element),
                    // It ended by itself.
                    Ok(false) => {}
                    // One that the kernel holds on to (offloaded to a device, say) keeps none of the others.
                    Err(error) => {
                        let Flow { source, destination, protocol, port, .. } = flow;
                        tracing::warn!(%error, %source, %destination, protocol, port, "delete a flow");
                        left += 1;
                    }
                }
            }
        }
        for report in tally.reports(orders) {
            tracing::info!(
                cause = report.cause.word(),
                revision = report.revision,
                flows = report.flows,
                uncounted = report.uncounted,
                bytes_out = report.bytes_out,
                bytes_in = report.bytes_in,
                took_us = report.took_us,
                "flows were cut"
            );
            if let Some(sink) = sink {
                sink(report);
            }
        }
        Ok(if left == 0 { Outcome::Cut } else { Outcome::Left(left) })
    }

    /// The flows that have to go.
    fn doomed(&mut self, orders: &Orders) -> Result<Vec<Doomed>, FirewallError> {
        let matcher = orders.matcher();
        let local = local_addresses()?;
        let scans: Vec<Scan> = match (orders.single_address(), orders.families()) {
            (Some(address), _) => vec![Scan::To(address)],
            (None, (v4, v6)) => [(v4, Family::V4), (v6, Family::V6)]
                .into_iter()
                .filter_map(|(any, family)| any.then_some(Scan::Family(family)))
                .collect(),
        };
        // Judged while they are listed, so that only those are kept that have to go.
        let mut judge = Judge { sets: &mut self.sets, known: HashMap::new(), failure: None };
        let mut candidates = Vec::new();
        for scan in scans {
            let cidrs = &self.internal_cidrs;
            candidates.extend(self.flows.list(scan, |flow| {
                is_ours(flow, cidrs, &local)
                    && (orders.sweep || matcher.find(flow).is_some())
                    && !(judge.passes(flow) && flow.hides_source)
            })?);
        }
        let mut doomed = Vec::with_capacity(candidates.len());
        for flow in candidates {
            let passes = judge.passes(&flow);
            let found = matcher.find(&flow);
            let (cause, element) = match (passes, flow.hides_source) {
                (true, true) => continue,
                (true, false) => (CutCause::SourceShown, found),
                (false, _) => (found.map_or(CutCause::Stale, |(_, cause)| cause), found),
            };
            doomed.push(Doomed { flow, cause, element: element.map(|(element, _)| element) });
        }
        if let Some(error) = judge.failure {
            return Err(error.into());
        }
        if orders.sweep {
            self.leave_to_newer_orders(&mut doomed);
        }
        Ok(doomed)
    }

    /// What was closed while we looked belongs to the order about it, which gives the true cause. The order comes at the
    /// end of the change, hence the change is waited for.
    fn leave_to_newer_orders(&self, doomed: &mut Vec<Doomed>) {
        drop(self.changing.lock());
        let newer = self.shared.lock().orders.matcher();
        doomed.retain(|doomed| doomed.cause != CutCause::Stale || newer.find(&doomed.flow).is_none());
    }

    /// Keeps the ends of cut TCP connections from going on where they were when their element comes back: without its
    /// flow a packet from the middle would begin a new one.
    fn remember(&mut self, doomed: &[Doomed]) -> Result<(), FirewallError> {
        for (family, name) in Family::BOTH.into_iter().zip(CUT_SETS) {
            let tcp = doomed.iter().filter(|doomed| i32::from(doomed.flow.protocol) == libc::IPPROTO_TCP);
            let destinations: BTreeSet<Member> = tcp
                .map(|doomed| Member { prefix: doomed.flow.destination.into(), service: None })
                .filter(|member| Family::of(&member.prefix) == family)
                .collect();
            if !destinations.is_empty() {
                // A full set costs no more than that such a connection may go on when its element comes back.
                self.sets.add(name, &destinations)?;
            }
        }
        Ok(())
    }
}

/// Makes the sets that remember destinations of cut connections.
pub(super) fn create_cut_sets(client: &mut Client) -> Result<Vec<&'static str>, IpsetError> {
    let mut made = Vec::new();
    for (family, name) in Family::BOTH.into_iter().zip(CUT_SETS) {
        if client.header(name)?.is_none() {
            client.create_forgetful(name, family, MAX_CUT_DESTINATIONS, CUT_MEMORY_S)?;
            made.push(name);
        }
    }
    Ok(made)
}

/// Whether flows may go on, asked once for each destination.
struct Judge<'a> {
    sets: &'a mut Client,
    known: HashMap<Place, bool>,
    /// Why it could not be asked; until then a flow counts as one that passes.
    failure: Option<IpsetError>,
}

impl Judge<'_> {
    fn passes(&mut self, flow: &Flow) -> bool {
        let place = flow.place();
        if let Some(passes) = self.known.get(&place) {
            return *passes;
        }
        match passes(self.sets, flow) {
            Ok(passes) => {
                self.known.insert(place, passes);
                passes
            }
            Err(error) => {
                self.failure.get_or_insert(error);
                true
            }
        }
    }
}

/// True when a set that lets packets pass holds the flow's destination.
fn passes(sets: &mut Client, flow: &Flow) -> Result<bool, IpsetError> {
    let prefix = IpNet::from(flow.destination);
    let has_ports = [libc::IPPROTO_TCP, libc::IPPROTO_UDP].contains(&i32::from(flow.protocol));
    for PairLayout { family, scope, out, .. } in PAIRS.iter().chain(&DRAIN_PAIRS) {
        let service = match scope {
            Scope::Prefix => None,
            Scope::Port if has_ports => Some(Service { protocol: flow.protocol, port: flow.port }),
            Scope::Port => continue,
        };
        if *family == Family::of(&prefix) && sets.holds(out, &Member { prefix, service })? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// True for a flow that is forwarded under our rules: not one of another zone (a virtual switch has its own and passes none
/// of our chains), not what is sent to many at once, which this machine hears itself, and not its own.
pub(super) fn is_ours(flow: &Flow, internal_cidrs: &[IpNet], local: &BTreeSet<IpAddr>) -> bool {
    let to_many = match flow.destination {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_multicast(),
    };
    if flow.in_other_zone() || to_many {
        return false;
    }
    if local.contains(&flow.source) || local.contains(&flow.destination) {
        return false;
    }
    let family = flow.source.is_ipv4();
    let mut of_family = internal_cidrs.iter().filter(|cidr| cidr.addr().is_ipv4() == family).peekable();
    of_family.peek().is_none()
        || of_family.any(|cidr| cidr.contains(&flow.source) || cidr.contains(&flow.destination))
}

/// The addresses of this machine, in the calling thread's network namespace.
pub(super) fn local_addresses() -> Result<BTreeSet<IpAddr>, FirewallError> {
    let failed = |errno: nix::errno::Errno| FirewallError::Failed {
        action: "list the addresses of this machine".into(),
        reason: errno.to_string(),
    };
    let addresses = nix::ifaddrs::getifaddrs().map_err(failed)?.filter_map(|interface| interface.address);
    Ok(addresses
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
        })
        .collect())
}
