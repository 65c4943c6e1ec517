//! The real driver: a few fixed rules, the elements in kernel sets.

use std::collections::{BTreeSet, HashSet};
use std::thread;
use std::time::{Duration, Instant};

use allowlist::feed::RefusedElement;
use allowlist::{Change, Element};

use super::carried::carried_name;
use super::chains::Chains;
use super::failures::all_done;
use super::ipset::{Client, IpsetError};
use super::layout::{Family, KernelOptions, Member, PAIRS, members_of, pair_of};
use super::rules::Chain;
use super::sets::{SetPair, fresh_name};
use super::{ElementCounters, Firewall, FirewallError, Outcome, Repair, admit};

/// The kernel lets go of a set some time after the rule that used it is gone.
const RELEASE_DEADLINE: Duration = Duration::from_secs(5);
/// How often to look whether it has.
const RELEASE_POLL: Duration = Duration::from_millis(5);

/// Enforces elements in the network namespace of the thread that made it; every call has to come from a thread in
/// that namespace.
pub struct KernelFirewall {
    client: Client,
    chains: [Chains; 2],
    /// Each chain's rules as the kernel's tool prints them after we wrote them.
    bodies: [[Option<Vec<String>>; 2]; 2],
    pairs: [SetPair; 4],
    held: BTreeSet<Element>,
    /// True while `held` is known to be what the sets hold, element by element.
    settled: bool,
}

/// Makes sure that nothing passes around our rules, before anything else at start can fail: whatever keeps a gateway
/// from starting after a boot, the machine forwards nothing. Chains that stand already, with what they let through,
/// are left as they are; sets are not touched.
///
/// # Errors
/// [`FirewallError`] when `iptables` or `ip6tables` could not be run or refused.
pub fn close_forwarding(options: &KernelOptions) -> Result<(), FirewallError> {
    let chains = Family::BOTH.map(|family| Chains::new(family, &options.internal_cidrs));
    for difference in KernelFirewall::close_where_open(&chains)? {
        tracing::debug!("{difference}; now it is");
    }
    Ok(())
}

impl KernelFirewall {
    /// Opens the way to the kernel; touches nothing.
    ///
    /// # Errors
    /// [`FirewallError::Missing`] when the kernel has no ipset or permission is missing.
    pub fn new(options: &KernelOptions) -> Result<Self, FirewallError> {
        Ok(Self {
            client: Client::connect()?,
            chains: Family::BOTH.map(|family| Chains::new(family, &options.internal_cidrs)),
            bodies: Default::default(),
            pairs: PAIRS.map(|layout| SetPair::new(layout, options.set_capacity)),
            held: BTreeSet::new(),
            settled: false,
        })
    }

    /// Chains of ours in the iptables backend that is not the default, in words; they bite until
    /// [`Firewall::cleanup`] removes them.
    pub fn leftovers(&self) -> Vec<String> {
        Family::BOTH
            .into_iter()
            .filter_map(Chains::leftovers)
            .map(|other| {
                format!("{} still holds chains of ours; remove them with --cleanup", other.program())
            })
            .collect()
    }

    /// Closes the way wherever packets could pass around our rules: without a jump, a chain or its final drop. What
    /// stands is left as it is. It needs no sets, and goes on to the other family past an error. Says which jumps were
    /// wrong; [`Self::establish`] says which rules.
    fn close_where_open(chains: &[Chains; 2]) -> Result<Vec<String>, FirewallError> {
        let mut different = Vec::new();
        let mut failure = None;
        for chains in chains {
            match chains.close_where_open() {
                Ok(difference) => different.extend(difference),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(different), Err)
    }

    /// Chains and jumps as they should be, closed at every moment between. Says what was different.
    fn establish(&mut self) -> Result<Vec<String>, FirewallError> {
        let mut different = Vec::new();
        for family in 0..self.chains.len() {
            let forward_is_right = self.body_is_right(family, Chain::Forward)?;
            let nat_is_right = self.body_is_right(family, Chain::Nat)?;
            if !forward_is_right {
                let place = self.chains[family].place(Chain::Forward);
                different.push(format!("{place}: rules were not ours"));
                // Nothing passes before NAT is known to hide the private source. When it does, the rules are exchanged
                // in one step, and flows that both the old and the new ones let through feel nothing of it.
                if !(nat_is_right && self.chains[family].is_led_in()?) {
                    self.chains[family].set_body(Chain::Forward, &Chain::Forward.closed_body())?;
                }
            }
            different.extend(self.chains[family].lead_in(Chain::Forward)?);
            if !nat_is_right {
                different.push(format!("{}: rules were not ours", self.chains[family].place(Chain::Nat)));
                self.write_body(family, Chain::Nat)?;
            }
            different.extend(self.chains[family].lead_in(Chain::Nat)?);
            if !forward_is_right {
                self.write_body(family, Chain::Forward)?;
            }
        }
        Ok(different)
    }

    fn body_is_right(&self, family: usize, chain: Chain) -> Result<bool, FirewallError> {
        let present = self.chains[family].body(chain)?;
        let wanted = chain.body(Family::BOTH[family]);
        let printed = self.bodies[family][chain as usize].as_ref();
        Ok(present.is_some_and(|present| present == wanted || printed == Some(&present)))
    }

    /// Remembers how this version of the tool prints the rules, since that differs between versions.
    fn write_body(&mut self, family: usize, chain: Chain) -> Result<(), FirewallError> {
        let wanted = chain.body(Family::BOTH[family]);
        self.chains[family].set_body(chain, &wanted)?;
        let printed = self.chains[family].body(chain)?.filter(|printed| printed.len() == wanted.len());
        self.bodies[family][chain as usize] = printed;
        Ok(())
    }

    /// Sets of our names but another kind (a former version, or somebody's own) give way; until then nothing passes.
    fn evict_misfits(&mut self) -> Result<Vec<&'static str>, FirewallError> {
        let mut misfits = Vec::new();
        for pair in &self.pairs {
            misfits.extend(pair.misfits(&mut self.client)?);
        }
        if misfits.is_empty() {
            return Ok(misfits);
        }
        tracing::warn!(sets = ?misfits, "sets of another kind give way to ours");
        for chains in &self.chains {
            for chain in Chain::BOTH {
                if chains.body(chain)?.is_some() {
                    chains.set_body(chain, &chain.closed_body())?;
                }
            }
        }
        for name in &misfits {
            self.destroy_when_released(name)?;
        }
        Ok(misfits)
    }

    fn destroy_when_released(&mut self, name: &str) -> Result<(), IpsetError> {
        let deadline = Instant::now() + RELEASE_DEADLINE;
        loop {
            match self.client.destroy(name) {
                Err(error) if error.is_busy() && Instant::now() < deadline => thread::sleep(RELEASE_POLL),
                Err(error) if error.is_missing() => return Ok(()),
                result => return result,
            }
        }
    }

    /// Hands each pair its part and settles what is held afterwards.
    fn hold(
        &mut self,
        wanted: BTreeSet<Element>,
        mut refused: Vec<RefusedElement>,
    ) -> Result<Outcome, FirewallError> {
        self.settled = false;
        let mut parts: [BTreeSet<Element>; 4] = Default::default();
        for element in &wanted {
            parts[pair_of(element)].insert(*element);
        }
        let mut failures = Vec::new();
        let mut missing: [Option<BTreeSet<Member>>; 4] = Default::default();
        // Out everywhere before in anywhere: what was revoked waits for nothing.
        for (at, pair) in self.pairs.iter_mut().enumerate() {
            match pair.take_out_all_but(&mut self.client, &parts[at]) {
                Ok(members) => missing[at] = Some(members),
                Err(error) => failures.push(error),
            }
        }
        let mut held = wanted;
        for (at, pair) in self.pairs.iter_mut().enumerate() {
            let Some(missing) = &missing[at] else { continue };
            match pair.put_in(&mut self.client, &parts[at], missing) {
                Ok(refused_here) => {
                    for refusal in refused_here {
                        held.remove(&refusal.element);
                        refused.push(refusal);
                    }
                }
                Err(error) => failures.push(error),
            }
        }
        let added = held.difference(&self.held).count();
        let removed = self.held.difference(&held).count();
        self.held = held;
        all_done(failures)?;
        self.settled = true;
        Ok(Outcome { added, removed, refused })
    }

    /// What the change makes of what is held while ports of adopted elements are a guess: an adopted element that shares
    /// a member with a removed one goes whole, so that nothing removed stays open.
    fn guess_after(&self, added: BTreeSet<Element>, removed: &[Element]) -> BTreeSet<Element> {
        let closed: HashSet<Member> = removed.iter().flat_map(members_of).collect();
        let mut wanted: BTreeSet<Element> = self
            .held
            .iter()
            .filter(|element| !members_of(element).any(|member| closed.contains(&member)))
            .copied()
            .collect();
        wanted.extend(added);
        for element in removed {
            wanted.remove(element);
        }
        wanted
    }
}

impl Firewall for KernelFirewall {
    fn install(&mut self) -> Result<BTreeSet<Element>, FirewallError> {
        for leftover in self.leftovers() {
            tracing::warn!("{leftover}");
        }
        self.settled = false;
        // Before anything that can fail: after a boot the machine forwards already.
        Self::close_where_open(&self.chains)?;
        self.evict_misfits()?;
        self.held.clear();
        for pair in &mut self.pairs {
            self.held.extend(pair.adopt(&mut self.client)?);
        }
        for difference in self.establish()? {
            tracing::debug!("{difference}; now it is");
        }
        self.settled = self.held.iter().all(|element| element.ports.is_none());
        Ok(self.held.clone())
    }

    fn replace(&mut self, elements: &BTreeSet<Element>) -> Result<Outcome, FirewallError> {
        let (admitted, refused) = admit::sift(elements);
        self.hold(admitted, refused)
    }

    fn apply(&mut self, change: &Change) -> Result<Outcome, FirewallError> {
        let (admitted, mut refused) = admit::sift(&change.added);
        let removed: BTreeSet<Element> = change.revoked.iter().chain(&change.retired).copied().collect();
        if !self.settled {
            let removed: Vec<Element> = removed.into_iter().collect();
            return self.hold(self.guess_after(admitted, &removed), refused);
        }
        let mut added_to: [Vec<Element>; 4] = Default::default();
        let mut removed_from: [Vec<Element>; 4] = Default::default();
        for element in admitted.difference(&self.held).filter(|element| !removed.contains(element)) {
            added_to[pair_of(element)].push(*element);
        }
        for element in removed.intersection(&self.held) {
            removed_from[pair_of(element)].push(*element);
        }
        self.settled = false;
        let mut outcome = Outcome::default();
        let mut failures = Vec::new();
        let mut missing: [Option<BTreeSet<Member>>; 4] = Default::default();
        // Out everywhere before in anywhere: what was revoked waits for nothing.
        for (at, pair) in self.pairs.iter_mut().enumerate() {
            let (added, removed) = (&added_to[at], &removed_from[at]);
            if added.is_empty() && removed.is_empty() {
                continue;
            }
            match pair.take_out(&mut self.client, removed, added) {
                Ok(members) => missing[at] = Some(members),
                Err(error) => failures.push(error),
            }
            for element in removed {
                self.held.remove(element);
            }
            self.held.extend(added);
            outcome.removed += removed.len();
        }
        for (at, pair) in self.pairs.iter_mut().enumerate() {
            let Some(missing) = &missing[at] else { continue };
            match pair.put_in(&mut self.client, &added_to[at], missing) {
                Ok(refused_here) => {
                    for refusal in &refused_here {
                        self.held.remove(&refusal.element);
                    }
                    outcome.added += added_to[at].len() - refused_here.len();
                    refused.extend(refused_here);
                }
                Err(error) => failures.push(error),
            }
        }
        all_done(failures)?;
        self.settled = true;
        outcome.refused = refused;
        Ok(outcome)
    }

    fn counters(&mut self) -> Result<Vec<ElementCounters>, FirewallError> {
        for pair in &mut self.pairs {
            pair.read(&mut self.client)?;
        }
        Ok(self
            .held
            .iter()
            .map(|element| {
                let (out, back) = self.pairs[pair_of(element)].total(element);
                ElementCounters {
                    element: *element,
                    packets_out: out.packets,
                    bytes_out: out.bytes,
                    packets_in: back.packets,
                    bytes_in: back.bytes,
                }
            })
            .collect())
    }

    fn repair(&mut self) -> Result<Vec<Repair>, FirewallError> {
        let mut wrong = Vec::new();
        let mut failure = None;
        // Chains first: a way around them is open to everybody, a wrong set only to some. What fails holds up nothing.
        match Self::close_where_open(&self.chains) {
            Ok(different) => wrong.extend(different),
            Err(error) => failure = Some(error),
        }
        match self.evict_misfits() {
            Ok(misfits) => {
                wrong.extend(misfits.iter().map(|name| format!("ipset {name} was of another kind")));
            }
            Err(error) => failure = failure.or(Some(error)),
        }
        for pair in &mut self.pairs {
            match pair.mend(&mut self.client) {
                Ok(different) => wrong.extend(different),
                Err(error) => failure = failure.or(Some(error.into())),
            }
        }
        match self.establish() {
            Ok(different) => wrong.extend(different),
            Err(error) => failure = failure.or(Some(error)),
        }
        let Some(error) = failure else {
            return Ok(wrong.into_iter().map(|what| Repair { what }).collect());
        };
        for what in wrong {
            tracing::warn!(what, "found beside what could not be repaired");
        }
        Err(error)
    }

    fn cleanup(&mut self) -> Result<(), FirewallError> {
        let mut errors = Vec::new();
        let others = Family::BOTH.into_iter().filter_map(Chains::leftovers);
        for chains in self.chains.iter().chain(&others.collect::<Vec<_>>()) {
            // NAT last: what still passes in between keeps its private source hidden.
            for chain in Chain::BOTH {
                errors.extend(chains.remove(chain));
            }
        }
        match self.client.names() {
            Ok(names) => {
                let ours: BTreeSet<String> = PAIRS
                    .iter()
                    .flat_map(|pair| [pair.out, pair.back])
                    .flat_map(|name| [name.to_owned(), fresh_name(name), carried_name(name)])
                    .collect();
                for name in names.iter().filter(|name| ours.contains(*name)) {
                    errors.extend(self.destroy_when_released(name).err().map(|error| error.to_string()));
                }
            }
            Err(error) => errors.push(error.to_string()),
        }
        self.held.clear();
        self.settled = false;
        if errors.is_empty() { Ok(()) } else { Err(FirewallError::Cleanup(errors)) }
    }
}
