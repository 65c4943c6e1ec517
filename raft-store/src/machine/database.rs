//! The sled databases under `db/`: one directory for each generation. A generation is written once as a whole (first
//! start, installed snapshot) and then brought forward in atomic steps. It counts when its mark stands beside it; a
//! crash at any point leaves the old generation or the new one, complete.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use allowlist::{Digest, DomainName, Entry, EntryId, Target};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::codec;
use crate::disk::Disk;
use crate::features::{FeatureLevel, TooNew};
use crate::history::History;
use crate::kept::{Kept, KeptAnswer, KeptName};
use crate::layout::{Joiner, Kind, RecordKey, VERSION_KEY, split};
use crate::snapshot::Content;
use crate::state::{AppliedBatch, EventKind, State};
use crate::types::{LogId, StoredMembership};

const MARK: &str = "complete";
/// Of pages, in memory. They are written once, and read when the store is opened; the state is in memory itself.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// Keys in one step while a whole generation is written; it does not count before its mark, so it need not be one.
const WHOLE_STEP_KEYS: usize = 10_000;
const GIVEN_UP: &str = "the store is closed; the log has it";
/// sled's threads let go of the file lock a moment after the last handle is gone.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// What is written with every step, atomically with the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) applied: Option<LogId>,
    pub(crate) membership: StoredMembership,
    pub(crate) cluster: Option<Uuid>,
    /// Of the published set: proves that what was read is what was written.
    pub(crate) published: Digest,
}

/// Names of what changed since the last step.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dirty {
    entries: BTreeSet<EntryId>,
    domains: BTreeSet<DomainName>,
    tokens: BTreeSet<String>,
    kept: BTreeSet<KeptName>,
}

/// An open generation.
#[derive(Debug)]
pub(crate) struct Database {
    db: sled::Db,
    dir: PathBuf,
    /// Bytes of keys and values, and number of records, when all of it was last written or read.
    measured: (u64, u64),
}

/// Why a generation could not be read.
#[derive(Debug)]
pub(crate) enum LoadError {
    /// A newer program wrote it.
    TooNew(TooNew),
    /// In words.
    Damaged(String),
}

impl std::fmt::Display for LoadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooNew(refusal) => refusal.fmt(f),
            Self::Damaged(reason) => f.write_str(reason),
        }
    }
}

impl Dirty {
    /// Every change of the state has an event that names it; kept answers are named beside.
    pub(crate) fn note(&mut self, applied: &AppliedBatch) {
        applied.events.iter().for_each(|event| self.note_event(&event.kind));
        self.kept.extend(applied.kept.iter().cloned());
    }

    fn note_event(&mut self, event: &EventKind) {
        match event {
            EventKind::EntryAdded(entry) | EventKind::EntryRemoved(entry) => {
                self.entries.insert(entry.id);
                // The resolution came or went with the first or last entry of its domain.
                if let Target::Domain(domain) = &entry.target {
                    self.domains.insert(domain.clone());
                }
            }
            EventKind::EntryUpdated(entry) => {
                self.entries.insert(entry.id);
            }
            EventKind::Resolved(resolved) => {
                self.domains.insert(resolved.domain.clone());
            }
            EventKind::TokenAdded(name) | EventKind::TokenRemoved(name) => {
                self.tokens.insert(name.clone());
            }
            // The cluster's id stands in the meta record, and that and the level are written with each step; the others
            // change nothing.
            EventKind::ClusterInitialised(_)
            | EventKind::FeaturesRaised(_)
            | EventKind::Member(_)
            | EventKind::ProtectedRefused(_) => {}
        }
    }

    /// `other` is the smaller one: `append` would build the whole set anew for each of its keys.
    pub(crate) fn merge(&mut self, other: Self) {
        self.entries.extend(other.entries);
        self.domains.extend(other.domains);
        self.tokens.extend(other.tokens);
        self.kept.extend(other.kept);
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() + self.domains.len() + self.tokens.len() + self.kept.len()
    }
}

impl Database {
    /// Writes the whole of `content` into a new generation under `root` and marks it complete.
    pub(crate) fn create(root: &Path, content: &Content) -> Result<Self, String> {
        Self::create_unless(root, content, &|| false)
    }

    /// The same, and gives up soon after `given_up` says so; then nothing is left of it.
    pub(crate) fn create_unless(
        root: &Path,
        content: &Content,
        given_up: &dyn Fn() -> bool,
    ) -> Result<Self, String> {
        let number = generations(root).map_err(text)?.last().map_or(0, |(number, _)| *number) + 1;
        let dir = root.join(format!("{number:010}"));
        Self::create_at(root, &dir, content, given_up).inspect_err(|_| drop(fs::remove_dir_all(&dir)))
    }

    fn create_at(
        root: &Path,
        dir: &Path,
        content: &Content,
        given_up: &dyn Fn() -> bool,
    ) -> Result<Self, String> {
        let db = guarded(|| open_sled(dir))?;
        let mut database = Self { db, dir: dir.to_owned(), measured: (0, 0) };
        guarded(|| database.fill(content, given_up))?;
        database.measured = guarded(|| database.measure(content))?;
        let mark = File::create(database.dir.join(MARK)).map_err(text)?;
        mark.sync_all().map_err(text)?;
        Disk::default().sync_dir(&database.dir).map_err(text)?;
        Disk::default().sync_dir(root).map_err(text)?;
        Ok(database)
    }

    /// Lets go of the database, and returns when sled's threads have, too (or after a while).
    pub(crate) fn close(self) {
        let Self { db, dir, .. } = self;
        // After a failed write it may panic once more.
        let dropped = guarded(|| {
            drop(db);
            Ok(())
        });
        if let Err(reason) = dropped {
            tracing::warn!(reason, dir = %dir.display(), "close the checkpoint");
        }
        let begun = Instant::now();
        let held = || {
            File::open(dir.join("db"))
                .is_ok_and(|file| matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)))
        };
        while held() && begun.elapsed() < LOCK_PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Opens the generation in `dir` and reads all of it, if a program with the level `known` can.
    pub(crate) fn load(dir: &Path, known: FeatureLevel) -> Result<(Self, Content), LoadError> {
        let db = guarded(|| open_sled(dir)).map_err(LoadError::Damaged)?;
        let mut database = Self { db, dir: dir.to_owned(), measured: (0, 0) };
        let level = guarded(|| database.features()).map_err(LoadError::Damaged)?;
        known.check(level).map_err(LoadError::TooNew)?;
        let content = guarded(|| database.read()).map_err(LoadError::Damaged)?;
        database.measured = guarded(|| database.measure(&content)).map_err(LoadError::Damaged)?;
        Ok((database, content))
    }

    /// Brings the generation to `content`, of which `dirty` is what differs. One atomic batch, on disk on return.
    pub(crate) fn step(&self, content: &Content, dirty: &Dirty) -> Result<(), String> {
        guarded(|| {
            let state = &content.state;
            let mut batch = sled::Batch::default();
            for id in &dirty.entries {
                let record = state.entries().get(id).map(|entry| codec::encode(&**entry)).transpose();
                self.put(&mut batch, &RecordKey::entry(*id), record.map_err(text)?)?;
            }
            for domain in &dirty.domains {
                let record = state
                    .resolutions()
                    .get(domain)
                    .map(|known| codec::encode(&(domain, &**known)))
                    .transpose();
                self.put(&mut batch, &RecordKey::resolution(domain), record.map_err(text)?)?;
                let record =
                    state.histories().get(domain).map(|known| codec::encode(&(domain, &**known))).transpose();
                self.put(&mut batch, &RecordKey::history(domain), record.map_err(text)?)?;
            }
            for name in &dirty.tokens {
                let record = state.tokens().get(name).map(codec::encode).transpose();
                self.put(&mut batch, &RecordKey::token(name), record.map_err(text)?)?;
            }
            for name in &dirty.kept {
                let record = state.kept.get(name).map(|answer| codec::encode(&**answer)).transpose();
                self.put(&mut batch, &RecordKey::kept(name), record.map_err(text)?)?;
            }
            self.put(&mut batch, &RecordKey::meta(), Some(codec::encode(&meta_of(content)).map_err(text)?))?;
            batch.insert(VERSION_KEY, &state.features().0.to_be_bytes());
            self.db.apply_batch(batch).map_err(text)?;
            self.sync()
        })
    }

    /// About how many bytes the keys and values of `content` have.
    pub(crate) fn live_bytes(&self, content: &Content) -> u64 {
        let (bytes, records) = self.measured;
        bytes * records_of(content) / records.max(1)
    }

    /// Bytes of its files.
    pub(crate) fn bytes_on_disk(&self) -> Result<u64, String> {
        guarded(|| self.db.size_on_disk().map_err(text))
    }

    fn measure(&self, content: &Content) -> Result<(u64, u64), String> {
        let mut bytes = 0;
        for item in self.db.iter() {
            let (key, value) = item.map_err(text)?;
            bytes += (key.len() + value.len()) as u64;
        }
        Ok((bytes, records_of(content)))
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn put(&self, batch: &mut sled::Batch, key: &RecordKey, record: Option<Vec<u8>>) -> Result<(), String> {
        let parts = record.map(|record| split(&record)).unwrap_or_default();
        let mut number = 0_u16;
        for part in parts {
            batch.insert(key.part(number), part);
            number = number.checked_add(1).ok_or("a record has too many parts")?;
        }
        // What an older, longer record left.
        while self.db.contains_key(key.part(number)).map_err(text)? {
            batch.remove(key.part(number));
            number = number.checked_add(1).ok_or("a record has too many parts")?;
        }
        Ok(())
    }

    fn fill(&self, content: &Content, given_up: &dyn Fn() -> bool) -> Result<(), String> {
        let state = &content.state;
        let mut whole = Dirty::default();
        let flush_when_full = |whole: &mut Dirty| match whole.len() >= WHOLE_STEP_KEYS {
            true if given_up() => Err(GIVEN_UP.to_owned()),
            true => self.step(content, &std::mem::take(whole)),
            false => Ok(()),
        };
        for domain in state.resolutions().keys() {
            whole.domains.insert(domain.clone());
            flush_when_full(&mut whole)?;
        }
        for name in state.tokens().keys() {
            whole.tokens.insert(name.clone());
            flush_when_full(&mut whole)?;
        }
        for id in state.entries().keys() {
            whole.entries.insert(*id);
            flush_when_full(&mut whole)?;
        }
        for answer in state.kept.answers() {
            whole.kept.insert(KeptName::clone(&answer.name));
            flush_when_full(&mut whole)?;
        }
        self.step(content, &whole)
    }

    /// sled's own flush writes without telling the device (`sync_file_range`): power cuts took everything in 11 of 12
    /// rounds. With this fdatasync after it, in none of 28.
    fn sync(&self) -> Result<(), String> {
        self.db.flush().map_err(text)?;
        File::open(self.dir.join("db")).and_then(|file| file.sync_data()).map_err(text)
    }

    fn features(&self) -> Result<FeatureLevel, String> {
        let version = self.db.get(VERSION_KEY).map_err(text)?.ok_or("it has no data version")?;
        let bytes = version.as_ref().try_into().map_err(|_| "its data version is damaged")?;
        Ok(FeatureLevel(u32::from_be_bytes(bytes)))
    }

    fn read(&self) -> Result<Content, String> {
        let (mut meta, mut resolutions, mut tokens, mut entries) = (None, Vec::new(), Vec::new(), Vec::new());
        let (mut kept, mut histories) = (Vec::new(), Vec::new());
        let mut joiner = Joiner::default();
        for item in self.db.iter() {
            let (key, value) = item.map_err(text)?;
            if key == VERSION_KEY {
                continue;
            }
            let Some((kind, record)) = joiner.push(&key, &value)? else { continue };
            match kind {
                Kind::Meta => meta = Some(codec::decode::<Meta>(&record).map_err(text)?),
                Kind::Entry => entries.push(codec::decode::<Entry>(&record).map_err(text)?),
                Kind::Resolution => resolutions.push(codec::decode(&record).map_err(text)?),
                Kind::Token => tokens.push(codec::decode(&record).map_err(text)?),
                Kind::History => {
                    histories.push(codec::decode::<(DomainName, History)>(&record).map_err(text)?)
                }
                Kind::Kept => kept.push(codec::decode::<KeptAnswer>(&record).map_err(text)?),
            }
        }
        joiner.end()?;
        let meta = meta.ok_or("it has no meta record")?;
        let revision = meta.applied.map_or(0, |id| id.index);
        let mut state = State::restore(meta.cluster, revision, resolutions, tokens, entries)?;
        state.features = self.features()?;
        state.kept = Kept::from_answers(kept);
        state.remember(histories);
        if state.published().digest() != meta.published {
            return Err("what it publishes has another digest than was written".to_owned());
        }
        Ok(Content { state, applied: meta.applied, membership: meta.membership })
    }
}

/// Complete and incomplete generations under `root`, oldest first.
pub(crate) fn generations(root: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for file in fs::read_dir(root)? {
        let path = file?.path();
        if let Some(number) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

/// True when the generation in `dir` was written to its end.
pub(crate) fn is_complete(dir: &Path) -> io::Result<bool> {
    dir.join(MARK).try_exists()
}

/// True when an error in words is that of a full disk. sled's errors can be told apart by their words alone.
pub(crate) fn is_no_space(reason: &str) -> bool {
    reason.contains("os error 28")
        || reason.contains("No space left")
        || reason.contains("StorageFull")
        || reason.contains("no storage space")
}

/// Bytes of the records of `content`, without their keys.
pub(super) fn bytes_of(content: &Content) -> Result<u64, String> {
    let state = &content.state;
    let mut bytes = 0;
    for entry in state.entries().values() {
        bytes += codec::encode(&**entry).map_err(text)?.len();
    }
    for resolution in state.resolutions().values() {
        bytes += codec::encode(&**resolution).map_err(text)?.len();
    }
    for answer in state.kept.answers() {
        bytes += codec::encode(answer).map_err(text)?.len();
    }
    for history in state.histories().values() {
        bytes += codec::encode(&**history).map_err(text)?.len();
    }
    Ok(bytes as u64)
}

fn records_of(content: &Content) -> u64 {
    let state = &content.state;
    let kept = state.kept.answers().count();
    let names = state.resolutions().len() + state.histories().len();
    (state.entries().len() + names + state.tokens().len() + kept + 1) as u64
}

fn meta_of(content: &Content) -> Meta {
    Meta {
        applied: content.applied,
        membership: content.membership.clone(),
        cluster: content.state.cluster(),
        published: content.state.published().digest(),
    }
}

fn open_sled(dir: &Path) -> Result<sled::Db, String> {
    let config = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES);
    let begun = Instant::now();
    loop {
        match config.open() {
            Ok(db) => return Ok(db),
            Err(sled::Error::Io(error))
                if error.to_string().contains("acquire lock") && begun.elapsed() < LOCK_PATIENCE =>
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// sled panics on some damage, and when the disk fails; a panic here is an error like any other.
fn guarded<T>(act: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<&str>().map(|said| (*said).to_owned());
        let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(format!("sled panicked: {}", said.unwrap_or_default()))
    })
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests;
