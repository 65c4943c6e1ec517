//! Disk use after very many writes that overwrite: the log has to be cut, and what was overwritten given back.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::large::fill;
use crate::contender::connect_everywhere;
use crate::load::{Extent, Numbers, Operation, give_entries, measure};
use crate::outputguard::{COMMENT_BYTES, LIVE_BYTES_PER_ENTRY, OutputGuard};
use crate::report::{Line, Report};
use crate::seat::{NODES, Seat};

/// Entries that live meanwhile.
const LIVE_ENTRIES: u64 = 100_000;
/// The checkpoint follows within this time.
const SETTLING: Duration = Duration::from_secs(15);
/// Each overwrites an entry of its own again and again.
const CLIENTS: usize = 256;
/// `st_blocks` counts in these, bytes.
const BLOCK_BYTES: u64 = 512;

pub(super) async fn run(directory: &Path, writes: u64, report: &mut Report) -> Result<()> {
    let cluster = OutputGuard::start(Seat::on_loopback(), directory).await?;
    let numbers = Numbers::default();
    fill(&cluster, LIVE_ENTRIES, COMMENT_BYTES, &numbers).await?;
    let mut clients = connect_everywhere(&cluster, CLIENTS).await?;
    give_entries(&mut clients, &numbers).await?;
    let sample = measure(&mut clients, Operation::Update, Extent::Count(writes), &numbers).await?;
    tokio::time::sleep(SETTLING).await;
    let live = (LIVE_ENTRIES + CLIENTS as u64) * LIVE_BYTES_PER_ENTRY;
    let used = (0..NODES).map(|node| used_bytes(&cluster.data(node))).collect::<Result<Vec<_>>>()?;
    let most = used.into_iter().max().unwrap_or_default();
    report.set("churn_writes", writes);
    report.set("churn_per_s", sample.per_second.round());
    report.set("churn_live_bytes", live);
    report.set("churn_disk_bytes", most);
    report.result(
        "disk_amplification",
        Line {
            what: format!("disk / live state after {writes} overwrites"),
            result: Some(most as f64 / live as f64),
            ..Line::default()
        },
    );
    Ok(())
}

/// Kept free for bad times, whatever the state's size; not part of what it takes.
const RESERVE: &str = "reserve";

/// What a directory takes from the disk, without the reserve. Files may vanish while they are counted.
fn used_bytes(directory: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let entry = entry?;
        if entry.file_name() == RESERVE {
            continue;
        }
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => sum += used_bytes(&entry.path())?,
            Ok(metadata) => sum += metadata.blocks() * BLOCK_BYTES,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("look at {}", entry.path().display())),
        }
    }
    Ok(sum)
}
