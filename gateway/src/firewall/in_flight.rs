//! Packets that still see a table after it was exchanged.

/// `MEMBARRIER_CMD_GLOBAL` of membarrier(2).
const MEMBARRIER_GLOBAL: libc::c_int = 1;

/// After an exchange a packet on another processor may still count in the old table: waits until every processor has
/// finished what it was at (an RCU grace period, which membarrier(2) waits for).
pub(super) fn wait_for_packets_in_flight() {
    // SAFETY: the call takes no pointers and changes nothing.
    let failed = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_GLOBAL, 0, 0) } != 0;
    if failed {
        tracing::debug!(error = %std::io::Error::last_os_error(), "membarrier is not available");
    }
}
