//! The thread that reads the kernel's flows.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::seen::SeenFlows;
use super::{Covering, SourceMeter};
use crate::firewall::FirewallError;
use crate::firewall::conntrack::{Flow, FlowEnds, FlowTable, Scan};
use crate::firewall::cutter::{is_ours, local_addresses};
use crate::firewall::layout::Family;
use crate::firewall::netlink::listener::Heard;

/// A reading takes at most one part in so many of a core: a long table is read less often.
const READING_SHARE: u32 = 50;
/// Ends of flows are read together that come within this time, so that a flood of them does not wake the thread for each.
const GATHERING: Duration = Duration::from_millis(20);
/// Most messages read in one go: when ends come faster than they are read, the thread must still end, and read flows.
const MAX_HEARD_AT_ONCE: usize = 200_000;

/// The thread; it ends with the value.
pub(in crate::firewall) struct SourceWatch {
    /// Closed to end the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl SourceWatch {
    /// Starts it in the network namespace of the calling thread. Flows of other traffic than that of `internal_cidrs` are
    /// not counted.
    pub(in crate::firewall) fn start(
        meter: SourceMeter,
        internal_cidrs: Vec<IpNet>,
        interval: Duration,
        covering: Covering,
    ) -> Result<Self, FirewallError> {
        let failed = |error: io::Error| FirewallError::Failed {
            action: "start the thread that reads flows".into(),
            reason: error.to_string(),
        };
        // Listening comes first: what ends from here on is told.
        let ends = FlowEnds::listen()?;
        let (stop, stopped) = UnixStream::pair().map_err(failed)?;
        let worker = Worker {
            ends,
            table: FlowTable::connect()?,
            stopped,
            internal_cidrs,
            local: local_addresses()?,
            interval,
            seen: SeenFlows::new(),
            covering,
            meter,
            has_read: false,
        };
        let thread = std::thread::Builder::new().name("flow-reader".to_owned()).spawn(move || worker.run());
        Ok(Self { stop: Some(stop), thread: Some(thread.map_err(failed)?) })
    }
}

impl Drop for SourceWatch {
    fn drop(&mut self) {
        self.stop = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that reads flows ended with a panic");
        }
    }
}

struct Worker {
    ends: FlowEnds,
    table: FlowTable,
    stopped: UnixStream,
    internal_cidrs: Vec<IpNet>,
    /// This machine's addresses at the last reading.
    local: BTreeSet<IpAddr>,
    interval: Duration,
    seen: SeenFlows,
    covering: Covering,
    meter: SourceMeter,
    /// The flows that were there before us are known.
    has_read: bool,
}

/// Why the thread goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    Time,
    Ends,
    Stop,
}

impl Worker {
    fn run(mut self) {
        let mut last = Instant::now();
        let mut next = last;
        loop {
            if Instant::now() >= next {
                let (begun, used) = (Instant::now(), time_used());
                if let Err(error) = self.read() {
                    self.meter.counts.failures.inc();
                    tracing::warn!(%error, "flows could not be read; what source hosts move is counted later");
                }
                self.meter.lock().turn(begun.duration_since(last));
                last = begun;
                next = Instant::now() + self.interval.max(time_used().saturating_sub(used) * READING_SHARE);
            }
            let woken = self.wait(next, true).and_then(|woken| match woken {
                Woken::Ends => {
                    self.hear()?;
                    self.wait(next.min(Instant::now() + GATHERING), false)
                }
                Woken::Time | Woken::Stop => Ok(woken),
            });
            match woken {
                Ok(Woken::Stop) => break,
                Ok(Woken::Time | Woken::Ends) => {}
                Err(error) => {
                    tracing::error!(%error, "source hosts are not counted any more");
                    break;
                }
            }
        }
    }

    /// Reads every flow and the ends of those that are gone.
    fn read(&mut self) -> Result<(), FirewallError> {
        self.local = local_addresses()?;
        self.seen.begin_listing();
        for family in Family::BOTH {
            let Self { table, internal_cidrs, local, seen, covering, meter, has_read, .. } = self;
            table.list(Scan::Family(family), |flow| {
                // The end of one that is dying was told, and is read after this.
                if !flow.dying && is_ours(flow, internal_cidrs, local) {
                    let covering = |flow: &Flow| covering(flow.place());
                    if !*has_read {
                        seen.adopt(flow, covering);
                    } else if let Some(moved) = seen.listed(flow, covering) {
                        meter.lock().add(&moved);
                    }
                }
                // Nothing is kept of the listing itself.
                false
            })?;
        }
        self.hear().map_err(|error| FirewallError::Failed {
            action: "hear of conntrack's flows that ended".into(),
            reason: error.to_string(),
        })?;
        self.has_read = true;
        self.seen.end_listing();
        self.meter.counts.readings.inc();
        self.meter.counts.flows.set(i64::try_from(self.seen.len()).unwrap_or(i64::MAX));
        Ok(())
    }

    /// Counts the flows whose ends wait to be read.
    fn hear(&mut self) -> io::Result<()> {
        for _ in 0..MAX_HEARD_AT_ONCE {
            let Self { ends, internal_cidrs, local, seen, covering, meter, has_read, .. } = self;
            let heard = ends.hear(|flow| {
                if !is_ours(&flow, internal_cidrs, local) {
                    return;
                }
                // What ended unknown before the first reading was over may have begun before us.
                let counts = *has_read || seen.knows(&flow);
                if let Some(moved) = seen.ended(&flow, |flow| covering(flow.place()))
                    && counts
                {
                    meter.lock().add(&moved);
                }
            })?;
            match heard {
                Heard::Some => {}
                Heard::Nothing => return Ok(()),
                Heard::Lost => self.meter.counts.overflows.inc(),
            }
        }
        Ok(())
    }

    /// Waits until `deadline`, for ends of flows when `for_ends`, and for the end of this thread.
    fn wait(&self, deadline: Instant, for_ends: bool) -> io::Result<Woken> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up: a wait that ends early would be begun again at once.
            let timeout =
                PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
            let mut waited = vec![PollFd::new(self.stopped.as_fd(), PollFlags::POLLIN)];
            if for_ends {
                waited.push(PollFd::new(self.ends.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut waited, timeout) {
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => {}
            }
            let is_ready = |at: usize| waited.get(at).is_some_and(|fd| fd.any().unwrap_or(true));
            if is_ready(0) {
                return Ok(Woken::Stop);
            }
            if is_ready(1) {
                return Ok(Woken::Ends);
            }
            if Instant::now() >= deadline {
                return Ok(Woken::Time);
            }
        }
    }
}

/// Time of a core that the calling thread has used.
fn time_used() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec, which lives here.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}
