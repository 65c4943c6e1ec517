//! A gateway without its socket: frames are put in as bytes.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use allowlist::feed::{Applied, MAX_ELEMENTS_PER_FRAME, SessionStart, ToGateway, Welcome};
use allowlist::{Change, Digest, Element, codec};
use anyhow::{Context, Result, bail, ensure};
use gateway::enforce::{Enforcer, Origin, OwnerThread};
use gateway::feed::session::{Session, Step};
use gateway::firewall::{ElementCounters, Firewall as _, KernelFirewall, KernelOptions};
use gateway::held::Held;
use gateway::state::StateDir;
use lab::Run;
use prometheus::Registry;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use uuid::Uuid;

use crate::path::Path;

const CLUSTER: Uuid = Uuid::from_u128(4);
/// A kernel that takes longer does not answer at all.
const PATIENCE: Duration = Duration::from_secs(120);

/// The station, on the gateway of a row.
pub(super) struct Station {
    pub(super) path: Path,
    pub(super) state: PathBuf,
    enforcer: Enforcer,
    owner: Option<OwnerThread>,
    session: Session,
    applied: watch::Receiver<Option<Applied>>,
    runtime: Runtime,
    revision: u64,
}

impl Station {
    /// With an empty set and a session that waits for a snapshot.
    pub(super) fn start(run: &Run, name: &str) -> Result<Self> {
        let path = Path::build(run, name)?;
        let state = run.directory().join(name);
        let (enforcer, owner) = path.gateway.enter(|| enforcer(&state))?;
        path.set_forwarding()?;
        let (session, _) = enforcer.with_held(|held| Session::begin(name, held));
        let applied = enforcer.applied();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut station =
            Self { path, state, enforcer, owner: Some(owner), session, applied, runtime, revision: 0 };
        let welcome = Welcome {
            cluster: CLUSTER,
            node: "bench".to_owned(),
            revision: 0,
            start: SessionStart::Snapshot,
        };
        station.take(&codec::encode(&ToGateway::Welcome(welcome))?, Instant::now())?;
        Ok(station)
    }

    /// The frames that bring `elements`, sorted, as a whole set, and the revision they lead to.
    pub(super) fn snapshot(&self, elements: &[Element]) -> Result<Frames> {
        let revision = self.revision + 1;
        let parts = elements
            .chunks(MAX_ELEMENTS_PER_FRAME)
            .zip(0..)
            .map(|(elements, part)| ToGateway::SnapshotPart { part, elements: elements.to_vec() });
        let end = ToGateway::SnapshotEnd { revision, digest: Digest::of(elements) };
        let frames = parts.chain([end]).map(|frame| codec::encode(&frame)).collect::<Result<_, _>>()?;
        Ok(Frames { frames, revision })
    }

    /// The frame of one change, and the revision it leads to.
    pub(super) fn change(&self, added: Vec<Element>, revoked: Vec<Element>) -> Result<Frames> {
        let revision = self.revision + 1;
        let change = Change { revision, added, revoked, retired: Vec::new() };
        Ok(Frames { frames: vec![codec::encode(&ToGateway::Change { change, more: false })?], revision })
    }

    /// Time from the arrival of the first frame to the kernel's answer.
    pub(super) fn apply(&mut self, frames: &Frames) -> Result<Duration> {
        let arrived = Instant::now();
        for frame in &frames.frames {
            self.take(frame, arrived)?;
        }
        self.revision = frames.revision;
        let there = |applied: &Option<Applied>| {
            applied.as_ref().is_some_and(|applied| applied.revision >= frames.revision)
        };
        let waiting = self.applied.wait_for(there);
        let waited = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, waiting).await });
        let applied = waited.context("no answer of the kernel")?.context("the owner ended")?.clone();
        let applied = applied.context("no report")?;
        ensure!(applied.refused.is_empty(), "the kernel refused {:?}", applied.refused.first());
        Ok(Duration::from_micros(applied.kernel_us))
    }

    /// All counters, as a scrape reads them.
    pub(super) fn counters(&self) -> Result<Arc<Vec<ElementCounters>>> {
        self.runtime.block_on(self.enforcer.counters()).map_err(anyhow::Error::msg)
    }

    /// Asks the node's next frames to be a new snapshot, as a gateway does that reconnects with a state of no use.
    pub(super) fn reconnect(&mut self) -> Result<()> {
        (self.session, _) = self.enforcer.with_held(|held| Session::begin("bench", held));
        let welcome = Welcome {
            cluster: CLUSTER,
            node: "bench".to_owned(),
            revision: self.revision,
            start: SessionStart::Snapshot,
        };
        self.take(&codec::encode(&ToGateway::Welcome(welcome))?, Instant::now())
    }

    /// Ends it and leaves the row with what its kernel holds, and the state files.
    pub(super) fn stop(mut self) -> (Path, PathBuf) {
        if let Some(owner) = self.owner.take() {
            owner.stop();
        }
        let Self { path, state, .. } = self;
        (path, state)
    }

    fn take(&mut self, frame: &[u8], arrived: Instant) -> Result<()> {
        let frame: ToGateway = codec::decode(frame)?;
        match self.enforcer.with_held(|held| self.session.on_frame(held, frame)) {
            Step::Nothing => {}
            Step::Apply(change) => self.enforcer.apply(&change, arrived),
            Step::Replace(held) => self.enforcer.replace(held, arrived),
            other => bail!("the session wants {other:?}"),
        }
        Ok(())
    }
}

/// Encoded frames, ready to arrive.
#[derive(Debug)]
pub(super) struct Frames {
    frames: Vec<Vec<u8>>,
    revision: u64,
}

/// What the daemon starts, on the calling thread's machine.
fn enforcer(state: &FilePath) -> Result<(Enforcer, OwnerThread)> {
    let mut firewall = KernelFirewall::new(&KernelOptions::default())?;
    firewall.install()?;
    let registry = Registry::new();
    let mut dir = StateDir::open(state)?;
    dir.load()?;
    let store = dir.store(&registry)?;
    Enforcer::start(Box::new(firewall), Held::default(), Origin::Kernel, Some(store), &registry)
}
