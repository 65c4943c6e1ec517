//! A week of churn in accelerated time: the schedule, the judge and the replicated state as they are, against zones that do
//! what zones do, and a model that only knows who gave what when.

mod model;
mod zones;

use std::collections::HashMap;
use std::time::Duration;

use allowlist::DomainName;
use node::resolver::judge::{Memory, Moment, Quorum, Round, Rules, judge};
use node::resolver::schedule::{Intervals, Schedule};
use raft_store::FeatureLevel;
use raft_store::command::{Batch, Command, Operation, Origin, Reply};
use raft_store::state::State;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use uuid::Uuid;

use crate::site::new_entry;
use model::Model;
use zones::{UPSTREAMS, Zone};

const INTERVALS: Intervals = Intervals { min: Duration::from_secs(20), max: Duration::from_secs(60) };
const LINGER: Duration = Duration::from_secs(600);
const WEEK: Duration = Duration::from_hours(7 * 24);
const NAMES: u32 = 6;
const SEED: u64 = 20_261_129;
/// Another node leads so often, on average: nothing that is only in memory survives.
const LEADER_CHANGES_EACH: Duration = Duration::from_hours(9);

/// The replicated state, written to by hand.
struct Store {
    state: State,
    revision: u64,
}

impl Store {
    fn write(&mut self, at_ms: u64, command: Command) -> Reply {
        self.revision += 1;
        let operation = Operation { origin: Origin::default(), command };
        let (_, mut reply) = self.state.apply(self.revision, &Batch { at_ms, operations: vec![operation] });
        reply.replies.remove(0)
    }
}

fn name(number: u32) -> DomainName {
    format!("n{number}.example.com").parse().expect("a domain name")
}

fn shortest_ttl(state: &State, name: &DomainName) -> Option<Duration> {
    let ttl_s = state.resolutions().get(name)?.addresses.values().map(|seen| seen.ttl_s).min()?;
    Some(Duration::from_secs(ttl_s.into()))
}

#[test]
fn a_week_of_churn_loses_leaks_and_writes_nothing_that_the_model_does_not_know() {
    let mut random = StdRng::seed_from_u64(SEED);
    let mut store = Store { state: State::default(), revision: 0 };
    store.write(1, Command::RaiseFeatures(FeatureLevel::NEWEST));
    let rules = Rules {
        linger: LINGER,
        word_counts: LINGER,
        upstreams: UPSTREAMS.map(str::to_owned).into(),
        tells_mixed: true,
        quorum: Quorum::Any,
    };
    let mut zones: HashMap<DomainName, Zone> = HashMap::new();
    let mut models: HashMap<DomainName, Model> = HashMap::new();
    let mut schedule = Schedule::new(INTERVALS);
    let mut memories: HashMap<DomainName, Memory> = HashMap::new();
    for number in 0..NAMES {
        assert!(matches!(
            store.write(
                1,
                Command::AddEntry(new_entry(Uuid::from_u128(number.into()), name(number).as_str()))
            ),
            Reply::Added { .. }
        ));
        schedule.add(&name(number));
        zones.insert(name(number), Zone::new(number, &mut random));
        models.insert(name(number), Model::new(LINGER, INTERVALS.max));
    }
    let (mut now, mut rounds, mut writes, mut leaders) = (Duration::ZERO, 0_u64, 0_u64, 1_u64);
    // Writes that say nothing but who gives addresses now.
    let mut givers_told = 0_u64;
    while now < WEEK {
        let Some(turn) = schedule.take(now) else {
            let next = schedule.next_due().expect("a name is due some time");
            if random.random_bool((next - now).div_duration_f64(LEADER_CHANGES_EACH).min(1.0)) {
                leaders += 1;
                memories.clear();
                schedule = Schedule::new(INTERVALS);
                for (name, model) in &mut models {
                    schedule.resume(name, shortest_ttl(&store.state, name), now, random.random());
                    model.leader_changed(now);
                }
                continue;
            }
            now = next;
            continue;
        };
        rounds += 1;
        let zone = zones.get_mut(&turn.name).expect("each name has one");
        let (v4, v6) = zone.answers(now, &mut random);
        let unix_ms = 1_700_000_000_000 + u64::try_from(now.as_millis()).expect("a week");
        let round = Round { at: Moment { elapsed: now, unix_ms }, v4, v6 };
        let model = models.get_mut(&turn.name).expect("each name has one");
        let stored = store.state.resolutions()[&turn.name].clone();
        let memory = memories.entry(turn.name.clone()).or_default();
        let verdict = judge(&round, &stored, memory, &rules);
        if let Some(update) = verdict.update {
            let command = Command::SetResolution { domain: turn.name.clone(), resolution: update };
            assert_eq!(store.write(unix_ms, command), Reply::Done, "a write that changes nothing");
        }
        let after = store.state.resolutions()[&turn.name].clone();
        let same_addresses = after.addresses.keys().eq(stored.addresses.keys());
        if same_addresses && after.status == stored.status && after.chain == stored.chain {
            givers_told += u64::from(after != stored);
        } else {
            writes += 1;
        }
        model.round(&round, &stored, &after);
        schedule.finished(turn, verdict.again, now, random.random());
    }
    let changes: u64 = models.values().map(Model::changes).sum();
    let events: u64 = zones.values().map(Zone::events).sum();
    assert!(rounds > u64::from(NAMES) * 7 * 24 * 60, "each name is asked once a minute at least: {rounds}");
    assert!(writes <= changes, "{writes} writes for {changes} changes");
    let tens_of_minutes = WEEK.as_secs() / 600;
    let bound = u64::from(NAMES) * (tens_of_minutes + leaders);
    assert!(givers_told <= bound, "{givers_told} writes of givers, one in ten minutes makes {bound}");
    assert!(events > 200, "{events} things happened to the zones");
    let retired: u64 = models.values().map(Model::retired).sum();
    let kept: u64 = models.values().map(Model::kept_through_trouble).sum();
    assert!(retired > 100 && kept > 100, "the week must hold something: {retired} retired, {kept} kept");
}
