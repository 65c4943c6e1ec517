//! Reading a pair of sets, and comparing it with what it should hold.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::thread;
use std::time::{Duration, Instant};

use super::SetPair;
use crate::firewall::ipset::{Client, Counters, IpsetError};
use crate::firewall::layout::{Member, PairLayout};
use crate::firewall::ledger::Ledger;

/// Comparing member by member may take this part of the time, so that large sets do not keep the firewall's thread busy.
/// That a set has lost members or has more than it should is seen at each call, or soon.
const COMPARING_SHARE: u32 = 40;
/// One member in the place of another is seen by comparing only, hence that is never put off for longer.
const MAX_UNCOMPARED: Duration = Duration::from_secs(120);
/// The kernel goes through the whole table of a set to say how many members it has: with at least so many …
const COUNTED_SELDOM: usize = 200_000;
/// … this may take this part of the time, …
const COUNTING_SHARE: u32 = 50;
/// … but it is never put off for longer.
const MAX_UNCOUNTED: Duration = Duration::from_secs(6);
/// Sets with at least so many members are read by two threads.
const READ_TOGETHER: usize = 10_000;
/// How many members a repair names one by one.
const MAX_NAMED_MEMBERS: usize = 5;

impl SetPair {
    /// Reads both sets, large ones at the same time: changes wait meanwhile, and most of it is the kernel's work.
    pub(in crate::firewall) fn read(
        &mut self,
        client: &mut Client,
        second: &mut Client,
    ) -> Result<(), IpsetError> {
        let begun = Instant::now();
        let PairLayout { out, back, scope, .. } = self.layout;
        let owners = &self.owners;
        let read = |client: &mut Client, name, ledger: &mut Ledger| {
            client.dump(name, scope).map(|counted| observe(ledger, owners, &counted))
        };
        let (ledger_out, ledger_back) = (&mut self.out, &mut self.back);
        let together = if owners.len() < READ_TOGETHER {
            None
        } else {
            thread::scope(|threads| {
                let of_back = || read(second, back, ledger_back);
                // Without another thread it takes longer.
                let other = thread::Builder::new().spawn_scoped(threads, of_back).ok()?;
                let of_out = read(client, out, ledger_out);
                let of_back = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                Some(of_back.and(of_out))
            })
        };
        let result = together
            .unwrap_or_else(|| read(client, back, ledger_back).and_then(|()| read(client, out, ledger_out)));
        self.reading = begun.elapsed();
        result
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

    /// [`Self::mend`], but a large pair only when it is time to count its members again.
    pub(in crate::firewall) fn mend_if_due(
        &mut self,
        client: &mut Client,
    ) -> Result<Vec<String>, IpsetError> {
        if self.owners.len() >= COUNTED_SELDOM && Instant::now() < self.count_at {
            return Ok(Vec::new());
        }
        self.mend(client)
    }

    /// Compares both sets with what they should hold, repairs the difference and says what it was.
    pub(in crate::firewall) fn mend(&mut self, client: &mut Client) -> Result<Vec<String>, IpsetError> {
        let mut wrong = Vec::new();
        self.is_misfit = false;
        let made = if self.are_there(client)? { Vec::new() } else { self.create_missing(client)? };
        for name in made {
            wrong.push(format!("ipset {name} was missing"));
        }
        // Also where members are compared, which says nothing of the kind.
        let counts_are_right = self.counts_are_right(client)?;
        if wrong.is_empty() && counts_are_right && Instant::now() < self.compare_at {
            return Ok(wrong);
        }
        let begun = Instant::now();
        let mut gone = BTreeSet::new();
        let mut lost = BTreeSet::new();
        for name in self.names() {
            let counted = self.dump(client, name)?;
            let ledger = if name == self.layout.out { &mut self.out } else { &mut self.back };
            let Differences { missing, foreign } = compare(ledger, &self.owners, &counted);
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
        let refused = self.add_members(client, &lost.into_iter().collect::<Vec<_>>())?;
        for (member, reason) in refused {
            wrong.push(format!("{member} could not be put back: {reason}"));
        }
        self.compared_since(begun);
        Ok(wrong)
    }

    /// The sets were compared, which began then.
    pub(super) fn compared_since(&mut self, begun: Instant) {
        self.compare_at = Instant::now() + uncompared_after(begun.elapsed());
    }

    /// The members that a set should have and that are not in what was read of it.
    pub(super) fn missing_from(&self, counted: &[(Member, Counters)]) -> Vec<Member> {
        missing_from(&self.owners, counted)
    }

    /// True when a set was seen to be of another kind than ours, and looks like it to whoever only asks for its type.
    pub(in crate::firewall) const fn is_misfit(&self) -> bool {
        self.is_misfit
    }

    /// True when both sets have as many members as they should.
    fn counts_are_right(&mut self, client: &mut Client) -> Result<bool, IpsetError> {
        let begun = Instant::now();
        let PairLayout { scope, family, .. } = self.layout;
        let (mut right, mut is_misfit) = (true, false);
        for name in self.names() {
            let header = client.header(name)?;
            is_misfit |= header.as_ref().is_some_and(|header| !header.fits(scope, family));
            let members = header.and_then(|header| header.members);
            right &= members.map(usize::try_from) == Some(Ok(self.owners.len()));
        }
        self.is_misfit = is_misfit;
        self.count_at = Instant::now() + (begun.elapsed() * COUNTING_SHARE).min(MAX_UNCOUNTED);
        Ok(right)
    }
}

/// For how long not to compare again what took so long to compare.
fn uncompared_after(took: Duration) -> Duration {
    (took * COMPARING_SHARE).min(MAX_UNCOMPARED)
}

/// Takes a reading of a set that should hold what `owners` name.
fn observe(ledger: &mut Ledger, owners: &HashMap<Member, u32>, counted: &[(Member, Counters)]) {
    let mut found = 0;
    for (member, counters) in counted {
        // Most have counted before, and then one look is enough.
        if ledger.observe_again(member, *counters) {
            found += 1;
        } else if owners.contains_key(member) {
            ledger.observe(member, *counters);
            found += 1;
        }
    }
    // Somebody deleted the others, and what they had counted.
    if found < owners.len() {
        for member in missing_from(owners, counted) {
            ledger.observe(&member, Counters::default());
        }
    }
}

/// How a set differs from what it should hold.
struct Differences {
    missing: Vec<Member>,
    foreign: Vec<Member>,
}

/// [`observe`] that looks at each member: one that is not ours must be found however it came there.
fn compare(
    ledger: &mut Ledger,
    owners: &HashMap<Member, u32>,
    counted: &[(Member, Counters)],
) -> Differences {
    let mut foreign = Vec::new();
    for (member, counters) in counted {
        if owners.contains_key(member) {
            ledger.observe(member, *counters);
        } else {
            foreign.push(*member);
        }
    }
    let all_there = counted.len() - foreign.len() == owners.len();
    let missing = if all_there { Vec::new() } else { missing_from(owners, counted) };
    for member in &missing {
        ledger.observe(member, Counters::default());
    }
    Differences { missing, foreign }
}

/// The members that a set should have and that are not in what was read of it.
fn missing_from(owners: &HashMap<Member, u32>, counted: &[(Member, Counters)]) -> Vec<Member> {
    let ours = counted.iter().map(|(member, _)| member).filter(|member| owners.contains_key(member));
    let there: HashSet<&Member> = ours.collect();
    if there.len() == owners.len() {
        return Vec::new();
    }
    owners.keys().filter(|member| !there.contains(member)).copied().collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparing_takes_little_of_the_time_but_is_not_put_off_for_ever() {
        assert_eq!(uncompared_after(Duration::from_millis(10)), Duration::from_millis(400));
        assert_eq!(uncompared_after(Duration::from_secs(10)), MAX_UNCOMPARED);
    }
}
