//! Waiting for conditions with a deadline. An interrupt (Ctrl-C in the demo) ends every wait, so that what was made so
//! far is removed at once.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes this and all later waits of the process end with an error.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Whether [`interrupt`] was called.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Tries `attempt` until it succeeds.
///
/// # Errors
/// After `timeout`, with `what` and the last attempt's error; at once when interrupted.
pub fn until<T, E: Display>(
    what: impl Display,
    timeout: Duration,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match attempt() {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if interrupted() {
            bail!("interrupted while waiting: {what}");
        }
        if start.elapsed() >= timeout {
            bail!("{what}: not within {} s; last: {last:#}", timeout.as_secs_f32());
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Waits until `condition` holds.
///
/// # Errors
/// As [`until`].
pub fn until_true(what: impl Display, timeout: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    until(what, timeout, || if condition() { Ok(()) } else { Err("it does not hold") })
}
