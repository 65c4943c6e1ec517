//! Whether the kernel counts packets and bytes of each flow.

use std::fs;
use std::io;

/// The switch, of the calling thread's network namespace.
const SWITCH: &str = "/proc/sys/net/netfilter/nf_conntrack_acct";

/// Switches accounting on, in the calling thread's network namespace. Flows that are there already stay uncounted.
///
/// # Errors
/// It is off and could not be switched on.
pub(in crate::firewall) fn switch_on_accounting() -> io::Result<()> {
    if fs::read_to_string(SWITCH)?.trim() == "1" {
        return Ok(());
    }
    fs::write(SWITCH, "1")
}
