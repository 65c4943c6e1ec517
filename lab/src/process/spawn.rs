//! Starting children on a thread that outlives whoever asked.

use std::io;
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

struct Order {
    command: Command,
    answer: SyncSender<io::Result<Child>>,
}

/// Starts `command` on a thread that lives as long as we do. The kernel sends the parent-death signal when the
/// starting *thread* ends, so a child started by a passing thread would die with it.
pub(super) fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, queue) = channel::<Order>();
        thread::spawn(move || {
            for Order { mut command, answer } in queue {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let gone = || io::Error::other("the starting thread is gone");
    let (answer, result) = sync_channel(1);
    spawner
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send(Order { command, answer })
        .map_err(|_| gone())?;
    result.recv().map_err(|_| gone())?
}
