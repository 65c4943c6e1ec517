//! Going on alone after the majority was lost: the state of this disk becomes the beginning of another cluster.
//!
//! Everything that is in the log counts, also what this node does not know to be committed: a majority that is gone may
//! have acknowledged it. The new cluster and the node have new ids, so that what comes back of the old cluster is
//! refused and can never be taken for this one.
//!
//! The new data is written into a directory beside the old, then the two change places name by name. The file
//! `recovery` says how far that is; it is replaced as a whole after each phase, and each phase may be run again:
//!
//! ```text
//! phase build      recovered/ is written anew from the old data, which is not touched
//! phase set-aside  what belongs to the old cluster moves to lost-<n>/
//! phase install    what is in recovered/ moves to its place
//! ```
//! A crash leaves the old (in the first phase) or the new; [`crate::Store::open`] goes on before it opens anything.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use openraft::storage::RaftLogStorage;
use openraft::{EntryPayload, Membership, RaftLogReader, Vote, vote::RaftLeaderId as _};
use tokio::runtime::Handle;
use uuid::Uuid;

use crate::data_dir::DataDir;
use crate::disk::Disk;
use crate::error::OpenError;
use crate::fatal::FatalHook;
use crate::features::FeatureLevel;
use crate::identity;
use crate::log::LogStore;
use crate::machine::recover;
use crate::snapshot::{Content, Snapshots};
use crate::space::Space;
use crate::types::{LogId, NodeId, NodeInfo, StoredMembership, TypeConfig};

const MARKER: &str = "recovery";
const FIRST_LINE: &str = "outputguard-recovery 1";
/// Where the new data is written.
const SIDE_DIR: &str = "recovered";
/// Where the old data ends, with a number.
const LOST_PREFIX: &str = "lost-";
/// The ids of clusters that this disk's cluster took the place of, one a line.
const SUPERSEDED: &str = "superseded";
/// Everything in a data directory that belongs to one cluster (see [`crate::store`]).
const OF_THE_CLUSTER: [&str; 5] = ["identity", "log", "db", "snapshots", SUPERSEDED];
/// Entries of the log read at a time.
const READ_ENTRIES: u64 = 1_000;

/// What a node that goes on alone becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The cluster whose majority is lost.
    pub lost: Uuid,
    /// The new cluster's id.
    pub cluster: Uuid,
    /// The node's new id.
    pub id: NodeId,
    /// Its name and address.
    pub node: NodeInfo,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Build,
    SetAside(u64),
    Install,
}

/// Makes the next opening of the data directory `dir` turn its content into a cluster of its own. Durable when it
/// returns.
///
/// # Errors
/// What the file system says.
pub fn request(dir: &Path, recovery: &Recovery) -> io::Result<()> {
    write_marker(dir, recovery, &Phase::Build)
}

/// The clusters that this disk's cluster took the place of.
pub(crate) fn superseded(dir: &Path) -> Result<Vec<Uuid>, OpenError> {
    let path = dir.join(SUPERSEDED);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(OpenError::at(path)(error)),
    };
    let ids = text.lines().map(Uuid::from_str).collect::<Result<_, _>>();
    ids.map_err(|error| OpenError::at(path)(io::Error::new(io::ErrorKind::InvalidData, error)))
}

/// Goes on with what [`request`] asked for, if anything. Blocks.
pub(crate) fn finish(dir: &Path, lock: &Arc<DataDir>) -> Result<(), OpenError> {
    let Some((recovery, mut phase)) = read_marker(dir)? else { return Ok(()) };
    tracing::warn!(lost = %recovery.lost, cluster = %recovery.cluster, ?phase, "going on alone as another cluster");
    if phase == Phase::Build {
        build(dir, &recovery, lock)?;
        phase = Phase::SetAside(next_lost(dir).map_err(OpenError::at(dir))?);
        write_marker(dir, &recovery, &phase).map_err(OpenError::at(dir.join(MARKER)))?;
    }
    if let Phase::SetAside(number) = phase {
        let lost = dir.join(format!("{LOST_PREFIX}{number}"));
        Disk::default().create_dir(&lost).map_err(OpenError::at(&lost))?;
        move_names(dir, &lost, OF_THE_CLUSTER.iter().map(|name| (*name).into()))
            .map_err(OpenError::at(&lost))?;
        write_marker(dir, &recovery, &Phase::Install).map_err(OpenError::at(dir.join(MARKER)))?;
    }
    let side = dir.join(SIDE_DIR);
    let names = fs::read_dir(&side).and_then(|files| {
        files.map(|file| Ok(PathBuf::from(file?.file_name()))).collect::<io::Result<Vec<_>>>()
    });
    let names = match names {
        Ok(names) => names,
        // Everything was moved and the empty directory removed before.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(OpenError::at(side)(error)),
    };
    move_names(&side, dir, names.into_iter()).map_err(OpenError::at(dir))?;
    remove_if_there(&side).map_err(OpenError::at(&side))?;
    fs::remove_file(dir.join(MARKER))
        .and_then(|()| Disk::default().sync_dir(dir))
        .map_err(OpenError::at(dir.join(MARKER)))?;
    tracing::warn!(
        cluster = %recovery.cluster,
        node = %format_args!("{:016x}", recovery.id),
        "this node is a cluster of one now; the old data is kept beside the new until somebody removes it"
    );
    Ok(())
}

/// Writes the new data, complete and synced.
fn build(dir: &Path, recovery: &Recovery, lock: &Arc<DataDir>) -> Result<(), OpenError> {
    let failed = |reason: String| OpenError::Recovery { path: dir.join(MARKER), reason };
    let (content, vote) = read_old(dir, recovery, lock)?;
    let side = dir.join(SIDE_DIR);
    remove_if_there(&side).map_err(OpenError::at(&side))?;
    Disk::default().create_dir(&side).map_err(OpenError::at(&side))?;
    // No checkpoint: it is made from the snapshot when the directory is opened.
    let snapshot =
        Snapshots::open(&Disk::default(), &side, &Space::without_limits(&side)?, FeatureLevel::NEWEST)?
            .build(&content);
    snapshot.map_err(|error| failed(format!("write the state: {error}")))?;
    let mut log = LogStore::open(
        &Disk::default(),
        &side,
        None,
        Arc::clone(lock),
        &Space::without_limits(&side)?,
        FatalHook::new(|_| {}),
    )?;
    let saved = Handle::current().block_on(log.save_vote(&vote));
    drop(log);
    saved.map_err(|error| failed(format!("write the log: {error}")))?;
    let mut ids = superseded(dir)?;
    ids.push(recovery.lost);
    let ids: String = ids.iter().map(|id| format!("{id}\n")).collect();
    Disk::default().replace_file(&side.join(SUPERSEDED), ids.as_bytes()).map_err(OpenError::at(&side))?;
    identity::write(&Disk::default(), &side, recovery.id)?;
    Disk::default().sync_dir(&side).and_then(|()| Disk::default().sync_dir(dir)).map_err(OpenError::at(&side))
}

/// The state with everything in the log, as the new cluster's, and the vote it begins with.
fn read_old(
    dir: &Path,
    recovery: &Recovery,
    lock: &Arc<DataDir>,
) -> Result<(Content, crate::types::Vote), OpenError> {
    let failed = |reason: String| OpenError::Recovery { path: dir.join(MARKER), reason };
    let log = LogStore::open(
        &Disk::default(),
        dir,
        identity::read(dir)?,
        Arc::clone(lock),
        &Space::without_limits(dir)?,
        FatalHook::new(|_| {}),
    )?;
    let ends = log.ends();
    let space = Space::without_limits(dir)?;
    let snapshots = Snapshots::open(&Disk::default(), dir, &space, FeatureLevel::NEWEST)?;
    let (mut generation, mut content) =
        recover::recover(dir, ends, &snapshots, &space, FeatureLevel::NEWEST)?;
    generation.close();
    if content.state.cluster().is_some_and(|cluster| cluster != recovery.lost) {
        return Err(failed(format!("the data is not of cluster {}", recovery.lost)));
    }
    let read = Handle::current().block_on(apply_rest(log, &mut content, ends.last));
    let highest_vote = read.map_err(|error| failed(format!("read the log: {error}")))?;
    // A term of its own: no log entry of the old cluster can be taken for one of the new.
    let last = content.applied;
    let term = highest_vote.max(last.map_or(0, |id| id.leader_id.term)) + 1;
    let leader = <TypeConfig as openraft::RaftTypeConfig>::LeaderId::new(term, recovery.id);
    let begin = LogId::new(leader.to_committed(), last.map_or(0, |id| id.index) + 1);
    let membership = Membership::new(
        vec![[recovery.id].into()],
        std::collections::BTreeMap::from([(recovery.id, recovery.node.clone())]),
    )
    .map_err(|error| failed(error.to_string()))?;
    content.state.pass(begin.index);
    content.state.cluster = Some(recovery.cluster);
    content.applied = Some(begin);
    content.membership = StoredMembership::new(Some(begin), membership);
    Ok((content, Vote::new(term, recovery.id)))
}

/// Applies what the log has beyond `content`, and returns the newest term this node has seen.
async fn apply_rest(mut log: LogStore, content: &mut Content, last: Option<LogId>) -> io::Result<u64> {
    let mut reader = log.get_log_reader().await;
    let end = last.map_or(0, |id| id.index + 1);
    loop {
        let next = content.applied.map_or(0, |id| id.index + 1);
        if next >= end {
            break;
        }
        let entries = reader.try_get_log_entries(next..end.min(next + READ_ENTRIES)).await?;
        if entries.first().is_none_or(|first| first.log_id.index != next) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("entry {next} is missing")));
        }
        for entry in entries {
            match &entry.payload {
                EntryPayload::Normal(batch) => drop(content.state.apply(entry.log_id.index, batch)),
                EntryPayload::Blank | EntryPayload::Membership(_) => content.state.pass(entry.log_id.index),
            }
            content.applied = Some(entry.log_id);
        }
    }
    let vote = reader.read_vote().await?;
    Ok(vote.map_or(0, |vote| vote.leader_id.term))
}

/// Moves what is there of `names`, and syncs both directories.
fn move_names(from: &Path, to: &Path, names: impl Iterator<Item = PathBuf>) -> io::Result<()> {
    for name in names {
        match fs::rename(from.join(&name), to.join(&name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Disk::default().sync_dir(to)?;
    if from.try_exists()? { Disk::default().sync_dir(from) } else { Ok(()) }
}

fn remove_if_there(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn next_lost(dir: &Path) -> io::Result<u64> {
    let mut next = 1;
    for file in fs::read_dir(dir)? {
        let name = file?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(LOST_PREFIX)?.parse::<u64>().ok());
        next = next.max(number.map_or(1, |number| number + 1));
    }
    Ok(next)
}

fn write_marker(dir: &Path, recovery: &Recovery, phase: &Phase) -> io::Result<()> {
    Disk::default().replace_file(&dir.join(MARKER), format_marker(recovery, phase).as_bytes())
}

fn format_marker(recovery: &Recovery, phase: &Phase) -> String {
    let Recovery { lost, cluster, id, node } = recovery;
    let phase = match phase {
        Phase::Build => "build".to_owned(),
        Phase::SetAside(number) => format!("set-aside {number}"),
        Phase::Install => "install".to_owned(),
    };
    format!(
        "{FIRST_LINE}\nphase {phase}\nlost {lost}\ncluster {cluster}\nnode {id}\nname {}\naddress {}\n",
        node.name, node.raft_address
    )
}

fn read_marker(dir: &Path) -> Result<Option<(Recovery, Phase)>, OpenError> {
    let path = dir.join(MARKER);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(OpenError::at(path)(error)),
    };
    match parse_marker(&text) {
        Some(parsed) => Ok(Some(parsed)),
        None => Err(OpenError::Recovery { path, reason: "the file cannot be read".to_owned() }),
    }
}

fn parse_marker(text: &str) -> Option<(Recovery, Phase)> {
    let mut lines = text.strip_suffix('\n')?.split('\n');
    if lines.next()? != FIRST_LINE {
        return None;
    }
    let mut value = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix(' ');
    let phase = match value("phase")? {
        "build" => Phase::Build,
        "install" => Phase::Install,
        other => Phase::SetAside(other.strip_prefix("set-aside ")?.parse().ok()?),
    };
    let recovery = Recovery {
        lost: value("lost")?.parse().ok()?,
        cluster: value("cluster")?.parse().ok()?,
        id: value("node")?.parse().ok()?,
        node: NodeInfo { name: value("name")?.to_owned(), raft_address: value("address")?.to_owned() },
    };
    lines.next().is_none().then_some((recovery, phase))
}

#[cfg(test)]
mod tests;
