//! A thread that compares our chains with what they should be, so that changes of the list do not wait for the programs
//! that list rules: each is a process.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::FirewallError;
use super::chains::Chains;
use super::rules::Chain;

/// Between two comparisons.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// After so long without a comparison it counts as different.
const MAX_UNKNOWN: Duration = Duration::from_secs(6);

/// The rules of one chain: as we write them, and as the tool printed them afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Expected {
    pub(super) wanted: Vec<String>,
    pub(super) printed: Option<Vec<String>>,
}

/// The chains of one family, each with the rules it should have.
pub(super) type ExpectedChains = Vec<(Chain, Expected)>;

/// The way to the thread.
pub(super) struct ChainWatch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    sheet: Mutex<Sheet>,
    bell: Condvar,
}

struct Sheet {
    expected: [ExpectedChains; 2],
    /// When they were as expected the last time, or expected from.
    well_at: Instant,
    /// They were not.
    different: bool,
    /// They are being exchanged: a comparison says nothing.
    exchanging: bool,
    /// Rises with each expectation: a comparison that began before says nothing.
    turn: u64,
    stop: bool,
}

impl Expected {
    pub(super) fn is(&self, present: Option<&Vec<String>>) -> bool {
        present.is_some_and(|present| *present == self.wanted || self.printed.as_ref() == Some(present))
    }
}

impl ChainWatch {
    /// Watches `chains` in the network namespace of the calling thread. They are as expected now.
    pub(super) fn start(chains: [Chains; 2], expected: [ExpectedChains; 2]) -> Result<Self, FirewallError> {
        let sheet = Sheet {
            expected,
            well_at: Instant::now(),
            different: false,
            exchanging: false,
            turn: 0,
            stop: false,
        };
        let shared = Arc::new(Shared { sheet: Mutex::new(sheet), bell: Condvar::new() });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("chain-watch".to_owned())
            .spawn(move || of_thread.run(&chains))
            .map_err(|error| FirewallError::Failed {
                action: "start the thread that watches chains".into(),
                reason: error.to_string(),
            })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The chains are so now, and should stay so.
    pub(super) fn expect(&self, expected: [ExpectedChains; 2]) {
        let mut sheet = self.shared.lock();
        sheet.expected = expected;
        sheet.well_at = Instant::now();
        sheet.different = false;
        sheet.turn += 1;
    }

    /// The chains are about to be exchanged for others, until [`Self::exchanged`].
    pub(super) fn exchanging(&self) {
        self.shared.lock().exchanging = true;
    }

    /// The chains should be so from now on. What was wrong with them, or beside them, may still be.
    pub(super) fn exchanged(&self, expected: [ExpectedChains; 2]) {
        let mut sheet = self.shared.lock();
        sheet.expected = expected;
        sheet.exchanging = false;
        sheet.turn += 1;
    }

    /// False when somebody changed them, as far as is known.
    pub(super) fn is_well(&self) -> bool {
        let sheet = self.shared.lock();
        !sheet.different && sheet.well_at.elapsed() <= MAX_UNKNOWN
    }
}

impl Drop for ChainWatch {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.bell.notify_all();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that watches chains ended with a panic");
        }
    }
}

impl Shared {
    /// Written as a whole or by idempotent steps, hence a panic elsewhere leaves nothing half written.
    fn lock(&self) -> MutexGuard<'_, Sheet> {
        self.sheet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, chains: &[Chains; 2]) {
        while let Some((expected, turn)) = self.next() {
            let mut same = true;
            for (chains, expected) in chains.iter().zip(&expected) {
                same &= are_as_expected(chains, expected).unwrap_or_else(|error| {
                    tracing::debug!(%error, "chains could not be compared");
                    false
                });
            }
            let mut sheet = self.lock();
            if sheet.turn == turn && !sheet.exchanging {
                sheet.different |= !same;
                if same {
                    sheet.well_at = Instant::now();
                }
            }
        }
    }

    /// Waits for the next comparison; `None` at the end.
    fn next(&self) -> Option<([ExpectedChains; 2], u64)> {
        let until = Instant::now() + WATCH_INTERVAL;
        let mut sheet = self.lock();
        loop {
            if sheet.stop {
                return None;
            }
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Some((sheet.expected.clone(), sheet.turn));
            }
            sheet = self.bell.wait_timeout(sheet, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn are_as_expected(chains: &Chains, expected: &ExpectedChains) -> Result<bool, FirewallError> {
    for (chain, expected) in expected {
        if !expected.is(chains.body(*chain)?.as_ref()) || !chains.is_led_to(*chain)? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::closing::chains;
    use crate::firewall::layout::KernelOptions;

    /// Longer than several comparisons take.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn an_exchange_of_rules_hides_nothing_that_was_wrong() {
        let nowhere: [ExpectedChains; 2] = [0, 1].map(|_| {
            let wanted = vec!["-m comment --comment nowhere -j DROP".to_owned()];
            vec![(Chain::Forward, Expected { wanted, printed: None })]
        });
        let watch = ChainWatch::start(chains(&KernelOptions::default()), nowhere.clone()).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !watch.shared.lock().different {
            assert!(Instant::now() < deadline, "the difference was not seen");
            std::thread::sleep(Duration::from_millis(20));
        }
        watch.exchanging();
        watch.exchanged(nowhere.clone());
        assert!(!watch.is_well());
        watch.expect(nowhere);
        assert!(watch.is_well());
    }
}
