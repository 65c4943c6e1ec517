//! Making the kernel hold what the servers published. Only this module and its children touch netfilter.
//!
//! A driver takes a desired state as data and makes it so. Every call may run twice: a driver reads what is there,
//! changes the difference, and touches only chains and sets of our own. Calls block; one owner thread makes them.
//!
//! The trait is narrow on purpose (no word of ipset or iptables in it), so that an nftables or tc driver can follow.
//!
//! Map: [`admit`] judges an element before any driver enforces it; [`layout`] names the sets and says which kernel
//! members make an element; [`rules`] is the text of our chains, [`in_use`] for which sets they are asked, [`chains`] puts it into the kernel and [`chain_watch`] sees whether it is still there; [`ipset`] speaks
//! to the sets; [`sets`] keeps one pair of them and its [`ledger`] of counts, of which [`carried`] outlives the process;
//! [`holding`] moves elements between what passes and what drains ([`drain`]); [`cutter`] takes flows out of [`conntrack`]
//! and reports them ([`cut`]); [`egress`] is the way out, [`host_guard`] the rules for the machine itself; [`sources`] counts
//! which host moves how much to which element ([`covering`]); [`denied`] counts what did not pass,
//! [`denial_log`] says who it was; [`closing`] closes the way before anything can fail, [`kernel`] joins all of that into the real driver, [`dry_run`] prints the same as a plan,
//! [`fake`] records calls for tests of what stands above.

use std::collections::BTreeSet;
use std::time::Instant;

use allowlist::feed::RefusedElement;
use allowlist::{Change, Element};

mod admit;
mod carried;
mod chain_watch;
mod chains;
mod closing;
mod conntrack;
mod covering;
mod cut;
mod cutter;
mod denial_log;
mod denied;
mod drain;
pub mod dry_run;
mod egress;
mod failures;
pub mod fake;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod holding;
mod host;
mod host_guard;
mod in_flight;
mod in_use;
mod ipset;
pub mod kernel;
mod layout;
mod ledger;
mod netlink;
mod rules;
mod sets;
mod sources;

pub use closing::{close_forwarding, close_unguarded};
pub use conntrack::FlowRoom;
pub use covering::{Place, most_specific};
pub use cut::CutSink;
pub use denial_log::{DEFAULT_LOG_GROUP, DenialNews, DenialSink, DeniedPacket, LogLoss};
pub use drain::{DRAIN_IDLE, DRAIN_LIMIT, DrainLimits};
pub use dry_run::{DryRunFirewall, Plan};
pub use egress::{Egress, Interface, SnatRange};
pub use host::{check_forwarding, check_host};
pub use host_guard::HostGuard;
pub use kernel::KernelFirewall;
pub use layout::{KernelOptions, SourceOptions};
pub use rules::{Deny, Mode, Policy};
pub use sources::{Covering, SourceMeter, SourceSum, SourceSums};

/// A firewall that holds a set of elements.
pub trait Firewall: Send {
    /// Brings up chains and sets, closed first: the drop is in place before the first accept. Adopts what a former
    /// process left in the kernel, counters included, and returns those elements.
    ///
    /// # Errors
    /// [`FirewallError`]; forwarding is then closed or as it was, never wider.
    fn install(&mut self) -> Result<BTreeSet<Element>, FirewallError>;

    /// Makes the kernel hold exactly `elements`, in place: what is in both keeps its packets and counters. `way` is what
    /// is known of how they came about: what it calls retired drains, everything else that goes is cut, and its
    /// revision is that of the reports.
    ///
    /// # Errors
    /// [`FirewallError`] when the kernel could not be changed at all; elements it refuses one by one are reported in
    /// the outcome, and the rest is applied.
    fn hold(&mut self, elements: &BTreeSet<Element>, way: &Change) -> Result<Outcome, FirewallError>;

    /// [`Self::hold`] when nothing is known of the way.
    ///
    /// # Errors
    /// As [`Self::hold`].
    fn replace(&mut self, elements: &BTreeSet<Element>) -> Result<Outcome, FirewallError> {
        self.hold(elements, &Change::default())
    }

    /// Applies one change to what the kernel holds.
    ///
    /// # Errors
    /// As [`Self::hold`].
    fn apply(&mut self, change: &Change) -> Result<Outcome, FirewallError>;

    /// Cumulative counters of every held element, sorted, monotonic for as long as this driver lives (and across
    /// processes while the kernel keeps the sets). What passes between an element's last reading and its removal is not
    /// counted.
    ///
    /// # Errors
    /// [`FirewallError`].
    fn counters(&mut self) -> Result<Vec<ElementCounters>, FirewallError>;

    /// What was denied so far, or passed unlisted in an audit; monotonic as long as the kernel keeps the sets.
    ///
    /// # Errors
    /// [`FirewallError`].
    fn denied(&mut self) -> Result<Denied, FirewallError>;

    /// How full the kernel's table of flows is; zeros where it does not say.
    fn flows(&self) -> FlowRoom {
        FlowRoom::default()
    }

    /// Ends the draining of retired elements that are idle or whose time is over; to be called every few seconds.
    ///
    /// # Errors
    /// [`FirewallError`].
    fn end_draining(&mut self, now: Instant) -> Result<(), FirewallError>;

    /// Where reports of cut flows go: every revocation is answered, soon after the call that made it.
    fn report_cuts(&mut self, sink: CutSink);

    /// Where news of denied packets go, or of what an audit would deny: a part of them, bounded in the kernel.
    fn report_denials(&mut self, sink: DenialSink);

    /// Counts from now on which source host moves how much; `covering` is asked for the element of each new flow. `None`
    /// from a driver that forwards nothing, or is told not to count.
    ///
    /// # Errors
    /// [`FirewallError`]; everything else works without.
    fn watch_sources(&mut self, covering: Covering) -> Result<Option<SourceMeter>, FirewallError> {
        let _ = covering;
        Ok(None)
    }

    /// Compares chains and sets with what they should be and repairs the difference.
    ///
    /// # Errors
    /// [`FirewallError`].
    fn repair(&mut self) -> Result<Vec<Repair>, FirewallError>;

    /// As [`Self::repair`], for a loop that has other things to do: chains are compared elsewhere meanwhile, and put back
    /// here when a difference was seen.
    ///
    /// # Errors
    /// [`FirewallError`].
    fn repair_what_was_seen(&mut self) -> Result<Vec<Repair>, FirewallError> {
        self.repair()
    }

    /// Removes every trace of us from the kernel, going on past errors.
    ///
    /// # Errors
    /// [`FirewallError::Cleanup`] with all that failed.
    fn cleanup(&mut self) -> Result<(), FirewallError>;
}

/// What a call did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Elements that are new in the kernel.
    pub added: usize,
    /// Elements taken out of the kernel.
    pub removed: usize,
    /// Elements that could not be enforced; they do not pass.
    pub refused: Vec<RefusedElement>,
}

/// Traffic of one element since it was first held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElementCounters {
    /// Which.
    pub element: Element,
    /// Packets towards the internet.
    pub packets_out: u64,
    /// Bytes towards the internet (IP length).
    pub bytes_out: u64,
    /// Packets from the internet.
    pub packets_in: u64,
    /// Bytes from the internet (IP length).
    pub bytes_in: u64,
}

impl ElementCounters {
    /// No traffic yet.
    pub const fn zero(element: Element) -> Self {
        Self { element, packets_out: 0, bytes_out: 0, packets_in: 0, bytes_in: 0 }
    }
}

/// Packets and bytes (IP length) that no element let pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Denied {
    /// IPv4 packets.
    pub packets_v4: u64,
    /// Their bytes.
    pub bytes_v4: u64,
    /// IPv6 packets.
    pub packets_v6: u64,
    /// Their bytes.
    pub bytes_v6: u64,
}

/// One difference somebody made behind our back, repaired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// What was wrong, in words with table and chain or set, e.g. `filter FORWARD (v4): jump to OG-FORWARD was missing`.
    pub what: String,
}

/// Why the kernel could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// A capability, module or program is missing; says which and how to get it.
    #[error("{0}")]
    Missing(String),
    /// A program or the kernel failed.
    #[error("{action}: {reason}")]
    Failed {
        /// Action and object, e.g. `add to ipset og4o`.
        action: String,
        /// What the program or kernel said.
        reason: String,
    },
    /// Parts of the clean-up failed.
    #[error("clean-up left {} things behind: {}", .0.len(), .0.join("; "))]
    Cleanup(Vec<String>),
}
