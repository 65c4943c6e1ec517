//! What happened, and whether it may have happened.
//!
//! The committed log is a total order of all writes, so linearizability needs no search: the order is the witness. Each
//! acknowledged write must stand in it where it was said to stand, with the reply a replay gives there; each read must
//! have seen the state a replay has there; and the order must agree with the order in which clients began and ended.

use std::collections::{BTreeMap, BTreeSet};

use allowlist::EntryId;
use openraft::EntryPayload;
use raft_store::State;
use raft_store::command::{Batch, BatchReply};
use raft_store::types::{Entry, NodeId, Vote};

use crate::machine::Content;
use crate::types::pass;

#[derive(Default)]
pub(crate) struct History {
    /// What the nodes applied, by index.
    log: BTreeMap<u64, Entry>,
    /// Which life of a node led as (term, node).
    leaders: BTreeMap<(u64, NodeId), u64>,
    pub(crate) installed: Vec<(NodeId, Content)>,
    pub(crate) operations: Vec<Operation>,
    /// Counts the beginnings and ends of operations.
    clock: u64,
    pub(crate) violations: Vec<String>,
}

/// What a client asked for and was told.
pub(crate) struct Operation {
    /// Stands as request id in every command of a write.
    pub(crate) tag: String,
    pub(crate) began: u64,
    /// `None` while it has no outcome.
    pub(crate) ended: Option<u64>,
    pub(crate) outcome: Outcome,
}

#[allow(clippy::large_enum_variant, reason = "a few thousand of them in a test")]
pub(crate) enum Outcome {
    /// May or may not have taken effect.
    Unknown,
    /// Certainly has not.
    Nothing,
    Wrote(BatchReply),
    Read(State),
}

impl History {
    pub(crate) fn begin(&mut self, tag: String) -> usize {
        self.clock += 1;
        let outcome = Outcome::Unknown;
        self.operations.push(Operation { tag, began: self.clock, ended: None, outcome });
        self.operations.len() - 1
    }

    pub(crate) fn end(&mut self, number: usize, outcome: Outcome) {
        self.clock += 1;
        if let Some(operation) = self.operations.get_mut(number) {
            operation.ended = Some(self.clock);
            operation.outcome = outcome;
        }
    }

    /// State machine safety: at one index all nodes apply the same, before and after every restart.
    pub(crate) fn applied(&mut self, node: NodeId, entry: &Entry) -> Result<(), String> {
        let first = self.log.entry(entry.log_id.index).or_insert_with(|| entry.clone());
        if first == entry {
            return Ok(());
        }
        Err(format!("node {node} applied {}, another node applied {}", entry.log_id, first.log_id))
    }

    /// A vote makes one life of one node the leader. (openraft may elect two nodes in one term, one after the other:
    /// its leaders are ordered by term and node.)
    pub(crate) fn leads(&mut self, node: NodeId, life: u64, vote: &Vote) -> Result<(), String> {
        let leader = vote.leader_id;
        if leader.node_id != node {
            return Err(format!("node {node} leads under the vote {vote} for another"));
        }
        match *self.leaders.entry((leader.term, node)).or_insert(life) {
            first if first == life => Ok(()),
            first => Err(format!("node {node} led in term {} in its lives {first} and {life}", leader.term)),
        }
    }

    pub(crate) fn last_index(&self) -> u64 {
        self.log.last_key_value().map_or(0, |(index, _)| *index)
    }

    /// Terms in which two nodes led.
    pub(crate) fn shared_terms(&self) -> usize {
        let terms: BTreeSet<_> = self.leaders.keys().map(|(term, _)| term).collect();
        self.leaders.len() - terms.len()
    }

    pub(crate) fn terms(&self) -> usize {
        self.leaders.len()
    }

    /// Everything that must not be, in words; empty when all is well. `at_the_end` are the states of the members.
    pub(crate) fn check(&self, at_the_end: &[(NodeId, State)]) -> Vec<String> {
        let mut wrong = self.violations.clone();
        let replay = match Replay::of(&self.log) {
            Ok(replay) => replay,
            Err(reason) => {
                wrong.push(reason);
                return wrong;
            }
        };
        wrong.extend(replay.violations.iter().cloned());
        wrong.extend(self.operations.iter().filter_map(|one| replay.contradicts(one)));
        wrong.extend(self.time_runs_backwards());
        for (node, content) in &self.installed {
            if replay.states.get(content.applied.map_or(0, |id| id.index) as usize) != Some(&content.state) {
                wrong.push(format!("node {node} installed a snapshot that is not the state at its index"));
            }
        }
        let last = replay.states.last();
        for (node, state) in at_the_end {
            if Some(state) != last {
                wrong.push(format!("node {node} ends at revision {} with another state", state.revision()));
            }
            if Some(state.published().digest()) != last.map(|last| last.published().digest()) {
                wrong.push(format!("node {node} ends with another digest of the published set"));
            }
        }
        wrong
    }

    /// Real-time order: what begins after something has ended comes after it.
    fn time_runs_backwards(&self) -> Vec<String> {
        let mut events = Vec::new();
        for operation in &self.operations {
            let (revision, writes) = match &operation.outcome {
                Outcome::Wrote(reply) => (reply.revision, true),
                Outcome::Read(state) => (state.revision(), false),
                Outcome::Unknown | Outcome::Nothing => continue,
            };
            events.push((operation.began, None, operation, revision, writes));
            if let Some(ended) = operation.ended {
                events.push((ended, Some(revision), operation, revision, writes));
            }
        }
        events.sort_by_key(|(at, ..)| *at);
        let mut floor = 0;
        let mut floors = BTreeMap::new();
        let mut wrong = Vec::new();
        for (_, ended, operation, revision, writes) in events {
            let Some(reached) = ended else {
                floors.insert(&operation.tag, floor);
                continue;
            };
            let before = floors.get(&operation.tag).copied().unwrap_or(0);
            if revision < before || (writes && revision == before) {
                let what = if writes { "write" } else { "read" };
                wrong.push(format!(
                    "{what} {} is at revision {revision}, but {before} had been answered before it began",
                    operation.tag
                ));
            }
            floor = floor.max(reached);
        }
        wrong
    }
}

/// The committed log, applied once more from the beginning.
struct Replay {
    /// By index.
    states: Vec<State>,
    replies: Vec<Option<(Batch, BatchReply)>>,
    places: BTreeMap<String, u64>,
    violations: Vec<String>,
}

impl Replay {
    fn of(log: &BTreeMap<u64, Entry>) -> Result<Self, String> {
        let mut replay =
            Self { states: vec![], replies: vec![], places: BTreeMap::new(), violations: Vec::new() };
        let mut state = State::default();
        let mut protected: BTreeSet<EntryId> = BTreeSet::new();
        let mut last = None;
        for (expected, (index, entry)) in log.iter().enumerate() {
            if *index != expected as u64 {
                return Err(format!("nobody applied entry {expected}"));
            }
            if last.is_some_and(|last| entry.log_id <= last) {
                replay.violations.push(format!("entry {} follows a newer one", entry.log_id));
            }
            last = Some(entry.log_id);
            let reply = match &entry.payload {
                EntryPayload::Normal(batch) => {
                    let (_, reply) = state.apply(*index, batch);
                    replay.place(*index, batch);
                    Some((batch.clone(), reply))
                }
                EntryPayload::Blank | EntryPayload::Membership(_) => {
                    pass(&mut state, *index);
                    None
                }
            };
            for id in &protected {
                if !state.entry(*id).is_some_and(|entry| entry.protected) {
                    replay.violations.push(format!("the protected entry {id} is gone or weak at {index}"));
                }
            }
            protected.extend(state.entries().values().filter(|one| one.protected).map(|one| one.id));
            replay.states.push(state.clone());
            replay.replies.push(reply);
        }
        Ok(replay)
    }

    fn place(&mut self, index: u64, batch: &Batch) {
        let Some(first) = batch.operations.first() else { return };
        if let Some(before) = self.places.insert(first.origin.request_id.clone(), index) {
            let tag = &first.origin.request_id;
            self.violations.push(format!("write {tag} was sent once and stands at {before} and {index}"));
        }
    }

    fn contradicts(&self, operation: &Operation) -> Option<String> {
        let tag = &operation.tag;
        match &operation.outcome {
            Outcome::Unknown => None,
            Outcome::Nothing => {
                let index = self.places.get(tag)?;
                Some(format!("write {tag} was reported as not entered, but stands at {index}"))
            }
            Outcome::Wrote(reply) => match self.replies.get(reply.revision as usize) {
                Some(Some((batch, replayed))) => {
                    let same = batch.operations.first().is_some_and(|first| first.origin.request_id == *tag);
                    (!same || replayed != reply).then(|| {
                        format!(
                            "write {tag} was acknowledged at {} with another reply than the log gives",
                            reply.revision
                        )
                    })
                }
                _ => Some(format!("the acknowledged write {tag} is not at {} in the log", reply.revision)),
            },
            Outcome::Read(state) => (self.states.get(state.revision() as usize) != Some(state))
                .then(|| format!("read {tag} saw a state that never was at {}", state.revision())),
        }
    }
}
