//! The thread that waits for the disk, so that nobody else has to.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{CHECKPOINT, StateMetrics, checkpoint, log};
use crate::held::Held;

/// The disk is asked to sync the log, or to take a checkpoint, at most this often.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// The keeper.
#[derive(Debug)]
pub(super) struct Keeper {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    orders: Mutex<Orders>,
    bell: Condvar,
    /// A checkpoint is ordered and not finished.
    busy: AtomicBool,
    /// The last checkpoint failed.
    failed: AtomicBool,
    checkpoint_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Orders {
    sync: Option<Arc<File>>,
    checkpoint: Option<(u64, Held)>,
    stop: bool,
}

impl Keeper {
    pub(super) fn start(dir: PathBuf, metrics: StateMetrics) -> std::io::Result<Self> {
        let checkpoint_bytes = fs::metadata(dir.join(CHECKPOINT)).map_or(0, |metadata| metadata.len());
        let shared = Arc::new(Shared {
            orders: Mutex::default(),
            bell: Condvar::new(),
            busy: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            checkpoint_bytes: AtomicU64::new(checkpoint_bytes),
        });
        let worker = Worker { dir, metrics, shared: Arc::clone(&shared) };
        let thread =
            std::thread::Builder::new().name("state-keeper".to_owned()).spawn(move || worker.run())?;
        Ok(Self { shared, thread })
    }

    /// Has the log synced within [`SYNC_INTERVAL`].
    pub(super) fn sync_soon(&self, file: Arc<File>) {
        self.shared.lock().sync = Some(file);
        self.shared.bell.notify_one();
    }

    /// Has a checkpoint written, which covers the records up to `sequence`.
    pub(super) fn checkpoint(&self, sequence: u64, held: Held) {
        self.shared.busy.store(true, Ordering::Release);
        self.shared.lock().checkpoint = Some((sequence, held));
        self.shared.bell.notify_one();
    }

    pub(super) fn is_busy(&self) -> bool {
        self.shared.busy.load(Ordering::Acquire)
    }

    pub(super) fn failed(&self) -> bool {
        self.shared.failed.load(Ordering::Acquire)
    }

    pub(super) fn checkpoint_bytes(&self) -> u64 {
        self.shared.checkpoint_bytes.load(Ordering::Acquire)
    }

    /// Carries out what was ordered, and ends.
    pub(super) fn close(self) {
        self.shared.lock().stop = true;
        self.shared.bell.notify_one();
        if self.thread.join().is_err() {
            tracing::error!("the state keeper's thread ended with a panic");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Worker {
    dir: PathBuf,
    metrics: StateMetrics,
    shared: Arc<Shared>,
}

impl Worker {
    fn run(&self) {
        let mut not_before = Instant::now();
        loop {
            let orders = self.wait(not_before);
            if let Some((sequence, held)) = orders.checkpoint {
                self.checkpoint(sequence, &held);
            }
            if let Some(file) = orders.sync
                && let Err(error) = file.sync_data()
            {
                self.metrics.errors.inc();
                tracing::error!(error = %error, "state log could not be synced");
            }
            if orders.stop {
                return;
            }
            not_before = Instant::now() + SYNC_INTERVAL;
        }
    }

    /// The next orders, not before `not_before` unless it is time to stop.
    fn wait(&self, not_before: Instant) -> Orders {
        let mut orders = self.shared.lock();
        loop {
            let rest = not_before.saturating_duration_since(Instant::now());
            let any = orders.sync.is_some() || orders.checkpoint.is_some();
            if orders.stop || (any && rest.is_zero()) {
                let stop = orders.stop;
                return Orders { stop, ..std::mem::take(&mut *orders) };
            }
            let bell = &self.shared.bell;
            orders = if any {
                bell.wait_timeout(orders, rest).unwrap_or_else(PoisonError::into_inner).0
            } else {
                bell.wait(orders).unwrap_or_else(PoisonError::into_inner)
            };
        }
    }

    fn checkpoint(&self, sequence: u64, held: &Held) {
        let written = checkpoint::write(&self.dir, sequence, held).and_then(|bytes| {
            self.metrics.writes.inc();
            self.shared.checkpoint_bytes.store(bytes, Ordering::Release);
            for (first, path) in log::list(&self.dir)? {
                if first <= sequence {
                    fs::remove_file(path)?;
                }
            }
            Ok(())
        });
        if let Err(error) = &written {
            self.metrics.errors.inc();
            tracing::error!(error = %error, "state checkpoint could not be written");
        }
        self.shared.failed.store(written.is_err(), Ordering::Release);
        self.shared.busy.store(false, Ordering::Release);
    }
}
