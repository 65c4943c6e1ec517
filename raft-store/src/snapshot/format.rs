//! The bytes of a snapshot file. All numbers are little endian.
//!
//! ```text
//! magic     8   "OGSNAP" 0x00, format version 1
//! header    u32 length, u32 CRC32, record Header
//! block*    u32 length packed (never 0), u32 length unpacked (at most 1 MiB), u32 CRC32 of the packed bytes, zstd
//! end       u32 0
//! footer    u32 length, u32 CRC32, record Footer
//! digest    32  SHA-256 of everything before it
//! ```
//! The unpacked blocks, put together, are a sequence of (u32 length, record Item): resolutions by domain, tokens by
//! name, entries by id, kept answers by age, histories by domain (the footer does not count those two). Resolutions come before the entries that own what they publish. Nothing in the file depends on
//! when or where it was written, so two nodes write the same bytes for the same state.

mod sums;

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use allowlist::{Digest as SetDigest, DomainName, Entry};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::Content;
use super::backup::Summary;
use crate::codec::{self, MAX_RECORD_BYTES};
use crate::command::Token;
use crate::disk::Disk;
use crate::features::FeatureLevel;
use crate::history::History;
use crate::kept::{Kept, KeptAnswer};
use crate::state::{Resolution, State};
use crate::types::{LogId, StoredMembership};
use sums::{Summed, Summing};

/// Last byte of the magic.
pub(crate) const FORMAT_VERSION: u8 = 1;
const MAGIC: [u8; 8] = *b"OGSNAP\x00\x01";
/// Bytes of items in one block before it is packed.
const BLOCK_BYTES: usize = 1024 * 1024;
const ZSTD_LEVEL: i32 = 3;
const SHA_BYTES: u64 = 32;
const READ_BUFFER_BYTES: usize = 64 * 1024;

/// What stands before the blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    /// The state's feature level.
    pub(crate) data_version: FeatureLevel,
    pub(crate) cluster: Option<Uuid>,
    pub(crate) last_log_id: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

/// One thing of a state. Append-only.
#[derive(Debug, Deserialize)]
enum Item {
    Resolution(DomainName, Resolution),
    Token(Token),
    Entry(Entry),
    Kept(KeptAnswer),
    History(DomainName, History),
}

/// [`Item`] without owning: the same shape.
#[derive(Debug, Serialize)]
enum ItemRef<'a> {
    Resolution(&'a DomainName, &'a Resolution),
    Token(&'a Token),
    Entry(&'a Entry),
    Kept(&'a KeptAnswer),
    History(&'a DomainName, &'a History),
}

/// What must have been read when all blocks are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Footer {
    resolutions: u64,
    tokens: u64,
    entries: u64,
    published: SetDigest,
}

/// Writes `content` to a new file at `path` and syncs it.
pub(crate) fn write(disk: &Disk, path: &Path, content: &Content) -> io::Result<()> {
    let mut out = Summed { inner: BufWriter::new(disk.create(path)?), sum: Sha256::new() };
    let state = &content.state;
    let header = Header {
        data_version: state.features(),
        cluster: state.cluster(),
        last_log_id: content.applied,
        membership: content.membership.clone(),
    };
    out.write_all(&MAGIC)?;
    write_framed(&mut out, &codec::encode(&header)?)?;
    let mut blocks = BlockWriter { out: &mut out, pending: Vec::with_capacity(BLOCK_BYTES) };
    for (domain, resolution) in state.resolutions() {
        blocks.item(&ItemRef::Resolution(domain, resolution))?;
    }
    for token in state.tokens().values() {
        blocks.item(&ItemRef::Token(token))?;
    }
    for entry in state.entries().values() {
        blocks.item(&ItemRef::Entry(entry))?;
    }
    for answer in state.kept.answers() {
        blocks.item(&ItemRef::Kept(answer))?;
    }
    for (domain, history) in state.histories() {
        blocks.item(&ItemRef::History(domain, history))?;
    }
    blocks.end()?;
    let footer = Footer {
        resolutions: state.resolutions().len() as u64,
        tokens: state.tokens().len() as u64,
        entries: state.entries().len() as u64,
        published: state.published().digest(),
    };
    write_framed(&mut out, &codec::encode(&footer)?)?;
    let digest = out.sum.clone().finalize();
    out.write_all(&digest)?;
    out.inner.into_inner().map_err(|error| error.into_error())?.sync()
}

/// Reads only what stands before the blocks.
pub(crate) fn read_header(file: &File) -> io::Result<Header> {
    read_start(&mut from_start(file))
}

/// Whether it begins as a snapshot of any version does, and which.
pub(crate) fn read_magic(file: &File) -> io::Result<(bool, u8)> {
    let mut magic = [0; 8];
    file.read_exact_at(&mut magic, 0)?;
    Ok(parse_magic(magic))
}

/// As [`read_magic`].
pub(crate) fn parse_magic(magic: [u8; 8]) -> (bool, u8) {
    (magic[..7] == MAGIC[..7], magic[7])
}

/// The header, also of a newer data version.
pub(crate) fn read_any_header(file: &File) -> io::Result<Header> {
    read_any_start(&mut from_start(file))
}

/// What the file says of itself, without unpacking or checking it.
pub(crate) fn read_summary(file: &File) -> io::Result<Summary> {
    let mut input = from_start(file);
    let header = read_start(&mut input)?;
    loop {
        let packed = read_u32(&mut input)?;
        if packed == 0 {
            break;
        }
        // Length unpacked, checksum, bytes.
        let skipped = io::copy(&mut (&mut input).take(8 + u64::from(packed)), &mut io::sink())?;
        if skipped < 8 + u64::from(packed) {
            return Err(damaged("it ends within a block"));
        }
    }
    let footer: Footer = codec::decode(&read_framed(&mut input)?)?;
    let mut sha256 = [0; SHA_BYTES as usize];
    input.read_exact(&mut sha256)?;
    Ok(Summary {
        cluster: header.cluster,
        revision: header.last_log_id.map_or(0, |id| id.index),
        entries: footer.entries,
        tokens: footer.tokens,
        sha256,
    })
}

/// Checks the SHA-256 of the whole file, without unpacking it.
pub(crate) fn verify(file: &File) -> io::Result<Header> {
    verify_sum(file)?;
    read_header(file)
}

/// As [`verify`], for a file of any version.
pub(crate) fn verify_sum(file: &File) -> io::Result<()> {
    let len = file.metadata()?.len();
    let covered = len.checked_sub(SHA_BYTES).ok_or_else(|| damaged("it is too short"))?;
    let mut rest = from_start(file);
    let mut summing = Summing::default();
    io::copy(&mut (&mut rest).take(covered), &mut summing)?;
    let mut stored = Vec::new();
    rest.read_to_end(&mut stored)?;
    if stored != summing.0.finalize().as_slice() {
        return Err(damaged("its SHA-256 does not match"));
    }
    Ok(())
}

/// How much of a file is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Bytes of its blocks, unpacked.
    pub(crate) bytes: u64,
    /// Entries, resolutions, tokens, kept answers and histories together.
    pub(crate) items: u64,
}

/// Reads and checks everything.
pub(crate) fn read(file: &File) -> io::Result<Content> {
    read_within(file, Bounds { bytes: u64::MAX, items: u64::MAX })
}

/// As [`read`], for a file that a stranger may have made.
pub(crate) fn read_within(file: &File, mut bounds: Bounds) -> io::Result<Content> {
    verify(file)?;
    let mut input = from_start(file);
    let header = read_start(&mut input)?;
    let mut blocks =
        BlockReader { input: &mut input, block: Vec::new(), position: 0, ended: false, left: bounds.bytes };
    let (mut resolutions, mut tokens, mut entries) = (Vec::new(), Vec::new(), Vec::new());
    let (mut kept, mut histories) = (Vec::new(), Vec::new());
    while let Some(item) = blocks.item()? {
        bounds.items = bounds.items.checked_sub(1).ok_or_else(|| damaged("it holds too much"))?;
        match item {
            Item::Resolution(domain, resolution) => resolutions.push((domain, resolution)),
            Item::Token(token) => tokens.push(token),
            Item::Entry(entry) => entries.push(entry),
            Item::Kept(answer) => kept.push(answer),
            Item::History(domain, history) => histories.push((domain, history)),
        }
    }
    let footer: Footer = codec::decode(&read_framed(&mut input)?)?;
    let counts = (resolutions.len() as u64, tokens.len() as u64, entries.len() as u64);
    if counts != (footer.resolutions, footer.tokens, footer.entries) {
        return Err(damaged("it does not hold as much as its footer says"));
    }
    let revision = header.last_log_id.map_or(0, |id| id.index);
    let mut state = State::restore(header.cluster, revision, resolutions, tokens, entries)
        .map_err(|error| damaged(&error))?;
    state.features = header.data_version;
    state.kept = Kept::from_answers(kept);
    state.remember(histories);
    if state.published().digest() != footer.published {
        return Err(damaged("what it publishes has another digest than its footer says"));
    }
    Ok(Content { state, applied: header.last_log_id, membership: header.membership })
}

fn read_start(input: &mut impl Read) -> io::Result<Header> {
    let header = read_any_start(input)?;
    FeatureLevel::NEWEST.check(header.data_version).map_err(|refusal| damaged(&refusal.to_string()))?;
    Ok(header)
}

fn read_any_start(input: &mut impl Read) -> io::Result<Header> {
    let mut magic = [0; 8];
    input.read_exact(&mut magic)?;
    if magic != MAGIC {
        return Err(damaged(if magic[..7] == MAGIC[..7] {
            "its format version is not 1"
        } else {
            "it is none"
        }));
    }
    Ok(codec::decode(&read_framed(input)?)?)
}

/// Reads by position, so that any number of readers can share one open file.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(into, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

fn from_start(file: &File) -> BufReader<At<'_>> {
    BufReader::with_capacity(READ_BUFFER_BYTES, At { file, offset: 0 })
}

fn write_framed(out: &mut impl Write, record: &[u8]) -> io::Result<()> {
    out.write_all(&length(record.len())?)?;
    out.write_all(&crc32fast::hash(record).to_le_bytes())?;
    out.write_all(record)
}

fn read_framed(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let (len, sum) = (read_u32(input)?, read_u32(input)?);
    read_checked(input, len as usize, MAX_RECORD_BYTES, sum)
}

fn read_checked(input: &mut impl Read, len: usize, max: usize, sum: u32) -> io::Result<Vec<u8>> {
    if len > max {
        return Err(damaged("a length is too great"));
    }
    let mut bytes = vec![0; len];
    input.read_exact(&mut bytes)?;
    if crc32fast::hash(&bytes) != sum {
        return Err(damaged("a checksum does not match"));
    }
    Ok(bytes)
}

fn read_u32(input: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    input.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

fn length(len: usize) -> io::Result<[u8; 4]> {
    u32::try_from(len).map(u32::to_le_bytes).map_err(|_| damaged("a record of 4 GiB"))
}

fn damaged(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not a valid snapshot: {reason}"))
}

struct BlockWriter<'a, W> {
    out: &'a mut W,
    pending: Vec<u8>,
}

impl<W: Write> BlockWriter<'_, W> {
    fn item(&mut self, item: &ItemRef<'_>) -> io::Result<()> {
        let record = codec::encode(item)?;
        self.bytes(&length(record.len())?)?;
        self.bytes(&record)
    }

    fn bytes(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.pending.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            if self.pending.len() == BLOCK_BYTES {
                self.block()?;
            }
        }
        Ok(())
    }

    fn block(&mut self) -> io::Result<()> {
        let packed = zstd::bulk::compress(&self.pending, ZSTD_LEVEL)?;
        self.out.write_all(&length(packed.len())?)?;
        self.out.write_all(&length(self.pending.len())?)?;
        self.out.write_all(&crc32fast::hash(&packed).to_le_bytes())?;
        self.out.write_all(&packed)?;
        self.pending.clear();
        Ok(())
    }

    fn end(mut self) -> io::Result<()> {
        if !self.pending.is_empty() {
            self.block()?;
        }
        self.out.write_all(&length(0)?)
    }
}

struct BlockReader<'a, R> {
    input: &'a mut R,
    block: Vec<u8>,
    position: usize,
    ended: bool,
    /// Bytes that may still be unpacked.
    left: u64,
}

impl<R: Read> BlockReader<'_, R> {
    /// The next item; `None` after the last one.
    fn item(&mut self) -> io::Result<Option<Item>> {
        if !self.fill()? {
            return Ok(None);
        }
        let len = read_u32(self)? as usize;
        if len > MAX_RECORD_BYTES {
            return Err(damaged("a length is too great"));
        }
        let mut record = vec![0; len];
        self.read_exact(&mut record)?;
        Ok(Some(codec::decode(&record)?))
    }

    /// Makes sure there are bytes in the block; false at the end.
    fn fill(&mut self) -> io::Result<bool> {
        if self.position < self.block.len() {
            return Ok(true);
        }
        if self.ended {
            return Ok(false);
        }
        let packed_len = read_u32(self.input)? as usize;
        if packed_len == 0 {
            self.ended = true;
            return Ok(false);
        }
        let (len, sum) = (read_u32(self.input)? as usize, read_u32(self.input)?);
        if len > BLOCK_BYTES {
            return Err(damaged("a block is too large"));
        }
        self.left = self.left.checked_sub(len as u64).ok_or_else(|| damaged("it holds too much"))?;
        let packed = read_checked(self.input, packed_len, zstd::zstd_safe::compress_bound(BLOCK_BYTES), sum)?;
        self.block = zstd::bulk::decompress(&packed, len)?;
        if self.block.len() != len || len == 0 {
            return Err(damaged("a block has another length than it says"));
        }
        self.position = 0;
        Ok(true)
    }
}

impl<R: Read> Read for BlockReader<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if !self.fill()? {
            return Ok(0);
        }
        let bytes = &self.block[self.position..];
        let count = bytes.len().min(into.len());
        into[..count].copy_from_slice(&bytes[..count]);
        self.position += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
