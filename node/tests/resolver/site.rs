//! A leader with a resolver, and what tests ask of the two.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use allowlist::{DomainName, EntryId, Labels, Ports, Target};
use node::cluster::Cluster;
use node::resolver::{Metrics, Resolver, Settings};
use raft_store::command::{Command, NewEntry, Operation, Origin, Reply};
use raft_store::state::{Resolution, State};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::authority::Authority;
use crate::leader::Leader;

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
pub(crate) const NAME: &str = "api.example.test";

/// A leader with a resolver that is in a hurry.
pub(crate) struct Site {
    leader: Leader,
    pub(crate) metrics: Metrics,
    resolver: tokio::task::JoinHandle<()>,
}

impl Site {
    pub(crate) async fn start(upstreams: &[&Authority]) -> Self {
        Self::start_with(upstreams, |_| {}).await
    }

    pub(crate) async fn start_with(upstreams: &[&Authority], change: impl FnOnce(&mut Settings)) -> Self {
        let addresses: Vec<SocketAddr> = upstreams.iter().map(|authority| authority.address).collect();
        Self::start_at(&addresses, change).await
    }

    /// Whoever answers there.
    pub(crate) async fn start_at(upstreams: &[SocketAddr], change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings {
            upstreams: upstreams.iter().map(|address| (*address).into()).collect(),
            min_interval: Duration::from_millis(20),
            max_interval: Duration::from_millis(100),
            linger: Duration::from_secs(600),
            timeout: Duration::from_secs(1),
            ..Settings::default()
        };
        change(&mut settings);
        let leader = Leader::start().await;
        let metrics = Metrics::new().expect("constant names");
        let resolver = Resolver::new(settings, metrics.clone()).expect("good settings");
        let resolver = tokio::spawn(resolver.run(leader.cluster().clone(), CancellationToken::new()));
        Self { leader, metrics, resolver }
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        self.leader.cluster()
    }

    pub(crate) async fn propose(&self, command: Command) -> Reply {
        let origin = Origin { actor: "a person".to_owned(), ..Origin::default() };
        let operation = Operation { origin, command };
        let reply =
            self.cluster().propose(vec![operation], DEADLINE).await.expect("the cluster takes writes");
        reply.replies.into_iter().next().expect("one reply for one operation")
    }

    pub(crate) async fn add(&self, name: &str) -> EntryId {
        self.add_with(name, |_| {}).await
    }

    pub(crate) async fn add_with(&self, name: &str, change: impl FnOnce(&mut NewEntry)) -> EntryId {
        let mut entry = new_entry(Uuid::now_v7(), name);
        change(&mut entry);
        match self.propose(Command::AddEntry(entry)).await {
            Reply::Added { id, .. } => id,
            other => panic!("the entry was not added: {other:?}"),
        }
    }

    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&State) -> bool) -> Arc<State> {
        let reader = self.cluster().reader();
        let mut revisions = reader.revisions();
        let wait = async {
            loop {
                revisions.borrow_and_update();
                let state = reader.state();
                if holds(&state) {
                    return state;
                }
                revisions.changed().await.expect("the state lives");
            }
        };
        match tokio::time::timeout(DEADLINE, wait).await {
            Ok(state) => state,
            Err(_) => panic!("{what}: not within {DEADLINE:?}; {:?}", self.resolution(NAME)),
        }
    }

    pub(crate) async fn until_addresses(&self, name: &str, wanted: &[&str]) -> Arc<State> {
        self.until(&format!("{name} has {wanted:?}"), |state| addresses(state, name) == wanted).await
    }

    /// Ends the node, and with its leadership the resolver.
    pub(crate) async fn stop(self) {
        self.leader.stop().await;
        let ended = tokio::time::timeout(DEADLINE, self.resolver).await;
        ended.expect("the resolver ends with the cluster").expect("without a panic");
    }

    pub(crate) fn resolution(&self, name: &str) -> Option<Arc<Resolution>> {
        self.cluster().reader().state().resolutions().get(&domain(name)).cloned()
    }
}

/// An entry with a target and nothing else.
pub(crate) fn new_entry(id: Uuid, target: &str) -> NewEntry {
    NewEntry {
        id: EntryId(id),
        target: target.parse::<Target>().expect("a target"),
        ports: Ports::default(),
        protected: false,
        comment: "".into(),
        owner: "".into(),
        ticket: "".into(),
        labels: Labels::default(),
        expires_at_ms: None,
    }
}

pub(crate) fn domain(name: &str) -> DomainName {
    name.parse().expect("a domain name")
}

pub(crate) fn addresses(state: &State, name: &str) -> Vec<String> {
    let resolution = state.resolutions().get(&domain(name));
    resolution.map_or_else(Vec::new, |found| found.addresses.keys().map(ToString::to_string).collect())
}

/// Waits until a name was asked for `more` further times: DNS has been looked at again.
pub(crate) async fn asked_again(authority: &Authority, name: &str, more: usize) {
    let goal = authority.questions(name) + more;
    let wait = async {
        while authority.questions(name) < goal {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.expect("the resolver goes on asking");
}
