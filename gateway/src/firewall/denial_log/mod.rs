//! Who was denied what: a part of the denied packets, as the kernel logs them (NFLOG), read on a thread of its own.
//!
//! The rule that logs ([`super::rules`]) bounds how many packets come here, so that a flood costs the same as nothing. How
//! many were denied in all is counted elsewhere ([`super::denied`]); what is lost on the way from the rule to us is counted
//! here, by the numbers the kernel gives to packets.
//!
//! The log is for people: without it nothing passes that should not. So a group that another program reads, or a kernel
//! without the log, is told and retried, and never keeps a gateway from working.

#[cfg(feature = "fuzzing")]
pub(super) mod fuzzing;
mod packet;
mod subscription;

use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use self::packet::Headers;
pub(in crate::firewall) use self::subscription::COPIED_BYTES;
use self::subscription::{Batch, Subscription};
use super::FirewallError;

/// Marks our packets in a group.
pub(in crate::firewall) const PREFIX: &str = "og-deny";
/// The kernel's log group that denied packets go to unless another is wanted.
pub const DEFAULT_LOG_GROUP: u16 = 100;
/// Wait between two attempts to become the reader of the group, or to have the kernel take the rule that logs.
const RETRY: Duration = Duration::from_secs(5);

/// One packet that was denied, or would have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeniedPacket {
    /// Who asked.
    pub source: IpAddr,
    /// What for.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, 0 where the protocol has none.
    pub port: u16,
}

/// Why a logged packet is not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLoss {
    /// The kernel had it, and we did not read fast enough.
    Overrun,
    /// Its bytes are not those of an IP packet.
    Unreadable,
    /// Another program's rule logged it to our group.
    Foreign,
}

/// What the log has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DenialNews {
    /// A packet.
    Packet(DeniedPacket),
    /// So many packets that are not shown.
    Lost(LogLoss, u64),
    /// From now on packets come.
    Up,
    /// From now on none come; says why and what would help.
    Down(String),
}

/// Takes news of the log; called on the thread that reads it.
pub type DenialSink = Arc<dyn Fn(DenialNews) + Send + Sync>;

/// The reading thread, which ends with this.
pub(super) struct DenialLog {
    /// Closed, it ends the thread.
    bell: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl DenialLog {
    /// Starts reading the group in the network namespace of the calling thread.
    pub(super) fn start(group: u16, sink: DenialSink) -> io::Result<Self> {
        let (bell, ear) = UnixStream::pair()?;
        // The thread inherits the namespace.
        let reader = Reader { group, sink, ear };
        let thread = std::thread::Builder::new().name("denial-log".to_owned()).spawn(move || reader.run())?;
        Ok(Self { bell, thread: Some(thread) })
    }
}

impl Drop for DenialLog {
    fn drop(&mut self) {
        // Only the thread's own end could keep it from hearing, and then it needs not.
        let _ = self.bell.write_all(&[0]);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that reads the log of denied packets ended with a panic");
        }
    }
}

/// Whether and where the kernel driver's log goes.
#[derive(Default)]
pub(super) struct LogStanding {
    sink: Option<DenialSink>,
    reader: Option<DenialLog>,
    refused: Option<Refusal>,
}

/// The kernel did not take the rule.
struct Refusal {
    group: u16,
    reason: String,
    retry_at: Instant,
}

impl LogStanding {
    /// News go there from now on.
    pub(super) fn report_to(&mut self, group: Option<u16>, sink: DenialSink) {
        self.reader = None;
        let sink = self.sink.insert(sink);
        if let Some(Refusal { reason, .. }) = &self.refused {
            sink(DenialNews::Down(reason.clone()));
        } else if let Some(group) = group {
            self.reader = read(group, sink);
        } else {
            sink(DenialNews::Down("switched off by `nflog_group` 0".to_owned()));
        }
    }

    /// The kernel did not take the rule that logs to `group`; the log is off until it does.
    pub(super) fn refuse(&mut self, error: &FirewallError, group: u16) {
        let reason = format!(
            "the kernel does not take the rule that logs them ({error}): run `modprobe -a xt_NFLOG nfnetlink_log \
             xt_hashlimit xt_limit`; it is tried again all the time"
        );
        self.reader = None;
        if self.refused.as_ref().is_none_or(|refusal| refusal.reason != reason) {
            tracing::warn!(reason, retry_s = RETRY.as_secs(), "denied packets are not logged");
            if let Some(sink) = &self.sink {
                sink(DenialNews::Down(reason.clone()));
            }
        }
        self.refused = Some(Refusal { group, reason, retry_at: Instant::now() + RETRY });
    }

    /// The group that it is time to ask the kernel for again.
    pub(super) fn due(&self, now: Instant) -> Option<u16> {
        self.refused.as_ref().filter(|refusal| refusal.retry_at <= now).map(|refusal| refusal.group)
    }

    /// The kernel has the rule now.
    pub(super) fn accepted(&mut self) {
        if let Some(Refusal { group, .. }) = self.refused.take() {
            self.reader = self.sink.as_ref().and_then(|sink| read(group, sink));
        }
    }
}

/// Begins to read the group, or says why not.
fn read(group: u16, sink: &DenialSink) -> Option<DenialLog> {
    match DenialLog::start(group, Arc::clone(sink)) {
        Ok(reader) => Some(reader),
        Err(error) => {
            tracing::warn!(%error, "start the thread that reads the log of denied packets");
            sink(DenialNews::Down(format!("start the thread that reads it: {error}")));
            None
        }
    }
}

struct Reader {
    group: u16,
    sink: DenialSink,
    ear: UnixStream,
}

/// How waiting ended.
enum Woken {
    /// Something is there to be read.
    Packets,
    Time,
    /// It is time to end.
    End,
}

impl Reader {
    fn run(self) {
        let mut said = None;
        loop {
            let error = match Subscription::open(self.group) {
                Ok(mut subscription) => {
                    said = None;
                    tracing::info!(group = self.group, "reading the log of denied packets");
                    (self.sink)(DenialNews::Up);
                    match self.follow(&mut subscription) {
                        Ok(()) => return,
                        Err(error) => format!("read log group {}: {error}", self.group),
                    }
                }
                Err(error) => self.explain(&error),
            };
            if said.as_ref() != Some(&error) {
                tracing::warn!(error, retry_s = RETRY.as_secs(), "denied packets are not logged");
                (self.sink)(DenialNews::Down(error.clone()));
                said = Some(error);
            }
            if self.rests() {
                return;
            }
        }
    }

    /// Reads until it is time to end.
    fn follow(&self, subscription: &mut Subscription) -> io::Result<()> {
        loop {
            match self.wait(Some(subscription), None)? {
                Woken::End => return Ok(()),
                Woken::Time => {}
                Woken::Packets => self.tell(subscription.read()?),
            }
        }
    }

    fn tell(&self, batch: Batch) {
        let Batch { packets, lost, unreadable, foreign } = batch;
        for Headers { source, destination, protocol, port } in packets {
            (self.sink)(DenialNews::Packet(DeniedPacket { source, destination, protocol, port }));
        }
        for (loss, count) in
            [(LogLoss::Overrun, lost), (LogLoss::Unreadable, unreadable), (LogLoss::Foreign, foreign)]
        {
            if count > 0 {
                (self.sink)(DenialNews::Lost(loss, count));
            }
        }
    }

    /// Waits until the next attempt; true when it is time to end.
    fn rests(&self) -> bool {
        let until = Instant::now() + RETRY;
        loop {
            match self.wait(None, Some(until)) {
                Ok(Woken::End) => return true,
                Ok(Woken::Time) => return false,
                Ok(Woken::Packets) => {}
                Err(error) => {
                    tracing::error!(%error, "wait for the next attempt to read the log of denied packets");
                    return true;
                }
            }
        }
    }

    fn wait(&self, subscription: Option<&Subscription>, until: Option<Instant>) -> io::Result<Woken> {
        let mut awaited = vec![PollFd::new(self.ear.as_fd(), PollFlags::POLLIN)];
        awaited.extend(subscription.map(|subscription| PollFd::new(subscription.as_fd(), PollFlags::POLLIN)));
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // Rounded up, so that the time is over after it.
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut awaited, timeout) {
            Ok(0) => Ok(Woken::Time),
            Ok(_) if awaited.first().and_then(PollFd::any) == Some(true) => Ok(Woken::End),
            Ok(_) => Ok(Woken::Packets),
            // A signal.
            Err(nix::errno::Errno::EINTR) => Ok(Woken::Packets),
            Err(errno) => Err(errno.into()),
        }
    }

    fn explain(&self, error: &io::Error) -> String {
        let group = self.group;
        match error.raw_os_error() {
            // The capability is there: the sets could be changed.
            Some(libc::EPERM | libc::EBUSY | libc::EEXIST) => format!(
                "log group {group} is read by another program, or CAP_NET_ADMIN is missing: set `nflog_group` to a group \
                 that nobody uses"
            ),
            Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => {
                format!("the kernel does not offer log group {group} ({error}): run `modprobe nfnetlink_log`")
            }
            _ => format!("become the reader of log group {group}: {error}"),
        }
    }
}
