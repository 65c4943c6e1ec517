//! One pair of kernel sets with the same members: what they hold, who needs it, what they counted.
//!
//! Members are added to the replies' set first and taken from the way out first, so that no packet leaves whose reply
//! could not come back, or whose source NAT would not hide.

mod compare;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

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
/// Longest reading of a set that a removal waits for.
const MAX_LAST_READING: Duration = Duration::from_millis(25);

/// A pair of sets as this process knows it.
pub(super) struct SetPair {
    layout: PairLayout,
    capacity: u32,
    /// Members of both sets, and how many held elements need each: overlapping port ranges share members.
    owners: HashMap<Member, u32>,
    out: Ledger,
    back: Ledger,
    /// How long the last reading of a set took.
    reading: Duration,
    /// When the sets are compared member by member again, if nothing calls for it before.
    compare_at: Instant,
    /// When the members were counted last, a set was of another kind than ours.
    is_misfit: bool,
    /// When it is looked again whether they have as many members as they should.
    count_at: Instant,
}

/// Whose last counts are read before a member goes: the kernel reads no single one, hence it takes a whole set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Last {
    /// They are.
    Read,
    /// If that takes no longer than [`MAX_LAST_READING`]: what is revoked does not wait for statistics. Else it is counted
    /// as of the last reading.
    ReadIfQuick,
    /// They have been read a moment ago.
    Known,
}

/// What the first part of a change leaves to the others.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Members to add, none twice.
    pub(super) missing: Vec<Member>,
    /// Members that are off the way out and still in the replies' set.
    pub(super) gone: BTreeSet<Member>,
}

impl Taken {
    pub(super) fn extend(&mut self, more: Self) {
        self.missing.extend(more.missing);
        self.gone.extend(more.gone);
    }
}

/// The name a bigger table has while it is filled, and the old one until it was read.
pub(super) fn fresh_name(name: &str) -> String {
    format!("{name}-new")
}

impl SetPair {
    /// Knows nothing yet; [`Self::adopt`] or [`Self::take_out_all_but`] finds out.
    pub(super) fn new(layout: PairLayout, capacity: u32) -> Self {
        let capacity = capacity.clamp(1, MAX_SET_CAPACITY);
        Self {
            layout,
            capacity,
            owners: HashMap::new(),
            out: Ledger::default(),
            back: Ledger::default(),
            reading: Duration::ZERO,
            compare_at: Instant::now(),
            is_misfit: false,
            count_at: Instant::now(),
        }
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

    /// True when both sets are there and of our kind.
    pub(super) fn are_there(&self, client: &mut Client) -> Result<bool, IpsetError> {
        let PairLayout { scope, family, out, back } = self.layout;
        Ok(client.is_there(out, scope, family)? && client.is_there(back, scope, family)?)
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
        let mut passing: Vec<Member> =
            client.dump(out, scope)?.into_iter().map(|(member, _)| member).collect();
        passing.sort_unstable();
        let elements: BTreeSet<Element> =
            elements_of(&passing).into_iter().filter(|element| admit::admit(element).is_ok()).collect();
        tracing::debug!(set = out, back, members = passing.len(), elements = elements.len(), "adopted sets");
        // Brings the replies' set in line and throws out what makes no element.
        let taken = self.take_out_all_but(client, &elements)?;
        self.put_in(client, &elements, &taken.missing)?;
        wait_for_packets_in_flight();
        self.finish(client, &taken.gone, Last::Known)?;
        Ok(elements.into_iter().collect())
    }

    /// First part of a change: takes `removed` off the way out, so that nothing revoked waits for what is new. Then
    /// follow [`Self::put_in`] for `added` and, when no packet is on its way any more, [`Self::finish`].
    pub(super) fn take_out(
        &mut self,
        client: &mut Client,
        removed: &[Element],
        added: &[Element],
        last: Last,
    ) -> Result<Taken, IpsetError> {
        let mut missing = Vec::new();
        for member in added.iter().flat_map(members_of) {
            let owners = self.owners.entry(member).or_insert(0);
            *owners += 1;
            if *owners == 1 {
                missing.push(member);
            }
        }
        let gone = self.disown(removed);
        self.remove_from(client, self.layout.out, &gone, last)?;
        Ok(Taken { missing, gone })
    }

    /// First part of holding exactly `wanted`, in place: takes everything else off the way out.
    pub(super) fn take_out_all_but(
        &mut self,
        client: &mut Client,
        wanted: &BTreeSet<Element>,
    ) -> Result<Taken, IpsetError> {
        let begun = Instant::now();
        let PairLayout { out, back, .. } = self.layout;
        let mut owners: HashMap<Member, u32> = HashMap::with_capacity(wanted.len());
        for member in wanted.iter().flat_map(members_of) {
            *owners.entry(member).or_insert(0) += 1;
        }
        self.owners = owners;
        let in_out = self.dump(client, out)?;
        let in_back = self.dump(client, back)?;
        let missing = union(self.missing_from(&in_out), self.missing_from(&in_back));
        let mut gone = BTreeSet::new();
        for (name, counted) in [(out, in_out), (back, in_back)] {
            for (member, counters) in counted {
                if !self.owners.contains_key(&member) {
                    self.ledger(name).observe(&member, counters);
                    gone.insert(member);
                }
            }
        }
        self.remove_from(client, out, &gone, Last::Known)?;
        self.compared_since(begun);
        Ok(Taken { missing, gone })
    }

    /// Last part of a change: takes what is gone out of the replies' set too. NAT looks at it, so that it has to wait
    /// for the packets that had passed FORWARD when the first part was made: none leaves with its private source.
    pub(super) fn finish(
        &mut self,
        client: &mut Client,
        gone: &BTreeSet<Member>,
        last: Last,
    ) -> Result<(), IpsetError> {
        self.remove_from(client, self.layout.back, gone, last)
    }

    /// Second part: adds the `missing` members of `wanted`. An element with a member that the kernel refuses is not
    /// held; it is returned.
    pub(super) fn put_in<'a>(
        &mut self,
        client: &mut Client,
        wanted: impl IntoIterator<Item = &'a Element>,
        missing: &[Member],
    ) -> Result<Vec<RefusedElement>, IpsetError> {
        let refused = refused_elements(wanted, &self.add_members(client, missing)?);
        let gone = self.disown(refused.iter().map(|refusal| &refusal.element));
        self.remove_members(client, &gone)?;
        Ok(refused)
    }

    /// The members that no element needs any more without these.
    pub(super) fn disown<'a>(&mut self, elements: impl IntoIterator<Item = &'a Element>) -> BTreeSet<Member> {
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

    /// True when the sets should have no members.
    pub(super) fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// True when nothing was ever counted here.
    pub(super) fn counted_nothing(&self) -> bool {
        self.out.is_empty() && self.back.is_empty()
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

    /// Adds to both sets; a member that one of them refuses is in neither afterwards.
    fn add_members(
        &mut self,
        client: &mut Client,
        members: &[Member],
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
        let refused_out = client.add(out, accepted)?;
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
        let closed = self.remove_from(client, self.layout.out, members, Last::ReadIfQuick);
        wait_for_packets_in_flight();
        closed.and(self.remove_from(client, self.layout.back, members, Last::ReadIfQuick))
    }

    /// Reads the members' counters as `last` says, then deletes them.
    fn remove_from(
        &mut self,
        client: &mut Client,
        name: &'static str,
        members: &BTreeSet<Member>,
        last: Last,
    ) -> Result<(), IpsetError> {
        if members.is_empty() {
            return Ok(());
        }
        let reads = last == Last::Read || last == Last::ReadIfQuick && self.reading <= MAX_LAST_READING;
        // Losing counts is better than letting pass what was revoked.
        let counted = reads.then(|| self.dump(client, name)).transpose().unwrap_or_else(|error| {
            tracing::warn!(set = name, %error, "last counts of removed members were not read");
            None
        });
        let counted: Option<HashMap<Member, Counters>> = counted
            .map(|counted| counted.into_iter().filter(|(member, _)| members.contains(member)).collect());
        if let Some(refusal) = client.delete(name, members)?.into_iter().next() {
            let action = format!("delete {} from ipset {name}: {}", refusal.member, refusal.reason);
            return Err(IpsetError::Malformed {
                action,
                reason: "a member that passes could not be taken out",
            });
        }
        for member in members {
            match counted.as_ref().and_then(|counted| counted.get(member)) {
                Some(last) => self.ledger(name).close(member, *last),
                None => self.ledger(name).close_as_read(member),
            }
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
        if let Some(refusal) =
            client.add(&fresh, members.iter().map(|(member, _)| member))?.into_iter().next()
        {
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

/// What is in either, once. An empty pair of sets lacks the same twice.
fn union(mut one: Vec<Member>, other: Vec<Member>) -> Vec<Member> {
    if one != other {
        one.extend(other);
        one.sort_unstable();
        one.dedup();
    }
    one
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
