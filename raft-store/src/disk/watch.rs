//! What tests do to a disk: record it, fail it, pretend to sync, and cut its power.
//!
//! From a recorded history any moment's image can be built as a power cut would leave it: what was synced is there; of
//! everything else each name may be there or not, and each 512-byte sector holds the old bytes, the new ones, or, where
//! the file had grown, zeros or rubbish.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::{Op, Permit};

const SECTOR_BYTES: usize = 512;

/// What happened, in order.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Create(PathBuf),
    Write {
        path: PathBuf,
        offset: u64,
        bytes: Vec<u8>,
    },
    SetLen {
        path: PathBuf,
        len: u64,
    },
    Sync(PathBuf),
    /// What was not synced counts as clean from then on, as Linux has it: only writing it again brings it to the disk.
    SyncFailed(PathBuf),
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove(PathBuf),
    SyncDir(PathBuf),
    /// The test says that its request of this number begins …
    Begun(u64),
    /// … or was answered with success.
    Acknowledged(u64),
}

/// Makes an operation fail.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    /// Operations that still succeed.
    pub(crate) after: u64,
    /// Operations that fail then; `u64::MAX` for all of them.
    pub(crate) times: u64,
    pub(crate) kind: io::ErrorKind,
    /// Bytes of a failing write that reach the file all the same.
    pub(crate) short: usize,
}

/// Watches the files below one directory.
#[derive(Debug)]
pub(crate) struct Watch {
    before: BTreeMap<PathBuf, Vec<u8>>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    history: Vec<Event>,
    pretend_syncs: bool,
    fault: Option<Fault>,
}

impl Watch {
    /// What is below `root` now is durable.
    pub(crate) fn new(root: &Path) -> Self {
        let mut before = BTreeMap::new();
        read_tree(root, &mut before);
        Self { before, inner: Mutex::default() }
    }

    /// From now on no sync does anything, and all succeed: the broken build that the tests must find.
    pub(crate) fn pretend_syncs(&self) {
        self.inner.lock().unwrap().pretend_syncs = true;
    }

    pub(crate) fn fail(&self, fault: Fault) {
        self.inner.lock().unwrap().fault = Some(fault);
    }

    pub(crate) fn note(&self, event: Event) {
        self.inner.lock().unwrap().history.push(event);
    }

    pub(crate) fn forget(&self, which: impl Fn(&Event) -> bool) {
        self.inner.lock().unwrap().history.retain(|event| !which(event));
    }

    pub(crate) fn history(&self) -> Vec<Event> {
        self.inner.lock().unwrap().history.clone()
    }

    pub(super) fn permit(&self, op: Op<'_>) -> io::Result<Permit> {
        let mut inner = self.inner.lock().unwrap();
        let Inner { history, fault, .. } = &mut *inner;
        if let Some(fault) = fault {
            if fault.after > 0 {
                fault.after -= 1;
            } else if fault.times > 0 {
                fault.times -= 1;
                let error = io::Error::from(fault.kind);
                if let Op::Sync(path) = op {
                    history.push(Event::SyncFailed(path.to_owned()));
                }
                return match op {
                    Op::Write { .. } => Ok(Permit::Short(fault.short, error)),
                    _ => Err(error),
                };
            }
        }
        let event = match op {
            Op::Create(path) => Event::Create(path.to_owned()),
            Op::Write { path, offset, bytes } => {
                Event::Write { path: path.to_owned(), offset, bytes: bytes.to_owned() }
            }
            Op::SetLen { path, len } => Event::SetLen { path: path.to_owned(), len },
            Op::Sync(_) | Op::SyncDir(_) if inner.pretend_syncs => return Ok(Permit::Skip),
            Op::Sync(path) => Event::Sync(path.to_owned()),
            Op::Rename { from, to } => Event::Rename { from: from.to_owned(), to: to.to_owned() },
            Op::Remove(path) => Event::Remove(path.to_owned()),
            Op::SyncDir(path) => Event::SyncDir(path.to_owned()),
        };
        inner.history.push(event);
        Ok(Permit::Act)
    }

    /// Writes the files below `root` to `image` as a power cut after `history` may leave them.
    pub(crate) fn cut_power(&self, history: &[Event], root: &Path, image: &Path, random: &mut Random) {
        write_tree(self.model(history).cut(random), root, image);
    }

    /// Writes the files below `root` to `image` as a process that was killed after `history` leaves them to the next
    /// one: the page cache is kept. The power of the answer, which watches `image`, was never cut: what was not on disk
    /// is not on disk.
    pub(crate) fn kill(&self, history: &[Event], root: &Path, image: &Path) -> Self {
        let model = self.model(history);
        let cached =
            model.names.iter().map(|(path, inode)| (path.clone(), model.inodes[*inode].cached.clone()));
        write_tree(cached.collect(), root, image);
        let moved = |path: &PathBuf| image.join(path.strip_prefix(root).unwrap());
        let before = self.before.iter().map(|(path, bytes)| (moved(path), bytes.clone())).collect();
        let history = history.iter().map(|event| event.moved(moved)).collect();
        Self { before, inner: Mutex::new(Inner { history, ..Inner::default() }) }
    }

    fn model(&self, history: &[Event]) -> Model {
        let mut model = Model::default();
        for (path, bytes) in &self.before {
            model.names.insert(path.clone(), model.inodes.len());
            model.inodes.push(Inode { durable: bytes.clone(), cached: bytes.clone(), pending: Vec::new() });
        }
        model.durable_names = model.names.clone();
        history.iter().for_each(|event| model.note(event));
        model
    }
}

impl Event {
    fn moved(&self, to: impl Fn(&PathBuf) -> PathBuf) -> Self {
        match self {
            Self::Create(path) => Self::Create(to(path)),
            Self::Write { path, offset, bytes } => {
                Self::Write { path: to(path), offset: *offset, bytes: bytes.clone() }
            }
            Self::SetLen { path, len } => Self::SetLen { path: to(path), len: *len },
            Self::Sync(path) => Self::Sync(to(path)),
            Self::SyncFailed(path) => Self::SyncFailed(to(path)),
            Self::Rename { from, to: target } => Self::Rename { from: to(from), to: to(target) },
            Self::Remove(path) => Self::Remove(to(path)),
            Self::SyncDir(path) => Self::SyncDir(to(path)),
            Self::Begun(number) => Self::Begun(*number),
            Self::Acknowledged(number) => Self::Acknowledged(*number),
        }
    }
}

fn read_tree(dir: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for file in fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        match path.is_dir() {
            true => read_tree(&path, found),
            false => drop(found.insert(path.clone(), fs::read(&path).unwrap())),
        }
    }
}

fn write_tree(files: Vec<(PathBuf, Vec<u8>)>, root: &Path, image: &Path) {
    for (path, bytes) in files {
        let target = image.join(path.strip_prefix(root).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::write(target, bytes).unwrap();
    }
}

/// A file system that forgets.
#[derive(Default)]
struct Model {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    pending_names: Vec<(PathBuf, Option<usize>)>,
}

#[derive(Default)]
struct Inode {
    durable: Vec<u8>,
    /// What whoever reads the file gets.
    cached: Vec<u8>,
    pending: Vec<Change>,
}

enum Change {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

impl Model {
    fn note(&mut self, event: &Event) {
        match event {
            Event::Create(path) => match self.names.get(path) {
                Some(inode) => self.inodes[*inode].change(Change::SetLen(0)),
                None => {
                    let inode = self.inodes.len();
                    self.inodes.push(Inode::default());
                    self.name(path, Some(inode));
                }
            },
            Event::Write { path, offset, bytes } => {
                self.inode(path).change(Change::Write(*offset as usize, bytes.clone()));
            }
            Event::SetLen { path, len } => self.inode(path).change(Change::SetLen(*len as usize)),
            Event::Sync(path) => {
                let inode = self.inode(path);
                for change in std::mem::take(&mut inode.pending) {
                    change.apply(&mut inode.durable);
                }
            }
            Event::SyncFailed(path) => {
                self.inode(path).pending.retain(|change| matches!(change, Change::SetLen(_)));
            }
            Event::Rename { from, to } => {
                let inode = self.names[from];
                self.name(from, None);
                self.name(to, Some(inode));
            }
            Event::Remove(path) => self.name(path, None),
            Event::SyncDir(dir) => {
                let (now, later) = std::mem::take(&mut self.pending_names)
                    .into_iter()
                    .partition(|(path, _)| path.parent() == Some(dir));
                self.pending_names = later;
                put_names(&mut self.durable_names, now);
            }
            Event::Begun(_) | Event::Acknowledged(_) => {}
        }
    }

    fn inode(&mut self, path: &Path) -> &mut Inode {
        &mut self.inodes[self.names[path]]
    }

    fn name(&mut self, path: &Path, inode: Option<usize>) {
        self.pending_names.push((path.to_owned(), inode));
        put_names(&mut self.names, vec![(path.to_owned(), inode)]);
    }

    fn cut(mut self, random: &mut Random) -> Vec<(PathBuf, Vec<u8>)> {
        let lucky: Vec<_> = self.pending_names.into_iter().filter(|_| random.chance(2)).collect();
        put_names(&mut self.durable_names, lucky);
        let inodes: Vec<Vec<u8>> = self.inodes.into_iter().map(|inode| inode.cut(random)).collect();
        self.durable_names.into_iter().map(|(path, inode)| (path, inodes[inode].clone())).collect()
    }
}

fn put_names(names: &mut BTreeMap<PathBuf, usize>, changes: Vec<(PathBuf, Option<usize>)>) {
    for (path, inode) in changes {
        match inode {
            Some(inode) => drop(names.insert(path, inode)),
            None => drop(names.remove(&path)),
        }
    }
}

impl Inode {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.cached);
        self.pending.push(change);
    }

    fn cut(self, random: &mut Random) -> Vec<u8> {
        let mut bytes = self.durable;
        // How many of a hundred unsynced sectors reached the disk.
        let percent = [0, 10, 50, 90, 100][random.below(5)];
        let rubbish = random.chance(4);
        for change in self.pending {
            match change {
                Change::SetLen(_) if random.chance(2) => {}
                Change::SetLen(len) => Change::SetLen(len).apply(&mut bytes),
                Change::Write(offset, new) => {
                    let end = offset + new.len();
                    if bytes.len() < end && random.chance(2) {
                        let old_len = bytes.len();
                        bytes.resize(end, 0);
                        if rubbish {
                            let mut word = random.next().to_le_bytes();
                            for block in bytes[old_len..].chunks_mut(SECTOR_BYTES) {
                                word = (u64::from_le_bytes(word) ^ random.next()).to_le_bytes();
                                let rubbish = word.repeat(SECTOR_BYTES / 8);
                                block.copy_from_slice(&rubbish[..block.len()]);
                            }
                        }
                    }
                    for sector in offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
                        if random.below(100) < percent {
                            let from = (sector * SECTOR_BYTES).max(offset);
                            let to = ((sector + 1) * SECTOR_BYTES).min(end);
                            Change::Write(from, new[from - offset..to - offset].to_vec()).apply(&mut bytes);
                        }
                    }
                }
            }
        }
        bytes
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(offset, new) => {
                let end = offset + new.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*offset..end].copy_from_slice(new);
            }
            Self::SetLen(len) => bytes.resize(*len, 0),
        }
    }
}

/// Numbers that are the same for the same seed (xorshift64*).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// One time in `of`.
    pub(crate) fn chance(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }
}
