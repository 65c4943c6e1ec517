//! Reading a pair of sets, and comparing it with what it should hold.

use std::collections::{BTreeSet, HashSet};
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
    ) -> Result<Vec<(Member, Counters)>, IpsetError> {
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
            let missing = self.missing_from(&counted);
            let foreign: Vec<Member> = (counted.iter().map(|(member, _)| *member))
                .filter(|member| !self.owners.contains_key(member))
                .collect();
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

    /// The members that a set should have and that are not in what was read of it.
    pub(super) fn missing_from(&self, counted: &[(Member, Counters)]) -> Vec<Member> {
        let there: HashSet<&Member> = counted
            .iter()
            .map(|(member, _)| member)
            .filter(|member| self.owners.contains_key(member))
            .collect();
        if there.len() == self.owners.len() {
            return Vec::new();
        }
        self.owners.keys().filter(|member| !there.contains(member)).copied().collect()
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

    fn observe(&mut self, name: &str, counted: &[(Member, Counters)]) {
        let ledger = if name == self.layout.out { &mut self.out } else { &mut self.back };
        let mut found = 0;
        for (member, counters) in counted {
            // Most have counted before, and then one look is enough.
            if ledger.observe_again(member, *counters) {
                found += 1;
            } else if self.owners.contains_key(member) {
                ledger.observe(member, *counters);
                found += 1;
            }
        }
        // Somebody deleted the others, and what they had counted.
        if found < self.owners.len() {
            for member in self.missing_from(counted) {
                self.ledger(name).observe(&member, Counters::default());
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
