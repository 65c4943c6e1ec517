//! The file `state`: a whole set.
//!
//! Layout: magic (8 bytes), format version (u32), CRC-32 of the body (u32), length of the body (u64), all little
//! endian; then the body in bincode. The digest of the set stands in the body and is checked against the elements.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use allowlist::{Digest, Element, Revision};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Base, CHECKPOINT, CHECKPOINT_TEMPORARY, Unusable};
use crate::held::Held;

const MAGIC: &[u8; 8] = b"OGSTATE\n";
const VERSION: u32 = 1;
pub(super) const HEADER_BYTES: usize = 24;

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    sequence: u64,
    cluster: Uuid,
    revision: Revision,
    digest: Digest,
    elements: Vec<Element>,
}

/// Reads the checkpoint; `None` when there is none.
pub(super) fn read(path: &Path) -> Result<Option<Base>, Unusable> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Unusable::Io { file: path.display().to_string(), source }),
    };
    decode(&path.display().to_string(), &bytes).map(Some)
}

/// What the bytes of a checkpoint say; `file` is its name in messages.
pub(super) fn decode(file: &str, bytes: &[u8]) -> Result<Base, Unusable> {
    let corrupt = |what: &str| Unusable::Corrupt(format!("{file}: {what}"));
    let (header, body) =
        bytes.split_at_checked(HEADER_BYTES).ok_or_else(|| corrupt("shorter than its header"))?;
    if &header[..8] != MAGIC {
        return Err(corrupt("not a state file of an OutputGuard gateway"));
    }
    let version = u32_at(header, 8);
    if version != VERSION {
        return Err(Unusable::Version { file: file.to_owned(), found: version, known: VERSION });
    }
    let length = u64::from(u32_at(header, 16)) | u64::from(u32_at(header, 20)) << 32;
    if length != body.len() as u64 {
        return Err(corrupt(&format!("{} bytes where its header says {length}", body.len())));
    }
    if crc32fast::hash(body) != u32_at(header, 12) {
        return Err(corrupt("its checksum is wrong"));
    }
    let (body, _): (Body, usize) = bincode::serde::decode_from_slice(body, super::decoding())
        .map_err(|error| corrupt(&error.to_string()))?;
    let held = Held::published(body.cluster, body.revision, body.elements.into_iter().collect());
    if held.digest() != body.digest {
        return Err(corrupt("its digest does not match its elements"));
    }
    Ok(Base { sequence: body.sequence, held })
}

/// Replaces the checkpoint; when this returns it is on disk. Gives its size in bytes.
pub(super) fn write(dir: &Path, sequence: u64, held: &Held) -> io::Result<u64> {
    let bytes = encode(sequence, held)?;
    let temporary = dir.join(CHECKPOINT_TEMPORARY);
    let mut file = File::create(&temporary)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(CHECKPOINT))?;
    File::open(dir)?.sync_all()?;
    Ok(bytes.len() as u64)
}

/// The bytes of a checkpoint.
pub(super) fn encode(sequence: u64, held: &Held) -> io::Result<Vec<u8>> {
    let Some(point) = held.point() else { return Err(io::Error::other("no server confirmed the set")) };
    let body = Body {
        sequence,
        cluster: point.cluster,
        revision: point.revision,
        digest: point.digest,
        elements: held.elements().iter().copied().collect(),
    };
    let body = bincode::serde::encode_to_vec(&body, bincode::config::standard()).map_err(io::Error::other)?;
    Ok(frame(&body))
}

/// A body behind its header.
pub(super) fn frame(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(body).to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// The little-endian number at `at`; the caller made sure that it is there.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}
