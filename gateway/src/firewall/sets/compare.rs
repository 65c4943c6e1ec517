//! Reading a pair of sets, and comparing it with what it should hold.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::SetPair;
use crate::firewall::ipset::{Client, Counters, IpsetError};
use crate::firewall::layout::Member;

/// Comparing member by member may take this part of the time, so that large sets do not keep the firewall's thread busy.
/// That a set has lost members or has more than it should is seen at each call.
const COMPARING_SHARE: u32 = 20;
/// How many members a repair names one by one.
const MAX_NAMED_MEMBERS: usize = 5;

impl SetPair {
    /// Reads both sets.
    pub(in crate::firewall) fn read(&mut self, client: &mut Client) -> Result<(), IpsetError> {
        for name in self.names() {
            let counted = self.dump(client, name)?;
            self.observe(name, &counted);
        }
        Ok(())
    }

    /// Reads one of them.
    pub(super) fn dump(
        &mut self,
        client: &mut Client,
        name: &'static str,
    ) -> Result<BTreeMap<Member, Counters>, IpsetError> {
        let begun = Instant::now();
        let counted = client.dump(name, self.layout.scope)?;
        self.reading = begun.elapsed();
        Ok(counted)
    }

    /// Compares both sets with what they should hold, repairs the difference and says what it was.
    pub(in crate::firewall) fn mend(&mut self, client: &mut Client) -> Result<Vec<String>, IpsetError> {
        let mut wrong = Vec::new();
        for name in self.create_missing(client)? {
            wrong.push(format!("ipset {name} was missing"));
        }
        if wrong.is_empty() && Instant::now() < self.compare_at && self.counts_are_right(client)? {
            return Ok(wrong);
        }
        let begun = Instant::now();
        let mut gone = BTreeSet::new();
        let mut lost = BTreeSet::new();
        for name in self.names() {
            let counted = self.dump(client, name)?;
            self.observe(name, &counted);
            let missing: Vec<Member> =
                self.owners.keys().filter(|member| !counted.contains_key(member)).copied().collect();
            let foreign: Vec<Member> =
                counted.into_keys().filter(|member| !self.owners.contains_key(member)).collect();
            if !missing.is_empty() {
                wrong.push(format!("ipset {name}: {} missing", named(&missing)));
                lost.extend(missing);
            }
            if !foreign.is_empty() {
                wrong.push(format!("ipset {name}: {} not ours", named(&foreign)));
                gone.extend(foreign);
            }
        }
        self.remove_members(client, &gone)?;
        self.make_room(client, self.owners.len())?;
        let refused = self.add_members(client, &lost)?;
        for (member, reason) in refused {
            wrong.push(format!("{member} could not be put back: {reason}"));
        }
        self.compare_at = Instant::now() + begun.elapsed() * COMPARING_SHARE;
        Ok(wrong)
    }

    /// True when both sets have as many members as they should.
    fn counts_are_right(&self, client: &mut Client) -> Result<bool, IpsetError> {
        for name in self.names() {
            let members = client.header(name)?.and_then(|header| header.members);
            if members.map(usize::try_from) != Some(Ok(self.owners.len())) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn observe(&mut self, name: &str, counted: &BTreeMap<Member, Counters>) {
        let ledger = if name == self.layout.out { &mut self.out } else { &mut self.back };
        let mut found = 0;
        for (member, counters) in counted {
            if self.owners.contains_key(member) {
                ledger.observe(member, *counters);
                found += 1;
            }
        }
        // Somebody deleted the others, and what they had counted.
        if found < self.owners.len() {
            for member in self.owners.keys().filter(|member| !counted.contains_key(member)) {
                ledger.observe(member, Counters::default());
            }
        }
    }
}

fn named(members: &[Member]) -> String {
    let mut members: Vec<&Member> = members.iter().collect();
    members.sort_unstable();
    let mut text: Vec<String> = members.iter().take(MAX_NAMED_MEMBERS).map(ToString::to_string).collect();
    if members.len() > MAX_NAMED_MEMBERS {
        text.push(format!("and {} more", members.len() - MAX_NAMED_MEMBERS));
    }
    let verb = if members.len() == 1 { "was" } else { "were" };
    format!("{} {verb}", text.join(", "))
}
