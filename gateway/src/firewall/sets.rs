//! One pair of kernel sets with the same members: what they hold, who needs it, what they counted.
//!
//! Members are added to the replies' set first and taken from the way out first, so that no packet leaves whose reply
//! could not come back, or whose source NAT would not hide.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use allowlist::Element;
use allowlist::feed::RefusedElement;

use super::admit;
use super::carried::{carried_name, destroy_if_there, write_carried};
use super::in_flight::wait_for_packets_in_flight;
use super::ipset::{Client, Counters, IpsetError};
use super::layout::{Member, PairLayout, elements_of, members_of};
use super::ledger::Ledger;

/// The largest table we make; a member takes about 50 bytes.
pub(super) const MAX_SET_CAPACITY: u32 = 1 << 22;
/// How many members a repair names one by one.
const MAX_NAMED_MEMBERS: usize = 5;

/// A pair of sets as this process knows it.
pub(super) struct SetPair {
    layout: PairLayout,
    capacity: u32,
    /// Members of both sets, and how many held elements need each: overlapping port ranges share members.
    owners: HashMap<Member, u32>,
    out: Ledger,
    back: Ledger,
}

/// What the first part of a change leaves to the others.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Members to add.
    pub(super) missing: BTreeSet<Member>,
    /// Members that are off the way out and still in the replies' set.
    pub(super) gone: BTreeSet<Member>,
}

/// The name a bigger table has while it is filled, and the old one until it was read.
pub(super) fn fresh_name(name: &str) -> String {
    format!("{name}-new")
}

impl SetPair {
    /// Knows nothing yet; [`Self::adopt`] or [`Self::take_out_all_but`] finds out.
    pub(super) fn new(layout: PairLayout, capacity: u32) -> Self {
        let capacity = capacity.clamp(1, MAX_SET_CAPACITY);
        Self { layout, capacity, owners: HashMap::new(), out: Ledger::default(), back: Ledger::default() }
    }

    const fn names(&self) -> [&'static str; 2] {
        [self.layout.back, self.layout.out]
    }

    fn ledger(&mut self, name: &str) -> &mut Ledger {
        if name == self.layout.out { &mut self.out } else { &mut self.back }
    }

    /// The sets of the pair that exist and are of another kind than ours.
    pub(super) fn misfits(&self, client: &mut Client) -> Result<Vec<&'static str>, IpsetError> {
        let PairLayout { scope, family, .. } = self.layout;
        let mut misfits = Vec::new();
        for name in self.names() {
            if client.header(name)?.is_some_and(|header| !header.fits(scope, family)) {
                misfits.push(name);
            }
        }
        Ok(misfits)
    }

    /// Makes the sets that are missing; returns their names.
    pub(super) fn create_missing(&mut self, client: &mut Client) -> Result<Vec<&'static str>, IpsetError> {
        let PairLayout { scope, family, .. } = self.layout;
        let mut made = Vec::new();
        let mut smallest = u32::MAX;
        for name in self.names() {
            match client.header(name)? {
                Some(header) => smallest = smallest.min(header.capacity),
                None => {
                    client.create(name, scope, family, self.capacity)?;
                    smallest = smallest.min(self.capacity);
                    made.push(name);
                }
            }
        }
        self.capacity = smallest;
        Ok(made)
    }

    /// Takes over what a former process left: sets, counts, and a table that was being exchanged when it died.
    /// Members that this process would not admit are thrown out. Returns the elements held.
    pub(super) fn adopt(&mut self, client: &mut Client) -> Result<Vec<Element>, IpsetError> {
        let PairLayout { scope, family, out, back } = self.layout;
        self.create_missing(client)?;
        for name in self.names() {
            let (carried, fresh) = (carried_name(name), fresh_name(name));
            if client.header(&carried)?.is_some_and(|header| header.fits(scope, family)) {
                let inherited = client.dump(&carried, scope)?;
                self.ledger(name).inherit(inherited);
            }
            if let Some(header) = client.header(&fresh)? {
                // Before the exchange it has counted nothing, after it it is the old table.
                if header.fits(scope, family) {
                    for (member, counters) in client.dump(&fresh, scope)? {
                        self.ledger(name).close(&member, counters);
                    }
                }
                self.keep_carried(client, name);
                client.destroy(&fresh)?;
            }
        }
        let passing: Vec<Member> = client.dump(out, scope)?.into_keys().collect();
        let elements: BTreeSet<Element> =
            elements_of(&passing).into_iter().filter(|element| admit::admit(element).is_ok()).collect();
        tracing::debug!(set = out, back, members = passing.len(), elements = elements.len(), "adopted sets");
        // Brings the replies' set in line and throws out what makes no element.
        let taken = self.take_out_all_but(client, &elements)?;
        self.put_in(client, &elements, &taken.missing)?;
        wait_for_packets_in_flight();
        self.finish(client, &taken.gone)?;
        Ok(elements.into_iter().collect())
    }

    /// First part of a change: takes `removed` off the way out, so that nothing revoked waits for what is new. Then
    /// follow [`Self::put_in`] for `added` and, when no packet is on its way any more, [`Self::finish`].
    pub(super) fn take_out(
        &mut self,
        client: &mut Client,
        removed: &[Element],
        added: &[Element],
    ) -> Result<Taken, IpsetError> {
        let mut missing = BTreeSet::new();
        for member in added.iter().flat_map(members_of) {
            let owners = self.owners.entry(member).or_insert(0);
            *owners += 1;
            if *owners == 1 {
                missing.insert(member);
            }
        }
        let gone = self.disown(removed);
        self.remove_from(client, self.layout.out, &gone)?;
        Ok(Taken { missing, gone })
    }

    /// First part of holding exactly `wanted`, in place: takes everything else off the way out.
    pub(super) fn take_out_all_but(
        &mut self,
        client: &mut Client,
        wanted: &BTreeSet<Element>,
    ) -> Result<Taken, IpsetError> {
        let PairLayout { scope, out, back, .. } = self.layout;
        let mut owners: HashMap<Member, u32> = HashMap::with_capacity(wanted.len());
        for member in wanted.iter().flat_map(members_of) {
            *owners.entry(member).or_insert(0) += 1;
        }
        self.owners = owners;
        let in_out = client.dump(out, scope)?;
        let in_back = client.dump(back, scope)?;
        let missing = (self.owners.keys())
            .filter(|member| !in_out.contains_key(member) || !in_back.contains_key(member))
            .copied()
            .collect();
        let gone = in_out
            .into_keys()
            .chain(in_back.into_keys())
            .filter(|member| !self.owners.contains_key(member))
            .collect();
        self.remove_from(client, out, &gone)?;
        Ok(Taken { missing, gone })
    }

    /// Last part of a change: takes what is gone out of the replies' set too. NAT looks at it, so that it has to wait
    /// for the packets that had passed FORWARD when the first part was made: none leaves with its private source.
    pub(super) fn finish(&mut self, client: &mut Client, gone: &BTreeSet<Member>) -> Result<(), IpsetError> {
        self.remove_from(client, self.layout.back, gone)
    }

    /// Second part: adds the `missing` members of `wanted`. An element with a member that the kernel refuses is not
    /// held; it is returned.
    pub(super) fn put_in<'a>(
        &mut self,
        client: &mut Client,
        wanted: impl IntoIterator<Item = &'a Element>,
        missing: &BTreeSet<Member>,
    ) -> Result<Vec<RefusedElement>, IpsetError> {
        let refused = refused_elements(wanted, &self.add_members(client, missing)?);
        let gone = self.disown(refused.iter().map(|refusal| &refusal.element));
        self.remove_members(client, &gone)?;
        Ok(refused)
    }

    /// The members that no element needs any more without these.
    fn disown<'a>(&mut self, elements: impl IntoIterator<Item = &'a Element>) -> BTreeSet<Member> {
        let mut gone = BTreeSet::new();
        for member in elements.into_iter().flat_map(members_of) {
            if let Some(owners) = self.owners.get_mut(&member) {
                *owners -= 1;
                if *owners == 0 {
                    self.owners.remove(&member);
                    gone.insert(member);
                }
            }
        }
        gone
    }

    /// Reads both sets.
    pub(super) fn read(&mut self, client: &mut Client) -> Result<(), IpsetError> {
        for name in self.names() {
            let counted = client.dump(name, self.layout.scope)?;
            self.observe(name, &counted);
        }
        Ok(())
    }

    /// What was counted for `element` as of the last [`Self::read`]: out and back.
    pub(super) fn total(&self, element: &Element) -> (Counters, Counters) {
        let mut total = (Counters::default(), Counters::default());
        for member in members_of(element) {
            let (out, back) = (self.out.total(&member), self.back.total(&member));
            total.0.packets = total.0.packets.saturating_add(out.packets);
            total.0.bytes = total.0.bytes.saturating_add(out.bytes);
            total.1.packets = total.1.packets.saturating_add(back.packets);
            total.1.bytes = total.1.bytes.saturating_add(back.bytes);
        }
        total
    }

    /// Compares both sets with what they should hold, repairs the difference and says what it was.
    pub(super) fn mend(&mut self, client: &mut Client) -> Result<Vec<String>, IpsetError> {
        let mut wrong = Vec::new();
        for name in self.create_missing(client)? {
            wrong.push(format!("ipset {name} was missing"));
        }
        let mut gone = BTreeSet::new();
        let mut lost = BTreeSet::new();
        for name in self.names() {
            let counted = client.dump(name, self.layout.scope)?;
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
        Ok(wrong)
    }

    fn observe(&mut self, name: &str, counted: &BTreeMap<Member, Counters>) {
        let ledger = if name == self.layout.out { &mut self.out } else { &mut self.back };
        for member in self.owners.keys() {
            ledger.observe(member, counted.get(member).copied().unwrap_or_default());
        }
    }

    /// Adds to both sets; a member that one of them refuses is in neither afterwards.
    fn add_members(
        &mut self,
        client: &mut Client,
        members: &BTreeSet<Member>,
    ) -> Result<BTreeMap<Member, String>, IpsetError> {
        if members.is_empty() {
            return Ok(BTreeMap::new());
        }
        self.make_room(client, self.owners.len())?;
        let PairLayout { out, back, .. } = self.layout;
        let mut refused = BTreeMap::new();
        for refusal in client.add(back, members)? {
            refused.insert(refusal.member, refusal.reason);
        }
        let accepted = members.iter().filter(|member| !refused.contains_key(member));
        let refused_out = client.add(out, accepted.copied().collect::<Vec<_>>().iter())?;
        client.delete(back, refused_out.iter().map(|refusal| &refusal.member))?;
        refused.extend(refused_out.into_iter().map(|refusal| (refusal.member, refusal.reason)));
        if let Some((member, reason)) = refused.first_key_value() {
            tracing::error!(count = refused.len(), %member, %reason, "the kernel refused members; they do not pass");
        }
        Ok(refused)
    }

    /// Deletes members from both sets.
    fn remove_members(&mut self, client: &mut Client, members: &BTreeSet<Member>) -> Result<(), IpsetError> {
        if members.is_empty() {
            return Ok(());
        }
        let closed = self.remove_from(client, self.layout.out, members);
        wait_for_packets_in_flight();
        closed.and(self.remove_from(client, self.layout.back, members))
    }

    /// Reads the members' counters, then deletes them.
    fn remove_from(
        &mut self,
        client: &mut Client,
        name: &'static str,
        members: &BTreeSet<Member>,
    ) -> Result<(), IpsetError> {
        if members.is_empty() {
            return Ok(());
        }
        // The kernel reads no single element, hence the whole set. Losing counts is better than letting pass what
        // was revoked.
        let counted = client.dump(name, self.layout.scope).unwrap_or_else(|error| {
            tracing::warn!(set = name, %error, "last counts of removed members were not read");
            BTreeMap::new()
        });
        if let Some(refusal) = client.delete(name, members)?.into_iter().next() {
            let action = format!("delete {} from ipset {name}: {}", refusal.member, refusal.reason);
            return Err(IpsetError::Malformed {
                action,
                reason: "a member that passes could not be taken out",
            });
        }
        for member in members {
            let last = counted.get(member).copied().unwrap_or_default();
            self.ledger(name).close(member, last);
        }
        self.keep_carried(client, name);
        Ok(())
    }

    /// Exchanges the tables for bigger ones before they are full.
    fn make_room(&mut self, client: &mut Client, wanted: usize) -> Result<(), IpsetError> {
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        if wanted <= self.capacity || self.capacity >= MAX_SET_CAPACITY {
            return Ok(());
        }
        // A quarter to spare, so that one more element does not exchange it again.
        let roomy = wanted.saturating_add(wanted / 4).min(MAX_SET_CAPACITY).next_power_of_two();
        for name in self.names() {
            self.enlarge(client, name, roomy)?;
        }
        tracing::info!(set = self.layout.out, from = self.capacity, to = roomy, "enlarged sets");
        self.capacity = roomy;
        Ok(())
    }

    /// The new table starts with zero counts; the old one is read when no packet can count in it any more, and its
    /// counts are carried. So none is lost and none is counted twice.
    fn enlarge(&mut self, client: &mut Client, name: &'static str, capacity: u32) -> Result<(), IpsetError> {
        let PairLayout { scope, family, .. } = self.layout;
        let fresh = fresh_name(name);
        destroy_if_there(client, &fresh)?;
        client.create(&fresh, scope, family, capacity)?;
        let members = client.dump(name, scope)?;
        if let Some(refusal) = client.add(&fresh, members.keys())?.into_iter().next() {
            destroy_if_there(client, &fresh)?;
            let action = format!("fill ipset {fresh} with {}: {}", refusal.member, refusal.reason);
            return Err(IpsetError::Malformed {
                action,
                reason: "the bigger table took less than the old one",
            });
        }
        client.swap(name, &fresh)?;
        wait_for_packets_in_flight();
        for (member, counters) in client.dump(&fresh, scope)? {
            self.ledger(name).close(&member, counters);
        }
        self.keep_carried(client, name);
        client.destroy(&fresh)
    }

    /// Writes what is carried where the next process finds it. Failing costs counts after a restart, nothing else.
    fn keep_carried(&mut self, client: &mut Client, name: &'static str) {
        let owners = &self.owners;
        let ledger = if name == self.layout.out { &mut self.out } else { &mut self.back };
        let forgot = ledger.forget(|member| owners.contains_key(member), owners.len());
        if ledger.unwritten().next().is_none() && !forgot {
            return;
        }
        let size = u32::try_from(ledger.carried().len()).unwrap_or(u32::MAX).max(self.capacity);
        if let Err(error) = write_carried(client, &carried_name(name), &self.layout, size, ledger, forgot) {
            tracing::warn!(set = name, %error, "sums of gone tables were not kept for a restart");
        } else {
            ledger.written();
        }
    }
}

/// The elements of `wanted` with a refused member, each with the first reason.
fn refused_elements<'a>(
    wanted: impl IntoIterator<Item = &'a Element>,
    refused: &BTreeMap<Member, String>,
) -> Vec<RefusedElement> {
    if refused.is_empty() {
        return Vec::new();
    }
    let first_reason = |element: &Element| members_of(element).find_map(|member| refused.get(&member));
    wanted
        .into_iter()
        .filter_map(|element| {
            first_reason(element).map(|reason| RefusedElement { element: *element, reason: reason.clone() })
        })
        .collect()
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
