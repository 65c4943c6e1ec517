//! A processor for oneself, so that what is measured is the work and not who else wants to run.

use std::mem;
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Above everything else that is not real-time; the lowest such priority is enough.
const PRIORITY: libc::c_int = 1;

/// Runs `work` on a thread of its own that has processor `cpu` before all others (SCHED_FIFO).
pub(crate) fn alone_on<T: Send>(cpu: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("alone".to_owned()).spawn_scoped(scope, move || {
            take_processor(cpu)?;
            work()
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Gives the calling thread the processor for as long as it lives.
pub(crate) fn take_processor(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu).with_context(|| format!("choose processor {cpu}"))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("stay on processor {cpu}"))?;
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut parameters: libc::sched_param = unsafe { mem::zeroed() };
    parameters.sched_priority = PRIORITY;
    // SAFETY: the structure outlives the call, which only reads it.
    let failed = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) } != 0;
    ensure!(!failed, "run before all others: {} (needs root)", std::io::Error::last_os_error());
    Ok(())
}

/// Processors there are.
pub(crate) fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}
