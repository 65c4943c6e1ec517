//! Turns the answers of all upstreams into a difference to the replicated state, or into nothing. Pure.
//!
//! The rules, each for a reason:
//! - An address is published on first sight, or once a majority of the upstreams gave it ([`Quorum`]), and retired only after `linger` of being looked for in vain: pools rotate.
//! - Time counts as "in vain" only between two answers in a row that lack the address, and an upstream that is silent
//!   cannot take back what it gave. So no failure of DNS, however long, removes anything.
//! - An answer that is refused as a whole (no public address, or more than any name may have) takes nothing back either:
//!   it is as likely the work of a forger or a broken resolver as of the zone.
//! - "No such name" is believed after three answers over a minute: zones are empty for moments while they reload.
//! - A leader counts only what it saw itself. After a change of leader everything lingers anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use allowlist::{DomainName, Refusal, class};
use raft_store::command::{NameStatus, ResolutionUpdate, SeenAddress};
use raft_store::state::Resolution;

mod quorum;
mod refused;

use super::answer::{Answer, Family, UpstreamSet};
use super::schedule::AskAgain;
pub use quorum::{GIVEN_COUNTS, Quorum};
use quorum::{Givers, Told, Waiting};
use refused::Refusals;

/// Most addresses of one name; more is an open proxy or a mistake, and nothing new is taken.
pub const MAX_ADDRESSES_PER_NAME: usize = 1_000;

/// "No such name" is believed after this many answers in a row …
const NOTHING_BELIEVED_AFTER: u32 = 3;
/// … spread over at least this time.
const NOTHING_BELIEVED_SPREAD: Duration = Duration::from_secs(60);
/// Until then the name is asked this often.
const NOTHING_RECHECK: Duration = Duration::from_secs(30);
/// Failures are told to the cluster after this many in a row …
const STALE_AFTER_FAILURES: u32 = 3;
/// … spread over at least this time: a blip costs no write.
const STALE_SPREAD: Duration = Duration::from_secs(10);
/// A chain of aliases that changed while the addresses did not is stored once seen this often in a row. Load
/// balancers rotate aliases; storing each would cost a write a minute for nothing.
const CHAIN_SETTLED_AFTER: u32 = 3;

/// A moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Monotonic, since some fixed start: for intervals.
    pub elapsed: Duration,
    /// Wall clock, Unix milliseconds: for what people read.
    pub unix_ms: u64,
}

/// The answers to one question, by upstream in the order of the settings, and when they were complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// When.
    pub at: Moment,
    /// The A answers.
    pub v4: Vec<Answer>,
    /// The AAAA answers.
    pub v6: Vec<Answer>,
}

/// What stays the same from round to round.
#[derive(Debug, Clone)]
pub struct Rules {
    /// How long an address outlives its last sighting.
    pub linger: Duration,
    /// How long what an upstream gave counts as its word, if it is silent since.
    pub word_counts: Duration,
    /// Names of the upstreams, in the order of the settings.
    pub upstreams: Arc<[String]>,
    /// The cluster has agreed to tell of names with public and refused answers ([`NameStatus::Mixed`]).
    pub tells_mixed: bool,
    /// How many upstreams must give an address before it is published.
    pub quorum: Quorum,
}

/// What this leader remembers of a name between rounds; not replicated.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    sightings: BTreeMap<IpAddr, Sighting>,
    v4: FamilyMemory,
    v6: FamilyMemory,
    refused: BTreeSet<IpAddr>,
    refusals: Refusals,
    other_chain: Option<(Vec<DomainName>, u32)>,
    waiting: Waiting,
    told: Told,
}

/// What follows from a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The difference to what is stored, if there is one.
    pub update: Option<ResolutionUpdate>,
    /// When to ask again.
    pub again: AskAgain,
    /// Answers that were refused because they are not public.
    pub refused: usize,
    /// One of them that was not there in the round before: worth a line in the log.
    pub newly_refused: Option<Refusal>,
    /// New addresses that too few upstreams gave so far.
    pub waiting: usize,
}

#[derive(Debug, Clone)]
struct Sighting {
    ttl_s: u32,
    given_by: UpstreamSet,
    givers: Givers,
    /// How long it has been looked for in vain.
    in_vain: Duration,
    /// The round before this one lacked it, at this time.
    missed_at: Option<Duration>,
}

#[derive(Debug, Clone, Default)]
struct FamilyMemory {
    nothing: u32,
    nothing_since: Duration,
    failures: u32,
    failing_since: Option<Moment>,
}

/// One family in one round, all upstreams taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Addresses,
    /// Only addresses that are not public: DNS works, but nothing it said is used.
    Refused,
    Nothing {
        believed: bool,
    },
    Failed {
        in_a_row: u32,
        lasting: bool,
    },
}

/// The round's addresses of both families.
#[derive(Debug, Default)]
struct Union {
    public: BTreeMap<IpAddr, (u32, UpstreamSet)>,
    refused: BTreeMap<IpAddr, (Refusal, UpstreamSet)>,
    shortest_ttl_s: Option<u32>,
}

impl Rules {
    fn set_of(&self, names: &BTreeSet<String>) -> UpstreamSet {
        self.upstreams
            .iter()
            .enumerate()
            .filter(|(_, name)| names.contains(*name))
            .map(|(place, _)| place)
            .collect()
    }

    fn names_of(&self, set: UpstreamSet) -> BTreeSet<String> {
        let named = self.upstreams.iter().enumerate().filter(|(place, _)| set.contains(*place));
        named.map(|(_, name)| name.clone()).collect()
    }
}

/// Judges one round of one name.
pub fn judge(round: &Round, stored: &Resolution, memory: &mut Memory, rules: &Rules) -> Verdict {
    let v4 = memory.v4.hear(&round.v4, round.at);
    let v6 = memory.v6.hear(&round.v6, round.at);
    let said = |family| if family == Family::V4 { v4 } else { v6 };
    let has = |family| stored.addresses.keys().any(|address| Family::of(*address) == family);
    let union = unite(round);

    let retire = memory.look_for(stored, round, &union, said, rules);
    let heard = |family| answered(round.answers(family));
    let admitted = memory.waiting.admit(&union, stored, heard, round.at.elapsed, rules);
    // Where a majority is wanted, one upstream alone cannot keep others' addresses out by a flood of its own.
    let total = stored.addresses.len() - retire.len() + admitted.len();
    let too_many = total > MAX_ADDRESSES_PER_NAME;
    let mut seen = BTreeMap::new();
    if !too_many {
        for (address, (ttl_s, given_by)) in admitted {
            let upstreams = rules.names_of(given_by);
            seen.insert(address, SeenAddress { first_seen_ms: round.at.unix_ms, ttl_s, upstreams });
            memory.sightings.insert(address, Sighting::now(ttl_s, given_by, round.at.elapsed));
        }
    }
    let waits =
        if stored.addresses.is_empty() && seen.is_empty() { memory.waiting.text(rules) } else { None };
    memory
        .sightings
        .retain(|address, _| stored.addresses.contains_key(address) || seen.contains_key(address));

    let newly_refused = union.refused.iter().find(|(address, _)| !memory.refused.contains(address));
    let newly_refused = newly_refused.map(|(_, (refusal, _))| refusal.clone());
    memory.refused = union.refused.keys().copied().collect();
    let told = matches!(stored.status, NameStatus::Mixed { .. });
    memory.refusals.hear(&union, told, round.at.elapsed, rules);
    let mixed = rules.tells_mixed && memory.refusals.stand(round.at.elapsed);

    // A family that fails matters when it has addresses to lose, or when the other one has nothing to say either.
    let silent = union.public.is_empty() && union.refused.is_empty();
    let failing = Family::BOTH.into_iter().find(|&family| {
        matches!(said(family), Said::Failed { lasting: true, .. }) && (silent || has(family))
    });
    let status = if too_many {
        let reason = format!("{total} addresses, at most {MAX_ADDRESSES_PER_NAME} are taken for one name");
        NameStatus::Refused { reason }
    } else if let Some(family) = failing {
        memory.of(family).stale(round.answers(family), rules, round.at)
    } else if let Some(reason) = waits {
        let refused = memory.refusals.text();
        let also = if refused.is_empty() { String::new() } else { format!("; {refused}") };
        NameStatus::Refused { reason: reason + &also }
    } else if !union.public.is_empty() && stored.addresses.is_empty() && seen.is_empty() {
        // All that there is waits, for a moment as yet.
        stored.status.clone()
    } else if !union.public.is_empty() && mixed {
        NameStatus::Mixed { reason: memory.refusals.text() }
    } else if !union.public.is_empty() {
        NameStatus::Ok
    } else if !union.refused.is_empty() {
        NameStatus::Refused { reason: format!("no public address: {}", memory.refusals.text()) }
    } else if Family::BOTH.into_iter().all(|family| said(family) == Said::Nothing { believed: true }) {
        NameStatus::NoSuchName
    } else {
        stored.status.clone()
    };
    // The texts inside vary from round to round; the first one stands until the status itself changes, or somebody else
    // gives what must not be used.
    let tells_more = match (&stored.status, &status) {
        (NameStatus::Mixed { reason: old }, NameStatus::Mixed { reason: new })
        | (NameStatus::Refused { reason: old }, NameStatus::Refused { reason: new }) => {
            memory.refusals.add_to(old) && !memory.refusals.add_to(new)
        }
        _ => false,
    };
    let same = std::mem::discriminant(&status) == std::mem::discriminant(&stored.status) && !tells_more;
    let status = if same { stored.status.clone() } else { status };

    let chain = round.chain().unwrap_or(&stored.chain);
    let chain_settled = memory.chain_settled(chain, &stored.chain);
    let differs = !seen.is_empty() || !retire.is_empty() || !same || chain_settled;
    let mut givers = memory.changed_givers(stored, heard, differs, round.at.elapsed, rules);
    givers.retain(|address, _| !retire.contains(address));
    let differs = differs || !givers.is_empty();
    seen.append(&mut givers);
    let update = differs.then(|| ResolutionUpdate { seen, retire, chain: chain.to_vec(), status });

    let doubt = Family::BOTH
        .into_iter()
        .any(|family| said(family) == Said::Nothing { believed: false } && (silent || has(family)));
    let ttl = union.shortest_ttl_s.map(|seconds| Duration::from_secs(seconds.into()));
    let ttl = if doubt { Some(ttl.map_or(NOTHING_RECHECK, |ttl| ttl.min(NOTHING_RECHECK))) } else { ttl };
    let failures = Family::BOTH.into_iter().map(|family| match said(family) {
        Said::Failed { in_a_row, .. } => in_a_row,
        Said::Addresses | Said::Refused | Said::Nothing { .. } => 0,
    });
    let again = AskAgain { ttl, failures: failures.max().unwrap_or_default() };
    Verdict { update, again, refused: union.refused.len(), newly_refused, waiting: memory.waiting.len() }
}

fn unite(round: &Round) -> Union {
    let mut union = Union::default();
    for answers in [&round.v4, &round.v6] {
        for (place, answer) in answers.iter().enumerate() {
            let Answer::Addresses { addresses, .. } = answer else { continue };
            for (&address, &ttl_s) in addresses {
                union.shortest_ttl_s =
                    Some(union.shortest_ttl_s.map_or(ttl_s, |shortest| shortest.min(ttl_s)));
                if let Err(refusal) = class::check_address(address) {
                    let refused = union.refused.entry(address);
                    refused.or_insert((refusal, UpstreamSet::default())).1.insert(place);
                    continue;
                }
                let (kept_ttl_s, given_by) =
                    union.public.entry(address).or_insert((ttl_s, UpstreamSet::default()));
                // Caches count down; the largest is nearest to what the zone says.
                *kept_ttl_s = ttl_s.max(*kept_ttl_s);
                given_by.insert(place);
            }
        }
    }
    union
}

impl Round {
    /// The answers for one family.
    pub fn answers(&self, family: Family) -> &[Answer] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    fn chain(&self) -> Option<&[DomainName]> {
        let answers = || self.v4.iter().chain(&self.v6);
        let with_addresses = answers().find_map(|answer| match answer {
            Answer::Addresses { chain, .. } => Some(chain.as_slice()),
            Answer::Nothing { .. } | Answer::Failed(_) => None,
        });
        with_addresses.or_else(|| {
            answers().find_map(|answer| match answer {
                Answer::Nothing { chain } if !chain.is_empty() => Some(chain.as_slice()),
                _ => None,
            })
        })
    }
}

impl Memory {
    fn of(&self, family: Family) -> &FamilyMemory {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// Looks for every stored address in the round; returns those whose time is over.
    fn look_for(
        &mut self,
        stored: &Resolution,
        round: &Round,
        union: &Union,
        said: impl Fn(Family) -> Said,
        rules: &Rules,
    ) -> BTreeSet<IpAddr> {
        let answered = Family::BOTH.map(|family| answered(round.answers(family)));
        let flooded = union.public.len() > MAX_ADDRESSES_PER_NAME;
        let mut retire = BTreeSet::new();
        for (&address, kept) in &stored.addresses {
            let family = Family::of(address);
            let heard = if family == Family::V4 { answered[0] } else { answered[1] };
            let sighting = self.sightings.entry(address).or_insert_with(|| {
                Sighting::now(kept.ttl_s, rules.set_of(&kept.upstreams), round.at.elapsed)
            });
            if let Some(&(ttl_s, given_by)) = union.public.get(&address) {
                // Who gave it once and is silent now has not taken it back.
                let silent = sighting.given_by.without(heard);
                sighting.seen(ttl_s, given_by.and(silent), round.at.elapsed);
                continue;
            }
            let believed =
                !flooded && matches!(said(family), Said::Addresses | Said::Nothing { believed: true });
            if !(believed && sighting.given_by.within(heard)) {
                sighting.missed_at = None;
                continue;
            }
            if let Some(before) = sighting.missed_at.replace(round.at.elapsed) {
                sighting.in_vain += round.at.elapsed.saturating_sub(before);
            }
            if sighting.in_vain >= rules.linger.max(Duration::from_secs(sighting.ttl_s.into())) {
                retire.insert(address);
            }
        }
        retire
    }

    fn chain_settled(&mut self, chain: &[DomainName], stored: &[DomainName]) -> bool {
        if chain == stored {
            self.other_chain = None;
            return false;
        }
        match &mut self.other_chain {
            Some((other, rounds)) if other == chain => *rounds += 1,
            other => *other = Some((chain.to_vec(), 1)),
        }
        self.other_chain.as_ref().is_some_and(|(_, rounds)| *rounds >= CHAIN_SETTLED_AFTER)
    }
}

impl Sighting {
    fn now(ttl_s: u32, given_by: UpstreamSet, now: Duration) -> Self {
        let mut givers = Givers::default();
        givers.hear(given_by, now);
        Self { ttl_s, given_by, givers, in_vain: Duration::ZERO, missed_at: None }
    }

    fn seen(&mut self, ttl_s: u32, given_by: UpstreamSet, now: Duration) {
        self.givers.hear(given_by, now);
        (self.ttl_s, self.given_by) = (ttl_s, given_by);
        (self.in_vain, self.missed_at) = (Duration::ZERO, None);
    }
}

impl FamilyMemory {
    fn hear(&mut self, answers: &[Answer], at: Moment) -> Said {
        if answers.iter().any(has_public_address) {
            *self = Self::default();
            return Said::Addresses;
        }
        if answers.iter().any(is_refused) {
            *self = Self::default();
            return Said::Refused;
        }
        if answers.iter().any(|answer| matches!(answer, Answer::Nothing { .. })) {
            self.failures = 0;
            self.failing_since = None;
            if self.nothing == 0 {
                self.nothing_since = at.elapsed;
            }
            self.nothing = self.nothing.saturating_add(1);
            let spread = at.elapsed.saturating_sub(self.nothing_since);
            let believed = self.nothing >= NOTHING_BELIEVED_AFTER && spread >= NOTHING_BELIEVED_SPREAD;
            return Said::Nothing { believed };
        }
        self.failures = self.failures.saturating_add(1);
        let since = self.failing_since.get_or_insert(at);
        let lasting =
            self.failures >= STALE_AFTER_FAILURES && at.elapsed.saturating_sub(since.elapsed) >= STALE_SPREAD;
        Said::Failed { in_a_row: self.failures, lasting }
    }

    fn stale(&self, answers: &[Answer], rules: &Rules, at: Moment) -> NameStatus {
        let error = answers.iter().zip(rules.upstreams.iter()).find_map(|(answer, upstream)| match answer {
            Answer::Failed(failure) => Some(format!("{upstream}: {failure}")),
            Answer::Addresses { .. } | Answer::Nothing { .. } => None,
        });
        let since_ms = self.failing_since.map_or(at.unix_ms, |since| since.unix_ms);
        NameStatus::Stale { since_ms, error: error.unwrap_or_default() }
    }
}

fn has_public_address(answer: &Answer) -> bool {
    match answer {
        Answer::Addresses { addresses, .. } => {
            addresses.keys().any(|address| class::check_address(*address).is_ok())
        }
        Answer::Nothing { .. } | Answer::Failed(_) => false,
    }
}

/// It has addresses, and none may be used.
fn is_refused(answer: &Answer) -> bool {
    matches!(answer, Answer::Addresses { .. }) && !has_public_address(answer)
}

/// The upstreams whose word about the family counts.
fn answered(answers: &[Answer]) -> UpstreamSet {
    let counts = |answer: &Answer| !matches!(answer, Answer::Failed(_)) && !is_refused(answer);
    let usable = answers.iter().enumerate().filter(|(_, answer)| counts(answer));
    usable.map(|(place, _)| place).collect()
}

#[cfg(test)]
mod tests;
