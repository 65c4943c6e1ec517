//! The sets themselves: whether they are what they should be, and how they go.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use super::Holding;
use crate::firewall::carried::carried_name;
use crate::firewall::cutter;
use crate::firewall::denied::mend_deny_sets;
use crate::firewall::ipset::{Client, IpsetError};
use crate::firewall::layout::{CUT_SETS, DENY_SETS, DRAIN_PAIRS, Family, PAIRS, Scope};
use crate::firewall::sets::{SetPair, fresh_name};

/// The kernel lets go of a set some time after the rule that used it is gone.
const RELEASE_DEADLINE: Duration = Duration::from_secs(5);
/// How often to look whether it has.
const RELEASE_POLL: Duration = Duration::from_millis(5);

impl Holding {
    /// Sets of our names but of another kind.
    pub(in crate::firewall) fn misfits(&mut self) -> Result<Vec<&'static str>, IpsetError> {
        let mut misfits = Vec::new();
        for pair in self.pairs.iter().chain(&self.drains) {
            misfits.extend(pair.misfits(&mut self.client)?);
        }
        for names in [CUT_SETS, DENY_SETS] {
            for (family, name) in Family::BOTH.into_iter().zip(names) {
                if self.client.header(name)?.is_some_and(|header| !header.fits(Scope::Prefix, family)) {
                    misfits.push(name);
                }
            }
        }
        Ok(misfits)
    }

    /// True when every set is there and of our kind.
    pub(in crate::firewall) fn are_there(&mut self) -> Result<bool, IpsetError> {
        for pair in self.pairs.iter().chain(&self.drains) {
            if !pair.are_there(&mut self.client)? {
                return Ok(false);
            }
        }
        for names in [CUT_SETS, DENY_SETS] {
            for (family, name) in Family::BOTH.into_iter().zip(names) {
                if !self.client.is_there(name, Scope::Prefix, family)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Compares the sets with what they should hold and repairs the difference, going on past errors.
    pub(in crate::firewall) fn mend(&mut self) -> (Vec<String>, Option<IpsetError>) {
        self.mend_with(SetPair::mend)
    }

    /// The same for a loop that comes by every few seconds.
    pub(in crate::firewall) fn mend_if_due(&mut self) -> (Vec<String>, Option<IpsetError>) {
        self.mend_with(SetPair::mend_if_due)
    }

    /// True when the last [`Self::mend_if_due`] saw sets that have to give way to ours.
    pub(in crate::firewall) fn has_misfits(&self) -> bool {
        self.pairs.iter().chain(&self.drains).any(SetPair::is_misfit)
    }

    fn mend_with(
        &mut self,
        mend: impl Fn(&mut SetPair, &mut Client) -> Result<Vec<String>, IpsetError>,
    ) -> (Vec<String>, Option<IpsetError>) {
        let (mut wrong, mut failure) = (Vec::new(), None);
        for pair in self.pairs.iter_mut().chain(&mut self.drains) {
            match mend(pair, &mut self.client) {
                Ok(different) => wrong.extend(different),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        match cutter::create_cut_sets(&mut self.client) {
            Ok(made) => wrong.extend(made.iter().map(|name| format!("ipset {name} was missing"))),
            Err(error) => failure = failure.or(Some(error)),
        }
        match mend_deny_sets(&mut self.client) {
            Ok(different) => wrong.extend(different),
            Err(error) => failure = failure.or(Some(error)),
        }
        (wrong, failure)
    }

    /// Destroys every set of ours; gives what could not be.
    pub(in crate::firewall) fn destroy(&mut self) -> Vec<String> {
        self.held.clear();
        self.settled = false;
        let names = match self.client.names() {
            Ok(names) => names,
            Err(error) => return vec![error.to_string()],
        };
        let pairs = PAIRS.iter().chain(&DRAIN_PAIRS).flat_map(|pair| [pair.out, pair.back]);
        let ours: BTreeSet<String> = pairs
            .flat_map(|name| [name.to_owned(), fresh_name(name), carried_name(name)])
            .chain(CUT_SETS.into_iter().chain(DENY_SETS).map(str::to_owned))
            .collect();
        let there = names.iter().filter(|name| ours.contains(*name));
        there
            .filter_map(|name| self.destroy_when_released(name).err().map(|error| error.to_string()))
            .collect()
    }

    pub(in crate::firewall) fn destroy_when_released(&mut self, name: &str) -> Result<(), IpsetError> {
        let deadline = Instant::now() + RELEASE_DEADLINE;
        loop {
            match self.client.destroy(name) {
                Err(error) if error.is_busy() && Instant::now() < deadline => thread::sleep(RELEASE_POLL),
                Err(error) if error.is_missing() => return Ok(()),
                result => return result,
            }
        }
    }
}
